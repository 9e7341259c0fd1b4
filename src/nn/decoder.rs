//! The expanding half of a U-Net, on any encoder that declares its pyramid (method 4).

use super::blocks::{Conv, ConvShape, Stage, UpConv};
use super::conv_norm::{ConvNorms, he, he_stdev};
use super::script::{ScriptModule, item};
use super::{Encoder, Level, Mode, NormKind};
use crate::dim::{PerAxis, Shape};
use anyhow::{Result, ensure};
use std::fmt::Write;
use tch::{Tensor, nn, no_grad};

/// Whose decoder stands above an encoder.
#[derive(Clone, Copy, Debug)]
pub enum DecoderKind<'a> {
    /// The reference's U-Net; its parameters are `step{i}_up`, `step{i}` and `output`, step 0 the coarsest.
    UNet,
    /// nnU-Net's UNetDecoder; its parameters are `transpconvs.{i}`, `stages.{i}` and `seg_layers.{i}`, 0 the coarsest. `convs`:
    /// convolutions of a stage; `kernels`: of each level of the encoder.
    NnUNet { convs: usize, kernels: &'a [PerAxis] },
}

/// Convolutions of a step, of the enlarged map and the encoder's map beside it.
#[derive(Debug)]
enum Convs {
    UNet(Box<Stage>),
    NnUNet(ConvNorms),
}

/// From one level of the pyramid to the next finer one.
#[derive(Debug)]
struct Step {
    up: UpConv,
    convs: Convs,
    /// Whether the encoder has a map of this resolution.
    skip: bool,
    /// 1x1x1 convolution to logits at this resolution, for deep supervision; the finest one is always there.
    output: Option<Conv>,
}

/// What a step is made of.
struct StepShape {
    fine: Level,
    coarse: Level,
    skip: bool,
    /// Of the outputs that it has, if it has any.
    outputs: Option<i64>,
}

impl Step {
    fn unet(vs: &nn::Path, i: usize, shape: StepShape, norm: NormKind, last: bool) -> Self {
        let StepShape { fine, coarse, skip, outputs } = shape;
        let (rank, factor) = (fine.reduction.rank(), fine.reduction.ratio(&coarse.reduction));
        let inputs = if skip { 2 * fine.channels } else { fine.channels };
        // Each output voxel sums over the inputs of one voxel only; no activation follows.
        let stdev = 1. / (coarse.channels as f64).sqrt();
        Step {
            up: UpConv::new(vs / format!("step{i}_up"), coarse.channels, fine.channels, factor, stdev),
            convs: Convs::UNet(Box::new(Stage::new(vs / format!("step{i}"), rank, norm, inputs, fine.channels, 0.))),
            skip,
            output: outputs.map(|outputs| {
                let name = if last { "output".to_owned() } else { format!("step{i}_output") };
                Conv::new(vs / name, rank, fine.channels, outputs, 1)
            }),
        }
    }

    /// `kernel`: of the encoder at the finer level.
    fn nnunet(vs: &nn::Path, i: usize, shape: StepShape, kernel: PerAxis, convs: usize) -> Self {
        let StepShape { fine, coarse, skip, outputs } = shape;
        let (one, factor) = (PerAxis::all(kernel.rank(), 1), fine.reduction.ratio(&coarse.reduction));
        // As PyTorch counts the inputs of a transposed convolution.
        let stdev = he_stdev(fine.channels * factor.values().iter().product::<i64>());
        let first = ConvShape { inputs: 2 * fine.channels, outputs: fine.channels, kernel, stride: one };
        Step {
            up: UpConv::new(vs / "transpconvs" / i, coarse.channels, fine.channels, factor, stdev),
            convs: Convs::NnUNet(ConvNorms::new(vs / "stages" / i, first, convs)),
            skip,
            output: outputs.map(|outputs| {
                let shape = ConvShape { inputs: fine.channels, outputs, kernel: one, stride: one };
                Conv::of(vs / SEG_LAYERS / i, shape, true, he(fine.channels, &one))
            }),
        }
    }

    fn forward(&self, coarse: &Tensor, skip: Option<Tensor>, train: bool) -> Tensor {
        let x = self.up.forward(coarse);
        match &self.convs {
            Convs::UNet(stage) => stage.forward(&skip.map_or(x.shallow_clone(), |skip| Tensor::cat(&[&skip, &x], 1)), train),
            Convs::NnUNet(convs) => convs.forward(&skip.map_or(x.shallow_clone(), |skip| Tensor::cat(&[&x, &skip], 1))),
        }
    }
}

/// The sides that work in place of one that is no multiple of a reduction.
pub fn multiples(side: usize, reduction: usize) -> String {
    let (below, above) = (side / reduction * reduction, (side + 1).next_multiple_of(reduction));
    let works = if below > 0 { format!("{below} or {above}") } else { above.to_string() };
    format!("{works}, or any multiple of a smaller number with fewer --levels")
}

/// U-Net decoder, of the kind that belongs to its encoder.
#[derive(Debug)]
pub struct Decoder {
    steps: Vec<Step>,
    /// Whether it is fixed where the encoder is, its outputs excepted.
    given: bool,
}

/// nnU-Net's list of output layers.
const SEG_LAYERS: &str = "seg_layers";

/// Whether a tensor of a decoder belongs to an output layer.
pub fn is_output(name: &str) -> bool {
    let layer = name.split('.').next().unwrap_or_default();
    layer == "output" || layer == SEG_LAYERS || (layer.starts_with("step") && layer.ends_with("_output"))
}

/// Name of the layer of full resolution among the names of a decoder's tensors.
pub fn last_output<'a>(names: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    let layer = |name: &'a String| {
        let layer = name.strip_suffix(".weight").filter(|_| is_output(name))?;
        let place = layer.strip_prefix(SEG_LAYERS).and_then(|rest| rest.trim_start_matches('.').parse().ok());
        Some((if layer == "output" { usize::MAX } else { place.unwrap_or(0) }, layer))
    };
    names.filter_map(layer).max().map(|(_, layer)| layer)
}

impl Decoder {
    /// Mirrors the encoder, with its kind of normalisation: a transposed convolution enlarges by what the encoder reduced, the encoder's map
    /// of that resolution is put beside it, convolutions follow. An encoder whose finest map is coarser than its input gets a last step
    /// without a skip. `deep`: logits at every resolution while training.
    pub fn new(vs: nn::Path, encoder: &dyn Encoder, outputs: i64, deep: bool) -> Self {
        let mut levels: Vec<(Level, bool)> = encoder.levels().iter().map(|&level| (level, true)).collect();
        let (finest, whole) = (levels[0].0, PerAxis::all(encoder.rank(), 1));
        if finest.reduction != whole {
            levels.insert(0, (Level { channels: finest.channels, reduction: whole }, false));
        }
        let steps = levels
            .windows(2)
            .rev()
            .enumerate()
            .map(|(i, pair)| {
                let [(fine, skip), (coarse, _)] = [pair[0], pair[1]];
                let last = i + 2 == levels.len();
                let shape = StepShape { fine, coarse, skip, outputs: (last || deep).then_some(outputs) };
                match encoder.decoder() {
                    DecoderKind::UNet => Step::unet(&vs, i, shape, encoder.norm(), last),
                    DecoderKind::NnUNet { convs, kernels } => Step::nnunet(&vs, i, shape, kernels[levels.len() - 2 - i], convs),
                }
            })
            .collect();
        Decoder { steps, given: false }
    }

    /// `given`: while the encoder is fixed ([`Mode::Frozen`]) the decoder is fixed as well, and only its output layers learn.
    pub fn given(self, given: bool) -> Self {
        Decoder { given, ..self }
    }

    /// Errors unless there is something to enlarge, and the sides of an input are multiples of the encoder's reduction, so that what is
    /// enlarged fits what was reduced.
    pub fn check_input(encoder: &dyn Encoder, input: Shape) -> Result<()> {
        let finest = encoder.levels()[0].reduction;
        ensure!(
            encoder.levels().len() > 1 || finest.common() != Some(1),
            "the encoder has one level, of full resolution, and a decoder above it has nothing to enlarge: expected --levels 2 or more"
        );
        for a in encoder.rank().axes() {
            let (side, reduction) = (input[a], encoder.deepest().reduction.along(a));
            ensure!(
                side > 0 && side.is_multiple_of(reduction),
                "a side of {side} voxels, expected a multiple of {reduction}, by which the encoder pools: {}",
                multiples(side, reduction)
            );
        }
        Ok(())
    }

    /// Starts from 0 in every output, where random values would be far from what regression must reach.
    pub fn silent(self) -> Self {
        self.steps.iter().flat_map(|step| &step.output).for_each(Conv::silence);
        self
    }

    /// Logits `[B, outputs, ...]` of a pyramid, finest first: the full resolution, and in training the coarser ones if the
    /// decoder is deeply supervised. The input's sides must be multiples of the encoder's deepest reduction.
    pub fn forward(&self, mut pyramid: Vec<Tensor>, mode: Mode) -> Vec<Tensor> {
        let mut x = pyramid.pop().expect("an encoder has at least one level");
        let mut logits = Vec::new();
        let fixed = self.given && mode == Mode::Frozen;
        for (i, step) in self.steps.iter().enumerate() {
            let finer = |x: &Tensor, skip: Option<Tensor>| step.forward(x, skip, mode.trains_head() && !fixed);
            let skip = step.skip.then(|| pyramid.pop().expect("one map for every step with a skip"));
            x = if fixed { no_grad(|| finer(&x, skip)) } else { finer(&x, skip) };
            if let Some(output) = step.output.as_ref().filter(|_| mode.trains_head() || i + 1 == self.steps.len()) {
                logits.insert(0, output.forward(&x));
            }
        }
        logits
    }

    /// The decoder as TorchScript: from the pyramid, finest first, to the logits of full resolution.
    pub fn script(&self) -> ScriptModule {
        let skips = self.steps.iter().filter(|s| s.skip).count();
        let mut source = String::from("def forward(self, pyramid: List[Tensor]) -> Tensor:\n");
        writeln!(source, "    x = pyramid[{skips}]").unwrap();
        let mut level = skips;
        for (i, step) in self.steps.iter().enumerate() {
            let nnunet = matches!(step.convs, Convs::NnUNet(_));
            let (up, convs) = match nnunet {
                true => (item("transpconvs", i), item("stages", i)),
                false => (format!("self.step{i}_up"), format!("self.step{i}")),
            };
            let mut parts = vec![format!("{up}.forward(x)")];
            if step.skip {
                level -= 1;
                parts.insert(usize::from(nnunet), format!("pyramid[{level}]"));
            }
            let input = if let [up] = &parts[..] { up.clone() } else { format!("torch.cat([{}], 1)", parts.join(", ")) };
            writeln!(source, "    x = {convs}.forward({input})").unwrap();
        }
        let last = self.steps.last().and_then(|s| s.output.as_ref()).expect("the finest step has an output").script();
        let ups = self.steps.iter().map(|step| step.up.script());
        let stages: Vec<ScriptModule> = self
            .steps
            .iter()
            .map(|step| match &step.convs {
                Convs::UNet(stage) => stage.script(),
                Convs::NnUNet(convs) => convs.script(),
            })
            .collect();
        if matches!(self.steps[0].convs, Convs::NnUNet(_)) {
            let place = self.steps.len() - 1;
            writeln!(source, "    return {}.forward(x)", item(SEG_LAYERS, place)).unwrap();
            return ScriptModule::new(source)
                .child("transpconvs", ScriptModule::list(ups))
                .child("stages", ScriptModule::list(stages))
                .child(SEG_LAYERS, ScriptModule::default().child(place.to_string(), last));
        }
        source += "    return self.output.forward(x)\n";
        let children = ups.zip(stages).enumerate().fold(ScriptModule::new(source), |module, (i, (up, stage))| {
            module.child(format!("step{i}_up"), up).child(format!("step{i}"), stage)
        });
        children.child("output", last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::Rank;
    use tch::{Device, Kind, nn::VarStore};

    /// An encoder that is nothing but its pyramid.
    struct Pyramid(Rank, Vec<Level>);

    impl Encoder for Pyramid {
        fn rank(&self) -> Rank {
            self.0
        }

        fn in_channels(&self) -> i64 {
            1
        }

        fn levels(&self) -> &[Level] {
            &self.1
        }

        fn norm(&self) -> NormKind {
            NormKind::Batch
        }

        fn features(&self, x: &Tensor, _train: bool) -> Vec<Tensor> {
            let map = |level: &Level| {
                let mut dims = x.size();
                dims[1] = level.channels;
                dims[2..].iter_mut().zip(level.reduction.values()).for_each(|(n, by)| *n /= by);
                Tensor::randn(&dims, (Kind::Float, Device::Cpu))
            };
            self.1.iter().map(map).collect()
        }

        fn script(&self) -> ScriptModule {
            ScriptModule::new(String::new())
        }
    }

    fn level(rank: Rank, reduction: i64) -> Level {
        Level { channels: 2 + reduction, reduction: PerAxis::all(rank, reduction) }
    }

    #[test]
    fn logits_have_the_inputs_extent_whatever_the_pyramid() {
        for rank in [Rank::Two, Rank::Three] {
            for reductions in [&[1, 2, 4][..], &[2, 4, 8], &[4, 8]] {
                let levels = reductions.iter().map(|&n| level(rank, n)).collect();
                let encoder = Pyramid(rank, levels);
                let vs = VarStore::new(Device::Cpu);
                let decoder = Decoder::new(vs.root(), &encoder, 3, true);
                let dims: Vec<i64> = [2, 1, 16, 24, 8][..2 + rank.n()].to_vec();
                let x = Tensor::zeros(&dims, (Kind::Float, Device::Cpu));
                let mut expected: Vec<i64> = if reductions[0] == 1 { vec![] } else { vec![1] };
                expected.extend(&reductions[..reductions.len() - 1]);
                let logits = decoder.forward(encoder.forward(&x, Mode::Train), Mode::Train);
                let shape = |reduction: &i64| {
                    let spatial = dims[2..].iter().map(|n| n / reduction);
                    [2, 3].into_iter().chain(spatial).collect::<Vec<i64>>()
                };
                assert_eq!(logits.iter().map(Tensor::size).collect::<Vec<_>>(), expected.iter().map(shape).collect::<Vec<_>>());
                let evaluated = decoder.forward(encoder.forward(&x, Mode::Eval), Mode::Eval);
                assert_eq!(evaluated.iter().map(Tensor::size).collect::<Vec<_>>(), [shape(&1)]);
                Tensor::cat(&logits.iter().map(|l| l.flatten(0, -1)).collect::<Vec<_>>(), 0).sum(Kind::Float).backward();
                for (name, variable) in vs.variables().iter().filter(|(_, v)| v.requires_grad()) {
                    assert!(variable.grad().defined(), "{rank:?} {reductions:?}: no gradient for {name}");
                }
            }
        }
    }

    #[test]
    fn a_given_decoder_is_fixed_with_the_encoder() {
        let levels = [1, 2, 4].map(|n| level(Rank::Three, n)).to_vec();
        let encoder = Pyramid(Rank::Three, levels);
        for given in [true, false] {
            let vs = VarStore::new(Device::Cpu);
            let decoder = Decoder::new(vs.root(), &encoder, 3, true).given(given);
            let x = Tensor::randn([2, 1, 8, 8, 8], (Kind::Float, Device::Cpu));
            let pyramid = encoder.features(&x, false);
            let copy = |pyramid: &[Tensor]| pyramid.iter().map(Tensor::shallow_clone).collect();
            let evaluated = decoder.forward(copy(&pyramid), Mode::Eval).remove(0);
            let before: Vec<(String, Tensor)> = vs.variables().into_iter().map(|(n, t)| (n, t.detach().copy())).collect();
            let logits = decoder.forward(copy(&pyramid), Mode::Frozen);
            assert!(logits[0].allclose(&evaluated, 1e-5, 1e-6, false) == given && logits.len() == 2);
            logits.iter().map(|l| l.sum(Kind::Float)).sum::<Tensor>().backward();
            for (name, variable) in vs.variables().iter().filter(|(_, v)| v.requires_grad()) {
                assert_eq!(variable.grad().defined(), !given || is_output(name), "{name}");
            }
            // Statistics, too.
            assert_eq!(before.iter().all(|(name, value)| vs.variables()[name] == *value), given);
        }
    }
}
