//! What lies before every format: the bytes of a file.

use std::io::BufRead;
use std::path::PathBuf;

/// Bytes of a file's beginning that tell its format.
pub const START: usize = 512;

/// What a file holds, decompressed.
pub struct Content<'a> {
    /// From the first byte on.
    pub stream: Box<dyn BufRead + 'a>,
    /// The file, where it is no member of an archive: its voxels may be in others beside it.
    pub path: Option<PathBuf>,
}
