//! One subject: its files to the arrays and the metadata of its store file.

use super::intensity::{self, Outliers};
use super::label::{self, Outside};
use super::{Grid, Placement, Settings, photo, regrid};
use crate::data::formats::image::IN_PIXELS;
use crate::data::identity::{self, hex};
use crate::data::labelling::{IGNORE, Labelling, whole_label};
use crate::data::layouts::{Source, Subject};
use crate::data::volume::{Affine, Volume, permute_affine, same_grid, spacing};
use crate::dim::{Region, Shape};
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, bail, ensure};
use ndarray::{Array3, Array4, ArrayView3, Axis, concatenate};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

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
    /// By which the scan is known again, see [`identity::images`].
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
    let Image { mut volume, orientation, seen, resampled } = image(&images, subject, plan)?;
    let names = plan.names().into_iter().filter(|name| !subject.missing.contains(name));
    for (mut channel, name) in volume.data.outer_iter_mut().zip(names) {
        if let Some(found) = channel.as_slice_mut().and_then(intensity::replace_outliers) {
            let Outliers { voxels, worst, range: [low, high] } = found;
            tell(&format!(
                "{}: {name}: voxels as far off as {worst:e}, {voxels} of them, among others of {low} to {high}: taken for mistakes, and \
                 given the nearest value of the others",
                subject.id
            ));
        }
    }
    let few_values = few_values(&volume);
    let (scan, affine) = (volume.shape(), volume.affine);
    ensure!(
        !(scan.contains(&1) && matches!(plan.settings.grid, Grid::Cube { .. })),
        "{}: a slice, of {scan:?} voxels (RAS+), which a cube would repeat: `--protocol modern` keeps it one voxel deep, and `pretrain \
         --slices` takes it for an image",
        first()
    );
    let classes = label.map(|source| label::read(source, plan, scan, &affine)).transpose()?;
    let labelled = classes.as_ref().and_then(|classes| label::labelled_box(classes, scan));
    let placement = Placement::find(&volume, labelled, &plan.settings).with_context(first)?;
    if let Some(memory) = placement.memory(volume.channels()) {
        tell(&format!("{}: {memory}", subject.id));
    }
    let mut stored = placement.image(&volume, &plan.settings).with_context(first)?;
    drop(volume);
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
    let original = back.output(scan);
    let affine_there = permute_affine(&affine, scan, back);
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
    /// [`identity::images`] of what was read.
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
    volume: Volume,
    /// How the first file was turned.
    orientation: Orientation,
    /// [`identity::images`] of all that was read.
    seen: Vec<String>,
    /// Channels that lay on another grid than the first one.
    resampled: Vec<String>,
}

fn image(sources: &[&Source], subject: &Subject, plan: &Plan) -> Result<Image> {
    let (mut first, orientation) = sources[0].read_ras()?;
    if let Some(part) = subject.part {
        let (found, name) = (first.channels(), sources[0].display());
        ensure!(part < found, "{name}: {found} channels, expected channel {part} (from 0) among them");
        first.data = first.data.select(Axis(0), &[part]);
    }
    let mut seen = identity::images(&first);
    plan.settings.volumes.reduce(&mut first);
    if subject.channels.len() == 1 && subject.missing.is_empty() {
        let expected = plan.available.len();
        let found = first.channels();
        ensure!(
            found == expected,
            "{}: {found} channels, expected {expected} ({})",
            sources[0].display(),
            plan.available.join(", ")
        );
        if !plan.channels.iter().copied().eq(0..found) {
            first.data = first.data.select(Axis(0), &plan.channels);
        }
        return Ok(Image { volume: first, orientation, seen, resampled: vec![] });
    }
    let (mut parts, mut resampled) = (vec![], vec![]);
    let names = plan.names().into_iter().filter(|name| !subject.missing.contains(name));
    for (source, name) in sources.iter().zip(names).skip(1) {
        let (mut volume, _) = source.read_ras()?;
        seen.extend(identity::images(&volume));
        plan.settings.volumes.reduce(&mut volume);
        let (name_of_first, found) = (sources[0].display(), source.display());
        if same_grid(&name_of_first, first.shape(), &first.affine, &found, &volume).is_err() {
            volume = regrid::onto(&first, &volume, &found, &name_of_first)?;
            resampled.push(name);
        }
        parts.push(volume.data);
    }
    for (source, channels) in sources.iter().zip([&first.data].into_iter().chain(&parts).map(|p| p.dim().0)) {
        ensure!(channels == 1, "{}: {channels} channels, expected one a file", source.display());
    }
    if !parts.is_empty() {
        let views: Vec<_> = [&first.data].into_iter().chain(&parts).map(|p| p.view()).collect();
        first.data = concatenate(Axis(0), &views)?;
    }
    Ok(Image { volume: first, orientation, seen, resampled })
}

/// The first values of a channel that holds whole numbers as a label does: a few, or more that are alike in patches, as the regions of an
/// atlas. Otherwise none.
fn few_values(volume: &Volume) -> Vec<i64> {
    const FEW: usize = 32;
    const REGIONS: usize = 1024;
    /// Neighbours that are looked at before a channel of more values is given up, and the share of them that must be alike.
    const NEIGHBOURS: usize = 4096;
    const ALIKE: f64 = 0.6;
    let of = |channel: ArrayView3<f32>| {
        let background = channel.first().copied();
        let (mut values, mut last) = (BTreeSet::new(), None);
        let (mut pairs, mut alike) = (0, 0);
        for &value in channel {
            let same = last == Some(value);
            if last.is_some_and(|last| Some(last) != background || Some(value) != background) {
                pairs += 1;
                alike += usize::from(same);
            }
            if !same {
                last = Some(value);
                values.insert(whole_label(value)?);
                let patches = pairs < NEIGHBOURS || alike as f64 >= ALIKE * pairs as f64;
                if values.len() > REGIONS || values.len() > FEW && !patches {
                    return None;
                }
            }
        }
        let few = values.len() <= FEW || alike as f64 >= ALIKE * pairs as f64;
        few.then(|| values.into_iter().take(FEW).collect())
    };
    volume.data.outer_iter().find_map(of).unwrap_or_default()
}
