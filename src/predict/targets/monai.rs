//! A bundle of MONAI's with its DynUNet, whose encoder is nnU-Net's plain one under other names.

use super::{Delivery, no_twin};
use crate::nn::{Architecture, StagesConfig};
use crate::pth::{self, Value};
use crate::run::tensors::Tensors;
use anyhow::{Result, ensure};
use serde_json::json;

/// Convolutions of each of DynUNet's blocks.
const CONVS: usize = 2;
/// Of MONAI, whose names these are.
const MONAI: &str = "1.6.1";

pub(super) fn write(delivery: &mut Delivery) -> Result<()> {
    let config = delivery.given.config.clone();
    let Some(stages) = config.stages().filter(|_| config.architecture() == Architecture::PlainConv) else {
        return no_twin(&config, "monai", "DynUNet has no such blocks", "plainconv");
    };
    ensure!(
        stages.blocks.iter().all(|&convs| convs == CONVS) && stages.features.len() > 2,
        "--to monai: DynUNet has {CONVS} convolutions a level and at least 3 levels, this encoder has {:?}",
        stages.blocks
    );
    let state =
        Value::dict(renamed(&delivery.encoder(), stages.features.len()).into_iter().map(|(k, t)| (k, Value::Tensor(t))));
    pth::write(&delivery.file("models/model.pt")?, &state)?;
    let network = network(stages);
    delivery.json("configs/train.json", &json!({ "network_def": network }))?;
    let channels = &delivery.input.channels;
    let metadata = json!({
        "version": "0.1.0",
        "changelog": { "0.1.0": "pretrained" },
        "monai_version": MONAI,
        "pytorch_version": "2.11.0",
        "numpy_version": "2.4.6",
        "name": "pretrained encoder",
        "task": "encoder, pretrained without labels",
        "description": "The encoder of a DynUNet; its decoder is not trained",
        "authors": "",
        "copyright": "",
        "network_data_format": {
            "inputs": { "image": {
                "type": "image", "format": "magnitude", "num_channels": channels.len(), "channel_def": channels.iter().enumerate()
                    .map(|(i, name)| (i.to_string(), json!(name))).collect::<serde_json::Value>(),
                "spatial_shape": config.reduction().values().iter().map(|n| format!("{n}*n")).collect::<Vec<_>>(), "is_patch_data": true,
            } },
        },
        "pretrained": delivery.about(),
    });
    delivery.json("configs/metadata.json", &metadata)?;
    delivery.card(
        "monai",
        &["monai"],
        "The encoder of MONAI's DynUNet: `monai.bundle.load(NAME, bundle_dir=PARENT)`. Scans are `[B, C, x, y, z]` in RAS+ orientation.",
    )
}

/// By DynUNet's names. It has no bias before a normalisation, which takes it away.
fn renamed(encoder: &Tensors, stages: usize) -> Tensors {
    let name = |name: &str| {
        let mut parts = name.split('.');
        let stage: usize = parts.nth(1)?.parse().ok()?;
        let conv: usize = parts.nth(2)?.parse().ok()?;
        let (kind, parameter) = (parts.next()?, parts.next()?);
        let block = match stage {
            0 => "input_block".to_owned(),
            last if last + 1 == stages => "bottleneck".to_owned(),
            stage => format!("downsamples.{}", stage - 1),
        };
        match kind {
            "conv" if parameter == "weight" => Some(format!("{block}.conv{}.conv.weight", conv + 1)),
            "norm" => Some(format!("{block}.norm{}.{parameter}", conv + 1)),
            _ => None,
        }
    };
    encoder.iter().filter_map(|(old, tensor)| Some((name(old)?, tensor.shallow_clone()))).collect()
}

/// The arguments of DynUNet.
fn network(stages: &StagesConfig) -> serde_json::Value {
    json!({
        "_target_": "DynUNet",
        "spatial_dims": stages.rank.n(),
        "in_channels": stages.in_channels,
        "out_channels": 2,
        "kernel_size": stages.kernels,
        "strides": stages.strides,
        "upsample_kernel_size": stages.strides[1..],
        "filters": stages.features,
        "norm_name": ["INSTANCE", { "affine": true }],
    })
}
