//! The encoder of nnU-Net's PlainConvUNet, which is also that of MONAI's DynUNet: stages of convolution, instance normalisation and
//! LeakyReLU, operation by operation and name by name as in dynamic-network-architectures.

use super::conv_norm::ConvNorms;
use super::script::{ScriptModule, item};
use super::{DecoderKind, Encoder, Level, NormKind, StagesConfig};
use crate::dim::{Rank, Shape};
use std::collections::BTreeMap;
use tch::{Tensor, nn};

/// Convolutions of each stage of the decoder.
const DECODER_CONVS: usize = 2;

/// PlainConvUNet's encoder; its parameters are `stages.{i}.0.convs.{j}.{conv,norm}`.
#[derive(Debug)]
pub struct PlainConv {
    config: StagesConfig,
    levels: Vec<Level>,
    stages: Vec<ConvNorms>,
}

impl PlainConv {
    pub fn new(vs: nn::Path, config: StagesConfig) -> Self {
        let stage = |i: usize| ConvNorms::new(&vs / "stages" / i / 0, config.first_conv(i, config.inputs(i)), config.blocks[i]);
        PlainConv { stages: (0..config.features.len()).map(stage).collect(), levels: config.levels(), config }
    }

    /// The shape of which these tensors are the weights.
    pub fn shape_of(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> Option<StagesConfig> {
        let conv = |stage: usize, block: usize| format!("{prefix}stages.{stage}.0.convs.{block}.conv.weight");
        StagesConfig::of(tensors, &conv(0, 0), &conv)
    }
}

impl Encoder for PlainConv {
    fn rank(&self) -> Rank {
        self.config.rank
    }

    fn in_channels(&self) -> i64 {
        self.config.in_channels
    }

    fn levels(&self) -> &[Level] {
        &self.levels
    }

    fn norm(&self) -> NormKind {
        NormKind::Instance
    }

    fn decoder(&self) -> DecoderKind<'_> {
        DecoderKind::NnUNet { convs: DECODER_CONVS, kernels: &self.config.kernels }
    }

    fn deepest_shape(&self, input: Shape) -> Shape {
        self.deepest().extent_rounded_up(input)
    }

    fn features(&self, x: &Tensor, train: bool) -> Vec<Tensor> {
        let mut pyramid: Vec<Tensor> = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let map = stage.forward(pyramid.last().unwrap_or(x));
            pyramid.push(self.config.drop_out(map, train));
        }
        pyramid
    }

    fn script(&self) -> ScriptModule {
        // A stage is a list of one module.
        let calls = (0..self.stages.len()).map(|i| format!("getattr({}, \"0\").forward(x)", item("stages", i)));
        let source = format!("def forward(self, x: Tensor) -> List[Tensor]:\n{}", self.config.script(calls));
        let stages = self.stages.iter().map(|stage| ScriptModule::list([stage.script()]));
        ScriptModule::new(source).child("stages", ScriptModule::list(stages))
    }
}
