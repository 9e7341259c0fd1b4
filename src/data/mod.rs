//! Reading, preprocessing, storing and splitting scans. Nothing here knows libtorch.

pub mod formats;
pub mod identity;
pub mod labelling;
pub mod laterality;
pub mod layouts;
pub mod names;
pub mod number;
pub mod phantom;
pub mod preprocess;
pub mod scan;
pub mod slices;
pub mod split;
pub mod store;
pub mod volume;

use crate::dim::{Region, Shape, voxels};
use crate::transform::spatial::Orientation;
use anyhow::{Result, bail, ensure};

/// Random access to preprocessed scans. The store implements it; tests use arrays in memory ([`Arrays`]).
pub trait Scans: Send + Sync {
    /// Number of scans.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Name of a scan, for messages and records.
    fn id(&self, scan: usize) -> &str;
    /// Channels of every scan.
    fn channels(&self) -> usize;
    fn shape(&self, scan: usize) -> Shape;
    /// Millimetres along each axis of a scan.
    fn spacing(&self, _scan: usize) -> [f64; 3] {
        [1.; 3]
    }
    /// Copies a region of all channels, turned by `orientation`, into `out`: `[C, ..orientation.output(region.size)]`,
    /// row-major. Errors if the region leaves the scan or `out` has another length.
    fn read(&self, scan: usize, region: Region, orientation: Orientation, out: &mut [f32]) -> Result<()>;
    /// Says that a scan will be read soon.
    fn read_ahead(&self, _scan: usize) {}
    /// As [`Scans::read`], of the label's classes: `out` is `orientation.output(region.size)`. Errors where the scan has no label.
    fn label(&self, scan: usize, _region: Region, _orientation: Orientation, _out: &mut [u8]) -> Result<()> {
        bail!("{}: has no label", self.id(scan))
    }
    /// Class of a whole scan, where it has one.
    fn class(&self, _scan: usize) -> Option<u8> {
        None
    }
    /// A quantity of a whole scan, such as an age, where it has one.
    fn quantity(&self, _scan: usize) -> Option<f64> {
        None
    }
    /// Box of a scan that a prediction reaches: the foreground's. A scan with labels may extend beyond it.
    fn foreground(&self, scan: usize) -> Region {
        Region::whole(self.shape(scan))
    }
    /// Class of what lies around a scan, for patches that reach beyond it: the background, unless voxels may be unlabelled.
    fn class_outside(&self) -> u8 {
        0
    }
    /// Whether intensities are z-scores, so that 0 is the mean of a channel's foreground.
    fn zero_is_mean(&self) -> bool {
        false
    }
    /// All voxels of a scan, `[C, D, H, W]`, row-major.
    fn whole(&self, scan: usize) -> Result<Vec<f32>> {
        let shape = self.shape(scan);
        let mut out = vec![0.; self.channels() * voxels(shape)];
        self.read(scan, Region::whole(shape), Orientation::IDENTITY, &mut out)?;
        Ok(out)
    }
    /// The class of every voxel of a scan, `[D, H, W]`, row-major. Errors where the scan has no label.
    fn whole_label(&self, scan: usize) -> Result<Vec<u8>> {
        let shape = self.shape(scan);
        let mut out = vec![0; voxels(shape)];
        self.label(scan, Region::whole(shape), Orientation::IDENTITY, &mut out)?;
        Ok(out)
    }
}

/// Scans held in memory.
pub struct Arrays {
    pub ids: Vec<String>,
    /// `[C, D, H, W]` each, with equal `C`.
    pub images: Vec<ndarray::Array4<f32>>,
}

impl Scans for Arrays {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn id(&self, scan: usize) -> &str {
        &self.ids[scan]
    }

    fn channels(&self) -> usize {
        self.images[0].dim().0
    }

    fn shape(&self, scan: usize) -> Shape {
        let (_, d, h, w) = self.images[scan].dim();
        [d, h, w]
    }

    fn read(&self, scan: usize, region: Region, orientation: Orientation, out: &mut [f32]) -> Result<()> {
        let shape = self.shape(scan);
        ensure!(region.fits(shape), "{}: region {region:?} leaves the scan of {shape:?}", self.id(scan));
        let size = orientation.output(region.size);
        ensure!(out.len() == self.channels() * voxels(size), "{}: buffer of {} for {size:?}", self.id(scan), out.len());
        let mut out = out.iter_mut();
        for c in 0..self.channels() {
            for x in ndarray::indices((size[0], size[1], size[2])) {
                let x = [x.0, x.1, x.2];
                let mut y = region.start;
                for a in 0..3 {
                    let n = region.size[orientation.source[a]];
                    y[orientation.source[a]] += if orientation.flip[a] { n - 1 - x[a] } else { x[a] };
                }
                *out.next().expect("length checked") = self.images[scan][[c, y[0], y[1], y[2]]];
            }
        }
        Ok(())
    }
}
