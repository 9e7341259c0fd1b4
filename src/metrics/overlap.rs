//! Overlap of two masks, from voxel counts.

/// Voxels of two masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub truth: u64,
    pub prediction: u64,
    /// In both.
    pub both: u64,
}

impl Counts {
    /// Of two masks of equal length.
    pub fn of(truth: &[bool], prediction: &[bool]) -> Counts {
        debug_assert_eq!(truth.len(), prediction.len());
        let mut counts = Counts::default();
        for (&t, &p) in truth.iter().zip(prediction) {
            counts.truth += t as u64;
            counts.prediction += p as u64;
            counts.both += (t & p) as u64;
        }
        counts
    }

    /// As numbers, which hold every count of voxels exactly.
    pub fn numbers(self) -> [f64; 3] {
        [self.truth, self.prediction, self.both].map(|n| n as f64)
    }

    /// Of [`Counts::numbers`].
    pub fn of_numbers(numbers: [f64; 3]) -> Counts {
        let [truth, prediction, both] = numbers.map(|n| n as u64);
        Counts { truth, prediction, both }
    }

    /// `2 |A and B| / (|A| + |B|)`, in [0, 1]; `None` if both masks are empty.
    pub fn dice(self) -> Option<f64> {
        ratio(2 * self.both, self.truth + self.prediction)
    }

    /// `|A and B| / |A or B|`, in [0, 1]; `None` if both masks are empty.
    pub fn jaccard(self) -> Option<f64> {
        ratio(self.both, self.truth + self.prediction - self.both)
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_of_known_masks() {
        let mask = |text: &str| text.bytes().map(|b| b == b'#').collect::<Vec<_>>();
        let scores = |a: &str, b: &str| {
            let counts = Counts::of(&mask(a), &mask(b));
            (counts.dice(), counts.jaccard())
        };
        assert_eq!(scores("##..#", "#.#.#"), (Some(4.0 / 6.0), Some(2.0 / 4.0)));
        assert_eq!(scores("##.", "##."), (Some(1.0), Some(1.0)));
        assert_eq!(scores("##.", "..#"), (Some(0.0), Some(0.0)));
        assert_eq!(scores("...", "..#"), (Some(0.0), Some(0.0)));
        assert_eq!(scores("...", "..."), (None, None));
    }
}
