//! Mirror images and zoom of whole training scans, from which rotation, relative patch location and jigsaw then cut their samples.
//! Contrastive predictive coding and exemplar have augmentation of their own.

use crate::data::{Arrays, Scans};
use crate::dim::Rank;
use crate::rng::Rng;
use crate::transform::augment::Interval;
use crate::transform::resample::{Interpolation, Resample};
use anyhow::{Context, Result, ensure};
use ndarray::Array4;
use rand::Rng as _;
use serde::Serialize;

// A doc comment on a configuration's type would become the command's help.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
#[command(next_help_heading = "Augmentation of rot, rpl and jig")]
pub struct MirrorZoom {
    /// Probability that a training scan is mirrored: photographs left to right, volumes along their first axis, which is left to right
    /// too. One axis only: along two, the mirror image would be another rotation
    #[arg(long, value_name = "P", default_value_t = 0.)]
    pub mirror: f64,
    /// Magnification of a training scan, one for all axes, whose extent stays
    #[arg(long, value_name = "LO,HI", default_value_t = Interval([1., 1.]))]
    pub zoom: Interval,
}

impl MirrorZoom {
    /// Whether nothing is changed.
    pub fn is_off(&self) -> bool {
        self.mirror == 0. && self.zoom == Interval([1., 1.])
    }

    /// Checks ranges that the parser cannot.
    pub fn check(&self) -> Result<()> {
        let Interval([low, high]) = self.zoom;
        ensure!((0. ..=1.).contains(&self.mirror), "--mirror is a probability, 0 to 1, found {}", self.mirror);
        ensure!(0.1 <= low && low <= high && high <= 10., "--zoom takes LO,HI with 0.1 <= LO <= HI <= 10, found {low},{high}");
        Ok(())
    }

    /// The scan, changed at random, as the only one.
    pub fn apply(&self, scans: &dyn Scans, scan: usize, rank: Rank, rng: &mut Rng) -> Result<Arrays> {
        let (shape, channels) = (scans.shape(scan), scans.channels());
        let mut change = Resample::IDENTITY;
        change.flip[if rank == Rank::Two { 2 } else { 0 }] = rng.random_bool(self.mirror);
        let Interval([low, high]) = self.zoom;
        let zoom = low + rng.random::<f32>() * (high - low);
        rank.axes().for_each(|a| change.zoom[a] = zoom);
        let image = scans.whole(scan)?;
        let n = image.len() / channels;
        let least = |channel: &[f32]| channel.iter().copied().fold(f32::INFINITY, f32::min);
        let fill: Vec<f32> = image.chunks_exact(n).map(least).collect();
        let mut changed = vec![0.; image.len()];
        change.apply(&image, shape, Interpolation::Linear, &fill, &mut changed).context("--mirror and --zoom")?;
        let [d, h, w] = shape;
        Ok(Arrays { ids: vec![scans.id(scan).to_owned()], images: vec![Array4::from_shape_vec((channels, d, h, w), changed)?] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, rng};
    use crate::tasks::tests::scans;

    #[test]
    fn scans_are_mirrored_along_one_axis_and_zoomed_about_their_centre() {
        let mut rng = rng(3, Stream::Train, 0, 0);
        for (rank, shape) in [(Rank::Two, [1, 7, 9]), (Rank::Three, [5, 7, 9])] {
            let scans = scans(shape);
            let original = &scans.images[1];
            let mirror = MirrorZoom { mirror: 1., zoom: Interval([1., 1.]) };
            let changed = mirror.apply(&scans, 1, rank, &mut rng).unwrap();
            assert_eq!((changed.ids[0].as_str(), changed.len()), ("scan1", 1));
            let axis = if rank == Rank::Two { 3 } else { 1 };
            let mut expected = original.clone();
            expected.invert_axis(ndarray::Axis(axis));
            assert_eq!(changed.images[0], expected);

            let zoom = MirrorZoom { mirror: 0., zoom: Interval([3., 3.]) };
            let changed = &zoom.apply(&scans, 1, rank, &mut rng).unwrap().images[0];
            let centre = shape.map(|n| n / 2);
            for c in 0..2 {
                let at = |image: &Array4<f32>, y: [usize; 3]| image[[c, y[0], y[1], y[2]]];
                assert!((at(changed, centre) - at(original, centre)).abs() < 1e-5);
                // Three voxels to the right of the centre lies what was one to the right of it.
                let (far, near) = ([centre[0], centre[1], centre[2] + 3], [centre[0], centre[1], centre[2] + 1]);
                assert!((at(changed, far) - at(original, near)).abs() < 1e-5);
            }
        }
    }
}
