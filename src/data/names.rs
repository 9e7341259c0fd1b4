//! Names: of files without their endings, and of many subjects in a message.

use std::path::Path;

/// The name of a NIfTI file without its extension, whose case does not matter; `None` for any other file.
pub fn stem(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy();
    [".nii.gz", ".nii", ".hdr"].iter().find_map(|ending| strip_ending(&name, ending).map(str::to_owned))
}

/// `name` without `ending` (ASCII, any case), if something is left.
pub fn strip_ending<'a>(name: &'a str, ending: &str) -> Option<&'a str> {
    let at = name.len().checked_sub(ending.len()).filter(|at| *at > 0 && name.is_char_boundary(*at))?;
    name[at..].eq_ignore_ascii_case(ending).then_some(&name[..at])
}

/// Names that a message shows before it only counts.
const SHOWN: usize = 8;

/// The first of these names, for a message.
pub fn some(names: &[&str]) -> String {
    format!("{}{}", names[..names.len().min(SHOWN)].join(", "), if names.len() > SHOWN { ", ..." } else { "" })
}
