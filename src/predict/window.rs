//! Sliding-window prediction: a network that takes patches, over a whole scan, in memory that does not grow with the scan's
//! length. Windows and weights are those of MONAI's `sliding_window_inference(mode="gaussian", sigma_scale=0.125)`; class
//! probabilities, not logits, are averaged.

use crate::data::labelling::Decoding;
use crate::dim::{Rank, Shape, voxels};
use crate::transform::mirror::Mirroring;
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor, no_grad};

/// Standard deviation of the weights along an axis, in patches.
const SIGMA: f64 = 0.125;
/// Smallest weight: a voxel that only a window's corner covers must not divide by nothing.
const MIN_WEIGHT: f64 = 1e-3;

/// Logits `[B, K, D, H, W]` of `[B, C, D, H, W]`, both on [`Window::device`]; of images without `D`.
pub type Forward<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;

/// Windows a forward pass, unless the user says otherwise: as many as use a CPU well.
pub fn default_batch(rank: Rank) -> usize {
    match rank {
        Rank::Two => 8,
        Rank::Three => 1,
    }
}

/// The mean of what `network` makes of `x`, `[B, C, ...]`, and of its mirror images: brought back with `back`, which is given the axes
/// of `x` that were reversed, and with classes (axis 1) that have a side exchanged where they change places.
pub fn over_mirror_images(
    x: &Tensor,
    rank: Rank,
    mirroring: Option<&Mirroring>,
    network: Forward,
    back: &dyn Fn(Tensor, &[i64]) -> Tensor,
) -> Result<Tensor> {
    let combinations = mirroring.map_or(vec![[false; 3]], Mirroring::combinations);
    let mut sum: Option<Tensor> = None;
    for &flip in &combinations {
        let axes: Vec<i64> = rank.axes().filter(|&a| flip[a]).map(|a| (a + rank.n() - 1) as i64).collect();
        let mut output = back(network(&x.flip(&axes))?, &axes);
        if let Some(classes) = mirroring.and_then(|mirroring| mirroring.classes(flip)) {
            let classes: Vec<i64> = classes.iter().map(|&class| class.into()).collect();
            output = output.index_select(1, &Tensor::from_slice(&classes).to_device(output.device()));
        }
        sum = Some(match sum {
            Some(sum) => sum + output,
            None => output,
        });
    }
    Ok(sum.expect("at least one combination") / combinations.len() as f64)
}

/// Of logits `[B, K, ...]`, float32.
fn probabilities(decoding: &Decoding, logits: &Tensor) -> Tensor {
    match decoding {
        Decoding::Classes => logits.softmax(1, Kind::Float),
        Decoding::Regions(_) => logits.to_kind(Kind::Float).sigmoid(),
    }
}

/// How a scan is cut into windows, and what is done with each.
#[derive(Clone, Debug)]
pub struct Window {
    /// Rank of the network. One of images takes a volume's planes along the first axis, each by itself.
    pub rank: Rank,
    /// Voxels of a window; with [`Rank::Two`] 1 along the first axis.
    pub patch: Shape,
    /// Share of a window that its neighbour along an axis covers too, in `[0, 1)`.
    pub overlap: f64,
    /// Windows a forward pass.
    pub batch_size: usize,
    /// Average over all combinations of mirrored axes.
    pub mirroring: Option<Mirroring>,
    /// What the network's outputs mean.
    pub decoding: Decoding,
    pub device: Device,
}

impl Window {
    fn check(&self) -> Result<()> {
        ensure!((0.0..1.0).contains(&self.overlap), "overlap must be 0 or more and less than 1, found {}", self.overlap);
        ensure!(self.batch_size > 0, "a batch needs at least one window");
        let patch = self.patch;
        ensure!(!patch.contains(&0), "patch of {patch:?} voxels, expected at least 1 along every axis");
        ensure!(self.rank == Rank::Three || patch[0] == 1, "patch of {patch:?} voxels for images, expected [1, H, W]");
        Ok(())
    }

    /// Weights of a window's voxels, `[d, h, w]`.
    fn weights(&self) -> Tensor {
        let options = (Kind::Double, Device::Cpu);
        let along = |axis: usize| {
            let (n, mut view) = (self.patch[axis] as i64, [1; 3]);
            view[axis] = n;
            let distance = (Tensor::arange(n, options) - (n - 1) as f64 / 2.0) / (SIGMA * n as f64);
            (distance.square() * -0.5).exp().view(view)
        };
        (along(0) * along(1) * along(2)).clamp_min(MIN_WEIGHT).to_kind(Kind::Float).to_device(self.device)
    }

    /// Probabilities `[B, K, d, h, w]` of windows `[B, C, d, h, w]`, the mean over all networks.
    fn predict(&self, windows: &Tensor, networks: &[Forward]) -> Result<Tensor> {
        let images = self.rank == Rank::Two;
        let x = if images { windows.squeeze_dim(2) } else { windows.shallow_clone() };
        let back = |logits: Tensor, axes: &[i64]| probabilities(&self.decoding, &logits).flip(axes);
        let mut sum: Option<Tensor> = None;
        for network in networks {
            let checked = |x: &Tensor| {
                let logits = network(x)?;
                let (expected, found) = (x.size(), logits.size());
                ensure!(
                    found.len() == expected.len() && found[0] == expected[0] && found[2..] == expected[2..] && found[1] <= 256,
                    "the network gives {found:?} for {expected:?}, expected the same but for the second, up to 256 classes"
                );
                Ok(logits)
            };
            let mean = over_mirror_images(&x, self.rank, self.mirroring.as_ref(), &checked, &back)?;
            sum = Some(match sum {
                Some(sum) => sum + mean,
                None => mean,
            });
        }
        let mean = sum.context("no network")? / networks.len() as f64;
        Ok(if images { mean.unsqueeze(2) } else { mean })
    }

    /// The axis along which slabs of a scan of this shape are the smallest, of equal ones the first.
    pub fn thinnest(&self, shape: Shape) -> usize {
        match self.rank {
            Rank::Two => 0,
            Rank::Three => (0..3).min_by_key(|&axis| self.slab(shape, axis)).expect("three axes"),
        }
    }

    /// Voxels of a slab of a scan of this shape across an axis.
    pub fn slab(&self, shape: Shape, across: usize) -> usize {
        let size: Shape = std::array::from_fn(|a| shape[a].max(self.patch[a]));
        let thick = match self.rank {
            Rank::Two => self.batch_size.min(size[0]),
            Rank::Three => self.patch[across],
        };
        voxels(size) / size[across] * thick
    }

    /// How often a network is asked about each window.
    pub fn mirror_images(&self) -> usize {
        self.mirroring.as_ref().map_or(1, |mirroring| mirroring.combinations().len())
    }

    /// Windows of a scan of this shape.
    pub fn count(&self, shape: Shape) -> usize {
        (0..3).map(|a| starts(self.patch[a], self.overlap, shape[a].max(self.patch[a])).len()).product()
    }

    /// Predicts a scan `[C, D, H, W]` (float32, CPU). `sink` gets the class probabilities `[K, rows, columns]`, row-major, of each plane
    /// across the axis `across` (of images the first one) in order, as soon as no later window touches it; rows and columns are the other
    /// axes in theirs. Along an axis where the scan is smaller than the patch, it lies in the middle of voxels of each channel's minimum.
    ///
    /// Held beside the scan: `K + 1` values for each voxel of a slab, one patch thick, of images as many planes as a batch holds.
    ///
    /// Errors: numbers out of range, logits of another shape, whatever a network or the sink says.
    pub fn probabilities(
        &self,
        image: &Tensor,
        across: usize,
        networks: &[Forward],
        sink: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        self.check()?;
        let shape = image.size();
        ensure!(shape.len() == 4 && !shape.contains(&0), "image of {shape:?}, expected [C, D, H, W]");
        ensure!(across == 0 || self.rank == Rank::Three, "planes of images are given across the first axis, not axis {across}");
        no_grad(|| self.slabs(image, order(across), networks, sink))
    }

    /// The class of each voxel, `[D, H, W]` row-major; as [`Window::probabilities`].
    pub fn classes(&self, image: &Tensor, networks: &[Forward]) -> Result<Vec<u8>> {
        let plane = (image.size()[2] * image.size()[3]) as usize;
        let mut classes = Vec::with_capacity(plane * image.size()[1] as usize);
        self.probabilities(image, 0, networks, &mut |probabilities| {
            let from = classes.len();
            classes.resize(from + plane, 0);
            self.decoding.classes(probabilities, &mut classes[from..]);
            Ok(())
        })?;
        Ok(classes)
    }

    /// `order`: the axes of the scan in that of the slabs, in which all is until the networks are asked.
    fn slabs(
        &self,
        image: &Tensor,
        order: [usize; 3],
        networks: &[Forward],
        sink: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let back = Orientation { source: order, ..Orientation::IDENTITY }.inverse().source;
        let (padded, before) = pad(image, self.patch);
        let (padded, image) = (permuted(&padded, order), permuted(image, order));
        let before = order.map(|a| before[a]);
        let size: [i64; 3] = std::array::from_fn(|a| padded.size()[a + 1]);
        let patch = order.map(|a| self.patch[a]);
        let [d, h, w] = patch.map(|n| n as i64);
        let [slabs, rows, columns] = [0, 1, 2].map(|a| starts(patch[a], self.overlap, size[a] as usize));
        // A slab is one patch thick; of images, which do not touch each other, as many as fill a batch.
        let images = (self.batch_size / (rows.len() * columns.len())).clamp(1, size[0] as usize);
        let (thick, slabs) = match self.rank {
            Rank::Two => (images as i64, slabs.into_iter().step_by(images).collect()),
            Rank::Three => (d, slabs),
        };
        let weights = permuted(&self.weights(), order);
        let options = (Kind::Float, self.device);

        // Of the slab's planes: the weighted sums `[K, thick, H, W]` and, first, of the weights alone.
        let mut sums: Option<Tensor> = None;
        let mut plane = Vec::new();
        for (slab, &start) in slabs.iter().enumerate() {
            let start = start as i64;
            let here = thick.min(size[0] - start);
            let planes = padded.narrow(1, start, here);
            let within = ndarray::indices(((here - d + 1) as usize, rows.len(), columns.len()));
            let within: Vec<[i64; 3]> =
                within.into_iter().map(|(x, y, z)| [x, rows[y], columns[z]].map(|n| n as i64)).collect();
            let cut = |from: &Tensor, &[x, y, z]: &[i64; 3]| from.narrow(1, x, d).narrow(2, y, h).narrow(3, z, w);
            for batch in within.chunks(self.batch_size) {
                let windows: Vec<Tensor> = batch.iter().map(|at| cut(&planes, at)).collect();
                let windows = permuted(&Tensor::stack(&windows, 0), back).contiguous().to_device(self.device);
                let predicted = permuted(&self.predict(&windows, networks)?, order) * &weights;
                let sums =
                    sums.get_or_insert_with(|| Tensor::zeros([1 + predicted.size()[1], thick, size[1], size[2]], options));
                for (n, at) in batch.iter().enumerate() {
                    let place = cut(sums, at);
                    let _ = place.get(0).g_add_(&weights);
                    let _ = place.narrow(0, 1, place.size()[0] - 1).g_add_(&predicted.get(n as i64));
                    drop(place);
                }
            }
            let sums = sums.as_mut().expect("every slab has windows");
            let next = slabs.get(slab + 1).map_or(size[0], |&next| next as i64);
            let finished = next - start;
            for x in 0..finished {
                if !(before[0]..before[0] + image.size()[1]).contains(&(start + x)) {
                    continue;
                }
                let here = sums.select(1, x).narrow(1, before[1], image.size()[2]).narrow(2, before[2], image.size()[3]);
                let probabilities = (here.narrow(0, 1, here.size()[0] - 1) / here.get(0)).contiguous().to_device(Device::Cpu);
                plane.resize(probabilities.numel(), 0.0);
                probabilities.copy_data(&mut plane, probabilities.numel());
                sink(&plane)?;
            }
            let left = thick - finished;
            // Plane by plane, as both lie in the same memory.
            (0..left).for_each(|x| sums.select(1, x).copy_(&sums.select(1, x + finished)));
            let _ = sums.narrow(1, left, finished).zero_();
        }
        Ok(())
    }
}

/// All axes, one of them moved to the front.
pub fn order(first: usize) -> [usize; 3] {
    let rest = (0..3).filter(|&a| a != first);
    let mut order = [first; 3];
    order[1..].iter_mut().zip(rest).for_each(|(to, a)| *to = a);
    order
}

/// The last three axes in another order: new axis `a` of them is axis `order[a]`.
fn permuted(tensor: &Tensor, order: [usize; 3]) -> Tensor {
    let others = tensor.dim() as i64 - 3;
    let axes: Vec<i64> = (0..others).chain(order.map(|a| others + a as i64)).collect();
    tensor.permute(axes)
}

/// First voxels of windows of `patch` voxels along an axis of `size`, at least as many: a fixed distance apart, each with this share in common
/// with the next, the last moved back to end at the border.
pub fn starts(patch: usize, overlap: f64, size: usize) -> Vec<usize> {
    let step = ((patch as f64 * (1.0 - overlap)) as usize).max(1);
    let last = size - patch;
    (0..last).step_by(step).chain([last]).collect()
}

/// `[C, D, H, W]` in the middle of a volume that is nowhere smaller than `patch`, and the voxels before it along each axis.
pub fn pad(image: &Tensor, patch: Shape) -> (Tensor, [i64; 3]) {
    let shape: [i64; 3] = std::array::from_fn(|a| image.size()[a + 1]);
    let missing: [i64; 3] = std::array::from_fn(|a| (patch[a] as i64 - shape[a]).max(0));
    let before = missing.map(|n| n / 2);
    if missing == [0; 3] {
        return (image.shallow_clone(), before);
    }
    let size: [i64; 4] = std::array::from_fn(|a| image.size()[a] + if a > 0 { missing[a - 1] } else { 0 });
    let out = image.amin([1, 2, 3], true).expand(size, false).contiguous();
    let middle = (0..3).fold(out.shallow_clone(), |view, a| view.narrow(a as i64 + 1, before[a], shape[a]));
    middle.shallow_clone().copy_(image);
    (out, before)
}

#[cfg(test)]
mod tests;
