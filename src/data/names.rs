//! Names: of files without their endings, and of many subjects in a message.

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
