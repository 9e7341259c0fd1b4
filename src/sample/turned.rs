//! Regions of scans through spatial changes. What turns into view is read from the scan, so that only beyond its ends something is filled.

use crate::data::Scans;
use crate::dim::{Region, Shape, voxels};
use crate::transform::augment::Augmentation;
use crate::transform::intensity::Stats;
use crate::transform::resample::{Interpolation, Resample, Source};
use crate::transform::spatial::Orientation;
use anyhow::Result;

/// Writes a region of a scan, with its label if one is given, turned and scaled about the region's centre. Beyond the scan's ends lie each
/// channel's smallest value in what was read, and the class that stands beside the label. Returns each channel's statistics in what was read.
pub fn resampled(
    scans: &dyn Scans,
    scan: usize,
    region: Region,
    spatial: &Resample,
    out: &mut [f32],
    label: Option<(&mut [u8], u8)>,
) -> Result<Vec<Stats>> {
    let read = within(spatial.reach(region.size), region.start, scans.shape(scan));
    let source = Source { start: std::array::from_fn(|a| read.start[a] as i64 - region.start[a] as i64), size: read.size };
    let n = voxels(read.size);
    let mut input = vec![0f32; scans.channels() * n];
    scans.read(scan, read, Orientation::IDENTITY, &mut input)?;
    let stats: Vec<Stats> = input.chunks_exact(n).map(Stats::of).collect();
    let fill: Vec<f32> = stats.iter().map(|stats| stats.min).collect();
    spatial.apply_from(&input, source, region.size, Interpolation::Linear, &fill, out)?;
    if let Some((label, outside)) = label {
        let mut input = vec![0u8; n];
        scans.label(scan, read, Orientation::IDENTITY, &mut input)?;
        spatial.apply_label_from(&input, source, region.size, outside, label)?;
    }
    Ok(stats)
}

/// Writes a region of a scan, with its label if one is given, augmented as [`Augmentation::apply`] says.
pub fn augmented(
    scans: &dyn Scans,
    scan: usize,
    region: Region,
    augmentation: &Augmentation,
    out: &mut [f32],
    mut label: Option<&mut [u8]>,
) -> Result<()> {
    if augmentation.spatial.resamples() {
        let stats = resampled(
            scans,
            scan,
            region,
            &augmentation.spatial,
            out,
            label.as_deref_mut().map(|label| (label, augmentation.outside)),
        )?;
        augmentation.finish(&stats.into_iter().map(Some).collect::<Vec<_>>(), out, label, region.size);
        return Ok(());
    }
    scans.read(scan, region, Orientation::IDENTITY, out)?;
    if let Some(label) = label.as_deref_mut() {
        scans.label(scan, region, Orientation::IDENTITY, label)?;
    }
    augmentation.apply(out, label, region.size)
}

/// The part of a box, given relative to `origin`, that a scan of this shape holds.
fn within(reach: Source, origin: Shape, shape: Shape) -> Region {
    let clamp = |a: usize, x: i64| (x + origin[a] as i64).clamp(0, shape[a] as i64) as usize;
    let start: Shape = std::array::from_fn(|a| clamp(a, reach.start[a]));
    Region { start, size: std::array::from_fn(|a| clamp(a, reach.start[a] + reach.size[a] as i64) - start[a]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::Rank;
    use crate::rng::{Stream, rng};
    use crate::sample::foreground::tests::{all, store};
    use crate::tasks::tests::scans;
    use crate::transform::augment::{AugmentConfig, Interval};
    use crate::transform::resample::ResampleRanges;
    use rand::Rng as _;

    const WILD: ResampleRanges = ResampleRanges { flip: 0.5, right_angle: 0.25, degrees: 180., zoom: [0.6, 1.6] };

    #[test]
    fn a_region_turns_as_it_does_in_the_whole_scan() {
        // As if the whole scan had been turned about the region's centre, and cut then.
        let mut random = rng(4, Stream::Train, 0, 0);
        for (rank, shape) in [(Rank::Three, [21, 17, 19]), (Rank::Two, [1, 30, 25]), (Rank::Two, [5, 30, 25])] {
            let scans = scans(shape);
            let mut filled = 0;
            for _ in 0..60 {
                let size: Shape =
                    std::array::from_fn(|a| if rank == Rank::Two && a == 0 { 1 } else { random.random_range(2..9) });
                let start: Shape = std::array::from_fn(|a| random.random_range(0..=shape[a] - size[a]));
                let spatial = WILD.draw(rank, size, &mut random);
                let mut found = vec![f32::NAN; 2 * voxels(size)];
                let stats = resampled(&scans, 1, Region { start, size }, &spatial, &mut found, None).unwrap();
                let matrix = spatial.matrix();
                for (x, c) in ndarray::indices((size[0], size[1], size[2])).into_iter().flat_map(|x| [(x, 0), (x, 1)]) {
                    let x = [x.0, x.1, x.2];
                    let centre = |a: usize| (size[a] as f64 - 1.) / 2.;
                    let y: [f64; 3] = std::array::from_fn(|a| {
                        start[a] as f64 + centre(a) + (0..3).map(|b| matrix[a][b] * (x[b] as f64 - centre(b))).sum::<f64>()
                    });
                    let fill = f64::from(stats[c].min);
                    let mut value = fill;
                    for corner in 0..8usize {
                        let at: [f64; 3] = std::array::from_fn(|a| y[a].floor() + (corner >> a & 1) as f64);
                        let weight: f64 = (0..3).map(|a| 1. - (y[a] - at[a]).abs()).product();
                        if (0..3).all(|a| (0. ..shape[a] as f64).contains(&at[a])) {
                            let at = at.map(|v| v as usize);
                            value += weight * (f64::from(scans.images[1][[c, at[0], at[1], at[2]]]) - fill);
                        } else {
                            filled += usize::from(weight > 1e-3);
                        }
                    }
                    let place = ((c * size[0] + x[0]) * size[1] + x[1]) * size[2] + x[2];
                    assert!(
                        (f64::from(found[place]) - value).abs() < 1e-4,
                        "{rank:?} {spatial:?} {x:?}: {}, not {value}",
                        found[place]
                    );
                }
            }
            assert!(filled > 0, "some lie at the ends");
        }
    }

    #[test]
    fn nothing_is_filled_within_a_scan() {
        // All of one value but for its rim: wherever a region lies within reach of nothing but that, nothing else may show.
        let mut random = rng(5, Stream::Train, 0, 0);
        let one = |shape: Shape| ndarray::Array3::from_elem(shape, 1u8);
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), &[Some(one([40, 40, 40])), Some(one([1, 60, 60]))]);
        let config = AugmentConfig {
            spatial: 1.,
            flip: 0.5,
            degrees: 45.,
            scale: Interval([0.8, 1.25]),
            brightness_p: 0.,
            contrast_p: 0.,
            gamma_p: 0.,
            noise_p: 0.,
            ..Default::default()
        };
        for (scan, region) in [
            (0, Region { start: [14; 3], size: [12, 12, 12] }),
            (0, Region { start: [12, 13, 17], size: [16, 14, 6] }),
            (1, Region { start: [0, 20, 20], size: [1, 20, 20] }),
        ] {
            let rank = Rank::of(region.size);
            let augmenter = config.augmenter(rank, None, &[]).unwrap();
            for _ in 0..100 {
                let augmentation = augmenter.draw(1, region.size, &mut random);
                let (mut image, mut label) = (vec![f32::NAN; voxels(region.size)], vec![9u8; voxels(region.size)]);
                augmented(&all(&store), scan, region, &augmentation, &mut image, Some(&mut label)).unwrap();
                assert!(image.iter().all(|v| *v == 1.) && label.iter().all(|class| *class == 1), "{augmentation:?}");
            }
        }
    }
}
