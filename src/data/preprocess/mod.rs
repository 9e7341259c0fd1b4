//! From scans as their owners distribute them to a store: orientation, grid, intensities.

pub mod intensity;
pub(crate) mod label;
mod look;
pub mod memory;
pub mod photo;
mod regrid;
pub mod resample;
pub mod spool;
mod subject;
pub mod undo;

pub use label::Outside;
pub use subject::{Metadata, Plan, Prepared, prepare};

use crate::data::layouts::Volumes;
use crate::data::scan::Channel;
use crate::data::volume::{Affine, spacing};
use crate::dim::{Region, Shape, voxels};
use anyhow::{Context, Result, bail, ensure};
use indicatif::HumanBytes;
use look::{Look, bounding_box};
use ndarray::{Array3, Array4};
use resample::Axis;
use serde::{Deserialize, Serialize};

/// Everything that decides the stored voxels. A store holds one value of it; another value makes another store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub grid: Grid,
    pub foreground: Threshold,
    pub intensity: Intensity,
    pub dtype: Dtype,
    #[serde(default, skip_serializing_if = "Volumes::are_channels")]
    pub volumes: Volumes,
}

/// The grid onto which the foreground box is resampled: images linearly, labels to the nearest voxel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Grid {
    /// A cube of this side in voxels, whatever the box's aspect: the paper's protocol. Photographs: a square, by [`photo::fit`].
    Cube { side: usize },
    /// A spacing in millimetres along the RAS+ axes.
    Spacing { mm: [f64; 3] },
}

impl Grid {
    /// The grid over a box of a scan with voxels of `spacing` millimetres.
    pub fn axes(&self, crop: Region, spacing: [f64; 3]) -> [Axis; 3] {
        [0, 1, 2].map(|a| match *self {
            Grid::Cube { side } => Axis::resize(crop.start[a], crop.size[a], side),
            Grid::Spacing { mm } => Axis::respace(crop.start[a], crop.size[a], spacing[a], mm[a]),
        })
    }
}

/// What counts as foreground, channel by channel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Threshold {
    /// Above -500 where the channel's minimum is below -500 and at least one voxel in 200 above it (CT in HU: air and padding are left out);
    /// otherwise above
    /// `minimum + (mean - minimum) / 2`. In photographs above 0.04 of the brightest possible value.
    Auto,
    /// Above this intensity, in the scan's own unit.
    Above { value: f32 },
}

/// How a channel's intensities are normalised, computed on the stored grid.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Intensity {
    /// The channel's minimum becomes 0, its maximum 1.
    MinMax,
    /// Mean 0 and standard deviation 1 over the channel's foreground; the background is shifted and scaled alike.
    ZScoreForeground,
    /// `lo..hi` (HU; of photographs shares of the brightest possible value) becomes 0..1, clipped.
    Window { lo: f32, hi: f32 },
}

/// Type of the stored image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F16,
    F32,
}

impl Dtype {
    /// Bytes of a voxel.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F16 => 2,
            Dtype::F32 => 4,
        }
    }

    /// What is left of values that are stored and read again.
    pub fn round(self, values: &mut [f32]) {
        if self == Dtype::F16 {
            values.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32());
        }
    }
}

impl Settings {
    /// Checks the numbers; errors name the one that is out of range.
    pub fn check(&self) -> Result<()> {
        match self.grid {
            Grid::Cube { side } => ensure!((1..=1024).contains(&side), "size must be 1 to 1024 voxels, found {side}"),
            Grid::Spacing { mm } => ensure!(
                mm.iter().all(|m| (0.01..=1000.0).contains(m)),
                "spacing must be 0.01 to 1000 mm along every axis, found {mm:?}"
            ),
        }
        if let Threshold::Above { value } = self.foreground {
            ensure!(value.is_finite(), "foreground must be a finite intensity, found {value}");
        }
        if let Intensity::Window { lo, hi } = self.intensity {
            ensure!(lo.is_finite() && hi.is_finite() && lo < hi, "window must be LO,HI with LO < HI, found {lo},{hi}");
        }
        Ok(())
    }
}

/// The stored grid's place in a scan whose axes are RAS+.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// Extent of the scan.
    pub scan: Shape,
    pub axes: [Axis; 3],
    /// Box of the scan's foreground, which the grid covers, and more where labels lie outside of it.
    pub foreground: Region,
    /// Affine of the stored grid.
    pub affine: Affine,
}

impl Placement {
    /// Finds the foreground's box in a RAS+ scan, widens it to hold the box `labelled`, and lays the grid over it. Errors: voxels that are not finite, a constant
    /// channel, no foreground, a grid too large to be meant.
    fn find(scan: Shape, affine: &Affine, looks: &[Look], labelled: Option<Region>, settings: &Settings) -> Result<Placement> {
        ensure!(voxels(scan) > 0 && !looks.is_empty(), "no voxels: shape is {scan:?}");
        let mut channels = Vec::with_capacity(looks.len());
        for (c, Look { summary: channel, highest, .. }) in looks.iter().enumerate() {
            ensure!(
                channel.non_finite == 0,
                "channel {c}: {} of {} voxels are NaN or infinite, expected finite ones",
                channel.non_finite,
                voxels(scan)
            );
            ensure!(channel.max > channel.min, "channel {c}: constant: every voxel is {}", channel.min);
            channels.push((highest, intensity::threshold(settings.foreground, channel)));
        }
        let Some(foreground) = bounding_box(&channels) else {
            bail!("no foreground: no voxel is above {:?}", channels.iter().map(|c| c.1).collect::<Vec<_>>())
        };
        let crop = labelled.map_or(foreground, |labelled| foreground.hull(labelled));
        let spacing = spacing(affine);
        let axes = settings.grid.axes(crop, spacing);
        let count: f64 = axes.iter().map(|a| a.out as f64).product();
        ensure!(
            count <= memory::MAX_VOXELS,
            "{:?} voxels of {spacing:?} mm would become {:?}, {} a channel, expected at most {} voxels: is the file's spacing right? If so, \
             the grid must be coarser",
            crop.size,
            resample::shape(&axes),
            HumanBytes((count * memory::FLOAT as f64) as u64),
            memory::MAX_VOXELS
        );
        let mut affine = *affine;
        for row in affine.iter_mut().take(3) {
            for (a, axis) in axes.iter().enumerate() {
                row[3] += row[a] * (axis.start as f64 + axis.first());
                row[a] *= axis.step;
            }
        }
        Ok(Placement { scan, axes, foreground, affine })
    }

    /// The box of the scan that the grid covers.
    pub fn crop(&self) -> Region {
        Region { start: self.axes.map(|a| a.start), size: self.axes.map(|a| a.n) }
    }

    /// Shape of the stored grid.
    pub fn shape(&self) -> Shape {
        resample::shape(&self.axes)
    }

    /// What preparing a scan of these channels takes of memory, if it is much.
    fn memory(&self, channels: &[Channel]) -> Option<String> {
        let (read, stored) = (voxels(self.scan), voxels(self.shape()));
        // The label as read and as stored, a byte each; a copy of the image as it is written, at most as large.
        let image: usize = channels.iter().map(Channel::bytes).sum();
        let bytes = image + memory::FLOAT * channels.len() * 2 * stored + read + stored;
        let parts =
            format!("{} channels of {:?} voxels as read and of {:?} as stored", channels.len(), self.scan, self.shape());
        memory::line(bytes, &parts)
    }

    /// The scan on the stored grid, `[C, D, H, W]`, normalised.
    fn image(&self, channels: &[Channel], settings: &Settings) -> Result<Array4<f32>> {
        let [d, h, w] = self.shape();
        let mut image = Array4::zeros((channels.len(), d, h, w));
        let out = image.as_slice_mut().context("just made")?.chunks_exact_mut(d * h * w);
        for (c, (channel, out)) in channels.iter().zip(out).enumerate() {
            resample::linear(channel, self.scan, &self.axes, out);
            intensity::normalise(out, settings.intensity, settings.foreground).with_context(|| format!("channel {c}"))?;
        }
        Ok(image)
    }

    /// What of a label with these classes (in RAS+ order) lies outside of the foreground's box.
    pub fn outside(&self, classes: &[u8]) -> Option<Outside> {
        let foreground = self.foreground;
        let beyond = label::outside(classes, self.scan, foreground);
        let within = [0, 1, 2].map(|a| self.axes[a].within(foreground.start[a], foreground.size[a]));
        let stored = Region { start: within.map(|w| w.0), size: within.map(|w| w.1) };
        (beyond > 0).then_some(Outside { voxels: beyond, foreground, stored })
    }

    /// Classes `[D, H, W]` of the scan's voxels (in RAS+ order) on the stored grid.
    pub fn label(&self, classes: &[u8]) -> Result<Array3<u8>> {
        ensure!(classes.len() == voxels(self.scan), "{} classes for a scan of {:?}", classes.len(), self.scan);
        let [d, h, w] = self.shape();
        let mut label = Array3::zeros((d, h, w));
        resample::nearest(classes, self.scan, &self.axes, label.as_slice_mut().context("just made")?);
        Ok(label)
    }
}
