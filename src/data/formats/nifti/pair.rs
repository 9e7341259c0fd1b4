//! The two files of a pair: `.hdr` with the header, `.img` with the voxels, each plain or compressed.

use crate::data::formats::compression;
use crate::data::names;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

const HEADER: &str = ".hdr";
const VOXELS: &str = ".img";

/// The file with the header: `path` itself, or for an `.img` file the `.hdr` beside it.
pub fn header_file(path: &Path) -> Result<PathBuf> {
    match voxels_stem(path) {
        Some(stem) => beside(stem, HEADER),
        None => Ok(path.to_path_buf()),
    }
}

/// The file with the voxels of a pair whose header is `path`.
pub fn voxels_file(path: &Path) -> Result<PathBuf> {
    let Some(stem) = header_stem(path) else {
        bail!("its header says that the voxels are in an .img file beside it, which needs a name that ends in .hdr or .img");
    };
    beside(stem, VOXELS)
}

/// What the two paths of a pair have in common, of the header's.
pub fn header_stem(path: &Path) -> Option<&str> {
    stem(path, HEADER)
}

/// As [`header_stem`], of the path of the voxels.
pub fn voxels_stem(path: &Path) -> Option<&str> {
    stem(path, VOXELS)
}

/// Path without an ending, and without what says that it is compressed.
fn stem<'a>(path: &'a Path, ending: &str) -> Option<&'a str> {
    names::strip_ending(compression::strip_ending(path.to_str()?), ending)
}

/// The file of this stem and ending that is there.
fn beside(stem: &str, ending: &str) -> Result<PathBuf> {
    let endings = [ending.to_string(), ending.to_uppercase()];
    let names = endings.iter().flat_map(|ending| compression::candidates(&format!("{stem}{ending}")).collect::<Vec<_>>());
    let found = names.map(PathBuf::from).find(|path| path.is_file());
    found.with_context(|| format!("expected {stem}{ending} or {stem}{ending}.gz beside it, found neither"))
}
