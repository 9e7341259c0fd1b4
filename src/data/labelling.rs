//! What the values of a dataset's labels mean: classes, regions that are unions of several, and voxels that nobody labelled. As
//! nnU-Net defines them in `dataset.json`.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// Class, as stored, of voxels that nobody labelled: nothing is learnt, sampled or scored there, and no network predicts it.
pub const IGNORE: u8 = 255;

/// Whether a class is that of something: neither background nor [`IGNORE`].
pub fn is_foreground(class: u8) -> bool {
    class != 0 && class != IGNORE
}

/// Name that stands for it in descriptions.
pub const IGNORE_NAME: &str = "ignore";

/// Labels are read as float32, which tells whole numbers apart up to here.
const LARGEST_LABEL: i64 = (1 << 24) - 1;

/// Tools that resample or rescale labels leave values this far from whole numbers.
const ROUNDING: f32 = 1e-3;

/// A label value as stored by the owners, and what it means. Its class is its position in [`Labelling::labels`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelValue {
    pub value: i64,
    pub name: String,
}

impl LabelValue {
    /// Of a value that has no name.
    pub fn unnamed(value: i64) -> LabelValue {
        LabelValue { value, name: format!("label {value}") }
    }
}

/// What is learnt and scored as one mask: the union of some values. Regions may overlap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelRegion {
    pub name: String,
    /// The background is not among them.
    pub values: Vec<i64>,
    /// What a voxel that is predicted to be of it is written as, one of `values`; where regions overlap, the later one decides. Its entry
    /// in nnU-Net's `regions_class_order`.
    pub written: i64,
}

/// What the values of labels mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labelling {
    /// Class `k` is `labels[k]`, background first.
    pub labels: Vec<LabelValue>,
    /// Learnt in place of the classes, in this order; without any it is the classes.
    pub regions: Vec<LabelRegion>,
    /// Value of voxels that nobody labelled.
    pub ignore: Option<i64>,
}

impl From<Vec<LabelValue>> for Labelling {
    /// Of plain classes.
    fn from(labels: Vec<LabelValue>) -> Labelling {
        Labelling { labels, ..Labelling::default() }
    }
}

impl Labelling {
    /// Of values with names, among them at most one that is called `ignore`. Errors as [`Labelling::check`].
    pub fn listed(labels: Vec<LabelValue>) -> Result<Labelling> {
        let (ignored, labels): (Vec<_>, Vec<_>) = labels.into_iter().partition(|label| label.name == IGNORE_NAME);
        ensure!(ignored.len() < 2, "{} values are called `{IGNORE_NAME}`, expected at most one", ignored.len());
        let labelling = Labelling { labels, regions: vec![], ignore: ignored.first().map(|label| label.value) };
        labelling.check()?;
        Ok(labelling)
    }

    /// Errors: as [`check_labels`] and [`Labelling::check_regions`].
    pub fn check(&self) -> Result<()> {
        check_labels(&self.labels)?;
        self.check_regions()
    }

    /// Errors: an ignored value that has another meaning too; a region without values or with one that is no label, or that would be
    /// written as what it is not.
    pub fn check_regions(&self) -> Result<()> {
        if let Some(ignore) = self.ignore {
            let first = self.labels.first().map(|label| label.value);
            ensure!(first.is_some(), "`{IGNORE_NAME}` ({ignore}) is the only value, expected others, the background first");
            let other = self.labels.iter().find(|label| label.value == ignore);
            ensure!(
                other.is_none(),
                "`{IGNORE_NAME}` and `{}` share the value {ignore}: what is not labelled needs one of its own",
                other.map_or("", |label| &label.name)
            );
        }
        for LabelRegion { name, values, written } in &self.regions {
            ensure!(!values.is_empty(), "the region `{name}` has no values");
            for value in values {
                let class = class_of(&self.labels, *value);
                ensure!(
                    class != Some(0),
                    "the region `{name}` holds {value}, the background, which is learnt as what is in no region"
                );
                ensure!(class.is_some(), "the region `{name}` holds {value}, expected some of {}", self.values());
            }
            ensure!(
                values.contains(written),
                "`regions_class_order` writes the region `{name}` as {written}, expected one of its values {values:?}: the predicted \
                 region would not be found in what is written"
            );
        }
        Ok(())
    }

    /// Class of a value; `None` for a value that is not listed.
    pub fn class_of(&self, value: i64) -> Option<u8> {
        if self.ignore == Some(value) { Some(IGNORE) } else { class_of(&self.labels, value) }
    }

    /// All values that a file may hold, for messages.
    pub fn values(&self) -> String {
        let values: Vec<String> =
            self.labels.iter().map(|label| label.value).chain(self.ignore).map(|v| v.to_string()).collect();
        values.join(", ")
    }

    /// What a network's outputs are called, in order.
    pub fn outputs(&self) -> Vec<&str> {
        match &self.regions[..] {
            [] => self.labels.iter().map(|label| label.name.as_str()).collect(),
            regions => regions.iter().map(|region| region.name.as_str()).collect(),
        }
    }

    /// Which outputs a class is among, by their positions.
    pub fn members(&self, class: u8) -> Vec<usize> {
        let value = self.labels.get(usize::from(class)).map(|label| label.value);
        match &self.regions[..] {
            [] => vec![usize::from(class)],
            regions => (0..regions.len()).filter(|&r| value.is_some_and(|v| regions[r].values.contains(&v))).collect(),
        }
    }

    /// The masks that a map of classes holds: each output's name with its classes, the background left out. Regions may share classes.
    pub fn masks(&self) -> Vec<(&str, Vec<u8>)> {
        let classes = |output| (0..=u8::MAX).filter(|&class| class != 0 && self.members(class).contains(&output)).collect();
        let outputs = self.outputs().into_iter().enumerate();
        outputs.skip(usize::from(self.regions.is_empty())).map(|(output, name)| (name, classes(output))).collect()
    }

    /// Voxels of each output; `per_class`: of each class.
    pub fn counts(&self, per_class: &[u64]) -> Vec<u64> {
        let mut counts = vec![0; self.outputs().len()];
        for (&voxels, class) in per_class.iter().zip(0..) {
            self.members(class).into_iter().for_each(|output| counts[output] += voxels);
        }
        counts
    }

    /// How classes follow from a network's outputs.
    pub fn decoding(&self) -> Decoding {
        let class = |region: &LabelRegion| class_of(&self.labels, region.written).expect("checked");
        match &self.regions[..] {
            [] => Decoding::Classes,
            regions => Decoding::Regions(regions.iter().map(class).collect()),
        }
    }

    /// The regions and what is ignored, for people; `None` where labels are plain classes.
    pub fn special(&self) -> Option<String> {
        let region = |region: &LabelRegion| {
            let values: Vec<String> = region.values.iter().map(i64::to_string).collect();
            format!("{} ({}, written as {})", region.name, values.join("+"), region.written)
        };
        let regions = self.regions.iter().map(region).collect::<Vec<_>>().join(", ");
        let regions = (!regions.is_empty()).then(|| format!("regions {regions}"));
        let ignored = self.ignore.map(|value| format!("voxels of value {value} are not labelled"));
        let parts: Vec<String> = regions.into_iter().chain(ignored).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// What a network's outputs mean, and how the class of a voxel follows from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoding {
    /// An output is a class, and they exclude each other (softmax): the most probable one, the first of equals.
    Classes,
    /// An output is a region by itself (sigmoid). Its voxels are those of more than 1 in 2; each region has the class that they become,
    /// a later region's in place of an earlier one's. As nnU-Net's `convert_probabilities_to_segmentation`.
    Regions(Vec<u8>),
}

impl Decoding {
    /// The class of each voxel of `[K, voxels]` probabilities; `out` is one a voxel.
    pub fn classes(&self, probabilities: &[f32], out: &mut [u8]) {
        out.fill(0);
        let mut outputs = probabilities.chunks_exact(out.len());
        match self {
            Decoding::Classes => {
                let mut best = outputs.next().expect("at least one class").to_vec();
                for (values, class) in outputs.zip(1..) {
                    for ((best, out), &value) in best.iter_mut().zip(out.iter_mut()).zip(values) {
                        if value > *best {
                            (*best, *out) = (value, class);
                        }
                    }
                }
            }
            Decoding::Regions(written) => {
                for (values, &class) in outputs.zip(written) {
                    out.iter_mut().zip(values).filter(|(_, value)| **value > 0.5).for_each(|(out, _)| *out = class);
                }
            }
        }
    }

    /// Probability of the first output where there is background for sure; that of the others is 0.
    pub fn first_of_background(&self) -> f32 {
        match self {
            Decoding::Classes => 1.,
            Decoding::Regions(_) => 0.,
        }
    }
}

/// The whole number that a label's value is, but for rounding; `None` also of one that float32 does not tell from its neighbours.
pub fn whole_label(value: f32) -> Option<i64> {
    let whole = value.round();
    // NaN and infinite values fail it.
    let is_whole = (value - whole).abs() <= ROUNDING && whole.abs() <= LARGEST_LABEL as f32;
    is_whole.then_some(whole as i64)
}

/// Checks a list of label values. Errors: more than a byte tells apart beside [`IGNORE`], a value or a name that is there twice (scores are kept by
/// name), a value that is too large.
pub fn check_labels(labels: &[LabelValue]) -> Result<()> {
    let most = usize::from(IGNORE);
    ensure!(labels.len() <= most, "at most {most} label values, found {}", labels.len());
    for (n, label) in labels.iter().enumerate() {
        for other in &labels[..n] {
            ensure!(other.value != label.value, "label {} is named twice", label.value);
            ensure!(
                other.name != label.name,
                "labels {} and {} are both named `{}`: scores are kept by name; give each its own, e.g. --labels {}",
                other.value,
                label.value,
                label.name,
                labels.iter().map(|l| format!("{0}=name{0}", l.value)).collect::<Vec<_>>().join(",")
            );
        }
        ensure!(
            label.value.abs() <= LARGEST_LABEL,
            "label value {}, expected -{LARGEST_LABEL} to {LARGEST_LABEL}: give the files smaller values",
            label.value
        );
    }
    Ok(())
}

/// Class of a label value: its position in [`Labelling::labels`]; `None` for a value that is not listed.
pub fn class_of(labels: &[LabelValue], value: i64) -> Option<u8> {
    labels.iter().position(|l| l.value == value).and_then(|class| u8::try_from(class).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voxels_become_the_best_class_or_the_last_region_above_one_half() {
        // Four voxels of three outputs.
        let probabilities = [0.6, 0.5, 0.2, 0.9, 0.6, 0.7, 0.5, 0.1, 0.7, 0.2, 0.50001, 0.9];
        let mut classes = [9; 4];
        Decoding::Classes.classes(&probabilities, &mut classes);
        assert_eq!(classes, [2, 1, 2, 0], "the first of equals");
        Decoding::Regions(vec![1, 3, 2]).classes(&probabilities, &mut classes);
        assert_eq!(classes, [2, 3, 2, 2], "one half is not above it");
        Decoding::Regions(vec![4]).classes(&probabilities[..4], &mut classes);
        assert_eq!(classes, [4, 0, 0, 4]);
    }

    #[test]
    fn a_list_names_what_is_ignored() {
        let label = |(value, name): (i64, &str)| LabelValue { value, name: name.into() };
        let listed = |names: &[(i64, &str)]| Labelling::listed(names.iter().copied().map(label).collect());
        let found = listed(&[(0, "none"), (9, "ignore"), (2, "organ")]).unwrap();
        assert_eq!((found.values(), found.class_of(2), found.ignore), ("0, 2, 9".into(), Some(1), Some(9)));
        for (names, says) in [
            (&[(0, "none"), (1, "ignore"), (2, "ignore")][..], "2 values are called `ignore`"),
            (&[(1, "ignore")], "`ignore` (1) is the only value"),
            (&[(0, "none"), (0, "ignore")], "share the value 0"),
        ] {
            assert!(listed(names).unwrap_err().to_string().contains(says), "{names:?}");
        }
    }

    #[test]
    fn classes_are_positions() {
        let labels = [0, 1, 2, 4].map(|value| LabelValue { value, name: String::new() });
        assert_eq!([0, 1, 2, 4, 3, -1].map(|v| class_of(&labels, v)), [Some(0), Some(1), Some(2), Some(3), None, None]);
    }

    #[test]
    fn values_are_whole_but_for_rounding() {
        for (value, expected) in [(1.0000001, 1), (0.9995, 1), (-0.0, 0), (-3., -3), (2035.0002, 2035)] {
            assert_eq!(whole_label(value), Some(expected), "{value}");
        }
        for value in [0.5, 1.002, f32::NAN, f32::INFINITY, 16_777_216.] {
            assert_eq!(whole_label(value), None, "{value}");
        }
    }
}
