//! The expanding half of a U-Net, on any encoder that declares its pyramid (method 4).

use super::blocks::{Conv, Stage, UpConv};
use super::script::ScriptModule;
use super::{Encoder, Level, Mode};
use crate::dim::{Rank, Shape};
use anyhow::{Result, ensure};
use std::fmt::Write;
use tch::{Tensor, nn, no_grad};

/// From one level of the pyramid to the next finer one.
#[derive(Debug)]
struct Step {
    up: UpConv,
    stage: Stage,
    /// Whether the encoder has a map of this resolution.
    skip: bool,
    /// 1x1x1 convolution to logits at this resolution, for deep supervision; the finest one is always there.
    output: Option<Conv>,
}

/// U-Net decoder; its parameters are `step{i}_up`, `step{i}` and `output`, step 0 the coarsest.
#[derive(Debug)]
pub struct Decoder {
    steps: Vec<Step>,
    /// Whether it is fixed where the encoder is, its outputs excepted.
    given: bool,
}

/// Whether a tensor of a decoder belongs to an output layer.
pub fn is_output(name: &str) -> bool {
    let layer = name.split('.').next().unwrap_or_default();
    layer == "output" || (layer.starts_with("step") && layer.ends_with("_output"))
}

impl Decoder {
    /// Mirrors the encoder, with its kind of normalisation: a transposed convolution doubles the resolution, the encoder's map of that resolution is put beside
    /// it, two convolutions follow. An encoder whose finest map is coarser than its input gets a last step without a skip.
    /// `deep`: logits at every resolution while training.
    pub fn new(vs: nn::Path, encoder: &dyn Encoder, outputs: i64, deep: bool) -> Self {
        let rank: Rank = encoder.rank();
        let mut levels: Vec<(Level, bool)> = encoder.levels().iter().map(|&level| (level, true)).collect();
        let finest = levels[0].0;
        if finest.reduction > 1 {
            levels.insert(0, (Level { channels: finest.channels, reduction: 1 }, false));
        }
        let steps = levels
            .windows(2)
            .rev()
            .enumerate()
            .map(|(i, pair)| {
                let [(fine, skip), (coarse, _)] = [pair[0], pair[1]];
                let factor = coarse.reduction / fine.reduction;
                let inputs = if skip { 2 * fine.channels } else { fine.channels };
                let last = i + 2 == levels.len();
                Step {
                    up: UpConv::new(&vs / format!("step{i}_up"), rank, coarse.channels, fine.channels, factor),
                    stage: Stage::new(&vs / format!("step{i}"), rank, encoder.norm(), inputs, fine.channels, 0.),
                    skip,
                    output: (last || deep).then(|| {
                        let name = if last { "output".to_owned() } else { format!("step{i}_output") };
                        Conv::new(&vs / name, rank, fine.channels, outputs, 1)
                    }),
                }
            })
            .collect();
        Decoder { steps, given: false }
    }

    /// `given`: while the encoder is fixed ([`Mode::Frozen`]) the decoder is fixed as well, and only its output layers learn.
    pub fn given(self, given: bool) -> Self {
        Decoder { given, ..self }
    }

    /// Errors unless the sides of an input are multiples of the encoder's reduction, so that what is doubled fits what was halved.
    pub fn check_input(encoder: &dyn Encoder, input: Shape) -> Result<()> {
        let reduction = encoder.deepest().reduction as usize;
        for side in encoder.rank().axes().map(|a| input[a]) {
            let (below, above) = (side / reduction * reduction, side.next_multiple_of(reduction));
            let works = if below > 0 { format!("{below} or {above}") } else { above.to_string() };
            ensure!(
                side > 0 && side == below,
                "a side of {side} voxels, expected a multiple of {reduction}, by which the encoder pools: {works}, or any multiple of a \
                 smaller number with fewer --levels"
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
            let finer = |x: &Tensor, skip: Option<Tensor>| {
                let x = step.up.forward(x);
                let x = skip.map_or(x.shallow_clone(), |skip| Tensor::cat(&[skip, x], 1));
                step.stage.forward(&x, mode.trains_head() && !fixed)
            };
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
            let up = format!("self.step{i}_up.forward(x)");
            if step.skip {
                level -= 1;
                writeln!(source, "    x = self.step{i}.forward(torch.cat([pyramid[{level}], {up}], 1))").unwrap();
            } else {
                writeln!(source, "    x = self.step{i}.forward({up})").unwrap();
            }
        }
        source += "    return self.output.forward(x)\n";
        let last = self.steps.last().and_then(|s| s.output.as_ref()).expect("the finest step has an output");
        let children = self.steps.iter().enumerate().fold(ScriptModule::new(source), |module, (i, step)| {
            module.child(format!("step{i}_up"), step.up.script()).child(format!("step{i}"), step.stage.script())
        });
        children.child("output", last.script())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::NormKind;
    use tch::{Device, Kind, nn::VarStore};

    /// An encoder that is nothing but its pyramid.
    struct Pyramid(Rank, Vec<Level>);

    impl Encoder for Pyramid {
        fn name(&self) -> &'static str {
            "pyramid"
        }

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
                dims[2..].iter_mut().for_each(|n| *n /= level.reduction);
                Tensor::randn(&dims, (Kind::Float, Device::Cpu))
            };
            self.1.iter().map(map).collect()
        }

        fn script(&self) -> ScriptModule {
            ScriptModule::new(String::new())
        }
    }

    #[test]
    fn logits_have_the_inputs_extent_whatever_the_pyramid() {
        for rank in [Rank::Two, Rank::Three] {
            for reductions in [&[1, 2, 4][..], &[2, 4, 8], &[4, 8]] {
                let levels = reductions.iter().map(|&reduction| Level { channels: 2 + reduction, reduction }).collect();
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
        let levels = [1, 2, 4].map(|reduction| Level { channels: 2 + reduction, reduction }).to_vec();
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
