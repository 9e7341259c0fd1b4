//! Scores of one case: a predicted segmentation against the true one.

use super::overlap::Counts;
use super::surface::Surfaces;
use super::table::{DICE, METRICS, Measured};
use crate::data::labelling::{IGNORE, LabelValue};
use crate::dim::{Shape, voxels};
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// What is scored as one mask: a class, or a region as the union of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub name: String,
    /// Classes other than 0, the background, and [`IGNORE`]. With none the mask is empty.
    pub classes: Vec<u8>,
}

impl Group {
    /// The union of the given label values; class `k` is the value `labels[k]`. Values that are not listed count for nothing.
    pub fn union(name: &str, values: &[i64], labels: &[LabelValue]) -> Group {
        let class = |value: &i64| crate::data::labelling::class_of(labels, *value);
        Group { name: name.into(), classes: values.iter().filter_map(class).collect() }
    }

    /// One group a class, background left out; class `k` is the value `labels[k]`.
    pub fn classes(labels: &[LabelValue]) -> Vec<Group> {
        labels.iter().skip(1).map(|label| Group::union(&label.name, &[label.value], labels)).collect()
    }
}

impl Group {
    /// Where it is in a true and where in a predicted segmentation. What is not labelled is left out of both, as nnU-Net does.
    fn masks(&self, truth: &[u8], prediction: &[u8]) -> [Vec<bool>; 2] {
        let mut held = [false; 256];
        self.classes.iter().for_each(|&class| held[class as usize] = true);
        let predicted = |(&truth, &class): (&u8, &u8)| truth != IGNORE && held[class as usize];
        [truth.iter().map(|&class| held[class as usize]).collect(), truth.iter().zip(prediction).map(predicted).collect()]
    }

    /// Its voxels in a true and in a predicted segmentation.
    pub fn counts(&self, truth: &[u8], prediction: &[u8]) -> Counts {
        let [truth, prediction] = self.masks(truth, prediction);
        Counts::of(&truth, &prediction)
    }
}

/// Scores of one group in one case. Where a mask is empty:
///
/// | truth | prediction | Dice, Jaccard, surface Dice | HD95, ASD |
/// | --- | --- | --- | --- |
/// | empty | empty | undefined | undefined |
/// | one of them is empty | | 0 | undefined |
///
/// Undefined scores are left out of means, and counted. [`Empty::Brats`] defines them otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// One for each of [`METRICS`].
    pub values: [Option<f64>; METRICS.len()],
    /// Volume of the true mask in millilitres.
    pub truth_ml: f64,
    /// Volume of the predicted mask in millilitres.
    pub prediction_ml: f64,
}

/// What becomes of the scores of an empty mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Empty {
    /// Undefined, as [`Scores`] says: left out of means, and counted
    #[default]
    Skip,
    /// As the BraTS challenge of 2023: Dice, Jaccard and surface Dice 1 and HD95 0 mm where both masks are empty, HD95 374 mm where one is
    Brats,
}

impl Scores {
    /// Of two empty masks.
    pub const EMPTY: Scores = Scores { values: [None; METRICS.len()], truth_ml: 0.0, prediction_ml: 0.0 };

    pub fn dice(&self) -> Option<f64> {
        self.values[DICE]
    }

    /// As numbers, undefined scores as NaN.
    pub fn numbers(&self) -> Vec<f64> {
        let values = self.values.iter().map(|value| value.unwrap_or(f64::NAN));
        values.chain([self.truth_ml, self.prediction_ml]).collect()
    }

    /// Of [`Scores::numbers`] of several groups in a row.
    pub fn of_numbers(numbers: &[f64]) -> Vec<Scores> {
        let scores = |numbers: &[f64]| Scores {
            values: std::array::from_fn(|i| Some(numbers[i]).filter(|value| !value.is_nan())),
            truth_ml: numbers[METRICS.len()],
            prediction_ml: numbers[METRICS.len() + 1],
        };
        numbers.chunks_exact(METRICS.len() + 2).map(scores).collect()
    }

    /// The scores by another rule for empty masks. The challenge has no average surface distance: it stays undefined.
    pub fn with(self, empty: Empty) -> Scores {
        let values = match (empty, self.dice()) {
            (Empty::Skip, _) => return self,
            (Empty::Brats, None) => METRICS.each_ref().map(|metric| metric.both_empty),
            (Empty::Brats, Some(_)) => std::array::from_fn(|i| self.values[i].or(METRICS[i].one_empty)),
        };
        Scores { values, ..self }
    }
}

/// Scores of every group, in their order.
///
/// `truth` and `prediction` are classes `[D, H, W]` of `shape`, [`IGNORE`] in the truth where nothing is scored; `spacing` is millimetres along each axis. Distances are
/// measured on this grid; `tolerance` is that of the normalised surface Dice, in millimetres. Errors: another number of voxels than
/// `shape` says, a spacing that is not positive, a group with the background in it.
pub fn score_case(
    truth: &[u8],
    prediction: &[u8],
    shape: Shape,
    spacing: [f64; 3],
    groups: &[Group],
    tolerance: f64,
) -> Result<Vec<Scores>> {
    for (what, found) in [("truth", truth.len()), ("prediction", prediction.len())] {
        ensure!(found == voxels(shape), "{what} of {found} voxels, expected {} ({shape:?})", voxels(shape));
    }
    ensure!(spacing.iter().all(|s| s.is_finite() && *s > 0.0), "spacing {spacing:?} mm, expected positive numbers");
    let voxel_ml = spacing.iter().product::<f64>() / 1000.0;
    let score = |group: &Group| {
        ensure!(!group.classes.contains(&0), "group {}: class 0 is the background, which is not scored", group.name);
        let [truth, prediction] = group.masks(truth, prediction);
        let counts = Counts::of(&truth, &prediction);
        let both = counts.truth > 0 && counts.prediction > 0;
        let surfaces = both.then(|| Surfaces::of(&truth, &prediction, shape, spacing)).flatten();
        let measured = Measured { counts, surfaces, tolerance };
        Ok(Scores {
            values: METRICS.each_ref().map(|metric| (metric.of)(&measured)),
            truth_ml: counts.truth as f64 * voxel_ml,
            prediction_ml: counts.prediction as f64 * voxel_ml,
        })
    };
    groups.iter().map(score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[i64]) -> Vec<LabelValue> {
        values.iter().map(|&value| LabelValue { value, name: format!("label {value}") }).collect()
    }

    #[test]
    fn groups_are_of_label_values() {
        let classes = Group::classes(&labels(&[0, 1, 7]));
        let found: Vec<_> = classes.iter().map(|g| (g.name.as_str(), g.classes.as_slice())).collect();
        assert_eq!(found, [("label 1", &[1][..]), ("label 7", &[2])]);
    }

    #[test]
    fn empty_masks_follow_the_rules() {
        // Class 1 in both, 2 in the truth only, 3 in the prediction only, 4 in neither.
        let (truth, prediction) = ([1, 1, 2, 0, 0, 0], [1, 1, 0, 0, 3, 3]);
        let groups = Group::classes(&labels(&[0, 1, 2, 3, 4]));
        let scores = score_case(&truth, &prediction, [1, 2, 3], [1.0, 2.0, 3.0], &groups, 1.0).unwrap();
        let (one, none) = (Some(1.0), Some(0.0));
        // Dice, Jaccard, HD95, ASD, surface Dice.
        assert_eq!(scores[0].values, [one, one, none, none, one]);
        let missed = Scores { values: [none, none, None, None, none], ..Scores::EMPTY };
        assert_eq!((scores[0].truth_ml, scores[0].prediction_ml), (0.012, 0.012));
        assert_eq!(scores[1], Scores { truth_ml: 0.006, ..missed });
        assert_eq!(scores[2], Scores { prediction_ml: 0.012, ..missed });
        assert_eq!(scores[3], Scores::EMPTY);

        let challenge: Vec<_> = scores.iter().map(|s| s.with(Empty::Brats).values).collect();
        let (both, missed) = ([one, one, none, None, one], [none, none, Some(374.0), None, none]);
        assert_eq!(challenge, [[one, one, none, none, one], missed, missed, both]);
        assert!(scores.iter().all(|s| s.with(Empty::Skip) == *s));
    }

    #[test]
    fn what_nobody_labelled_is_in_neither_mask() {
        // As if the last two voxels were not predicted, wherever the region lies.
        let groups = [Group { name: "both".into(), classes: vec![1, 2] }, Group { name: "one".into(), classes: vec![2] }];
        let score = |truth: &[u8], prediction: &[u8]| score_case(truth, prediction, [1, 2, 3], [1.; 3], &groups, 1.0).unwrap();
        let (truth, prediction) = ([0, 1, 2, 2, IGNORE, IGNORE], [1, 1, 1, 2, 2, 1]);
        assert_eq!(score(&truth, &prediction), score(&[0, 1, 2, 2, 0, 0], &[1, 1, 1, 2, 0, 0]));
        let [both, one] = groups.each_ref().map(|group| group.counts(&truth, &prediction));
        assert_eq!((both, one), (Counts { truth: 3, prediction: 4, both: 3 }, Counts { truth: 2, prediction: 1, both: 1 }));
    }

    #[test]
    fn bad_input_is_named() {
        let group = |classes: &[u8]| [Group { name: "g".into(), classes: classes.to_vec() }];
        let refused = |truth: &[u8], spacing: f64, classes: &[u8]| {
            score_case(truth, &[0; 4], [1, 2, 2], [1.0, 1.0, spacing], &group(classes), 1.0).unwrap_err().to_string()
        };
        assert!(refused(&[0; 3], 1.0, &[1]).contains("truth of 3 voxels, expected 4"));
        assert!(refused(&[0; 4], 0.0, &[1]).contains("spacing"));
        assert!(refused(&[0; 4], f64::NAN, &[1]).contains("spacing"));
        assert!(refused(&[0; 4], 1.0, &[1, 0]).contains("background"));
    }
}
