//! The unit of nnU-Net's networks: convolution, instance normalisation, LeakyReLU; names, order and initialisation as in
//! dynamic-network-architectures.

use super::NormKind;
use super::blocks::{Conv, ConvShape, conv_instance_norm};
use super::norm::Norm;
use super::script::ScriptModule;
use crate::dim::PerAxis;
use tch::Tensor;
use tch::nn::{self, Init};

/// Slope of LeakyReLU below 0. libtorch's default, which tch cannot change.
const SLOPE: f64 = 0.01;

/// Standard deviation that keeps the variance of what is summed over `fan_in` inputs through a LeakyReLU (He et al. 2015).
pub fn he_stdev(fan_in: i64) -> f64 {
    (2. / ((1. + SLOPE * SLOPE) * fan_in as f64)).sqrt()
}

/// He initialisation of a convolution.
pub fn he(inputs: i64, kernel: &PerAxis) -> Init {
    Init::Randn { mean: 0., stdev: he_stdev(inputs * kernel.values().iter().product::<i64>()) }
}

/// Names that nnU-Net has for a tensor of one of its networks: ours, and for those of a unit another one for the same tensor.
pub fn nnunet_names(name: &str) -> Vec<String> {
    let unit = [(".conv.", ".all_modules.0."), (".norm.", ".all_modules.1.")].into_iter();
    let other = unit.filter_map(|(ours, other)| name.rsplit_once(ours).map(|(unit, part)| format!("{unit}{other}{part}")));
    std::iter::once(name.to_owned()).chain(other).collect()
}

/// LeakyReLU in place.
pub fn activate(mut x: Tensor) -> Tensor {
    x.leaky_relu_()
}

/// In TorchScript.
pub fn activate_source(x: &str) -> String {
    format!("torch.leaky_relu({x}, {SLOPE})")
}

/// Convolution and instance normalisation, where `active` then LeakyReLU; parameters `conv` and `norm`.
#[derive(Debug)]
pub struct ConvNorm {
    conv: Conv,
    norm: Norm,
    active: bool,
}

impl ConvNorm {
    /// With LeakyReLU.
    pub fn new(vs: nn::Path, shape: ConvShape) -> Self {
        ConvNorm { active: true, ..ConvNorm::linear(vs, shape, true) }
    }

    /// Without LeakyReLU. `bias`: whether the convolution has one.
    pub fn linear(vs: nn::Path, shape: ConvShape, bias: bool) -> Self {
        ConvNorm {
            conv: Conv::of(&vs / "conv", shape, bias, he(shape.inputs, &shape.kernel)),
            norm: Norm::new(&vs / "norm", NormKind::Instance, shape.outputs),
            active: false,
        }
    }

    /// Gives 0 until it has learnt.
    pub fn silent(self) -> Self {
        self.norm.silence();
        self
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let active = self.active;
        conv_instance_norm(&self.conv, &self.norm, x, move |x| if active { activate(x) } else { x })
    }

    pub fn script(&self) -> ScriptModule {
        let linear = "self.norm.forward(self.conv.forward(x))".to_owned();
        let value = if self.active { activate_source(&linear) } else { linear };
        ScriptModule::new(format!("def forward(self, x: Tensor) -> Tensor:\n    return {value}\n"))
            .child("conv", self.conv.script())
            .child("norm", self.norm.script())
    }
}

/// Units in a row, of which the first may stride; their parameters lie under `convs.{i}`.
#[derive(Debug)]
pub struct ConvNorms(Vec<ConvNorm>);

impl ConvNorms {
    /// `first`: shape of the first one, from whose outputs the others go on.
    pub fn new(vs: nn::Path, first: ConvShape, count: usize) -> Self {
        let next = ConvShape { inputs: first.outputs, stride: PerAxis::all(first.stride.rank(), 1), ..first };
        let unit = |i: usize| ConvNorm::new(&vs / "convs" / i, if i == 0 { first } else { next });
        ConvNorms((0..count).map(unit).collect())
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.0.iter().fold(x.shallow_clone(), |x, unit| unit.forward(&x))
    }

    pub fn script(&self) -> ScriptModule {
        ScriptModule::sequence("convs", self.0.iter().map(ConvNorm::script))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_nnunet_with_its_copies() {
        for (name, copy) in [
            ("encoder.stages.1.blocks.0.skip.1.conv.weight", Some("encoder.stages.1.blocks.0.skip.1.all_modules.0.weight")),
            ("decoder.stages.0.convs.1.norm.bias", Some("decoder.stages.0.convs.1.all_modules.1.bias")),
            ("decoder.transpconvs.0.weight", None),
            ("decoder.seg_layers.2.bias", None),
        ] {
            assert_eq!(nnunet_names(name), [Some(name), copy].into_iter().flatten().collect::<Vec<_>>());
        }
    }
}
