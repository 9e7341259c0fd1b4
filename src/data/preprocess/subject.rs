//! One subject: its files to the arrays and the metadata of its store file.

use super::intensity::{self, Outliers};
use super::label::{self, Outside};
use super::look::Look;
use super::{Grid, Placement, Settings, photo, regrid};
use crate::data::formats::image::IN_PIXELS;
use crate::data::identity::{self, hex};
use crate::data::labelling::{IGNORE, Labelling};
use crate::data::layouts::{Source, Subject};
use crate::data::scan::Scan;
use crate::data::volume::{Affine, permute_affine, same_grid, spacing};
use crate::dim::{Region, Shape};
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, bail, ensure};
use ndarray::{Array3, Array4};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// What is done to every subject of a dataset.
#[derive(Clone, Debug)]
pub struct Plan {
    pub settings: Settings,
    /// Names of the dataset's channels.
    pub available: Vec<String>,
    /// Positions in `available` of the channels to store, in order.
    pub channels: Vec<usize>,
    /// What the labels mean; `None`: they are left out.
    pub labels: Option<Labelling>,
}

/// What a subject's metadata say about where its voxels came from.
#[derive(Clone, Debug, Deserialize)]
pub struct Metadata {
    /// Files of the channels, then of the label, as [`Source::display`] writes them.
    pub sources: Vec<String>,
    /// Extent and affine of the first file, in its own axis order.
    pub original_shape: Shape,
    pub original_affine: Affine,
    /// From the file's axes to RAS+.
    pub orientation: Orientation,
    /// Box of the RAS+ scan that the stored grid covers.
    pub crop: Region,
    pub settings: Settings,
    /// Where the box is wider than the foreground's, for labels.
    #[serde(default)]
    pub outside: Option<Outside>,
}

impl Metadata {
    /// From [`Prepared::text`], which store files carry. Errors name what is missing or unreadable.
    pub fn parse(text: &BTreeMap<String, String>) -> Result<Metadata> {
        let value = |key: &str| {
            let text = text.get(key).with_context(|| format!("metadata hold no `{key}`"))?;
            serde_json::from_str::<Value>(text).with_context(|| format!("metadata `{key}`"))
        };
        let keys = ["sources", "original_shape", "original_affine", "orientation", "crop", "settings"];
        let optional = text.contains_key("outside").then_some("outside");
        let fields = keys.into_iter().chain(optional).map(|key| Ok((key.to_string(), value(key)?))).collect::<Result<_>>()?;
        serde_json::from_value(Value::Object(fields)).context("metadata")
    }
}

/// A subject ready to be stored.
pub struct Prepared {
    /// `[C, D, H, W]`, normalised.
    pub image: Array4<f32>,
    /// `[D, H, W]`, classes.
    pub label: Option<Array3<u8>>,
    /// By which the scan is known again, see [`identity::Image`].
    pub images: Vec<String>,
    /// Channels that lay on another grid than the first one, and were resampled onto it.
    pub resampled: Vec<String>,
    /// What [`Metadata`] reads, and more for people: JSON by key.
    pub text: BTreeMap<String, String>,
}

impl Plan {
    /// Names of the stored channels.
    pub fn names(&self) -> Vec<String> {
        self.channels.iter().map(|&c| self.available[c].clone()).collect()
    }

    /// Names of the stored channels that a subject lacks.
    pub fn missing(&self, subject: &Subject) -> Vec<String> {
        self.names().into_iter().filter(|name| subject.missing.contains(name)).collect()
    }

    /// The files of a subject that are read: those of the channels that it has, then the label.
    pub fn sources<'a>(&self, subject: &'a Subject) -> Result<(Vec<&'a Source>, Option<&'a Source>)> {
        let label = subject.label.as_ref().filter(|_| self.labels.is_some());
        let there: Vec<usize> = (0..self.available.len()).filter(|&c| !subject.missing.contains(&self.available[c])).collect();
        if subject.channels.len() == 1 && subject.missing.is_empty() {
            return Ok((vec![&subject.channels[0]], label));
        }
        ensure!(
            subject.channels.len() == there.len(),
            "{} files, expected one for each of the channels {}",
            subject.channels.len(),
            self.available.join(", ")
        );
        let place = |c: &usize| there.iter().position(|there| there == c);
        let sources: Vec<&Source> = self.channels.iter().filter_map(place).map(|place| &subject.channels[place]).collect();
        ensure!(!sources.is_empty(), "none of the channels {}", self.names().join(", "));
        Ok((sources, label))
    }

    /// Changes whenever the stored file would: SHA-256 over the settings, the channels, the labels and the state of the
    /// subject's files.
    pub fn key(&self, subject: &Subject) -> Result<String> {
        let (images, label) = self.sources(subject)?;
        let mut hash = Sha256::new();
        // Regions are none of the stored file's business.
        let labels = self.labels.as_ref().map(|labelling| &labelling.labels);
        hash.update(serde_json::to_vec(&(&self.settings, &self.available, &self.channels, labels))?);
        if let Some(ignore) = self.labels.as_ref().and_then(|labelling| labelling.ignore) {
            hash.update(format!("\nignore {ignore}"));
        }
        for source in images.into_iter().chain(label) {
            hash.update(format!("\n{}", source.fingerprint()?));
        }
        hash.update(format!("\n{}", label.is_some()));
        if let Some(part) = subject.part {
            hash.update(format!("\nchannel {part}"));
        }
        if !subject.missing.is_empty() {
            hash.update(format!("\nwithout {}", subject.missing.join("\n")));
        }
        Ok(hex(&hash.finalize()))
    }
}

/// Reads, orients, checks, crops, resamples and normalises one subject; `tell` is given a line if that takes much memory. Errors name the file, what was expected and found.
pub fn prepare(subject: &Subject, plan: &Plan, tell: &dyn Fn(&str)) -> Result<Prepared> {
    let (images, label) = plan.sources(subject)?;
    let first = || images[0].display();
    if images[0].is_image() {
        return prepare_photograph(images[0], subject, plan).with_context(first);
    }
    let Image { mut scan, mut looks, orientation, seen, resampled } = image(&images, subject, plan)?;
    let names = plan.names().into_iter().filter(|name| !subject.missing.contains(name));
    for ((channel, look), name) in scan.channels.iter_mut().zip(&mut looks).zip(names) {
        if let Some((found, cleaned)) = intensity::without_outliers(channel, &look.summary) {
            *look = Look::at(&cleaned, scan.shape);
            *channel = cleaned;
            let Outliers { voxels, worst, range: [low, high] } = found;
            tell(&format!(
                "{}: {name}: voxels as far off as {worst:e}, {voxels} of them, among others of {low} to {high}: taken for mistakes, and \
                 given the nearest value of the others",
                subject.id
            ));
        }
    }
    let few_values = looks.iter_mut().find_map(|look| look.few_values.take()).unwrap_or_default();
    let (shape, affine) = (scan.shape, scan.affine);
    ensure!(
        !(shape.contains(&1) && matches!(plan.settings.grid, Grid::Cube { .. })),
        "{}: a slice, of {shape:?} voxels (RAS+), which a cube would repeat: `--protocol modern` keeps it one voxel deep, and `pretrain \
         --slices` takes it for an image",
        first()
    );
    let classes = label.map(|source| label::read(source, plan, shape, &affine)).transpose()?;
    let labelled = classes.as_ref().and_then(|classes| label::labelled_box(classes, shape));
    let placement = Placement::find(shape, &affine, &looks, labelled, &plan.settings).with_context(first)?;
    if let Some(memory) = placement.memory(&scan.channels) {
        tell(&format!("{}: {memory}", subject.id));
    }
    let mut stored = placement.image(&scan.channels, &plan.settings).with_context(first)?;
    drop(scan);
    let missing = plan.missing(subject);
    if !missing.is_empty() {
        stored = with_zeros(stored, &plan.names(), &missing);
    }
    let outside = classes.as_ref().and_then(|classes| placement.outside(classes));
    let label = classes.map(|classes| placement.label(&classes)).transpose()?.filter(|stored| {
        let any = stored.iter().any(|&class| class != IGNORE);
        if !any {
            tell(&format!(
                "{}: no voxel of its label is labelled on the stored grid: kept as a scan without a label",
                subject.id
            ));
        }
        any
    });

    let back = orientation.inverse();
    let original = back.output(shape);
    let affine_there = permute_affine(&affine, shape, back);
    let crop = placement.crop();
    let origin =
        Origin { shape: original, affine: affine_there, orientation, crop, outside, images: seen, few_values, resampled };
    Ok(Prepared::new(stored, label, &placement.affine, origin, &images, subject, plan))
}

/// The image with channels of zeros in the places of missing ones.
fn with_zeros(image: Array4<f32>, names: &[String], missing: &[String]) -> Array4<f32> {
    let (_, d, h, w) = image.dim();
    let mut out = Array4::zeros((names.len(), d, h, w));
    let there = out.outer_iter_mut().zip(names).filter(|(_, name)| !missing.contains(name));
    there.zip(image.outer_iter()).for_each(|((mut to, _), from)| to.assign(&from));
    out
}

/// Where the stored voxels come from.
struct Origin {
    /// Of the file, before it was turned.
    shape: Shape,
    affine: Affine,
    /// How it was turned.
    orientation: Orientation,
    /// The box of the turned scan that is stored.
    crop: Region,
    outside: Option<Outside>,
    /// [`identity::Image`] of what was read.
    images: Vec<String>,
    few_values: Vec<i64>,
    resampled: Vec<String>,
}

impl Prepared {
    fn new(
        image: Array4<f32>,
        label: Option<Array3<u8>>,
        affine: &Affine,
        origin: Origin,
        images: &[&Source],
        subject: &Subject,
        plan: &Plan,
    ) -> Prepared {
        let names: Vec<String> = images.iter().copied().chain(subject.label.as_ref()).map(Source::display).collect();
        let text = [
            ("id", json!(subject.id)),
            ("channels", json!(plan.names())),
            ("sources", json!(names)),
            ("affine", json!(affine)),
            ("spacing", json!(spacing(affine))),
            ("original_shape", json!(origin.shape)),
            ("original_affine", json!(origin.affine)),
            ("orientation", json!(origin.orientation)),
            ("crop", json!(origin.crop)),
            ("settings", json!(plan.settings)),
            ("images", json!(origin.images)),
            ("few_values", json!(origin.few_values)),
            ("resampled", json!(origin.resampled)),
            ("missing", json!(plan.missing(subject))),
        ];
        let outside = origin.outside.as_ref().map(|outside| ("outside", json!(outside)));
        let text = text.into_iter().chain(outside).map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Prepared { image, label, images: origin.images, resampled: origin.resampled, text }
    }
}

/// A photograph: cropped, squared and resized by [`photo::fit`], then normalised.
fn prepare_photograph(source: &Source, subject: &Subject, plan: &Plan) -> Result<Prepared> {
    let Grid::Cube { side } = plan.settings.grid else {
        bail!("a photograph has no spacing in millimetres, expected a grid of a given side")
    };
    ensure!(subject.channels.len() == 1, "{} files, expected a photograph in one", subject.channels.len());
    let photograph = source.photograph()?;
    let (found, expected) = (photograph.channels, plan.available.len());
    let all: Vec<usize> = match subject.part {
        Some(part) => {
            ensure!(part < found, "{found} channels, expected channel {part} (from 0) among them");
            vec![part]
        }
        // A grey photograph among colour ones.
        None if found == 1 && expected == 3 => vec![0; 3],
        None => (0..found).collect(),
    };
    ensure!(all.len() == expected, "{} channels, expected {expected} ({})", all.len(), plan.available.join(", "));
    let wanted: Vec<usize> = plan.channels.iter().map(|&c| all[c]).collect();
    let (mut fitted, crop) = photo::fit(&photograph, &wanted, side, plan.settings.foreground)?;
    for (mut channel, name) in fitted.data.outer_iter_mut().zip(plan.names()) {
        let values = channel.as_slice_mut().context("just made")?;
        intensity::normalise(values, plan.settings.intensity, plan.settings.foreground).context(name)?;
    }
    let origin = Origin {
        shape: [1, photograph.height, photograph.width],
        affine: IN_PIXELS,
        orientation: Orientation::IDENTITY,
        crop,
        outside: None,
        images: identity::photograph(&photograph, &all),
        few_values: vec![],
        resampled: vec![],
    };
    Ok(Prepared::new(fitted.data, None, &fitted.affine, origin, &[source], subject, plan))
}

/// What is read of a scan.
struct Image {
    /// The wanted channels, RAS+.
    scan: Scan,
    /// At each of them.
    looks: Vec<Look>,
    /// How the first file was turned.
    orientation: Orientation,
    /// [`Look::id`] of all that was read.
    seen: Vec<String>,
    /// Channels that lay on another grid than the first one.
    resampled: Vec<String>,
}

fn image(sources: &[&Source], subject: &Subject, plan: &Plan) -> Result<Image> {
    let mut seen = vec![];
    let mut look = |scan: &mut Scan| {
        let looks = Look::all(scan);
        seen.extend(looks.iter().filter_map(|look| look.id.clone()));
        let reduced = plan.settings.volumes.reduce(scan);
        if reduced { Look::all(scan) } else { looks }
    };
    let (mut first, orientation) = sources[0].scan_ras()?;
    if let Some(part) = subject.part {
        let (found, name) = (first.channels.len(), sources[0].display());
        ensure!(part < found, "{name}: {found} channels, expected channel {part} (from 0) among them");
        first.channels = vec![first.channels.swap_remove(part)];
    }
    let mut looks = look(&mut first);
    if subject.channels.len() == 1 && subject.missing.is_empty() {
        let expected = plan.available.len();
        let found = first.channels.len();
        ensure!(
            found == expected,
            "{}: {found} channels, expected {expected} ({})",
            sources[0].display(),
            plan.available.join(", ")
        );
        if !plan.channels.iter().copied().eq(0..found) {
            first.channels = plan.channels.iter().map(|&c| first.channels[c].clone()).collect();
            looks = plan.channels.iter().map(|&c| looks[c].clone()).collect();
        }
        return Ok(Image { scan: first, looks, orientation, seen, resampled: vec![] });
    }
    let mut resampled = vec![];
    let mut counts = vec![first.channels.len()];
    let names = plan.names().into_iter().filter(|name| !subject.missing.contains(name));
    for (source, name) in sources.iter().zip(names).skip(1) {
        let (mut scan, _) = source.scan_ras()?;
        let mut at_scan = look(&mut scan);
        let (name_of_first, found) = (sources[0].display(), source.display());
        if same_grid(&name_of_first, first.shape, &first.affine, &found, scan.shape, &scan.affine).is_err() {
            scan = regrid::onto(&first, &scan.into_volume(), &found, &name_of_first)?.into();
            at_scan = Look::all(&scan);
            resampled.push(name);
        }
        counts.push(scan.channels.len());
        first.channels.append(&mut scan.channels);
        looks.append(&mut at_scan);
    }
    for (source, channels) in sources.iter().zip(counts) {
        ensure!(channels == 1, "{}: {channels} channels, expected one a file", source.display());
    }
    Ok(Image { scan: first, looks, orientation, seen, resampled })
}
