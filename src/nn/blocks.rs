//! Layers for rank 2 and 3 alike.

use super::norm::{Norm, NormKind};
use super::script::ScriptModule;
use super::step;
use crate::dim::{PerAxis, Rank};
use crate::ffi;
use std::fmt::Write;
use tch::nn::{self, Init, init};
use tch::{Device, Kind, Tensor, no_grad};

/// What a convolution maps, and how far it sees.
#[derive(Clone, Copy, Debug)]
pub struct ConvShape {
    pub inputs: i64,
    pub outputs: i64,
    /// Odd along every axis.
    pub kernel: PerAxis,
    pub stride: PerAxis,
}

/// Convolution with padding by half the kernel, "same" at stride 1 and rounded up at others; parameters `weight` and `bias` as in
/// PyTorch.
#[derive(Debug)]
pub struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    rank: Rank,
    kernel: PerAxis,
    stride: PerAxis,
}

impl Conv {
    /// With bias, at stride 1.
    pub fn new(vs: nn::Path, rank: Rank, inputs: i64, outputs: i64, kernel: i64) -> Self {
        let [kernel, stride] = [kernel, 1].map(|n| PerAxis::all(rank, n));
        Conv::of(vs, ConvShape { inputs, outputs, kernel, stride }, true, init::DEFAULT_KAIMING_NORMAL)
    }

    /// Without bias, for a normalisation to follow.
    pub fn plain(vs: nn::Path, rank: Rank, inputs: i64, outputs: i64, kernel: i64, stride: i64) -> Self {
        let [kernel, stride] = [kernel, stride].map(|n| PerAxis::all(rank, n));
        Conv::of(vs, ConvShape { inputs, outputs, kernel, stride }, false, init::DEFAULT_KAIMING_NORMAL)
    }

    /// The bias starts from 0. `init`: of the weights; He initialisation where a ReLU follows.
    pub fn of(vs: nn::Path, shape: ConvShape, bias: bool, init: Init) -> Self {
        let ConvShape { inputs, outputs, kernel, stride } = shape;
        assert!(kernel.values().iter().all(|n| n % 2 == 1), "padding by half the kernel needs an odd one");
        let dims = [&[outputs, inputs], kernel.values()].concat();
        let weight = vs.var("weight", &dims, init);
        let bias = bias.then(|| vs.var("bias", &[outputs], Init::Const(0.)));
        Conv { weight, bias, rank: kernel.rank(), kernel, stride }
    }

    /// Sets the weights to 0, and so, until it has learnt, all that it gives.
    pub fn silence(&self) {
        let _ = no_grad(|| self.weight.shallow_clone().zero_());
    }

    /// The same parameters.
    fn shallow_clone(&self) -> Conv {
        Conv { weight: self.weight.shallow_clone(), bias: self.bias.as_ref().map(Tensor::shallow_clone), ..*self }
    }

    fn padding(&self) -> Vec<i64> {
        self.kernel.values().iter().map(|n| n / 2).collect()
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let padding = self.padding();
        if x.device() == Device::Cpu && self.defeats_padding(&x.size()[2..]) {
            let around: Vec<i64> = padding.iter().rev().flat_map(|&n| [n, n]).collect();
            return self.convolve(&x.constant_pad_nd(around), &vec![0; padding.len()]);
        }
        self.convolve(x, &padding)
    }

    /// Whether zeros must be put around an input of this extent by hand. Where an axis is short against its kernel, torch 2.11 (oneDNN 3.10)
    /// may give garbage for the weight's gradient, in bfloat16 and float32, or overwrite memory. Of thousands of random shapes none
    /// failed without padding, nor above this bound (kernels to 9, strides to 4).
    fn defeats_padding(&self, extent: &[i64]) -> bool {
        extent.iter().zip(self.kernel.values()).any(|(&n, &kernel)| kernel > 1 && n < 2 * kernel)
    }

    fn convolve(&self, x: &Tensor, padding: &[i64]) -> Tensor {
        let (bias, stride) = (self.bias.as_ref(), self.stride.values());
        match self.rank {
            Rank::Two => x.conv2d(&self.weight, bias, stride, padding, 1, 1),
            Rank::Three => x.conv3d(&self.weight, bias, stride, padding, 1, 1),
        }
    }

    pub fn script(&self) -> ScriptModule {
        let (n, stride, padding) = (self.rank.n(), self.stride.values(), self.padding());
        let bias = if self.bias.is_some() { "self.bias" } else { "None" };
        let module = ScriptModule::new(format!(
            "def forward(self, x: Tensor) -> Tensor:\n    return torch.conv{n}d(x, self.weight, {bias}, stride={stride:?}, padding={padding:?})\n",
        ))
        .parameter("weight", &self.weight);
        self.bias.iter().fold(module, |module, bias| module.parameter("bias", bias))
    }
}

/// Side of the kernels of a [`Stage`].
pub const STAGE_KERNEL: i64 = 3;

/// Transposed convolution that enlarges each spatial axis by a whole factor, its kernel as large as its stride, so that
/// outputs do not overlap; parameters `weight` (`[inputs, outputs, ...]`) and `bias` as in PyTorch.
#[derive(Debug)]
pub struct UpConv {
    weight: Tensor,
    bias: Tensor,
    factor: PerAxis,
}

impl UpConv {
    /// `stdev`: of the weights to begin with.
    pub fn new(vs: nn::Path, inputs: i64, outputs: i64, factor: PerAxis, stdev: f64) -> Self {
        let dims = [&[inputs, outputs], factor.values()].concat();
        UpConv {
            weight: vs.var("weight", &dims, Init::Randn { mean: 0., stdev }),
            bias: vs.var("bias", &[outputs], Init::Const(0.)),
            factor,
        }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        if x.device() == Device::Cpu {
            return self.by_matrix(x);
        }
        let (weight, bias, stride) = (&self.weight, Some(&self.bias), self.factor.values());
        match self.factor.rank() {
            Rank::Two => x.conv_transpose2d(weight, bias, stride, 0, 0, 1, 1),
            Rank::Three => x.conv_transpose3d(weight, bias, stride, 0, 0, 1, 1),
        }
    }

    /// The same as one product of matrices, each voxel's channels to those of all voxels it becomes: a third faster on the CPU, where oneDNN
    /// sums the bias's gradient voxel by voxel. The result has channels last in memory.
    fn by_matrix(&self, x: &Tensor) -> Tensor {
        let (factor, extent) = (self.factor.values(), &x.size()[2..]);
        let [n, inputs, outputs] = [x.size()[0], self.weight.size()[0], self.weight.size()[1]];
        let axes = extent.len() as i64;
        let channels_last: Vec<i64> = [0].into_iter().chain(2..axes + 2).chain([1]).collect();
        let rows = x.permute(&channels_last).reshape([-1, inputs]);
        let weight = self.weight.permute(&channels_last).reshape([inputs, -1]);
        let bias = self.bias.repeat([factor.iter().product()]);
        let out = bias.addmm(&rows, &weight);
        // [n, D, H, W, d, h, w, outputs], of which each axis is to stand beside its factor.
        let shape = [&[n], extent, factor, &[outputs]].concat();
        let beside = [0].into_iter().chain((1..=axes).flat_map(|axis| [axis, axes + axis])).chain([2 * axes + 1]);
        let whole: Vec<i64> = extent.iter().zip(factor).map(|(n, factor)| n * factor).collect();
        let first = [0, axes + 1].into_iter().chain(1..=axes).collect::<Vec<_>>();
        out.view(shape.as_slice())
            .permute(beside.collect::<Vec<_>>())
            .reshape([&[n], whole.as_slice(), &[outputs]].concat())
            .permute(first)
    }

    pub fn script(&self) -> ScriptModule {
        let n = self.factor.rank().n();
        ScriptModule::new(format!(
            "def forward(self, x: Tensor) -> Tensor:\n    return torch.conv_transpose{n}d(x, self.weight, self.bias, stride={:?})\n",
            self.factor.values()
        ))
        .parameter("weight", &self.weight)
        .parameter("bias", &self.bias)
    }
}

/// Convolution, instance normalisation, activation: the unit that [`ffi::with_checkpointing`] computes again.
pub fn conv_instance_norm(
    conv: &Conv,
    norm: &Norm,
    x: &Tensor,
    activate: impl Fn(Tensor) -> Tensor + Send + 'static,
) -> Tensor {
    assert_eq!(norm.kind(), NormKind::Instance, "batch normalisation would update its running statistics twice");
    let (conv, norm) = (conv.shallow_clone(), norm.shallow_clone());
    let parameters: Vec<Tensor> =
        [&conv.weight, &norm.weight, &norm.bias].into_iter().chain(&conv.bias).map(Tensor::shallow_clone).collect();
    // It normalises alike in training and evaluation.
    ffi::checkpoint(x, &parameters, move |x| activate(norm.forward(&conv.forward(x), true)))
}

/// Two times convolution, ReLU, batch normalisation, in the reference's order. Instance normalisation stands before the ReLU: last, it
/// would give every channel the same mean in every sample, its bias, and averages over a map would say nothing.
#[derive(Debug)]
pub struct Stage {
    convs: [Conv; 2],
    norms: [Norm; 2],
    dropout: f64,
}

impl Stage {
    pub fn new(vs: nn::Path, rank: Rank, norm: NormKind, inputs: i64, outputs: i64, dropout: f64) -> Self {
        let conv = |i: usize, inputs| Conv::new(&vs / format!("conv{i}"), rank, inputs, outputs, STAGE_KERNEL);
        let norm = |i: usize| Norm::new(&vs / format!("norm{i}"), norm, outputs);
        Stage { convs: [conv(0, inputs), conv(1, outputs)], norms: [norm(0), norm(1)], dropout }
    }

    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let mut x = x.shallow_clone();
        for (conv, norm) in self.convs.iter().zip(&self.norms) {
            x = match norm.kind() {
                NormKind::Batch => norm.forward(&conv.forward(&x).relu_(), train),
                NormKind::Instance => conv_instance_norm(conv, norm, &x, |mut x| x.relu_()),
            };
        }
        if self.dropout > 0. { step::dropout(&x, self.dropout, train) } else { x }
    }

    pub fn script(&self) -> ScriptModule {
        let mut source = String::from("def forward(self, x: Tensor) -> Tensor:\n");
        for (i, norm) in self.norms.iter().enumerate() {
            let line = match norm.kind() {
                NormKind::Batch => format!("self.norm{i}.forward(torch.relu(self.conv{i}.forward(x)))"),
                NormKind::Instance => format!("torch.relu(self.norm{i}.forward(self.conv{i}.forward(x)))"),
            };
            writeln!(source, "    x = {line}").unwrap();
        }
        if self.dropout > 0. {
            writeln!(source, "    x = torch.dropout(x, {}, self.training)", self.dropout).unwrap();
        }
        source += "    return x\n";
        let mut module = ScriptModule::new(source);
        for i in 0..2 {
            module = module.child(format!("conv{i}"), self.convs[i].script()).child(format!("norm{i}"), self.norms[i].script());
        }
        module
    }
}

/// Max-pooling by 2 along every spatial axis, odd sides rounded down.
pub fn max_pool(x: &Tensor, rank: Rank) -> Tensor {
    let pool = || match rank {
        Rank::Two => x.max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false),
        Rank::Three => x.max_pool3d([2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], false),
    };
    // A maximum is the same number in bfloat16; autocast on the CPU would have volumes in float32, in four times the time.
    if x.device() == Device::Cpu { ffi::without_autocast(Device::Cpu, pool) } else { pool() }
}

/// Average of 2x2 pixels, odd sides rounded down.
pub fn avg_pool(x: &Tensor) -> Tensor {
    x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None)
}

/// Mean over all spatial axes: `[B, C, ...]` to `[B, C]`.
pub fn global_average(x: &Tensor) -> Tensor {
    x.flatten(2, -1).mean_dim(2, false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, normal, rng};
    use rand::Rng as _;
    use tch::nn::VarStore;

    #[test]
    fn enlarging_by_a_matrix_is_a_transposed_convolution() {
        let double = |dims: &[i64], phase: f64| {
            let n = dims.iter().product::<i64>();
            (Tensor::arange(n, (Kind::Double, Device::Cpu)) * 0.7 + phase).sin().reshape(dims)
        };
        for (factor, extent) in [("2x2x2", &[3, 4, 5][..]), ("1x2x3", &[2, 1, 4]), ("2x2", &[3, 5]), ("4x1", &[1, 2])] {
            let mut vs = VarStore::new(Device::Cpu);
            let up = UpConv::new(vs.root(), 3, 2, factor.parse().unwrap(), 1.);
            vs.double();
            tch::no_grad(|| up.bias.shallow_clone().copy_(&double(&[2], 0.3)));
            for format in [ffi::MemoryFormat::Contiguous, ffi::MemoryFormat::ChannelsLast] {
                let x = double(&[&[2, 3], extent].concat(), 0.1);
                ffi::set_memory_format(&x, format).unwrap();
                let x = x.set_requires_grad(true);
                let (weight, bias, stride) = (&up.weight, Some(&up.bias), up.factor.values());
                let expected = match up.factor.rank() {
                    Rank::Two => x.conv_transpose2d(weight, bias, stride, 0, 0, 1, 1),
                    Rank::Three => x.conv_transpose3d(weight, bias, stride, 0, 0, 1, 1),
                };
                let found = up.forward(&x);
                let gradients = |y: &Tensor| {
                    let loss = (y * double(&y.size(), 0.2)).sum(Kind::Double);
                    Tensor::run_backward(&[loss], &[&x, &up.weight, &up.bias], false, false)
                };
                let pairs =
                    gradients(&found).into_iter().zip(gradients(&expected)).chain([(found.detach(), expected.detach())]);
                for (found, expected) in pairs {
                    assert_eq!(found.size(), expected.size(), "{factor}");
                    let off = (found - expected).abs().max().double_value(&[]);
                    assert!(off < 1e-12, "{factor} {format:?}: off by {off}");
                }
            }
        }
    }

    #[test]
    fn pooling_stays_in_bfloat16() {
        for (rank, dims) in [(Rank::Two, &[2, 3, 5, 4][..]), (Rank::Three, &[2, 3, 5, 4, 7])] {
            let n = dims.iter().product::<i64>();
            let x = (Tensor::arange(n, (Kind::Float, Device::Cpu)) * 0.7).sin().reshape(dims);
            let rounded = ffi::with_autocast(Device::Cpu, true, || max_pool(&x.to_kind(Kind::BFloat16), rank));
            assert_eq!(rounded.kind(), Kind::BFloat16);
            assert_eq!(rounded, max_pool(&x, rank).to_kind(Kind::BFloat16));
        }
    }

    #[test]
    fn gradients_are_right_where_an_axis_is_short() {
        let [mut values, mut shapes] = [4, 5].map(|seed| rng(seed, Stream::Phantom, 0, 0));
        let mut randn = |dims: &[i64]| {
            let all: Vec<f32> = (0..dims.iter().product()).map(|_| normal(&mut values)).collect();
            Tensor::from_slice(&all).reshape(dims)
        };
        let known = [
            ("3x3x3", "1x1x1", &[2, 6, 5][..]),
            ("3x3x3", "2x2x2", &[1, 1, 2]),
            ("3x3x3", "1x1x2", &[3, 8, 1]),
            ("3x3x1", "1x2x1", &[3, 1, 4]),
            ("3x5x5", "1x1x1", &[8, 1, 4]),
            ("7x7x7", "2x2x2", &[5, 16, 16]),
            ("3x3", "2x2", &[5, 1]),
        ];
        let known = known.map(|(kernel, stride, extent)| (kernel.parse().unwrap(), stride.parse().unwrap(), extent.to_vec()));
        let mut some =
            |rank, values: &[i64]| (0..rank).map(|_| values[shapes.random_range(0..values.len())]).collect::<Vec<_>>();
        let random = (0..150).map(|i| {
            let rank = 2 + usize::from(i % 3 > 0);
            let [kernel, stride] =
                [some(rank, &[1, 3, 5, 7, 9]), some(rank, &[1, 1, 2, 3])].map(|n| PerAxis::try_from(n).unwrap());
            (kernel, stride, some(rank, &[1, 2, 3, 4, 5, 6, 8, 10, 12, 16]))
        });
        let channels = [(8, 16), (16, 32), (1, 4)].into_iter().cycle();
        for ((kernel, stride, extent), (inputs, outputs)) in known.into_iter().chain(random).zip(channels) {
            let shape = ConvShape { inputs, outputs, kernel, stride };
            let vs = VarStore::new(Device::Cpu);
            let conv = Conv::of(vs.root(), shape, false, init::DEFAULT_KAIMING_NORMAL);
            let x = randn(&[&[2, inputs], &extent[..]].concat());
            for tensor in [&x, &conv.weight] {
                ffi::set_memory_format(tensor, ffi::MemoryFormat::ChannelsLast).unwrap();
            }
            // In double precision it is not computed by oneDNN.
            let double = |tensor: &Tensor| tensor.detach().to_kind(Kind::Double).contiguous().set_requires_grad(true);
            let (x, exact) = (x.set_requires_grad(true), Conv { weight: double(&conv.weight), ..conv.shallow_clone() });
            let (wide, size) = (double(&x), conv.forward(&x).size());
            let projection = randn(&size);
            let gradients = |map: Tensor, of: [&Tensor; 2]| {
                Tensor::run_backward(&[(map * &projection).sum(Kind::Double)], &of, false, false)
            };
            let wanted = gradients(exact.convolve(&wide, &exact.padding()), [&exact.weight, &wide]);
            for (bf16, kind, near) in [(true, Kind::BFloat16, 0.02), (false, Kind::Float, 1e-5)] {
                let map = ffi::with_autocast(Device::Cpu, bf16, || conv.forward(&x));
                assert_eq!((map.kind(), map.size()), (kind, size.clone()));
                for (found, wanted) in gradients(map, [&conv.weight, &x]).iter().zip(&wanted) {
                    let off = ((found - wanted).norm() / wanted.norm()).double_value(&[]);
                    assert!(off < near, "{shape:?} on {extent:?}, {kind:?}: off by {off}");
                }
            }
        }
    }
}
