//! Formats that are not read: known by a file's first bytes or its name, and named with the way to convert them.

use super::super::names::strip_ending;
use super::compression::{self, decompressed};
use super::content::START;
use std::fs::File;
use std::io::Read;
use std::path::Path;

struct Foreign {
    /// With its article.
    name: &'static str,
    endings: &'static [&'static str],
    /// Bytes at a place of the file.
    begins: &'static [(usize, &'static [u8])],
    /// What to do.
    way: &'static str,
}

const WAYS: [Foreign; 16] = [
    Foreign {
        name: "a DICOM file among others",
        endings: &[".dcm", ".ima"],
        begins: &[(128, b"DICM")],
        way: "give the folder of its series alone, or --layout dicom to leave out the others",
    },
    Foreign {
        name: "a MINC file",
        endings: &[".mnc", ".mnc2", ".minc"],
        begins: &[(0, b"CDF\x01"), (0, b"CDF\x02"), (0, b"\x89HDF\r\n\x1a\n")],
        way: "convert it to NIfTI, e.g. `mnc2nii IN.mnc OUT.nii`, or with nibabel",
    },
    Foreign {
        name: "a Philips PAR/REC file",
        endings: &[".par", ".rec"],
        begins: &[(0, b"# === DATA DESCRIPTION FILE")],
        way: "convert both to NIfTI, e.g. `dcm2niix IN.PAR`, or nibabel's `parrec2nii`",
    },
    Foreign {
        name: "an AFNI file",
        endings: &[".head", ".brik"],
        begins: &[(0, b"\ntype"), (0, b"\n\ntype"), (0, b"type  =")],
        way: "convert both to NIfTI, e.g. `3dAFNItoNIFTI IN+orig`",
    },
    Foreign {
        name: "an MRtrix file",
        endings: &[".mif", ".mih"],
        begins: &[(0, b"mrtrix image")],
        way: "convert it to NIfTI, e.g. `mrconvert IN.mif OUT.nii.gz`",
    },
    Foreign { name: "an ECAT file", endings: &[], begins: &[(0, b"MATRIX7")], way: "convert it to NIfTI, e.g. with nibabel" },
    Foreign {
        name: "a FreeSurfer surface",
        endings: &[],
        begins: &[(0, b"\xff\xff\xfe"), (0, b"\xff\xff\xff")],
        way: "it holds a mesh, no volume",
    },
    Foreign {
        name: "a GIFTI surface",
        endings: &[".gii"],
        begins: &[(0, b"<?xml")],
        way: "it holds a mesh or values on it, no volume",
    },
    Foreign {
        name: "an array of NumPy",
        endings: &[".npy", ".npz"],
        begins: &[(0, b"\x93NUMPY")],
        way: "it says no spacing; save it as NIfTI with its affine, e.g. with nibabel",
    },
    Foreign {
        name: "a PNG photograph under another name",
        endings: &[],
        begins: &[(0, b"\x89PNG")],
        way: "give it a name that ends in .png",
    },
    Foreign {
        name: "a JPEG photograph under another name",
        endings: &[],
        begins: &[(0, b"\xff\xd8\xff")],
        way: "give it a name that ends in .jpg",
    },
    Foreign {
        name: "a TIFF photograph under another name",
        endings: &[],
        begins: &[(0, b"II*\0"), (0, b"MM\0*")],
        way: "give it a name that ends in .tif",
    },
    Foreign {
        name: "a zip archive",
        endings: &[],
        begins: &[(0, b"PK\x03\x04")],
        way: "unpack it, or list ARCHIVE.zip:MEMBER in a manifest",
    },
    Foreign {
        name: "compressed with xz",
        endings: &[".xz"],
        begins: &[(0, b"\xfd7zXZ\0")],
        way: "unpack it with `xz -d`, or compress it with gzip",
    },
    Foreign {
        name: "a pointer to a file that was not fetched",
        endings: &[],
        begins: &[(0, b"version https://git-lfs"), (0, b"/annex/objects/"), (0, b".git/annex/objects/")],
        way: "get the file first, with `git lfs pull` or `git annex get`",
    },
    Foreign {
        name: "a web page",
        endings: &[],
        begins: &[(0, b"<!DOCTYPE"), (0, b"<!doctype"), (0, b"<html"), (0, b"<HTML")],
        way: "the download failed; get the file again",
    },
];

impl Foreign {
    fn says(&self) -> String {
        format!("{}, which is not read: {}", self.name, self.way)
    }
}

/// What a file is that begins with these bytes, if it is known not to be read.
pub fn by_content(start: &[u8]) -> Option<String> {
    let begins = |&(at, bytes): &(usize, &[u8])| start.get(at..).is_some_and(|start| start.starts_with(bytes));
    WAYS.iter().find(|foreign| foreign.begins.iter().any(begins)).map(Foreign::says)
}

/// As [`by_content`], of a file.
pub fn of_file(path: &Path) -> Option<String> {
    // A pipe would be waited for.
    let path = Some(path).filter(|path| path.is_file())?;
    let mut start = vec![];
    decompressed(File::open(path).ok()?).ok()?.take(START as u64).read_to_end(&mut start).ok()?;
    by_content(&start)
}

/// What a file of this name is, if it is known not to be read.
pub fn by_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy();
    let of = |name: &str| WAYS.iter().find(|foreign| foreign.endings.iter().any(|ending| strip_ending(name, ending).is_some()));
    of(&name).or_else(|| of(compression::strip_ending(&name))).map(Foreign::says)
}
