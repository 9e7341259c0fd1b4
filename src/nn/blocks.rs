//! Layers for rank 2 and 3 alike.

use super::script::ScriptModule;
use crate::dim::Rank;
use crate::ffi;
use std::fmt::Write;
use tch::nn::{self, Init, init};
use tch::{Device, Kind, Tensor};

/// As `torch.nn.BatchNorm*d`.
pub const NORM_MOMENTUM: f64 = 0.1;
pub const NORM_EPS: f64 = 1e-5;

/// Convolution with padding by half the kernel, "same" at stride 1; parameters `weight` and `bias` as in PyTorch.
#[derive(Debug)]
pub struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    rank: Rank,
    stride: i64,
    padding: i64,
}

impl Conv {
    /// With bias, at stride 1.
    pub fn new(vs: nn::Path, rank: Rank, inputs: i64, outputs: i64, kernel: i64) -> Self {
        let mut conv = Conv::plain(vs.clone(), rank, inputs, outputs, kernel, 1);
        conv.bias = Some(vs.var("bias", &[outputs], Init::Const(0.)));
        conv
    }

    /// Without bias, for a normalisation to follow.
    pub fn plain(vs: nn::Path, rank: Rank, inputs: i64, outputs: i64, kernel: i64, stride: i64) -> Self {
        assert!(kernel % 2 == 1, "padding by half the kernel needs an odd one");
        let mut dims = vec![outputs, inputs];
        dims.extend(vec![kernel; rank.n()]);
        // He initialisation: each convolution feeds a ReLU.
        let he = init::DEFAULT_KAIMING_NORMAL;
        Conv { weight: vs.var("weight", &dims, he), bias: None, rank, stride, padding: kernel / 2 }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (bias, stride) = (self.bias.as_ref(), self.stride);
        let conv = |x: &Tensor| match self.rank {
            Rank::Two => x.conv2d(&self.weight, bias, stride, self.padding, 1, 1),
            Rank::Three => x.conv3d(&self.weight, bias, stride, self.padding, 1, 1),
        };
        // The bfloat16 weight gradient of conv3d is garbage on the CPU where 1 < depth < kernel (torch 2.11, oneDNN 3.10).
        let (depth, kernel) = (x.size()[2], 2 * self.padding + 1);
        if self.rank == Rank::Three
            && x.device() == Device::Cpu
            && 1 < depth
            && depth < kernel
            && ffi::autocast_enabled(Device::Cpu)
        {
            return ffi::without_autocast(Device::Cpu, || conv(&x.to_kind(Kind::Float)));
        }
        conv(x)
    }

    pub fn script(&self) -> ScriptModule {
        let (n, stride, padding) = (self.rank.n(), self.stride, self.padding);
        let bias = if self.bias.is_some() { "self.bias" } else { "None" };
        let module = ScriptModule::new(format!(
            "def forward(self, x: Tensor) -> Tensor:\n    return torch.conv{n}d(x, self.weight, {bias}, stride={stride}, padding={padding})\n",
        ))
        .parameter("weight", &self.weight);
        self.bias.iter().fold(module, |module, bias| module.parameter("bias", bias))
    }
}

/// Batch normalisation over all axes but the channels.
#[derive(Debug)]
pub struct Norm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl Norm {
    pub fn new(vs: nn::Path, channels: i64) -> Self {
        Norm {
            weight: vs.var("weight", &[channels], Init::Const(1.)),
            bias: vs.var("bias", &[channels], Init::Const(0.)),
            running_mean: vs.zeros_no_train("running_mean", &[channels]),
            running_var: vs.ones_no_train("running_var", &[channels]),
        }
    }

    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        x.batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            train,
            NORM_MOMENTUM,
            NORM_EPS,
            true,
        )
    }

    pub fn script(&self) -> ScriptModule {
        ScriptModule::new(format!(
            "def forward(self, x: Tensor) -> Tensor:\n    return torch.batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, self.training, {NORM_MOMENTUM}, {NORM_EPS}, True)\n"
        ))
        .parameter("weight", &self.weight)
        .parameter("bias", &self.bias)
        .buffer("running_mean", &self.running_mean)
        .buffer("running_var", &self.running_var)
    }
}

/// Transposed convolution that enlarges every spatial axis by a whole factor, its kernel as large as its stride, so that
/// outputs do not overlap; parameters `weight` (`[inputs, outputs, ...]`) and `bias` as in PyTorch.
#[derive(Debug)]
pub struct UpConv {
    weight: Tensor,
    bias: Tensor,
    rank: Rank,
    factor: i64,
}

impl UpConv {
    pub fn new(vs: nn::Path, rank: Rank, inputs: i64, outputs: i64, factor: i64) -> Self {
        let mut dims = vec![inputs, outputs];
        dims.extend(vec![factor; rank.n()]);
        // Each output voxel sums over the inputs of one voxel only; no activation follows.
        let stdev = 1. / (inputs as f64).sqrt();
        UpConv {
            weight: vs.var("weight", &dims, Init::Randn { mean: 0., stdev }),
            bias: vs.var("bias", &[outputs], Init::Const(0.)),
            rank,
            factor,
        }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (weight, bias, stride) = (&self.weight, Some(&self.bias), self.factor);
        match self.rank {
            Rank::Two => x.conv_transpose2d(weight, bias, stride, 0, 0, 1, 1),
            Rank::Three => x.conv_transpose3d(weight, bias, stride, 0, 0, 1, 1),
        }
    }

    pub fn script(&self) -> ScriptModule {
        let n = self.rank.n();
        ScriptModule::new(format!(
            "def forward(self, x: Tensor) -> Tensor:\n    return torch.conv_transpose{n}d(x, self.weight, self.bias, stride={})\n",
            self.factor
        ))
        .parameter("weight", &self.weight)
        .parameter("bias", &self.bias)
    }
}

/// Two times convolution, ReLU, batch normalisation, in the reference's order.
#[derive(Debug)]
pub struct Stage {
    convs: [Conv; 2],
    norms: [Norm; 2],
    dropout: f64,
}

impl Stage {
    pub fn new(vs: nn::Path, rank: Rank, inputs: i64, outputs: i64, dropout: f64) -> Self {
        let conv = |i: usize, inputs| Conv::new(&vs / format!("conv{i}"), rank, inputs, outputs, 3);
        let norm = |i: usize| Norm::new(&vs / format!("norm{i}"), outputs);
        Stage { convs: [conv(0, inputs), conv(1, outputs)], norms: [norm(0), norm(1)], dropout }
    }

    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let mut x = x.shallow_clone();
        for (conv, norm) in self.convs.iter().zip(&self.norms) {
            x = norm.forward(&conv.forward(&x).relu_(), train);
        }
        if self.dropout > 0. { x.dropout(self.dropout, train) } else { x }
    }

    pub fn script(&self) -> ScriptModule {
        let mut source = String::from(
            "def forward(self, x: Tensor) -> Tensor:\n    x = self.norm0.forward(torch.relu(self.conv0.forward(x)))\n    x = self.norm1.forward(torch.relu(self.conv1.forward(x)))\n",
        );
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
    match rank {
        Rank::Two => x.max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false),
        Rank::Three => x.max_pool3d([2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], false),
    }
}

/// Average of 2x2 pixels, odd sides rounded down.
pub fn avg_pool(x: &Tensor) -> Tensor {
    x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None)
}

/// Mean over all spatial axes: `[B, C, ...]` to `[B, C]`.
pub fn global_average(x: &Tensor) -> Tensor {
    x.flatten(2, -1).mean_dim(2, false, Kind::Float)
}
