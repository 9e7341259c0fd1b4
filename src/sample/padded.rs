//! Scans that are smaller than what is cut from them: they lie in the middle of background.

use crate::data::Scans;
use crate::data::store::oriented::turn;
use crate::dim::{Region, Shape, voxels};
use crate::transform::intensity::Stats;
use crate::transform::spatial::Orientation;
use anyhow::{Result, ensure};
use std::sync::{Arc, OnceLock};

/// Extent of a scan that nowhere has less than `least` voxels, and the voxels before it along each axis.
pub fn extended(shape: Shape, least: Shape) -> (Shape, Shape) {
    let extent: Shape = std::array::from_fn(|a| shape[a].max(least[a]));
    (extent, std::array::from_fn(|a| (extent[a] - shape[a]) / 2))
}

/// Scans of which none is smaller than `least`. Around a smaller one lies each channel's smallest value, and class 0 of its label, as nnU-Net
/// pads them and as whole scans are predicted; where voxels may be unlabelled, what is around is, so that it outweighs nothing.
pub struct Padded {
    scans: Arc<dyn Scans>,
    least: Shape,
    /// Of each scan's channels, once they were needed.
    lowest: Vec<OnceLock<Vec<f32>>>,
}

impl Padded {
    /// The scans themselves where none is smaller.
    pub fn around(scans: Arc<dyn Scans>, least: Shape) -> Arc<dyn Scans> {
        if (0..scans.len()).all(|scan| extended(scans.shape(scan), least).0 == scans.shape(scan)) {
            return scans;
        }
        let lowest = (0..scans.len()).map(|_| OnceLock::new()).collect();
        Arc::new(Padded { scans, least, lowest })
    }

    /// The smallest value of each of a scan's channels.
    fn lowest(&self, scan: usize) -> Result<&[f32]> {
        if let Some(found) = self.lowest[scan].get() {
            return Ok(found);
        }
        let image = self.scans.whole(scan)?;
        let least = image.chunks_exact(voxels(self.scans.shape(scan))).map(|channel| Stats::of(channel).min).collect();
        Ok(self.lowest[scan].get_or_init(|| least))
    }

    /// Reads a region of a padded scan with `read`, which takes regions of the scan itself; `fill`: of each channel outside.
    fn cut<T: Copy + Default>(
        &self,
        scan: usize,
        region: Region,
        orientation: Orientation,
        fill: &[T],
        out: &mut [T],
        read: impl Fn(Region, &mut [T]) -> Result<()>,
    ) -> Result<()> {
        let shape = self.scans.shape(scan);
        let (extent, before) = extended(shape, self.least);
        ensure!(region.fits(extent), "{}: region {region:?} leaves the padded scan of {extent:?}", self.id(scan));
        let n = voxels(region.size);
        ensure!(out.len() == fill.len() * n, "{}: buffer of {} values, expected {}", self.id(scan), out.len(), fill.len() * n);
        // What of the region the scan holds, in the scan's own coordinates; empty where it lies in the padding alone.
        let start: Shape = std::array::from_fn(|a| region.start[a].saturating_sub(before[a]).min(shape[a]));
        let end = |a: usize| (region.start[a] + region.size[a]).saturating_sub(before[a]).clamp(start[a], shape[a]);
        let held = Region { start, size: std::array::from_fn(|a| end(a) - start[a]) };
        let mut values = vec![T::default(); fill.len() * voxels(held.size)];
        if !values.is_empty() {
            read(held, &mut values)?;
        }
        let place: Shape = std::array::from_fn(|a| (held.start[a] + before[a]).saturating_sub(region.start[a]));
        let place = Region { start: place, size: held.size };
        let mut whole = vec![T::default(); n];
        for (channel, (&fill, out)) in fill.iter().zip(out.chunks_exact_mut(n.max(1))).enumerate() {
            whole.fill(fill);
            let values = &values[channel * voxels(held.size)..][..voxels(held.size)];
            for (row, values) in place.rows(region.size).zip(values.chunks_exact(held.size[2].max(1))) {
                whole[row].copy_from_slice(values);
            }
            turn(&whole, region.size, Region::whole(region.size), orientation, out);
        }
        Ok(())
    }
}

impl Scans for Padded {
    fn len(&self) -> usize {
        self.scans.len()
    }

    fn id(&self, scan: usize) -> &str {
        self.scans.id(scan)
    }

    fn channels(&self) -> usize {
        self.scans.channels()
    }

    fn shape(&self, scan: usize) -> Shape {
        extended(self.scans.shape(scan), self.least).0
    }

    fn spacing(&self, scan: usize) -> [f64; 3] {
        self.scans.spacing(scan)
    }

    fn read_ahead(&self, scan: usize) {
        self.scans.read_ahead(scan);
    }

    fn class_outside(&self) -> u8 {
        self.scans.class_outside()
    }

    fn zero_is_mean(&self) -> bool {
        self.scans.zero_is_mean()
    }

    fn read(&self, scan: usize, region: Region, orientation: Orientation, out: &mut [f32]) -> Result<()> {
        if self.shape(scan) == self.scans.shape(scan) {
            return self.scans.read(scan, region, orientation, out);
        }
        let read = |held: Region, out: &mut [f32]| self.scans.read(scan, held, Orientation::IDENTITY, out);
        self.cut(scan, region, orientation, self.lowest(scan)?, out, read)
    }

    fn label(&self, scan: usize, region: Region, orientation: Orientation, out: &mut [u8]) -> Result<()> {
        if self.shape(scan) == self.scans.shape(scan) {
            return self.scans.label(scan, region, orientation, out);
        }
        let read = |held: Region, out: &mut [u8]| self.scans.label(scan, held, Orientation::IDENTITY, out);
        self.cut(scan, region, orientation, &[self.class_outside()], out, read)
    }

    fn class(&self, scan: usize) -> Option<u8> {
        self.scans.class(scan)
    }

    fn foreground(&self, scan: usize) -> Region {
        self.scans.foreground(scan).shifted(extended(self.scans.shape(scan), self.least).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::labelling::IGNORE;
    use crate::data::store::{Index, Store};
    use crate::rng::{Stream, rng};
    use crate::sample::foreground::tests::{all, plain, store};
    use crate::tasks::tests::scans;
    use ndarray::Array3;
    use rand::Rng as _;

    #[test]
    fn regions_of_padded_scans_are_those_of_the_padded_array() {
        let small = scans([6, 9, 5]);
        let least = [11, 4, 8];
        // numpy.pad, written out.
        let padded: Vec<_> = small
            .images
            .iter()
            .map(|image| {
                ndarray::Array4::from_shape_fn((2, 11, 9, 8), |(c, d, h, w)| {
                    let lowest = image.index_axis(ndarray::Axis(0), c).iter().copied().fold(f32::INFINITY, f32::min);
                    if (2..8).contains(&d) && (1..6).contains(&w) { image[[c, d - 2, h, w - 1]] } else { lowest }
                })
            })
            .collect();
        let expected = crate::data::Arrays { ids: small.ids.clone(), images: padded };
        let found = Padded::around(Arc::new(small), least);
        assert_eq!((found.len(), found.shape(1), found.foreground(1).start), (3, [11, 9, 8], [2, 0, 1]));
        assert_eq!(found.whole(2).unwrap(), expected.whole(2).unwrap());
        let mut random = rng(3, Stream::Train, 0, 0);
        for draw in 0..300 {
            let size: Shape = found.shape(0).map(|n| random.random_range(1..=n));
            let start: Shape = std::array::from_fn(|a| random.random_range(0..=found.shape(0)[a] - size[a]));
            let (region, turn) = (Region { start, size }, Orientation::rotation(crate::dim::Rank::Three, draw % 10));
            let [mut a, mut b] = [0, 1].map(|_| vec![f32::NAN; 2 * voxels(size)]);
            found.read(0, region, turn, &mut a).unwrap();
            expected.read(0, region, turn, &mut b).unwrap();
            assert_eq!(a, b, "{region:?} {turn:?}");
        }
        let outside = Region { start: [0, 0, 1], size: [11, 9, 8] };
        assert!(found.read(0, outside, Orientation::IDENTITY, &mut [0.; 1584]).unwrap_err().to_string().contains("leaves"));
        // Where none is smaller, nothing is in between.
        let large: Arc<dyn Scans> = Arc::new(scans([6, 9, 5]));
        assert!(Arc::ptr_eq(&Padded::around(large.clone(), [6, 1, 5]), &large));
    }

    #[test]
    fn labels_are_padded_with_the_background_and_patches_find_the_foreground_there() {
        let folder = tempfile::tempdir().unwrap();
        let label = Array3::from_shape_fn((4, 6, 3), |x| u8::from(x == (3, 1, 2)));
        let store = store(folder.path(), &[Some(label), Some(Array3::from_elem((12, 12, 12), 1))]);
        let (subset, patch) = (all(&store), [6, 4, 8]);
        let found = crate::sample::foreground::Foreground::of(&subset, &plain(2)).unwrap();
        let padded = Padded::around(Arc::new(subset), patch);
        assert_eq!((padded.shape(0), padded.shape(1)), ([6, 6, 8], [12; 3]));
        let whole = padded.whole_label(0).unwrap();
        assert_eq!(whole.iter().position(|&class| class == 1), Some((4 * 6 + 1) * 8 + 4), "1, 0 and 2 voxels lie before it");
        let mut random = rng(1, Stream::Train, 0, 0);
        for _ in 0..50 {
            let region = found.region(0, patch, true, &mut random);
            assert!(region.fits(padded.shape(0)) && region.size == patch);
            let mut out = vec![9; voxels(patch)];
            padded.label(0, region, Orientation::IDENTITY, &mut out).unwrap();
            assert_eq!(out.iter().filter(|&&class| class == 1).count(), 1);
        }
        // Where voxels may be unlabelled, those around the scan are.
        let mut index = Index::read(folder.path()).unwrap();
        index.ignore = Some(9);
        index.write(folder.path()).unwrap();
        let padded = Padded::around(Arc::new(all(&Store::open(folder.path()).unwrap())), patch);
        let sparse = padded.whole_label(0).unwrap();
        let around = sparse.iter().zip(&whole).filter(|&(&class, _)| class == IGNORE);
        assert_eq!(
            (around.clone().count(), around.filter(|(_, class)| **class == 0).count()),
            (6 * 6 * 8 - 72, 6 * 6 * 8 - 72)
        );
    }
}
