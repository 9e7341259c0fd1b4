//! The encoder of nnU-Net's ResidualEncoderUNet (Isensee et al. 2024): a stem, then stages of residual blocks, operation by operation
//! and name by name as in dynamic-network-architectures.

use super::blocks::ConvShape;
use super::conv_norm::{ConvNorm, ConvNorms, activate, activate_source};
use super::script::{ScriptModule, item};
use super::{DecoderKind, Encoder, Level, NormKind, StagesConfig};
use crate::dim::{PerAxis, Rank, Shape};
use std::collections::BTreeMap;
use tch::{Tensor, nn};

/// Convolutions of each stage of the decoder.
const DECODER_CONVS: usize = 1;

/// Two convolutions beside a skip, which is averaged over the stride and, where the channels change, mapped by a 1x1x1 convolution
/// (ResNet-D).
#[derive(Debug)]
struct Block {
    conv1: ConvNorm,
    /// Starts from 0, so that a block begins as its skip.
    conv2: ConvNorm,
    stride: PerAxis,
    projection: Option<ConvNorm>,
}

impl Block {
    fn new(vs: nn::Path, first: ConvShape) -> Self {
        let ConvShape { inputs, outputs, kernel, stride } = first;
        let one = PerAxis::all(kernel.rank(), 1);
        let second = ConvShape { inputs: outputs, outputs, kernel, stride: one };
        let projection = ConvShape { inputs, outputs, kernel: one, stride: one };
        let strides = stride != one;
        Block {
            conv1: ConvNorm::new(&vs / "conv1", first),
            conv2: ConvNorm::linear(&vs / "conv2", second, true).silent(),
            projection: (inputs != outputs).then(|| ConvNorm::linear(&vs / "skip" / usize::from(strides), projection, false)),
            stride,
        }
    }

    fn strides(&self) -> bool {
        self.stride.common() != Some(1)
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut skip = if self.strides() { average(x, &self.stride) } else { x.shallow_clone() };
        if let Some(projection) = &self.projection {
            skip = projection.forward(&skip);
        }
        let mut out = self.conv2.forward(&self.conv1.forward(x));
        activate(out.g_add_(&skip))
    }

    fn script(&self) -> ScriptModule {
        let mut skip = "x".to_owned();
        if self.strides() {
            let (n, stride) = (self.stride.rank().n(), self.stride.values());
            skip = format!("torch.avg_pool{n}d({skip}, {stride:?}, {stride:?}, {:?}, True, False)", vec![0; n]);
        }
        let place = usize::from(self.strides());
        if self.projection.is_some() {
            skip = format!("{}.forward({skip})", item("skip", place));
        }
        let sum = activate_source(&format!("self.conv2.forward(self.conv1.forward(x)) + {skip}"));
        let module = ScriptModule::new(format!("def forward(self, x: Tensor) -> Tensor:\n    return {sum}\n"))
            .child("conv1", self.conv1.script())
            .child("conv2", self.conv2.script());
        match &self.projection {
            Some(projection) => module.child("skip", ScriptModule::default().child(place.to_string(), projection.script())),
            None => module,
        }
    }
}

/// Average over boxes of this size. A side that is no multiple is rounded up, as the strided convolution beside it does; nnU-Net has none.
fn average(x: &Tensor, size: &PerAxis) -> Tensor {
    let size = size.values();
    match size.len() {
        2 => x.avg_pool2d(size, size, [0, 0], true, false, None),
        _ => x.avg_pool3d(size, size, [0, 0, 0], true, false, None),
    }
}

/// ResidualEncoderUNet's encoder; its parameters are `stem.convs.0.{conv,norm}`, `stages.{i}.blocks.{j}.conv{1,2}.{conv,norm}` and, where a
/// stage changes the channels, `stages.{i}.blocks.0.skip.{0,1}.{conv,norm}`, 1 where it strides as well.
#[derive(Debug)]
pub struct ResEnc {
    config: StagesConfig,
    levels: Vec<Level>,
    stem: ConvNorms,
    stages: Vec<Vec<Block>>,
}

impl ResEnc {
    pub fn new(vs: nn::Path, config: StagesConfig) -> Self {
        let stem = ConvNorms::new(&vs / "stem", config.first_conv(0, config.in_channels), 1);
        let stage = |i: usize| {
            let inputs = config.features[i.saturating_sub(1)];
            let first = config.first_conv(i, inputs);
            let next = ConvShape { inputs: first.outputs, stride: PerAxis::all(config.rank, 1), ..first };
            let block = |j: usize| Block::new(&vs / "stages" / i / "blocks" / j, if j == 0 { first } else { next });
            (0..config.blocks[i]).map(block).collect()
        };
        ResEnc { stages: (0..config.features.len()).map(stage).collect(), stem, levels: config.levels(), config }
    }

    /// The shape of which these tensors are the weights.
    pub fn shape_of(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> Option<StagesConfig> {
        let conv = |stage: usize, block: usize| format!("{prefix}stages.{stage}.blocks.{block}.conv1.conv.weight");
        StagesConfig::of(tensors, &format!("{prefix}stem.convs.0.conv.weight"), &conv)
    }
}

impl Encoder for ResEnc {
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
        let mut x = self.stem.forward(x);
        let mut pyramid = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            x = self.config.drop_out(stage.iter().fold(x, |x, block| block.forward(&x)), train);
            pyramid.push(x.shallow_clone());
        }
        pyramid
    }

    fn script(&self) -> ScriptModule {
        let calls = (0..self.stages.len()).map(|i| format!("{}.forward(x)", item("stages", i)));
        let stages = self.config.script(calls);
        let source = format!("def forward(self, x: Tensor) -> List[Tensor]:\n    x = self.stem.forward(x)\n{stages}");
        let stage = |blocks: &Vec<Block>| ScriptModule::sequence("blocks", blocks.iter().map(Block::script));
        ScriptModule::new(source)
            .child("stem", self.stem.script())
            .child("stages", ScriptModule::list(self.stages.iter().map(stage)))
    }
}
