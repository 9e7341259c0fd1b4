//! Running statistics of batch normalisation, estimated anew where a network meets other inputs than it was trained on: those of a
//! training fit inputs like its own, which may be small patches, and a network with new weights has none at all.

use super::norm::NORM_MOMENTUM;
use super::{Decoder, EncoderConfig, Mode};
use crate::group;
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;
use tch::{Device, Tensor, nn::VarStore, no_grad};

/// Inputs that an encoder's statistics are estimated on, at the least.
pub const SAMPLES: u64 = 32;

/// Voxels of a batch. Batches as large as memory allows come closest to evaluation: in training mode, deeper layers see what the batch's own
/// statistics make of it.
const BATCH_VOXELS: usize = 1 << 21;

/// How many inputs of this many voxels make a batch.
pub fn batch_size(voxels: usize) -> u64 {
    ((BATCH_VOXELS / voxels.max(1)) as u64).clamp(2, SAMPLES)
}

/// Sets the running statistics among the `variables` of an encoder, whose names begin with `prefix`, and where one is named of the decoder
/// above it, to those of the inputs `[B, C, ...]` of all batches; what is learnt stays. Gives the number of inputs, 0 where there are no
/// such statistics.
pub fn calibrate_encoder(
    config: &EncoderConfig,
    variables: &HashMap<String, Tensor>,
    prefix: &str,
    decoder_prefix: Option<&str>,
    batches: impl Iterator<Item = Result<Tensor>>,
) -> Result<u64> {
    // The same tensors without dropout, which evaluation does not have.
    let vs = VarStore::new(Device::Cpu);
    let encoder = config.clone().without_dropout().build(&vs.root() / "encoder");
    let decoder = decoder_prefix.map(|_| Decoder::new(&vs.root() / "decoder", encoder.as_ref(), 1, false));
    let own = vs.variables();
    for (name, tensor) in &own {
        let (part, name) = name.split_once('.').expect("a part's name stands first");
        let name = format!("{}{name}", if part == "encoder" { prefix } else { decoder_prefix.unwrap_or_default() });
        let given = variables.get(&name).with_context(|| format!("no variable {name}"))?;
        tensor.shallow_clone().set_data(&given.detach());
    }
    let mut inputs = 0;
    let pass = |batch: Result<Tensor>| {
        let batch = batch?;
        inputs += batch.size()[0] as u64;
        let pyramid = encoder.features(&batch, true);
        if let Some(decoder) = &decoder {
            decoder.forward(pyramid, Mode::Train);
        }
        Ok(())
    };
    calibrate(&own, batches.map(pass))?;
    Ok(inputs)
}

/// Sets every `running_mean` and `running_var` among these variables to mean and variance over all batches that `passes` goes through, each
/// item being a forward pass in training of one batch. Batches count the same. Errors if there is none. Without the group of ranks, of
/// which one estimates.
pub fn calibrate(variables: &HashMap<String, Tensor>, passes: impl Iterator<Item = Result<()>>) -> Result<()> {
    group::alone(|| estimate(variables, passes))
}

fn estimate(variables: &HashMap<String, Tensor>, mut passes: impl Iterator<Item = Result<()>>) -> Result<()> {
    let means = variables.iter().filter_map(|(name, mean)| Some((mean, name.strip_suffix("running_mean")?)));
    let statistics: Vec<[Tensor; 2]> =
        means.map(|(mean, norm)| [mean, &variables[&format!("{norm}running_var")]].map(Tensor::shallow_clone)).collect();
    if statistics.is_empty() {
        return Ok(());
    }
    let zero = || statistics.iter().flatten().for_each(|statistic| drop(statistic.shallow_clone().zero_()));
    // Sums of the batches' means, variances and squared means.
    let mut sums: Vec<[Tensor; 3]> = statistics.iter().map(|[mean, _]| [0; 3].map(|_| mean.zeros_like())).collect();
    let mut batches = 0.;
    no_grad(|| -> Result<()> {
        loop {
            zero();
            let Some(pass) = passes.next() else { break };
            pass?;
            batches += 1.;
            for ([mean, variance], sums) in statistics.iter().zip(&mut sums) {
                // From 0 a pass goes this share of the way to its own statistics.
                let (mean, variance) = (mean / NORM_MOMENTUM, variance / NORM_MOMENTUM);
                let _ = sums[2].g_add_(&mean.square());
                let _ = sums[0].g_add_(&mean);
                let _ = sums[1].g_add_(&variance);
            }
        }
        ensure!(batches > 0., "no batch to estimate statistics on");
        for ([mean, variance], [means, variances, squares]) in statistics.iter().zip(&sums) {
            let average = means / batches;
            variance.shallow_clone().copy_(&(variances / batches + squares / batches - average.square()));
            mean.shallow_clone().copy_(&average);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::Rank;
    use crate::nn::{Encoder, UNet, UNetConfig};
    use tch::Kind;

    #[test]
    fn a_decoder_evaluates_as_it_trained_on_the_inputs() {
        tch::manual_seed(5);
        let vs = VarStore::new(Device::Cpu);
        let config: EncoderConfig = UNetConfig { filters: 3, levels: 3, ..UNetConfig::paper(Rank::Two, 1) }.into();
        let encoder = config.build(&vs.root() / "encoder");
        let decoder = Decoder::new(&vs.root() / "mae" / "decoder", encoder.as_ref(), 2, false);
        let x = Tensor::randn([8, 1, 32, 32], (Kind::Float, Device::Cpu)) * 3 + 1;
        let output = |mode| no_grad(|| decoder.forward(encoder.forward(&x, mode), mode).remove(0));
        let trained = output(Mode::Train);
        let off = || (output(Mode::Eval) - &trained).abs().max().double_value(&[]) / trained.std(true).double_value(&[]);
        let before = off();
        for (above, near) in [(None, false), (Some("mae.decoder."), true)] {
            let batches = std::iter::once(Ok(x.shallow_clone()));
            assert_eq!(calibrate_encoder(&config, &vs.variables(), "encoder.", above, batches).unwrap(), 8);
            // But for the variance, which is of n - 1 in the one and of n in the other.
            assert_eq!(off() < 0.1, near, "off by {} sd, before {before}", off());
        }
    }

    #[test]
    fn evaluation_sees_what_the_first_layer_saw_and_earlier_statistics_do_not_matter() {
        tch::manual_seed(4);
        let vs = VarStore::new(Device::Cpu);
        let unet = UNet::new(&vs.root() / "encoder", UNetConfig { filters: 3, levels: 2, ..UNetConfig::paper(Rank::Two, 1) });
        let batches: Vec<Tensor> = [(1., 5.), (3., -20.)]
            .map(|(scale, shift)| Tensor::randn([4, 1, 8, 8], (Kind::Float, Device::Cpu)) * scale + shift)
            .into();
        let variables = vs.variables();
        let found = || {
            let pass = |x: &Tensor| {
                unet.features(x, true);
                Ok(())
            };
            calibrate(&variables, batches.iter().map(pass)).unwrap();
            let names =
                ["encoder.level0.norm0.running_mean", "encoder.level0.norm0.running_var", "encoder.level1.norm1.running_var"];
            names.map(|name| Vec::<f32>::try_from(&variables[name]).unwrap())
        };
        let first = found();
        assert!(first[2].iter().all(|v| v.is_finite() && *v > 0.));
        let _ = no_grad(|| variables["encoder.level1.norm1.running_var"].shallow_clone().fill_(1e6));
        assert_eq!(found(), first);
        // What enters the first normalisation, written out.
        let conv = |name: &str| variables[&format!("encoder.level0.conv0.{name}")].shallow_clone();
        let all = Tensor::cat(&batches, 0).conv2d(&conv("weight"), Some(conv("bias")), [1, 1], [1, 1], [1, 1], 1).relu();
        let (mean, variance) =
            (all.mean_dim(&[0i64, 2, 3][..], false, Kind::Float), all.var_dim(&[0i64, 2, 3][..], true, false));
        for (found, expected) in first.iter().zip([mean, variance]) {
            let expected = Vec::<f32>::try_from(expected).unwrap();
            assert!(
                found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 0.02 * b.abs().max(0.1)),
                "{found:?}, {expected:?}"
            );
        }
        assert!(calibrate(&variables, std::iter::empty()).is_err());
    }
}
