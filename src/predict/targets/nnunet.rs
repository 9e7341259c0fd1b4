//! Checkpoints for nnU-Net. Its commands for nnssl's checkpoints take an encoder with an adaptation plan; `nnUNetv2_train
//! -pretrained_weights` takes nothing less than a whole network of the user's plans, for which these must be given.
//!
//! nnU-Net's axes are ours in reverse, unless its plans have another order.

use super::{Delivery, citation, no_twin};
use crate::data::preprocess::{Grid, Intensity};
use crate::dim::{PerAxis, Rank, Sides};
use crate::nn::conv_norm::nnunet_names;
use crate::nn::decoder::is_output;
use crate::nn::{Architecture, Decoder, EncoderConfig, StagesConfig};
use crate::pth::{self, Value};
use crate::run::plan::{Plan, REVERSED};
use crate::run::tensors::{DECODER, ENCODER, Tensors};
use crate::run::weights::load_encoder;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value as Json, json};
use std::path::Path;
use tch::nn::VarStore;
use tch::{Device, Tensor};

/// The configuration of plans that is written for.
const CONFIGURATION: &str = "3d_fullres";
const CHECKPOINT: &str = "checkpoint_final.pth";
/// Least side of a patch that nnU-Net's presets train on.
const LEAST_PATCH: usize = 64;

pub(super) fn write(delivery: &mut Delivery, plans: Option<&Path>) -> Result<()> {
    let config = delivery.given.config.clone();
    let Some(own) = config.stages() else {
        let why = "nnU-Net's networks stride where it pools";
        return no_twin(&config, "nnunet", why, "resenc-l, resenc-m, resenc-s or plainconv");
    };
    ensure!(own.rank == Rank::Three, "--to nnunet: the encoder is of 2D data; nnU-Net's pretrained networks are of 3D data");
    match plans {
        None => {
            let tensors = network(delivery, &StagesConfig { in_channels: 1, ..own.clone() }, false)?;
            let plan = adaptation_plan(delivery, own);
            save(delivery, &tensors, REVERSED, &plan)?;
            delivery.json("adaptation_plan.json", &plan)?;
            let how = "`checkpoint_final.pth` is for `nnUNetv2_preprocess_like_nnssl` and `nnUNetv2_train_pretrained`: the encoder alone, of one \
                       input channel. `nnUNetv2_train -pretrained_weights` needs a whole network: export with `--plans`.";
            delivery.card("nnunet", &["nnunet"], how)?;
        }
        Some(file) => {
            let text = std::fs::read(file).with_context(|| format!("--plans {}", file.display()))?;
            let plans: Json = serde_json::from_slice(&text).with_context(|| format!("--plans {}", file.display()))?;
            let (target, axes) = planned(&plans, &config).with_context(|| format!("--plans {}", file.display()))?;
            let tensors = network(delivery, &target, true)?;
            let plan = adaptation_plan(delivery, own);
            save(delivery, &tensors, axes, &plan)?;
            let how = format!(
                "`checkpoint_final.pth` is for `nnUNetv2_train DATASET {CONFIGURATION} FOLD -p {} -pretrained_weights checkpoint_final.pth`: a whole \
                 network of those plans, whose decoder has random weights.",
                plans["plans_name"].as_str().unwrap_or("PLANS")
            );
            delivery.card("nnunet", &["nnunet"], &how)?;
        }
    }
    let about = delivery.about();
    delivery.json("config.json", &about)
}

/// The encoder in this shape, which has as many stages or fewer, and any number of channels; above it the decoder, if asked for, as
/// it is before a training.
fn network(delivery: &Delivery, stages: &StagesConfig, decoder: bool) -> Result<Tensors> {
    let vs = VarStore::new(Device::Cpu);
    let config = EncoderConfig::NnUNet { architecture: delivery.given.config.architecture(), stages: stages.clone() };
    let encoder = config.build(&vs.root() / ENCODER.trim_end_matches('.'));
    if decoder {
        Decoder::new(vs.root() / DECODER.trim_end_matches('.'), encoder.as_ref(), 1, true);
    }
    let beyond = |name: &String| {
        let stage = name.strip_prefix(ENCODER).and_then(|rest| rest.strip_prefix("stages.")?.split('.').next()?.parse().ok());
        stage.is_some_and(|stage: usize| stage >= stages.features.len())
    };
    let saved = delivery.given.tensors.iter().filter(|(name, _)| !beyond(name));
    let saved = saved.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    load_encoder(&vs.variables(), &saved, &delivery.given.file, None)?;
    // nnU-Net never takes these, as their number is that of the classes.
    let taken = |name: &str| !name.strip_prefix(DECODER).is_some_and(is_output);
    Ok(vs.variables().into_iter().filter(|(name, _)| taken(name)).collect())
}

/// Under each of nnU-Net's names, which all have to be there; the encoder's once more in the decoder, where there is one. `axes`: for each
/// of ours its place among theirs.
fn save(delivery: &mut Delivery, tensors: &Tensors, axes: [usize; 3], plan: &Json) -> Result<()> {
    let whole = tensors.keys().any(|name| name.starts_with(DECODER));
    let mut weights = Vec::new();
    for (name, tensor) in tensors {
        let tensor = turned(tensor, axes);
        let within = (whole && name.starts_with(ENCODER)).then(|| format!("{DECODER}{name}"));
        for name in [Some(name.clone()), within].into_iter().flatten().flat_map(|name| nnunet_names(&name)) {
            weights.push((name, Value::Tensor(tensor.shallow_clone())));
        }
    }
    let citations = json!([{
        "type": "Pretraining Method",
        "name": delivery.given.about.pretext,
        "apa_citations": delivery.tasks().into_iter().map(citation).collect::<Vec<_>>(),
    }]);
    let checkpoint = Value::dict([
        ("network_weights", Value::dict(weights)),
        ("nnssl_adaptation_plan", Value::from(plan)),
        ("citations", Value::from(&citations)),
    ]);
    pth::write(&delivery.file(CHECKPOINT)?, &checkpoint)
}

fn turned(tensor: &Tensor, axes: [usize; 3]) -> Tensor {
    if tensor.dim() != 5 {
        return tensor.detach();
    }
    let mut order = [0, 1, 0, 0, 0];
    axes.iter().enumerate().for_each(|(ours, &theirs)| order[theirs + 2] = ours as i64 + 2);
    tensor.detach().permute(order).contiguous()
}

/// The encoder that plans ask for, cut from this one, and the order of their axes. Errors if it is no part of it.
fn planned(plans: &Json, config: &EncoderConfig) -> Result<(StagesConfig, [usize; 3])> {
    let own = config.stages().expect("checked");
    let configuration = &plans["configurations"][CONFIGURATION];
    ensure!(
        configuration.is_object(),
        "no configuration {CONFIGURATION}: expected nnU-Net's plans of a dataset, of 2.5 or later"
    );
    let plan = Plan::of_nnunet(&json!({ "plans": plans, "configuration": CONFIGURATION }))?;
    let plain = config.architecture() == Architecture::PlainConv;
    let (class, blocks, decoder) = match plain {
        true => ("PlainConvUNet", "n_conv_per_stage", 2),
        false => ("ResidualEncoderUNet", "n_blocks_per_stage", 1),
    };
    let found = plan.class.clone().unwrap_or_default();
    if !found.ends_with(class) {
        let other = if plain { "resenc-l" } else { "plainconv" };
        bail!(
            "they are of a network {found}, the encoder is {class}'s: plan with nnU-Net's planner of it, or pretrain with --encoder {other}"
        );
    }
    let settings = &configuration["architecture"]["arch_kwargs"];
    let features: Vec<i64> = serde_json::from_value(settings["features_per_stage"].clone()).context("features_per_stage")?;
    let n = features.len();
    ensure!(
        n <= own.features.len(),
        "they have {n} stages, the encoder has {}: pretrain with --levels {n}",
        own.features.len()
    );
    let each = |key: &str| -> Result<Vec<usize>> {
        match &settings[key] {
            Json::Number(same) => Ok(vec![same.as_u64().context("not a number")? as usize; n]),
            all => serde_json::from_value(all.clone()).with_context(|| key.to_owned()),
        }
    };
    let kernels = plan.kernels(own.rank, n)?.context("no kernel_sizes")?;
    let strides = plan.strides(own.rank, n)?.context("no strides")?;
    let text = |sides: &[PerAxis]| sides.iter().map(PerAxis::to_string).collect::<Vec<_>>().join(",");
    for (what, flag, theirs, ours) in [
        ("features", "features", format!("{features:?}"), format!("{:?}", &own.features[..n])),
        ("blocks", "blocks", format!("{:?}", each(blocks)?), format!("{:?}", &own.blocks[..n])),
        ("kernels", "kernels", text(&kernels), text(&own.kernels[..n])),
        ("strides", "strides", text(&strides), text(&own.strides[..n])),
    ] {
        ensure!(theirs == ours, "they have {what} {theirs}, the encoder has {ours}: pretrain with --{flag} of the plans");
    }
    let convs = each("n_conv_per_stage_decoder")?;
    ensure!(
        convs.iter().all(|&n| n == decoder),
        "their decoder has {convs:?} convolutions a stage, that of an encoder like this has {decoder}"
    );
    ensure!(settings["conv_bias"] == true, "their convolutions have no bias, as those of this network have");
    let channels = configuration["normalization_schemes"].as_array().map_or(0, Vec::len);
    ensure!(channels > 0, "no normalization_schemes, by which the channels are counted");
    let cut = StagesConfig {
        in_channels: channels as i64,
        features,
        blocks: own.blocks[..n].to_vec(),
        kernels,
        strides,
        ..own.clone()
    };
    cut.check()?;
    Ok((cut, plan.axes))
}

/// nnssl's plan of how the encoder was trained, in nnU-Net's axes.
fn adaptation_plan(delivery: &Delivery, stages: &StagesConfig) -> Json {
    let reversed = |sides: &PerAxis| sides.values().iter().rev().copied().collect::<Vec<_>>();
    let plain = delivery.given.config.architecture() == Architecture::PlainConv;
    let (class, blocks, decoder) =
        if plain { ("PlainConvUNet", "n_conv_per_stage", 2) } else { ("ResidualEncoderUNet", "n_blocks_per_stage", 1) };
    let architecture = json!({
        "n_stages": stages.features.len(),
        "features_per_stage": stages.features,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": stages.kernels.iter().map(reversed).collect::<Vec<_>>(),
        "strides": stages.strides.iter().map(reversed).collect::<Vec<_>>(),
        blocks: stages.blocks,
        "n_conv_per_stage_decoder": vec![decoder; stages.features.len() - 1],
        "conv_bias": true,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": { "eps": 1e-5, "affine": true },
        "dropout_op": null,
        "dropout_op_kwargs": null,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": { "inplace": true },
    });
    // A cube's voxels are of another size in each scan.
    let spacing = match delivery.input.preprocessing.grid {
        Grid::Cube { .. } => None,
        Grid::Spacing { mm } => Some([2, 1, 0].map(|axis: usize| mm[axis])),
    };
    // The second: whether mean and deviation are those of the foreground alone.
    let (normalisation, masked) = match delivery.input.preprocessing.intensity {
        Intensity::ZScoreForeground => ("ZScoreNormalization", true),
        Intensity::MinMax => ("RescaleTo01Normalization", false),
        Intensity::Window { .. } => ("NoNormalization", false),
    };
    // Of a fine-tuning there is none.
    let window = delivery.settings.get("window").and_then(|window| serde_json::from_value::<Sides>(window.clone()).ok());
    let window = window.and_then(|window| window.shape("window", Rank::Three).ok()).unwrap_or([LEAST_PATCH; 3]);
    let reduction = delivery.given.config.reduction();
    let recommended = REVERSED.map(|axis| window[axis].max(LEAST_PATCH).next_multiple_of(reduction.along(axis)));
    let resampling = json!({ "is_seg": false, "order": 3, "order_z": 0, "force_separate_z": null });
    let configuration = json!({
        "spacing": spacing,
        "patch_size": REVERSED.map(|axis| window[axis]),
        "data_identifier": "pretext3d",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": match spacing {
            None => "noresample",
            Some([1., 1., 1.]) => "onemmiso",
            Some(_) => "median",
        },
        "normalization_schemes": [normalisation],
        "use_mask_for_norm": [masked],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_mask": "resample_data_or_seg_to_shape",
        "resampling_fn_mask_kwargs": resampling,
    });
    let (first, second) = match plain {
        true => ("encoder.stages.0", "encoder.stages.0.0.convs.0"),
        false => ("encoder.stem", "encoder.stem.convs.0"),
    };
    json!({
        "architecture_plans": {
            "arch_class_name": class,
            "arch_kwargs": architecture,
            "arch_kwargs_requiring_import": ["conv_op", "norm_op", "nonlin"],
        },
        "pretrain_plan": {
            "dataset_name": "pretext3d",
            "plans_name": "pretext3d",
            "original_median_spacing_after_transp": REVERSED.map(|axis| delivery.input.mean_spacing[axis]),
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "experiment_planner_used": "pretext3d",
            "configurations": { "pretext3d": configuration },
        },
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": recommended,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": first,
        "keys_to_in_proj": [format!("{second}.conv"), format!("{second}.all_modules.0")],
        "key_to_lpe": null,
    })
}
