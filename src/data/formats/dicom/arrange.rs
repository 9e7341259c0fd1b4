//! The slices of a series in their order, and what is wrong with them.

use super::file::Place;
use super::image::{Image, Piece, Slice};
use super::{FORMAT, pixels};
use crate::data::formats::voxels::Voxels;
use crate::data::formats::{Header, Stored};
use crate::data::volume::Affine;
use anyhow::{Context, Result, bail, ensure};
use std::io::Read;

/// By how much directions may differ, as cosines, and spacings, as shares.
const ALIKE: f64 = 1e-3;
/// Where a step between slices is so much of the usual one, one is missing, or two are in one place.
const GAP: f64 = 1.5;
const DOUBLE: f64 = 0.1;
/// By how much of the usual step a slice may lie off its place along the normal, as rounded positions do; and by how much of a voxel
/// all slices together may shift across it.
const UNEVEN: f64 = 0.1;
const SHEARED: f64 = 0.5;

/// Slices in their order along the normal.
#[derive(Clone, Debug)]
pub struct Arranged {
    images: Vec<Image>,
    pieces: Vec<Piece>,
    affine: Affine,
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn difference(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|r| a[r] - b[r])
}

fn length(a: [f64; 3]) -> f64 {
    dot(a, a).sqrt()
}

/// Sorts the slices along their normal. Errors say which rule the series breaks.
pub fn arrange(images: Vec<Image>) -> Result<Arranged> {
    let first = images.first().context("no slices")?;
    let size = (first.columns, first.rows);
    if let Some(other) = images.iter().find(|image| (image.columns, image.rows) != size) {
        let alike = images.iter().filter(|image| (image.columns, image.rows) == size).count();
        bail!(
            "mixed sizes: {} x {} pixels in {alike} files, {} x {} in others; expected one",
            size.0,
            size.1,
            other.columns,
            other.rows
        );
    }
    let without = images.iter().filter(|image| image.slices.is_none()).count();
    ensure!(
        without == 0,
        "{without} of {} files do not say where they lie (ImagePositionPatient, ImageOrientationPatient, PixelSpacing)",
        images.len()
    );
    let found = images.iter().enumerate().flat_map(|(image, of)| {
        let slices = of.slices.iter().flatten();
        slices.enumerate().map(move |(frame, slice)| (Piece { image, frame, scale: slice.scale, at: 0.0 }, *slice))
    });
    let mut found: Vec<(Piece, Slice)> = found.collect();
    let Slice { axes, spacing, .. } = found[0].1;
    let (lengths, skew) = (axes.map(length), dot(axes[0], axes[1]));
    ensure!(
        lengths.iter().all(|length| (length - 1.0).abs() < ALIKE) && skew.abs() < ALIKE,
        "ImageOrientationPatient {axes:?}: expected two directions of length 1 at a right angle"
    );
    ensure!(spacing.iter().all(|&mm| mm > 0.0), "PixelSpacing {spacing:?}, expected positive millimetres");
    let near = |a: [f64; 3], b: [f64; 3]| length(difference(a, b)) < ALIKE;
    let turned = found.iter().filter(|(_, s)| !near(s.axes[0], axes[0]) || !near(s.axes[1], axes[1])).count();
    ensure!(
        turned == 0,
        "mixed orientations: {turned} of {} slices lie in other directions, as those of a localizer do",
        found.len()
    );
    let scaled = found.iter().filter(|(_, s)| (0..2).any(|a| (s.spacing[a] - spacing[a]).abs() > ALIKE * spacing[a])).count();
    ensure!(scaled == 0, "mixed PixelSpacing: {scaled} of {} slices have another than {spacing:?}", found.len());

    let normal = cross(axes[0], axes[1]);
    found.iter_mut().for_each(|(piece, slice)| piece.at = dot(slice.position, normal));
    found.sort_by(|(a, _), (b, _)| a.at.total_cmp(&b.at));
    let step = step(&found, normal, spacing, first.thickness)?;

    let origin = found[0].1.position;
    const TO_RAS: [f64; 3] = [-1.0, -1.0, 1.0];
    let row = |r: usize| [axes[0][r] * spacing[0], axes[1][r] * spacing[1], step[r], origin[r]].map(|v| v * TO_RAS[r]);
    let affine = [row(0), row(1), row(2), [0.0, 0.0, 0.0, 1.0]];
    let pieces = found.into_iter().map(|(piece, _)| piece).collect();
    Ok(Arranged { images, pieces, affine })
}

/// From a slice to the next, after the checks of all.
fn step(found: &[(Piece, Slice)], normal: [f64; 3], spacing: [f64; 2], thickness: Option<f64>) -> Result<[f64; 3]> {
    let (first, last) = (found[0], found[found.len() - 1]);
    if found.len() == 1 {
        return Ok(normal.map(|v| v * thickness.unwrap_or(1.0)));
    }
    let steps: Vec<f64> = found.windows(2).map(|pair| pair[1].0.at - pair[0].0.at).collect();
    let mut sorted: Vec<f64> = steps.iter().copied().filter(|&mm| mm > 1e-3).collect();
    sorted.sort_by(f64::total_cmp);
    let Some(&usual) = sorted.get(sorted.len() / 2) else {
        bail!("doubled positions: all {} slices lie in one plane, as frames over time do", found.len())
    };
    let after = |n: usize| format!("{:.2} mm along the normal", found[n].0.at);
    let doubles: Vec<usize> = (0..steps.len()).filter(|&n| steps[n] < DOUBLE * usual).collect();
    if let Some(&n) = doubles.first() {
        bail!(
            "doubled positions: {} of {} slices lie where another does, the first at {}, as in series of several echoes, times or \
             diffusion weightings: export each as a series of its own, or convert it with dcm2niix",
            doubles.len(),
            found.len(),
            after(n)
        );
    }
    let total = difference(last.1.position, first.1.position);
    let along = last.0.at - first.0.at;
    let across = |position: [f64; 3], share: f64| {
        let off = difference(position, first.1.position);
        length(std::array::from_fn(|r| off[r] - normal[r] * along * share))
    };
    let tilt = across(last.1.position, 1.0);
    if tilt > SHEARED * spacing[0].min(spacing[1]) {
        let degrees = (tilt / along).atan().to_degrees();
        bail!(
            "gantry tilt: slices shift by {tilt:.2} mm across their normal ({degrees:.1} degrees), so that voxels are no boxes: \
             convert it with dcm2niix, which resamples it"
        );
    }
    let gaps: Vec<usize> = (0..steps.len()).filter(|&n| steps[n] > GAP * usual).collect();
    if let Some(&n) = gaps.first() {
        let lost: f64 = gaps.iter().map(|&n| (steps[n] / usual).round() - 1.0).sum();
        bail!(
            "gaps: slices are {usual:.3} mm apart but for {} places, the first {:.3} mm after {}; {lost:.0} slices are missing: get them",
            gaps.len(),
            steps[n],
            after(n)
        );
    }
    let mean = along / steps.len() as f64;
    let off = (0..found.len()).map(|n| (found[n].0.at - first.0.at - mean * n as f64).abs()).fold(0.0, f64::max);
    ensure!(
        off <= UNEVEN * mean,
        "uneven spacing: steps between slices are {:.3} to {:.3} mm, expected equal ones: convert it with dcm2niix, which resamples it",
        sorted[0],
        sorted[sorted.len() - 1]
    );
    // Every slice lies on the line, not the last alone.
    let bent = found.iter().map(|(piece, slice)| across(slice.position, (piece.at - first.0.at) / along)).fold(0.0, f64::max);
    ensure!(
        bent <= SHEARED * spacing[0].min(spacing[1]),
        "slices shift by up to {bent:.2} mm across their normal, expected them behind one another"
    );
    Ok(total.map(|v| v / steps.len() as f64))
}

impl Arranged {
    /// The files, in the order of their slices; one of several frames once.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        let first = self.pieces.iter().enumerate().filter(|(n, piece)| *n == 0 || self.pieces[n - 1].image != piece.image);
        first.map(|(_, piece)| &self.images[piece.image].place)
    }

    /// The files, and the slices in their order.
    pub fn parts(&self) -> (&[Image], &[Piece]) {
        (&self.images, &self.pieces)
    }

    /// A slice in the order, and its file.
    pub fn slice(&self, n: usize) -> (&Image, &Slice) {
        let Piece { image, frame, .. } = self.pieces[n];
        let image = &self.images[image];
        (image, &image.slices.as_ref().expect("checked")[frame])
    }

    /// Whether all slices are written in one way, so that stored values can be handed over as they are.
    fn uniform(&self) -> bool {
        let first = &self.images[0].word;
        self.images.iter().all(|image| image.word.stored == first.stored)
            && self.pieces.iter().all(|piece| piece.scale == self.pieces[0].scale)
    }

    pub fn header(&self) -> Result<Header> {
        let Image { columns, rows, word, .. } = self.images[0];
        let uniform = self.uniform();
        Ok(Header {
            format: &FORMAT,
            shape: [columns, rows, self.pieces.len()],
            channels: 1,
            interleaved: None,
            stored: if uniform { word.stored } else { Stored::Float32 },
            affine: self.affine,
            scale: Some(self.pieces[0].scale).filter(|&scale| uniform && scale != (1.0, 0.0)),
            // Pixels are put in order as they are read.
            big_endian: false,
            raw: vec![],
        })
    }

    /// `revealed`: messages may name files.
    pub fn voxels(&self, revealed: bool) -> Voxels<'_> {
        let open =
            move || Ok(Box::new(pixels::Pixels::new(&self.images, &self.pieces, self.uniform(), revealed)) as Box<dyn Read>);
        Voxels { there: self.places().map(Place::bytes).sum(), ..Voxels::from_stream(open) }
    }

    pub fn into_voxels<'a>(self) -> Voxels<'a> {
        let (uniform, there) = (self.uniform(), self.places().map(Place::bytes).sum());
        let Arranged { images, pieces, .. } = self;
        let open = move || Ok(Box::new(pixels::Pixels::new(images, pieces, uniform, false)) as Box<dyn Read>);
        Voxels { there, ..Voxels::from_stream(open) }
    }
}
