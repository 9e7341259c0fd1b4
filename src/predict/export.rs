//! Weights out: TorchScript with real parameters, a plain state dict as safetensors, and a JSON description of both.

use crate::data::preprocess::intensity::{AIR_BELOW, LEAST_TISSUE};
use crate::data::preprocess::{Intensity, Settings, Threshold};
use crate::data::slices::Slices;
use crate::device::{DeviceChoice, Precision};
use crate::dim::Rank;
use crate::nn::script::ScriptModule;
use crate::nn::{Decoder, Encoder, EncoderConfig};
use crate::predict::model::Model;
use crate::predict::statistics::calibrate_on;
use crate::run::decoder::PretrainedDecoder;
use crate::run::folder::{self, Checkpoint, Run};
use crate::run::history::History;
use crate::run::input::Input;
use crate::run::tensors::{self, DECODER, ENCODER, EXPORT_VERSION, Tensors};
use crate::run::weights;
use crate::sample::windows::Windows;
use crate::{ffi, fs};
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tch::{Device, nn::VarStore};

const ENCODER_FORMAT: &str = "pretext3d-encoder";
/// Of a fine-tuned network.
const NETWORK_FORMAT: &str = "pretext3d-network";
/// TorchScript compiled from C++ knows data types by number only: this is `torch.float32`.
const FLOAT32: u8 = 6;

/// The files of an export, `PREFIX.pt`, `PREFIX.safetensors` and `PREFIX.json`. Errors if they could not be written.
pub fn files(prefix: &Path) -> Result<[PathBuf; 3]> {
    let name = prefix.file_name().with_context(|| format!("{}: names no file", prefix.display()))?.to_string_lossy();
    let files = ["pt", "safetensors", "json"].map(|extension| prefix.with_file_name(format!("{name}.{extension}")));
    fs::check_writable(&files)?;
    Ok(files)
}

/// Exports a run's checkpoint (`best` or `last`) as `PREFIX.pt`, `PREFIX.safetensors` and `PREFIX.json`; returns the paths. Of a
/// pretraining run the encoder, and the decoder of its first task that has one, of a fine-tuned one the whole network. `windows`: where the
/// encoder's BatchNorm statistics are to be those of its training scans as they are, which tasks show it in pieces or changed, and the device
/// to compute them on.
pub fn export_run(run: &Run, which: &str, prefix: &Path, windows: Option<(&Windows, Device)>) -> Result<Vec<String>> {
    let files = files(prefix)?;
    let [module, state_dict, description_file] = &files;
    let file = run.checkpoint(which);
    let description = run.description()?;
    ensure!(file.exists(), "{}: no checkpoint `{which}` yet", run.dir.display());
    let Checkpoint { model: saved, progress, .. } = Checkpoint::read(&file)?;
    let part =
        |key: &str| description.get(key).cloned().with_context(|| format!("{}: no `{key}`", run.config_file().display()));
    let config: EncoderConfig = serde_json::from_value(part("network")?)?;
    let input: Input = serde_json::from_value(part("input")?)?;
    // A slice is normalised with its volume.
    let preprocess = preprocess_source(&input.preprocessing, if input.slices.is_some() { Rank::Three } else { config.rank() });

    let mut vs = VarStore::new(Device::Cpu);
    let encoder = config.build(&vs.root() / ENCODER.trim_end_matches('.'));
    let downstream = description.get("downstream");
    let decoder = PretrainedDecoder::find(&saved, &Value::Object(description.clone())).filter(|_| downstream.is_none());
    let (script, state, outputs): (ScriptModule, Tensors, Option<Value>) = match downstream {
        None => {
            weights::load_encoder(&vs.variables(), &saved, &file, None)?;
            let above = decoder.as_ref().map(|given| build_decoder(given, &vs, encoder.as_ref())).transpose();
            let above = above.with_context(|| file.display().to_string())?;
            if let Some((windows, device)) = windows {
                calibrate_on(windows, device, &config, above.is_some(), &mut vs)?;
            }
            let source = "def forward(self, x: Tensor) -> List[Tensor]:\n    return self.encoder.forward(x)\n";
            let script = ScriptModule::new(format!("{source}{preprocess}")).child("encoder", encoder.script());
            let script = match above {
                Some(decoder) => script.child(DECODER.trim_end_matches('.'), decoder.script()),
                None => script,
            };
            (script, vs.variables().into_iter().collect(), None)
        }
        Some(_) => {
            let model = Model::load(&file, DeviceChoice::Cpu, Precision::Fp32)?;
            (model.script(&preprocess), model.state(), model.downstream.described_outputs())
        }
    };

    // A checkpoint is written after its epoch is counted.
    let rows = History::read(&run.dir)?;
    let row = rows.iter().find(|row| row.epoch as u64 == progress.epoch);
    let metrics: Map<String, Value> =
        row.map(|row| row.values().iter().map(|(name, value)| (name.clone(), json!(value))).collect()).unwrap_or_default();
    let settings = run.settings()?;
    let mut about = json!({
        "format": if downstream.is_some() { NETWORK_FORMAT } else { ENCODER_FORMAT },
        "version": EXPORT_VERSION,
        "task": settings.get("task"),
        "architecture": config.architecture(),
        "network": config,
        "levels": encoder.levels(),
        "input": {
            "channels": input.channels,
            "axes": axes(config.rank(), input.slices),
            "slices": input.slices,
            "orientation": "RAS+",
            "mean_spacing_mm": input.mean_spacing,
            "preprocessing": input.preprocessing,
        },
        "data_fingerprint": input.fingerprint,
        "seen": run.seen()?,
        "epoch": progress.epoch,
        "metrics": metrics,
        "settings": settings,
        "versions": folder::versions(),
    });
    if !input.contrasts.is_empty() {
        about["input"]["contrasts"] = json!(input.contrasts);
    }
    if let Some(downstream) = downstream {
        about["downstream"] = downstream.clone();
    }
    if let Some(outputs) = outputs {
        about["outputs"] = outputs;
    }
    if let Some(decoder) = decoder {
        about["decoder"] = json!({ "task": decoder.task, "outputs": decoder.outputs()?.0 });
    }
    let text = serde_json::to_string_pretty(&about)?;

    fs::write_atomic_path(module, |temporary| ffi::save_script(&script, temporary, &text))?;
    let metadata = [("format", "pt".to_owned()), ("version", EXPORT_VERSION.to_string())];
    let metadata = HashMap::from(metadata.map(|(key, value)| (key.to_owned(), value)));
    tensors::save_safetensors(state_dict, &state, metadata)?;
    fs::write_atomic(description_file, |file| Ok(std::io::Write::write_all(file, text.as_bytes())?))?;
    Ok(files.iter().map(|file| file.display().to_string()).collect())
}

/// A pretrained decoder under [`DECODER`].
fn build_decoder(given: &PretrainedDecoder, vs: &VarStore, encoder: &dyn Encoder) -> Result<Decoder> {
    let (outputs, deep) = given.outputs()?;
    let decoder = Decoder::new(vs.root() / DECODER.trim_end_matches('.'), encoder, outputs, deep);
    let own = vs.variables().into_iter().filter_map(|(name, tensor)| Some((name.strip_prefix(DECODER)?.to_owned(), tensor)));
    tensors::restore(&own.collect(), &given.tensors)?;
    Ok(decoder)
}

/// A network's input in words.
fn axes(rank: Rank, slices: Option<Slices>) -> String {
    const RAS: [&str; 3] = ["left to right", "posterior to anterior", "inferior to superior"];
    let sliced = slices.map(|slices| slices.orientation().source.map(|a| RAS[a]));
    match (rank, sliced) {
        (_, Some([across, h, w])) => format!(
            "B, C, H ({h}), W ({w}): a slice for each voxel {across}, of a volume in RAS+ that is normalised as a whole, as preprocess() \
             does, and then sliced"
        ),
        (Rank::Two, None) => "B, C, H, W".into(),
        (Rank::Three, None) => format!("B, C, D ({}), H ({}), W ({})", RAS[0], RAS[1], RAS[2]),
    }
}

/// TorchScript of the store's intensity normalisation, for `[C, ...]` or `[B, C, ...]` of this rank in RAS+ orientation.
fn preprocess_source(settings: &Settings, rank: Rank) -> String {
    let dims: Vec<String> = (1..=rank.n()).rev().map(|n| format!("-{n}")).collect();
    let dims = format!("[{}]", dims.join(", "));
    let body = match settings.intensity {
        Intensity::MinMax => format!(
            "    lo = torch.amin(x, {dims}, True)\n    hi = torch.amax(x, {dims}, True)\n    return (x - lo) / torch.clamp(hi - lo, min=1e-12)\n"
        ),
        Intensity::Window { lo, hi } => format!("    return torch.clamp((x - {lo:?}) / {:?}, 0.0, 1.0)\n", hi - lo),
        Intensity::ZScoreForeground => {
            let threshold = match settings.foreground {
                Threshold::Above { value } => {
                    format!("    threshold = torch.full_like(torch.amin(x, {dims}, True), {value:?})\n")
                }
                Threshold::Auto => format!(
                    "    lo = torch.amin(x, {dims}, True)\n    middle = lo + (torch.mean(x, {dims}, True) - lo) / 2\n    tissue = torch.mean((x > {AIR_BELOW:?}).to(x.dtype), {dims}, True)\n    threshold = torch.where((lo < {AIR_BELOW:?}) & (tissue >= {LEAST_TISSUE}), torch.full_like(lo, {AIR_BELOW:?}), middle)\n"
                ),
            };
            format!(
                "{threshold}    inside = (x > threshold).to(x.dtype)\n    count = torch.clamp(torch.sum(inside, {dims}, True), min=1.0)\n    mean = torch.sum(x * inside, {dims}, True) / count\n    variance = torch.sum((x - mean) * (x - mean) * inside, {dims}, True) / count\n    return (x - mean) / torch.clamp(torch.sqrt(variance), min=1e-12)\n"
            )
        }
    };
    format!("def preprocess(self, x: Tensor) -> Tensor:\n    x = x.to({FLOAT32})\n{body}")
}
