//! Normalisation by batch or by sample.

use super::script::ScriptModule;
use crate::group;
use serde::{Deserialize, Serialize};
use tch::nn::{self, Init};
use tch::{Device, Kind, Tensor, no_grad};

/// As `torch.nn.BatchNorm*d` and `torch.nn.InstanceNorm*d`.
pub const NORM_MOMENTUM: f64 = 0.1;
pub const NORM_EPS: f64 = 1e-5;

/// What a normalisation takes mean and variance of, for each channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NormKind {
    /// All samples of the batch; in evaluation running statistics, which fit inputs like those of the training
    Batch,
    /// Each sample by itself, in training and evaluation alike
    Instance,
}

impl NormKind {
    /// Of a network that nothing else is said of.
    pub const DEFAULT: NormKind = NormKind::Instance;

    /// Of files from before there was a choice.
    pub fn before_the_choice() -> NormKind {
        NormKind::Batch
    }
}

/// Normalisation of each channel, then an affine map; parameters `weight` and `bias`, of batch normalisation also the buffers
/// `running_mean` and `running_var`, as in PyTorch.
#[derive(Debug)]
pub struct Norm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    /// Mean and variance; `None`: instance normalisation.
    running: Option<[Tensor; 2]>,
}

impl Norm {
    pub fn new(vs: nn::Path, kind: NormKind, channels: i64) -> Self {
        Norm {
            weight: vs.var("weight", &[channels], Init::Const(1.)),
            bias: vs.var("bias", &[channels], Init::Const(0.)),
            running: (kind == NormKind::Batch)
                .then(|| [vs.zeros_no_train("running_mean", &[channels]), vs.ones_no_train("running_var", &[channels])]),
        }
    }

    /// Sets weight and bias to 0, and so, until it has learnt, all that it gives.
    pub fn silence(&self) {
        no_grad(|| [&self.weight, &self.bias].into_iter().for_each(|parameter| drop(parameter.shallow_clone().zero_())));
    }

    /// The same parameters and buffers.
    pub(super) fn shallow_clone(&self) -> Norm {
        Norm {
            weight: self.weight.shallow_clone(),
            bias: self.bias.shallow_clone(),
            running: self.running.as_ref().map(|running| running.each_ref().map(Tensor::shallow_clone)),
        }
    }

    pub fn kind(&self) -> NormKind {
        if self.running.is_some() { NormKind::Batch } else { NormKind::Instance }
    }

    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        match &self.running {
            Some(running) if train && group::world() > 1 => self.synchronised(x, running),
            Some([mean, variance]) => self.batch_norm(x, Some(mean), Some(variance), train),
            None => self.instance_norm(x),
        }
    }

    fn batch_norm(&self, x: &Tensor, mean: Option<&Tensor>, variance: Option<&Tensor>, train: bool) -> Tensor {
        x.batch_norm(Some(&self.weight), Some(&self.bias), mean, variance, train, NORM_MOMENTUM, NORM_EPS, true)
    }

    /// Batch normalisation in training by mean and variance over the samples of all ranks.
    fn synchronised(&self, x: &Tensor, running: &[Tensor; 2]) -> Tensor {
        let axes: Vec<i64> = (0..x.dim() as i64).filter(|&axis| axis != 1).collect();
        let over = |x: &Tensor| group::sum(&x.sum_dim_intlist(axes.as_slice(), false, Kind::Float));
        let channel: Vec<i64> = (0..x.dim()).map(|axis| if axis == 1 { -1 } else { 1 }).collect();
        let (rows, _) = group::rows(x.size()[0]);
        let n = (x.numel() as i64 / x.size()[0] / x.size()[1] * rows) as f64;
        let mean = over(x) / n;
        // The sum of squares does not change with the mean, around which it is least.
        let centred = x - mean.detach().view(channel.as_slice());
        let variance = over(&centred.square()) / n;
        no_grad(|| {
            for (running, now) in running.iter().zip([&mean, &(&variance * (n / (n - 1.)))]) {
                let mut running = running.shallow_clone();
                running *= 1. - NORM_MOMENTUM;
                running += now * NORM_MOMENTUM;
            }
        });
        // The fused kernel takes mean and variance as constants: what they add to the gradient goes by weight and bias, of the same values.
        let fixed = [&mean, &variance].map(Tensor::detach);
        let scale = &self.weight / (&variance + NORM_EPS).sqrt();
        let weight = &scale * (&fixed[1] + NORM_EPS).sqrt();
        let bias = &self.bias - (&mean - &fixed[0]) * &scale;
        let [mean, variance] = fixed;
        x.batch_norm(Some(weight), Some(bias), Some(mean), Some(variance), false, NORM_MOMENTUM, NORM_EPS, true)
    }

    /// Each sample by itself: the same by three ways, each the fastest where it is taken.
    fn instance_norm(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        if x.device() != Device::Cpu {
            // Not `group_norm`: autocast would have it in float32.
            return x.instance_norm(weight, bias, None::<&Tensor>, None::<&Tensor>, true, NORM_MOMENTUM, NORM_EPS, true);
        }
        if x.is_contiguous() {
            return x.group_norm(x.size()[1], weight, bias, NORM_EPS, true);
        }
        // Channels last: `instance_norm` copies to another layout, and `group_norm` is ten times slower.
        let samples: Vec<Tensor> = x.split(1, 0).iter().map(|sample| self.batch_norm(sample, None, None, true)).collect();
        Tensor::cat(&samples, 0)
    }

    pub fn script(&self) -> ScriptModule {
        let call = match self.running {
            Some(_) => format!(
                "batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, self.training, {NORM_MOMENTUM}, {NORM_EPS}, True)"
            ),
            None => format!("instance_norm(x, self.weight, self.bias, None, None, True, {NORM_MOMENTUM}, {NORM_EPS}, True)"),
        };
        let module = ScriptModule::new(format!("def forward(self, x: Tensor) -> Tensor:\n    return torch.{call}\n"))
            .parameter("weight", &self.weight)
            .parameter("bias", &self.bias);
        let buffers = self.running.iter().flat_map(|running| ["running_mean", "running_var"].into_iter().zip(running));
        buffers.fold(module, |module, (name, tensor)| module.buffer(name, tensor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi;
    use crate::rng::{Stream, normal, rng};
    use tch::nn::VarStore;

    /// As its definition says, in float64.
    fn by_hand(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
        let axes: Vec<i64> = (2..x.dim() as i64).collect();
        let mean = x.mean_dim(axes.as_slice(), true, Kind::Double);
        let centred = x - mean;
        let variance = centred.square().mean_dim(axes.as_slice(), true, Kind::Double);
        let mut dims = vec![1; x.dim()];
        dims[1] = -1;
        centred / (variance + NORM_EPS).sqrt() * weight.view(dims.as_slice()) + bias.view(dims.as_slice())
    }

    #[test]
    fn instance_norm_is_its_definition_in_every_layout() {
        // Not libtorch's generator, which tests that run beside this one draw from.
        let mut rng = rng(2, Stream::Phantom, 0, 0);
        let mut randn = |dims: &[i64]| {
            let values: Vec<f32> = (0..dims.iter().product()).map(|_| normal(&mut rng)).collect();
            Tensor::from_slice(&values).reshape(dims)
        };
        let vs = VarStore::new(Device::Cpu);
        let norm = Norm::new(vs.root(), NormKind::Instance, 5);
        assert_eq!(vs.variables().len(), 2, "no running statistics");
        let variables = vs.variables();
        let [weight, bias] = ["weight", "bias"].map(|name| variables[name].shallow_clone());
        tch::no_grad(|| {
            weight.shallow_clone().copy_(&randn(&[5]));
            bias.shallow_clone().copy_(&randn(&[5]));
        });
        for (dims, bf16, format) in [
            (&[3, 5, 6, 8][..], false, ffi::MemoryFormat::Contiguous),
            (&[3, 5, 4, 6, 8], false, ffi::MemoryFormat::Contiguous),
            (&[3, 5, 6, 8], true, ffi::MemoryFormat::ChannelsLast),
            (&[3, 5, 4, 6, 8], true, ffi::MemoryFormat::ChannelsLast),
            (&[1, 5, 2, 2, 1], true, ffi::MemoryFormat::ChannelsLast),
        ] {
            let kind = if bf16 { Kind::BFloat16 } else { Kind::Float };
            // Each sample has a mean of its own, far from those of the others.
            let shift = Tensor::arange(dims[0], (Kind::Float, Device::Cpu)).view([-1, 1, 1, 1]) * 3;
            let shift = if dims.len() == 5 { shift.unsqueeze(-1) } else { shift };
            let x = (randn(dims) + shift).to_kind(kind);
            ffi::set_memory_format(&x, format).unwrap();
            let given = randn(dims).to_kind(Kind::Double);
            let gradients = |y: &Tensor, x: &Tensor| {
                let (weight, bias) = (weight.shallow_clone(), bias.shallow_clone());
                Tensor::run_backward(
                    &[(y.to_kind(Kind::Double) * &given).sum(Kind::Double)],
                    &[x, &weight, &bias],
                    false,
                    false,
                )
            };
            let x = x.set_requires_grad(true);
            let train = norm.forward(&x, true);
            let found = ffi::with_autocast(Device::Cpu, bf16, || norm.forward(&x, false));
            assert_eq!((found.kind(), found.is_contiguous()), (kind, x.is_contiguous()), "{dims:?}");
            assert_eq!(found, train, "training and evaluation are the same");
            let double = x.to_kind(Kind::Double);
            let expected = by_hand(&double, &weight, &bias);
            let close = |a: &Tensor, b: &Tensor| {
                let off = (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[]);
                let scale = b.abs().max().double_value(&[]).max(1.);
                assert!(off < scale * if bf16 { 0.02 } else { 1e-5 }, "{dims:?} bf16 {bf16}: off by {off}");
            };
            close(&found, &expected);
            for (ours, wanted) in gradients(&found, &x).iter().zip(gradients(&expected, &x)) {
                close(ours, &wanted);
            }
        }
    }
}
