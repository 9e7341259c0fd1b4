//! Inputs of `predict`: files, datasets or a store, each as a preprocessed scan and the way back to its file.

use crate::data::Scans;
use crate::data::formats::dicom::{self, Arranged};
use crate::data::formats::{self, Header, image};
use crate::data::layouts::columns::{Column, Value};
use crate::data::layouts::{self, Dataset, Labels, Problem, Reading, Source, Subject};
use crate::data::preprocess::undo::{Back, Brought, Origin};
use crate::data::preprocess::{Metadata, Plan, Prepared, Settings, prepare};
use crate::data::preprocess::{memory, spool};
use crate::data::slices::Slices;
use crate::data::store::targets::Known;
use crate::data::store::{Store, is_store};
use crate::data::volume::Affine;
use crate::dim::voxels;
use crate::predict::window::{Forward, Window, order};
use crate::print::note;
use crate::run::input::positions;
use anyhow::{Context, Result, bail, ensure};
use ndarray::{Array4, Axis};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// The scans of one `--input`.
pub enum Inputs {
    Files {
        subjects: Vec<Subject>,
        plan: Box<Plan>,
        /// Names of the classes of whole scans, where these have any.
        classes: Option<Vec<String>>,
        /// Those whose values scans have.
        columns: Vec<Column>,
        /// What looks like a scan and cannot be used.
        problems: Vec<Problem>,
    },
    Store {
        store: Store,
        /// Positions in the store of the model's channels.
        channels: Vec<usize>,
    },
}

/// A scan as the network takes it, and the way back.
pub struct PreparedScan {
    /// `[C, D, H, W]`.
    pub image: Array4<f32>,
    pub origin: Origin,
    /// Of the file in whose space the prediction is written.
    pub header: Header,
    /// The file is gone, and the header is made from what the store keeps of it.
    pub made_header: bool,
}

impl Inputs {
    /// Opens a photograph, a scan's file, several of them separated by commas (one a channel, in the model's order), a store, or a folder or
    /// manifest in any layout. `channels` and `settings` are the model's; no channels: whatever the scans have.
    ///
    /// Errors: what cannot be opened, a channel that is missing, a store that was preprocessed in another way.
    pub fn open(input: &str, reading: Reading, channels: &[String], settings: &Settings) -> Result<Inputs> {
        let layout = reading.layout;
        let path = Path::new(input);
        let files: Vec<PathBuf> = if path.exists() { vec![path.into()] } else { input.split(',').map(PathBuf::from).collect() };
        let scans = files.iter().filter(|file| stem(file).is_some() && !file.is_dir()).count();
        if scans == files.len() {
            ensure!(layout.is_none(), "--layout is for folders and manifests, found the file {}", files[0].display());
            ensure!(
                !reading.dicom.is_given(),
                "--series and --patient-ids are for folders, found the file {}",
                files[0].display()
            );
            return Inputs::files(files, channels, settings);
        }
        ensure!(files.len() == 1, "{input}: expected scans between the commas, or one folder, manifest or store");
        if is_store(path) {
            ensure!(!reading.dicom.is_given(), "--series and --patient-ids are for folders of DICOM, found the store {input}");
            return Inputs::store(path, channels, settings);
        }
        let reading = Reading { labels: Labels::Unwanted, volumes: settings.volumes, channels, ..reading };
        let mut dataset = layouts::open_as(path, reading)?;
        if dataset.is_photographs() && dataset.channels.len() == 1 && channels.len() == 3 {
            note!("grey photographs for a network of colour ones: each is taken for three equal channels");
            dataset.channels = channels.to_vec();
        }
        let wanted = if channels.is_empty() { &dataset.channels } else { channels };
        let plan = Box::new(Plan {
            settings: settings.clone(),
            channels: channels_of(wanted, &dataset.channels).with_context(|| input.to_string())?,
            available: std::mem::take(&mut dataset.channels),
            labels: None,
        });
        let Dataset { subjects, classes, columns, problems, .. } = dataset;
        Ok(Inputs::Files { subjects, plan, classes, columns: columns.kept, problems })
    }

    /// One scan, in one file or in one for each channel; its id is the first file's name.
    fn files(files: Vec<PathBuf>, channels: &[String], settings: &Settings) -> Result<Inputs> {
        let source = Source::File(files[0].clone());
        let photograph = source.is_image();
        let found = match files.len() {
            1 if photograph => image::channels(&files[0])?,
            1 if settings.volumes.are_channels() => source.read_header()?.channels,
            n => n,
        };
        let unnamed: Vec<String> = (0..found).map(|c| c.to_string()).collect();
        let channels = if channels.is_empty() { &unnamed } else { channels };
        ensure!(
            files.len() == 1 || files.len() == channels.len(),
            "{} files, expected one of {} channels, or one for each: {}",
            files.len(),
            channels.len(),
            channels.join(", ")
        );
        if let [file] = &files[..] {
            // A grey photograph counts for a colour one.
            ensure!(
                found == channels.len() || photograph && (found, channels.len()) == (1, 3),
                "{}: {found} channels, expected {} ({})",
                file.display(),
                channels.len(),
                channels.join(", ")
            );
        }
        let id = stem(&files[0]).expect("looked at before");
        let plan = Box::new(Plan {
            settings: settings.clone(),
            available: channels.to_vec(),
            channels: (0..channels.len()).collect(),
            labels: None,
        });
        let channels = files.into_iter().map(Source::File).collect();
        let subjects = vec![Subject { id, channels, ..Subject::default() }];
        Ok(Inputs::Files { subjects, plan, classes: None, columns: vec![], problems: vec![] })
    }

    fn store(path: &Path, channels: &[String], settings: &Settings) -> Result<Inputs> {
        let store = Store::open(path)?;
        let found = &store.index().settings;
        ensure!(
            found == settings,
            "{}: preprocessed with {}, but the model was trained on scans preprocessed with {}",
            path.display(),
            json!(found),
            json!(settings)
        );
        let channels = channels_of(channels, &store.index().channels).with_context(|| path.display().to_string())?;
        Ok(Inputs::Store { store, channels })
    }

    /// Names of the channels that are taken.
    pub fn channels(&self) -> Vec<String> {
        match self {
            Inputs::Files { plan, .. } => plan.names(),
            Inputs::Store { store, channels } => channels.iter().map(|&c| store.index().channels[c].clone()).collect(),
        }
    }

    /// Ids of the scans; a `/` in one separates person and scan.
    pub fn ids(&self) -> Vec<&str> {
        match self {
            Inputs::Files { subjects, .. } => subjects.iter().map(|s| s.id.as_str()).collect(),
            Inputs::Store { store, .. } => store.ids().iter().map(String::as_str).collect(),
        }
    }

    /// What looked like scans and is none of [`Inputs::ids`].
    pub fn problems(&self) -> &[Problem] {
        match self {
            Inputs::Files { problems, .. } => problems,
            Inputs::Store { .. } => &[],
        }
    }

    /// The files that a scan is read from, which a prediction must not replace.
    pub fn sources(&self, scan: usize) -> Vec<&Path> {
        let paths = |source| match source {
            &Source::File(ref path) | &Source::Zip { archive: ref path, .. } => vec![path.as_path()],
            Source::Series(series) => series.files().collect(),
        };
        match self {
            Inputs::Files { subjects, .. } => {
                subjects[scan].channels.iter().chain(&subjects[scan].label).flat_map(paths).collect()
            }
            Inputs::Store { .. } => vec![],
        }
    }

    /// As [`Inputs::load`], but the image alone, `[C, D, H, W]`: photographs have no way back.
    pub fn image(&self, scan: usize, tell: &dyn Fn(&str)) -> Result<Array4<f32>> {
        self.marked_image(scan, tell).map(|(image, _)| image)
    }

    /// As [`Inputs::image`], and by what the scan is known again, see [`Entry::marks`](crate::data::store::Entry::marks).
    pub fn marked_image(&self, scan: usize, tell: &dyn Fn(&str)) -> Result<(Array4<f32>, Vec<String>)> {
        match self {
            Inputs::Files { subjects, plan, .. } => {
                let prepared = prepared(&subjects[scan], plan, tell)?;
                Ok((prepared.image, prepared.images))
            }
            Inputs::Store { store, channels } => {
                let marks = store.index().subjects[scan].marks().map(str::to_owned).collect();
                Ok((stored(store, scan, channels)?, marks))
            }
        }
    }

    /// What the name of a scan's segmentation ends in: it is of the scan's own format. A file that cannot be read is found when it is loaded.
    pub fn written(&self, scan: usize) -> &'static str {
        let header = match self {
            Inputs::Files { subjects, plan, .. } => first(&subjects[scan], plan).read_header(),
            Inputs::Store { store, .. } => metadata(store, scan).and_then(|metadata| source(&metadata)?.read_header()),
        };
        header.map_or(formats::nifti::FORMAT.written, |header| header.format.written)
    }

    /// The DICOM series in whose grid a scan's segmentation lies. Errors: a scan that is none.
    pub fn series(&self, scan: usize) -> Result<Arranged> {
        let Inputs::Files { subjects, plan, .. } = self else {
            bail!("a store, which does not keep what its DICOM files are called: give their folder");
        };
        let source = first(&subjects[scan], plan);
        match source {
            Source::Series(series) => Ok(series.slices.clone()),
            Source::File(path) if source.read_header()?.format == &dicom::FORMAT => {
                dicom::arrange_file(dicom::Place::File(path.clone())).with_context(|| path.display().to_string())
            }
            _ => bail!("{}: no DICOM, whose series a segmentation object refers to", source.display()),
        }
    }

    /// Reads a scan and preprocesses it as those of the training; `tell` is given a line if that takes much memory. Errors name the file.
    pub fn load(&self, scan: usize, tell: &dyn Fn(&str)) -> Result<PreparedScan> {
        match self {
            Inputs::Files { subjects, plan, .. } => {
                let subject = &subjects[scan];
                let prepared = prepared(subject, plan, tell)?;
                let metadata = Metadata::parse(&prepared.text)?;
                let header = first(subject, plan).read_header()?;
                let (_, d, h, w) = prepared.image.dim();
                Ok(PreparedScan {
                    image: prepared.image,
                    origin: Origin::new(&metadata, [d, h, w])?,
                    header,
                    made_header: false,
                })
            }
            Inputs::Store { store, channels } => {
                let file = store.folder().join(&store.index().subjects[scan].file);
                from_store(store, scan, channels).with_context(|| file.display().to_string())
            }
        }
    }
}

/// Name of a scan's file without its extension, of one that only its content shows to be a scan as it is; `None` of another file.
fn stem(path: &Path) -> Option<String> {
    let by_content = || formats::is_scan(path).then(|| path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    formats::stem(path).or_else(|| image::stem(path)).or_else(by_content)
}

/// The first file that is read, whose orientation the scan has.
fn first<'a>(subject: &'a Subject, plan: &Plan) -> &'a Source {
    // Who has none of them is named when the scan is read.
    plan.sources(subject).map_or(&subject.channels[0], |(sources, _)| sources[0])
}

/// A scan as a store would hold it.
fn prepared(subject: &Subject, plan: &Plan, tell: &dyn Fn(&str)) -> Result<Prepared> {
    let mut prepared = prepare(subject, plan, tell)?;
    let missing = plan.missing(subject);
    if !missing.is_empty() {
        tell(&format!("{}: no {}, which is taken for 0 throughout", subject.id, missing.join(", ")));
    }
    if !prepared.resampled.is_empty() {
        let (channels, names) = (prepared.resampled.join(", "), plan.names());
        tell(&format!("{}: {channels}: on another grid than {}, and resampled onto it", subject.id, names[0]));
    }
    plan.settings.dtype.round(prepared.image.as_slice_mut().context("not contiguous")?);
    Ok(prepared)
}

impl Known for Inputs {
    fn grades(&self) -> Option<&[String]> {
        match self {
            Inputs::Files { classes, .. } => classes.as_deref(),
            Inputs::Store { store, .. } => store.index().grades(),
        }
    }

    fn columns(&self) -> &[Column] {
        match self {
            Inputs::Files { columns, .. } => columns,
            Inputs::Store { store, .. } => store.index().columns(),
        }
    }

    fn scans(&self) -> usize {
        match self {
            Inputs::Files { subjects, .. } => subjects.len(),
            Inputs::Store { store, .. } => store.index().scans(),
        }
    }

    fn scan(&self, scan: usize) -> (&str, Option<u8>, &BTreeMap<String, Value>) {
        match self {
            Inputs::Files { subjects, .. } => {
                let Subject { id, class, values, .. } = &subjects[scan];
                (id, *class, values)
            }
            Inputs::Store { store, .. } => store.index().scan(scan),
        }
    }
}

/// Channels of a stored scan.
fn stored(store: &Store, scan: usize, channels: &[usize]) -> Result<Array4<f32>> {
    let [d, h, w] = store.shape(scan);
    let image = Array4::from_shape_vec((store.channels(), d, h, w), store.whole(scan)?)?;
    Ok(image.select(Axis(0), channels))
}

fn metadata(store: &Store, scan: usize) -> Result<Metadata> {
    Metadata::parse(&store.file(scan)?.header().text)
}

/// The first file that a stored scan was read from, which may be gone.
fn source(metadata: &Metadata) -> Result<Source> {
    Ok(Source::parse(metadata.sources.first().context("metadata name no source file")?))
}

fn from_store(store: &Store, scan: usize, channels: &[usize]) -> Result<PreparedScan> {
    let image = stored(store, scan, channels)?;
    let metadata = metadata(store, scan)?;
    let source = source(&metadata)?;
    let (header, made_header) = if source.exists() {
        let header = source.read_header()?;
        ensure!(
            header.shape == metadata.original_shape && close(&header.affine, &metadata.original_affine),
            "{}: shape {:?} with affine {:?}, expected {:?} with {:?} as when it was preprocessed",
            source.display(),
            header.shape,
            header.affine,
            metadata.original_shape,
            metadata.original_affine
        );
        (header, false)
    } else {
        (Header::new(metadata.original_shape, &metadata.original_affine)?, true)
    };
    Ok(PreparedScan { image, origin: Origin::new(&metadata, store.shape(scan))?, header, made_header })
}

/// Equal but for rounding, in millimetres.
fn close(a: &Affine, b: &Affine) -> bool {
    a.as_flattened().iter().zip(b.as_flattened()).all(|(a, b)| (a - b).abs() < 1e-3)
}

/// Where the model's channels are among those that there are: by name, otherwise by name in any case, otherwise by position where the
/// files or the training data have no names for as many channels.
fn channels_of(wanted: &[String], found: &[String]) -> Result<Vec<usize>> {
    let lower = |names: &[String]| names.iter().map(|name| name.to_lowercase()).collect::<Vec<_>>();
    if let Some(named) = positions(wanted, found).or_else(|| positions(&lower(wanted), &lower(found))) {
        return Ok(named);
    }
    let [wanted_names, found_names] = [wanted, found].map(|names| names.join(", "));
    let unnamed = |names: &[String]| names.iter().all(|name| layouts::is_unnamed_channel(name));
    if wanted.len() == found.len() && (unnamed(wanted) || unnamed(found)) {
        note!("channels are taken in their order: {found_names} for {wanted_names} of the training data");
        return Ok((0..wanted.len()).collect());
    }
    let missing = wanted.iter().find(|name| !lower(found).contains(&name.to_lowercase()));
    let missing = missing.map_or("too few channels of one name".into(), |name| format!("no channel `{name}`"));
    let hint = if wanted.len() == 1 && unnamed(wanted) { ": the network takes one channel; give the files of one" } else { "" };
    bail!("{missing}, expected {wanted_names} as the model was trained on, found {found_names}{hint}")
}

impl PreparedScan {
    /// In which order of the stored axes planes come: across the one along which least is held, or as the network's slices lie.
    fn order(&self, window: &Window, slices: Option<Slices>) -> [usize; 3] {
        let (_, d, h, w) = self.image.dim();
        slices.map_or_else(|| order(window.thinnest([d, h, w])), |slices| slices.orientation().source)
    }

    /// How many windows the scan is predicted in.
    pub fn windows(&self, window: &Window, slices: Option<Slices>) -> usize {
        let (_, d, h, w) = self.image.dim();
        window.count(slices.map_or([d, h, w], |slices| slices.orientation().output([d, h, w])))
    }

    /// What predicting so many outputs takes of memory, if it is much. `probabilities` and `slices` as in [`PreparedScan::predict`].
    pub fn memory(&self, window: &Window, slices: Option<Slices>, outputs: usize, probabilities: bool) -> Option<String> {
        let ((channels, d, h, w), scan) = (self.image.dim(), self.header.shape);
        let [x, y, z] = self.order(window, slices).map(|a| [d, h, w][a]);
        let slab = match slices {
            Some(_) => window.slab([x, y, z], 0),
            None => window.slab([d, h, w], window.thinnest([d, h, w])),
        };
        // The image is copied before, and the copy let go when the first slab begins.
        let values = channels * d * h * w + (channels * d * h * w).max((outputs + 1) * slab);
        let spooled = if probabilities { 2 * spool::BLOCK } else { 0 };
        let parts = format!(
            "{channels} channels of {:?} voxels, {outputs} outputs of {slab} voxels at a time and, in the file, classes of {scan:?}",
            [d, h, w]
        );
        memory::line(memory::FLOAT * values + voxels(scan) + spooled, &parts)
    }

    /// The prediction in the file's space. `probabilities`: keep these too, on disk in this folder; `slices`: those that a network of
    /// images takes.
    ///
    /// Held beside the image: what [`Window::probabilities`] holds, some planes of all outputs, and a byte for each voxel of the file.
    pub fn predict(
        self,
        window: &Window,
        slices: Option<Slices>,
        networks: &[Forward],
        probabilities: Option<&Path>,
    ) -> Result<Brought> {
        let order = self.order(window, slices);
        let PreparedScan { image, origin, .. } = self;
        let (c, d, h, w) = image.dim();
        let size = [c, d, h, w].map(|n| n as i64);
        let tensor = Tensor::from_slice(image.as_standard_layout().as_slice().expect("standard layout")).reshape(size);
        drop(image);
        let mut back = Back::new(origin.permuted(order), window.decoding.clone(), probabilities);
        let mut sink = |plane: &[f32]| back.plane(plane);
        match slices {
            None => window.probabilities(&tensor, order[0], networks, &mut sink)?,
            Some(_) => {
                let [x, y, z] = order.map(|a| a as i64 + 1);
                window.probabilities(&tensor.permute([0, x, y, z]), 0, networks, &mut sink)?;
            }
        }
        back.finish()
    }
}
