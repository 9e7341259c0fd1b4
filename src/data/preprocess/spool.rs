//! Values of all of a scan's voxels on disk, where memory does not hold them: in by planes of the scan, out by slices of its file.

use crate::data::volume::{Strides, gather};
use crate::dim::{Shape, voxels};
use crate::fs::scratch;
use crate::machine::free_disk;
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, ensure};
use indicatif::HumanBytes;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are gathered before they are written, so that a file's slices are read in long runs whatever its axes are.
pub const BLOCK: usize = 32 << 20;

/// `[K, ..]` values of a scan, as blocks of planes along the scan's first axis, each `[K, ..]` in the file's order.
pub struct Spool {
    file: File,
    outputs: usize,
    /// Of the scan.
    shape: Shape,
    /// From the scan's axes to the file's.
    back: Orientation,
    /// Planes of a block, but for the last one.
    thick: usize,
    /// Planes `[K, h, w]` that are not yet written.
    block: Vec<f32>,
    planes: usize,
}

impl Spool {
    /// For `outputs` values a voxel of a scan of this `shape`, in a file without a name in `folder`. Errors if the disk is too small.
    pub fn new(folder: &Path, outputs: usize, shape: Shape, back: Orientation) -> Result<Spool> {
        let bytes = (outputs * voxels(shape) * size_of::<f32>()) as u64;
        let file = scratch(folder)?;
        if let Some(free) = free_disk(folder) {
            ensure!(
                free >= bytes,
                "{}: the probabilities of {outputs} outputs for {shape:?} voxels need {} on disk until they are written, found {}",
                folder.display(),
                HumanBytes(bytes),
                HumanBytes(free)
            );
        }
        let plane = outputs * shape[1] * shape[2] * size_of::<f32>();
        let thick = (BLOCK / plane.max(1)).clamp(1, shape[0].max(1));
        Ok(Spool { file, outputs, shape, back, thick, block: vec![], planes: 0 })
    }

    /// Planes that came.
    pub fn planes(&self) -> usize {
        self.planes
    }

    /// Takes the scan's next plane, `[K, h, w]`.
    pub fn push(&mut self, plane: &[f32]) -> Result<()> {
        self.block.extend_from_slice(plane);
        self.planes += 1;
        if self.planes.is_multiple_of(self.thick) || self.planes == self.shape[0] {
            self.write_block()?;
        }
        Ok(())
    }

    fn write_block(&mut self) -> Result<()> {
        let [_, h, w] = self.shape;
        let planes = self.block.len() / (self.outputs * h * w);
        let shape = [planes, h, w];
        let [i, j, k] = self.back.output(shape);
        let mut out = vec![0f32; planes * h * w];
        for output in 0..self.outputs {
            let strides = Strides { base: output * h * w, step: [(self.outputs * h * w) as isize, w as isize, 1] };
            gather(&self.block, strides.oriented(shape, self.back).reversed(), [k, j, i], &mut out, &|v| v);
            self.file.write_all(bytemuck::cast_slice(&out)).context("writing probabilities to disk")?;
        }
        self.block.clear();
        Ok(())
    }

    /// One output's values at place `k` of the file's third axis, `out[i + n * j]`. After the last plane came.
    pub fn slice(&self, output: usize, k: usize, out: &mut [f32]) -> Result<()> {
        let (n, plane) = (self.shape[0], self.shape[1] * self.shape[2]);
        let [row, ..] = self.back.output(self.shape);
        // The file's axis along which blocks follow each other.
        let axis = self.back.source.iter().position(|&source| source == 0).expect("a permutation");
        let mut part = Vec::new();
        for first in (0..n).step_by(self.thick) {
            let planes = self.thick.min(n - first);
            let [i, j, _] = self.back.output([planes, self.shape[1], self.shape[2]]);
            let start = if self.back.flip[axis] { n - first - planes } else { first };
            let within = if axis == 2 { k.wrapping_sub(start) } else { k };
            if axis == 2 && within >= planes {
                continue;
            }
            part.resize(i * j, 0f32);
            let at = self.outputs * first * plane + output * planes * plane + within * i * j;
            self.file
                .read_exact_at(bytemuck::cast_slice_mut(&mut part), (at * size_of::<f32>()) as u64)
                .context("reading probabilities from disk")?;
            match axis {
                0 => part
                    .chunks_exact(i)
                    .zip(out.chunks_exact_mut(row))
                    .for_each(|(from, to)| to[start..start + i].copy_from_slice(from)),
                1 => out[start * row..][..i * j].copy_from_slice(&part),
                _ => out.copy_from_slice(&part),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, rng};
    use ndarray::Array4;
    use rand::Rng as _;

    #[test]
    fn slices_of_the_file_are_those_of_the_planes_in_any_orientation_and_blocks_of_any_size() {
        let folder = tempfile::tempdir().unwrap();
        let mut random = rng(5, Stream::Train, 0, 0);
        for case in 0..48 {
            let source = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][case % 6];
            let back = Orientation { source, flip: [0; 3].map(|_| random.random()) };
            let shape = [0; 3].map(|_| random.random_range(1..8usize));
            let outputs = random.random_range(1..4);
            let thick = random.random_range(1..=shape[0]);
            let values = Array4::from_shape_fn((shape[0], outputs, shape[1], shape[2]), |_| random.random::<f32>());
            let mut spool = Spool { thick, ..Spool::new(folder.path(), outputs, shape, back).unwrap() };
            values.outer_iter().for_each(|plane| spool.push(plane.as_slice().unwrap()).unwrap());
            let [i, j, k] = back.output(shape);
            let mut slice = vec![0.0; i * j];
            for (c, z) in (0..outputs).flat_map(|c| (0..k).map(move |z| (c, z))) {
                spool.slice(c, z, &mut slice).unwrap();
                for (y, x) in (0..j).flat_map(|y| (0..i).map(move |x| (y, x))) {
                    let mut at = [0; 3];
                    for (axis, place) in [x, y, z].into_iter().enumerate() {
                        let from = back.source[axis];
                        at[from] = if back.flip[axis] { shape[from] - 1 - place } else { place };
                    }
                    assert_eq!(slice[x + i * y], values[[at[0], c, at[1], at[2]]], "{back:?} {shape:?} {thick}");
                }
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it leaves no file");
    }
}
