//! The files below a folder, sorted into what can be a scan and what cannot.

use super::{Problem, Source, Subject};
use crate::data::formats::nifti::{header_stem, voxels_stem};
use crate::data::formats::{self, stem};
use anyhow::Result;
use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// A file that is a scan by its name.
pub struct Scan {
    pub path: PathBuf,
    /// Folders between the root and the file.
    pub folders: Vec<String>,
    /// File name without extension.
    pub stem: String,
}

impl Scan {
    pub fn source(&self) -> Source {
        Source::File(self.path.clone())
    }

    /// What the file's name ends in after the stem, e.g. `.nii.gz`.
    pub fn ending(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        name[self.stem.len()..].to_string()
    }

    /// Why a link is no scan.
    pub fn broken(&self) -> String {
        format!("a link to {}, which is not there; get the file first", self.path.read_link().unwrap_or_default().display())
    }

    /// Name of the folder that holds the file, which may be the root.
    pub fn parent(&self) -> &str {
        self.path.parent().and_then(Path::file_name).and_then(|n| n.to_str()).unwrap_or_default()
    }
}

/// The files of one subject as they turn up.
#[derive(Clone)]
pub struct Found<'a> {
    /// One a channel.
    pub channels: Vec<Option<&'a Scan>>,
    pub label: Option<&'a Scan>,
}

impl<'a> Found<'a> {
    pub fn none(channels: usize) -> Self {
        Found { channels: vec![None; channels], label: None }
    }

    /// The subject, if every channel is there; otherwise a problem that names the missing ones.
    pub fn subject(&self, id: &str, name: impl Fn(usize) -> String, problems: &mut Vec<Problem>) -> Option<Subject> {
        let Some(first) = self.channels.iter().flatten().next() else {
            problems.extend(self.label.map(|label| Problem::of_labels(&label.path, "label without a scan")));
            return None;
        };
        let missing: Vec<String> = (0..self.channels.len()).filter(|&c| self.channels[c].is_none()).map(name).collect();
        if !missing.is_empty() {
            problems.push(Problem::lacking(&first.path, id, missing));
            return None;
        }
        Some(self.of_those_there(id))
    }

    fn of_those_there(&self, id: &str) -> Subject {
        let channels = self.channels.iter().flatten().map(|s| s.source()).collect();
        Subject { id: id.into(), channels, label: self.label.map(Scan::source), ..Subject::default() }
    }

    /// The subject with the channels that are there, by their names among `names`; a problem if it has none.
    pub fn partial(&self, id: &str, names: &[String], problems: &mut Vec<Problem>) -> Option<Subject> {
        let there = self.channels.iter().zip(names).filter(|(scan, _)| scan.is_some());
        let contrasts: Vec<String> = there.map(|(_, name)| name.clone()).collect();
        if contrasts.is_empty() {
            return self.subject(id, |c| names[c].clone(), problems);
        }
        Some(Subject { contrasts, ..self.of_those_there(id) })
    }
}

/// Everything below a folder but hidden files (`.name`, macOS's `._name`) and hidden folders.
pub struct Files {
    pub root: PathBuf,
    /// In the order of their paths.
    pub scans: Vec<Scan>,
    /// Links whose file is not there, as of data sets that are fetched file by file.
    pub broken: Vec<Scan>,
    pub zips: Vec<PathBuf>,
    pub others: Vec<PathBuf>,
    /// Folders that cannot be listed, halves of `.hdr`/`.img` pairs.
    pub problems: Vec<Problem>,
}

impl Files {
    /// Walks the folder, following links.
    pub fn below(root: &Path) -> Result<Files> {
        let mut files =
            Files { root: root.into(), scans: vec![], broken: vec![], zips: vec![], others: vec![], problems: vec![] };
        let hidden = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
        let walk = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
        let mut images = vec![];
        for entry in walk.filter_entry(|e| e.depth() == 0 || !hidden(e.file_name())) {
            match entry {
                Ok(entry) if entry.file_type().is_dir() => {}
                Ok(entry) => files.add(entry.into_path(), &mut images),
                Err(error) => {
                    let broken = error.io_error().is_some_and(|e| e.kind() == ErrorKind::NotFound);
                    match error.path().filter(|path| broken && path.is_symlink()) {
                        Some(path) if stem(path).is_some() => files.broken.extend(files.scan(path.into())),
                        // What is no scan is not missed.
                        Some(path) => files.add(path.into(), &mut images),
                        None => files.problems.push(Problem::new(error.path().unwrap_or(root), error.to_string())),
                    }
                }
            }
        }
        files.pair(images);
        files.take_voxels();
        Ok(files)
    }

    /// Sorts one file in; `images`: the `.img` files.
    fn add(&mut self, path: PathBuf, images: &mut Vec<PathBuf>) {
        if stem(&path).is_some() {
            self.scans.extend(self.scan(path));
        } else if path.extension().is_some_and(|found| found.eq_ignore_ascii_case("zip")) {
            self.zips.push(path);
        } else if voxels_stem(&path).is_some() {
            images.push(path);
        } else {
            self.others.push(path);
        }
    }

    fn scan(&self, path: PathBuf) -> Option<Scan> {
        let below = path.strip_prefix(&self.root).unwrap_or(&path);
        let folders = below.parent().into_iter().flat_map(Path::components);
        let folders = folders.map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
        Some(Scan { stem: stem(&path)?, folders, path })
    }

    /// Takes out headers without voxels and voxels without a header.
    fn pair(&mut self, images: Vec<PathBuf>) {
        let voxels: HashSet<&str> = images.iter().filter_map(|path| voxels_stem(path)).collect();
        let headers: HashSet<String> = self.scans.iter().filter_map(|s| header_stem(&s.path)).map(str::to_string).collect();
        self.scans.retain(|scan| {
            let whole = header_stem(&scan.path).is_none_or(|stem| voxels.contains(stem));
            if !whole {
                self.problems.push(Problem::new(&scan.path, "a .hdr header without its .img beside it"));
            }
            whole
        });
        for image in images.iter().filter(|path| voxels_stem(path).is_some_and(|stem| !headers.contains(stem))) {
            self.problems.push(Problem::new(image, "an .img file without its .hdr beside it"));
        }
    }

    /// Takes the files that hold voxels of the scans out of those that are none.
    fn take_voxels(&mut self) {
        if !self.others.is_empty() {
            let voxels: HashSet<PathBuf> = self.scans.iter().flat_map(|scan| formats::beside(&scan.path)).collect();
            self.others.retain(|path| !voxels.contains(path));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.scans.is_empty()
            && self.zips.is_empty()
            && self.others.is_empty()
            && self.problems.is_empty()
            && self.broken.is_empty()
    }

    /// The files that are no scans, as [`super::Dataset::ignored`]; the layout's own description is none of them.
    pub fn no_scans(&self, with_zips: bool) -> Vec<Problem> {
        let own = self.root.join(super::description::NAME);
        let zips = self.zips.iter().filter(|_| with_zips);
        let others = self.others.iter().filter(|p| **p != own);
        let reason = |path: &Path| formats::foreign(path).unwrap_or("not a scan".into());
        zips.chain(others).map(|p| Problem::new(p, reason(p))).collect()
    }
}
