//! Pretrained encoders: what a file of weights holds and says of itself, and loading it, strictly: a report says what was loaded,
//! adapted and left out, and nothing falls back to random weights.

use crate::data::identity::hex;
use crate::ffi;
use crate::nn::EncoderConfig;
use crate::pth::Format;
use crate::run::decoder::PretrainedDecoder;
use crate::run::folder::{Run, is_checkpoint, locate};
use crate::run::input::{Fit, Input, UNKNOWN_SCANS};
use crate::run::published::{Origin, Published, undotted};
use crate::run::seen::Seen;
use crate::run::tensors::{
    self, DECODER, ENCODER, EXPORT_VERSION, MODEL, Tensors, VERSION, load_safetensors, split_checkpoint,
};
use crate::tasks::{TaskKind, segmentation};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// What is taken of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transfer {
    /// The encoder alone
    #[default]
    Encoder,
    /// The decoder as well, all but its output layer
    All,
}

/// Weights as a file gives them, with what it says of itself.
pub struct Pretrained {
    /// As the user names it.
    pub file: PathBuf,
    /// What was read: the file, and a description beside it.
    pub read: Vec<PathBuf>,
    /// The run whose checkpoint it is.
    pub run: Option<Run>,
    pub about: About,
    /// The encoder in it.
    pub config: EncoderConfig,
    /// What the encoder expects of its scans; `None`: the file does not say.
    pub input: Option<Input>,
    /// Whom it has seen; `None`: the file does not say.
    pub seen: Option<Seen>,
    /// Without the optimizer's.
    pub tensors: Tensors,
    /// The decoder in it, where the tasks have one.
    pub decoder: Option<PretrainedDecoder>,
    /// Of a file of `torch.save`, which is another program's.
    pub origin: Option<Origin>,
}

/// Where weights come from, as far as they say.
#[derive(Clone, Debug, PartialEq)]
pub struct About {
    /// Names of the tasks that they were pretrained with, joined by `-`; weights of others go by their file's name.
    pub pretext: String,
    /// Share of the pretraining's training subjects that was used.
    pub fraction: f64,
}

impl Pretrained {
    /// Opens a run's folder (its best checkpoint), a checkpoint in one, an exported `.pt` or `.safetensors`, a torchvision state
    /// dict saved as `.safetensors`, or [`Published`] weights. Errors if there is no encoder in it that is known here.
    pub fn open(path: &Path) -> Result<Pretrained> {
        let file = if path.is_dir() { locate(path).map(|(run, which)| run.checkpoint(&which))? } else { path.to_owned() };
        let format = Format::of(&file)?;
        if format == Format::Checkpoint {
            let Published { tensors, config, origin } = Published::open(&file)?;
            let (about, origin, read) = (About::of(&Value::Null, &file), Some(origin), vec![file]);
            let (file, decoder) = (path.to_owned(), about.decoder(&tensors));
            return Ok(Pretrained { file, read, run: None, about, config, input: None, seen: None, tensors, decoder, origin });
        }
        let script = format == Format::TorchScript || file.extension().is_some_and(|e| e == "pt");
        let Described { description, from, seen, run } = described(&file, script)?;
        let tensors = read(&file, script, &description)?;
        let config = match description.get("network") {
            Some(network) => serde_json::from_value(network.clone()).context("`network` in its description"),
            None => EncoderConfig::of(&tensors, ENCODER),
        };
        let whole = |config: EncoderConfig| config.check_held(&tensors, ENCODER).map(|()| config);
        let config = config.and_then(whole).with_context(|| path.display().to_string())?;
        let input =
            Input::described(&description).with_context(|| format!("{}: `input` in its description", path.display()))?;
        let decoder = PretrainedDecoder::find(&tensors, &description);
        let about = About::of(&description, &file);
        let (file, read) = (path.to_owned(), [Some(file), from].into_iter().flatten().collect());
        Ok(Pretrained { file, read, run, about, config, input, seen, tensors, decoder, origin: None })
    }

    /// How the encoder takes scans of another input.
    pub fn fit(&self, now: &Input) -> Fit {
        match (&self.input, &self.origin) {
            (Some(trained), _) => trained.fit(now),
            (None, Some(origin)) => origin.fit(now),
            (None, None) => Fit { order: None, warnings: vec![UNKNOWN_SCANS.to_owned()] },
        }
    }

    /// Copies the encoder into `target`, as [`load_encoder`] does, for scans as `now` says: channels in another order than it was trained on
    /// are put in order, and where the scans are others in kind the report warns. With [`Transfer::All`] the decoder too, into that of a
    /// segmentation; errors if there is none.
    pub fn load_into(&self, target: &HashMap<String, Tensor>, now: &Input, transfer: Transfer) -> Result<LoadReport> {
        let fit = self.fit(now);
        let turned = match &self.origin {
            Some(origin) if now.slices.is_some() => origin.for_slices(&self.tensors, &self.config)?,
            _ => None,
        };
        let mut report = load_encoder(target, turned.as_ref().unwrap_or(&self.tensors), &self.file, fit.order.as_deref())?;
        report.warnings = fit.warnings;
        report.copies = self.origin.as_ref().map_or(0, |origin| origin.copies);
        if transfer == Transfer::All {
            let turned = turned.as_ref().and_then(|tensors| self.about.decoder(tensors));
            let decoder = turned.as_ref().map_or_else(|| self.given_decoder(), Ok)?;
            let loaded = decoder.load_into(target, segmentation::DECODER, &self.file)?;
            report.left_out.retain(|name| !loaded.contains(name));
            report.loaded.extend(loaded);
            report.decoder_of = Some(decoder.task.clone());
        }
        Ok(report)
    }

    fn given_decoder(&self) -> Result<&PretrainedDecoder> {
        self.decoder.as_ref().with_context(|| {
            let tasks: Vec<String> =
                TaskKind::value_variants().iter().filter(|task| task.decodes()).map(|task| task.name()).collect();
            format!(
                "{}: --transfer all, but it holds no decoder; weights of {} have one, exported by this version or later",
                self.file.display(),
                tasks.join(", ")
            )
        })
    }

    /// SHA-256 over the tensors that are taken, with their names and shapes.
    pub fn fingerprint(&self, transfer: Transfer) -> Result<String> {
        let mut hash = Sha256::new();
        let mut add = |name: &str, tensor: &Tensor| {
            hash.update(format!("\n{name} {:?}\n", tensor.size()));
            hash.update(tensors::bytes(tensor));
        };
        self.tensors.iter().filter(|(name, _)| name.starts_with(ENCODER)).for_each(|(name, tensor)| add(name, tensor));
        if transfer == Transfer::All {
            // Named as in an export, whatever it is taken from.
            self.given_decoder()?.taken().for_each(|(name, tensor)| add(&format!("{DECODER}{name}"), tensor));
        }
        Ok(hex(&hash.finalize()))
    }
}

impl About {
    /// The decoder among tensors without a description.
    fn decoder(&self, tensors: &Tensors) -> Option<PretrainedDecoder> {
        PretrainedDecoder::find(tensors, &json!({ "decoder": { "task": self.pretext } }))
    }

    fn of(description: &Value, file: &Path) -> About {
        let setting = |key: &str| description.get("settings").and_then(|settings| settings.get(key));
        let tasks = setting("task").and_then(Value::as_array);
        let names: Vec<&str> = tasks.into_iter().flatten().filter_map(Value::as_str).collect();
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        About {
            pretext: if names.is_empty() { stem.into_owned() } else { names.join("-") },
            fraction: setting("fraction").and_then(Value::as_f64).unwrap_or(1.),
        }
    }
}

/// SHA-256 of the content of files, one after the other.
pub fn digest(files: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    for path in files {
        let mut read = || std::io::copy(&mut File::open(path)?, &mut hash);
        read().with_context(|| path.display().to_string())?;
    }
    Ok(hex(&hash.finalize()))
}

/// What a file of weights says of itself.
pub(super) struct Described {
    /// `null` if there is none.
    pub description: Value,
    /// Where it lies, if not in the file itself.
    pub from: Option<PathBuf>,
    seen: Option<Seen>,
    pub run: Option<Run>,
}

/// Of an export (TorchScript, or a `.safetensors` with its `.json`), or of a checkpoint in a run.
pub(super) fn described(file: &Path, script: bool) -> Result<Described> {
    let exported = |description: Value, from: Option<PathBuf>| {
        let named = || format!("{}: `seen`", from.as_deref().unwrap_or(file).display());
        let seen = description.get("seen").cloned().map(serde_json::from_value).transpose().with_context(named)?;
        Ok(Described { description, from, seen, run: None })
    };
    if script {
        return exported(ffi::description(file)?, None);
    }
    let beside = file.with_extension("json");
    match std::fs::read(&beside) {
        Ok(text) => {
            let description = serde_json::from_slice(&text).with_context(|| beside.display().to_string())?;
            return exported(description, Some(beside));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| beside.display().to_string()),
    }
    let run = Run::at(file.parent().unwrap_or(Path::new("")));
    // Other weights that lie in a run's folder are not the run's.
    match run.config_file().exists() && is_checkpoint(file)? {
        true => Ok(Described {
            description: Value::Object(run.description()?),
            from: Some(run.config_file()),
            seen: Some(run.seen()?),
            run: Some(run),
        }),
        false => Ok(Described { description: Value::Null, from: None, seen: None, run: None }),
    }
}

/// The tensors of an export, of a checkpoint without its optimizer, or of a torchvision state dict, by our names.
pub(super) fn read(file: &Path, script: bool, description: &Value) -> Result<Tensors> {
    if script {
        check_version(description.get("version").and_then(Value::as_u64), file)?;
        return Ok(ffi::read_state(file)?.into_iter().collect());
    }
    let (tensors, metadata) = load_safetensors(file)?;
    check_version(metadata.get("version").and_then(|v| v.parse().ok()), file)?;
    let is_checkpoint = tensors.keys().any(|name| name.starts_with(MODEL));
    let tensors = if is_checkpoint { split_checkpoint(tensors).0 } else { tensors };
    // How many batches a normalisation has seen is not kept here.
    let kept = tensors.into_iter().filter(|(name, _)| !name.ends_with("num_batches_tracked"));
    Ok(kept.map(|(name, tensor)| (renamed(name), tensor)).collect())
}

/// Our name of a tensor of a torchvision state dict, where `features` is the encoder.
fn renamed(name: String) -> String {
    name.strip_prefix("features.").map_or(name.clone(), |rest| format!("{ENCODER}{}", undotted(rest)))
}

/// Errors if a file says that it is of a newer version than this program knows.
fn check_version(found: Option<u64>, path: &Path) -> Result<()> {
    let known = EXPORT_VERSION.max(VERSION);
    let found = found.unwrap_or(0);
    ensure!(found <= known, "{}: written by a newer version ({found}, this one knows {known})", path.display());
    Ok(())
}

/// What loading did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    pub loaded: Vec<String>,
    /// Tensors that were changed to fit, each with how.
    pub adapted: Vec<(String, String)>,
    /// Task whose decoder was loaded, where one was.
    pub decoder_of: Option<String>,
    /// Tensors of the file that were not asked for (heads, optimizer state).
    pub left_out: Vec<String>,
    /// Further names that the file has for its tensors.
    pub copies: usize,
    /// Where the encoder was trained on another input than it meets now, and what it does not say.
    pub warnings: Vec<String>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let decoder = self.decoder_of.as_ref().map_or(String::new(), |task| format!(", the decoder of {task} among them"));
        let [loaded, left_out] = [&self.loaded, &self.left_out].map(Vec::len);
        let copies = if self.copies > 0 { format!(", {} further names of the same", self.copies) } else { String::new() };
        writeln!(f, "{loaded} tensors loaded{decoder}, {} adapted, {left_out} left out{copies}", self.adapted.len())?;
        self.adapted.iter().try_for_each(|(name, how)| writeln!(f, "  adapted  {name}: {how}"))?;
        self.left_out.iter().try_for_each(|name| writeln!(f, "  left out {name}"))?;
        self.warnings.iter().try_for_each(|warning| writeln!(f, "warning: {warning}"))
    }
}

/// Copies the encoder in `saved` into `target`, the variables of a network whose encoder lies under [`ENCODER`].
///
/// Every encoder variable must be there with the right shape. Only the input channels of the first convolution may differ:
/// it is then averaged over its inputs and spread over the new ones, which keeps the response to equal channels. `order`: for each channel
/// now its place among those of `saved`, where these are the same in another order.
pub fn load_encoder(
    target: &HashMap<String, Tensor>,
    saved: &Tensors,
    from: &Path,
    order: Option<&[usize]>,
) -> Result<LoadReport> {
    let mut report = LoadReport::default();
    let mut names: Vec<&String> = target.keys().filter(|n| n.starts_with(ENCODER)).collect();
    names.sort();
    let unknown: Vec<_> = saved.keys().filter(|n| n.starts_with(ENCODER) && !target.contains_key(*n)).collect();
    ensure!(
        unknown.is_empty(),
        "{}: another architecture; {} tensors are unknown here, such as {}",
        from.display(),
        unknown.len(),
        unknown[0]
    );
    for name in names {
        let mut tensor = target[name].shallow_clone();
        let Some(value) = saved.get(name) else { bail!("{}: {name} is missing", from.display()) };
        let (want, found) = (tensor.size(), value.size());
        let order = order.filter(|_| is_first_convolution(name));
        if let Some(order) = order {
            ensure!(
                order.len() as i64 == found[1],
                "{}: {name} takes {} channels, its description names {}",
                from.display(),
                found[1],
                order.len()
            );
        }
        let value = if let (true, Some(order)) = (want == found, order) {
            report.adapted.push((name.clone(), format!("input channels taken in the order {order:?}")));
            value.index_select(1, &Tensor::from_slice(&order.iter().map(|&i| i as i64).collect::<Vec<_>>()))
        } else if want == found {
            report.loaded.push(name.clone());
            value.shallow_clone()
        } else if is_first_convolution(name) && want.len() == found.len() && want[0] == found[0] && want[2..] == found[2..] {
            report.adapted.push((name.clone(), format!("{} input channels to {}", found[1], want[1])));
            (value.sum_dim_intlist(1, true, value.kind()) / want[1] as f64).expand_as(&tensor).contiguous()
        } else {
            bail!("{}: {name} has shape {found:?}, this network needs {want:?}", from.display());
        };
        tch::no_grad(|| tensor.copy_(&value));
    }
    report.left_out = saved.keys().filter(|n| !n.starts_with(ENCODER)).cloned().collect();
    Ok(report)
}

fn is_first_convolution(name: &str) -> bool {
    [
        "encoder.level0.conv0.weight",
        "encoder.conv0.weight",
        "encoder.stages.0.0.convs.0.conv.weight",
        "encoder.stem.convs.0.conv.weight",
    ]
    .contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::Rank;
    use crate::nn::{Encoder, UNet, UNetConfig};
    use tch::{Device, Kind, nn::VarStore};

    fn network(in_channels: i64, levels: usize) -> (VarStore, UNet) {
        let vs = VarStore::new(Device::Cpu);
        let config = UNetConfig { filters: 2, levels, ..UNetConfig::paper(Rank::Three, in_channels) };
        let encoder = UNet::new(&vs.root() / "encoder", config);
        (vs, encoder)
    }

    fn tensors(vs: &VarStore) -> Tensors {
        vs.variables().into_iter().map(|(name, t)| (name, t.detach().copy())).collect()
    }

    #[test]
    fn channels_are_adapted_and_reported() {
        let (from, one) = network(1, 2);
        let (to, four) = network(4, 2);
        let mut saved = tensors(&from);
        saved.insert("rot.output.weight".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
        let report = load_encoder(&to.variables(), &saved, Path::new("x"), None).unwrap();
        assert_eq!(report.adapted, [("encoder.level0.conv0.weight".to_owned(), "1 input channels to 4".to_owned())]);
        assert_eq!(report.left_out, ["rot.output.weight"]);
        assert_eq!(report.loaded.len() + 1, to.variables().len());
        // The same image in every channel gives the response of the one channel.
        let x = Tensor::randn([1, 1, 8, 8, 8], (Kind::Float, Device::Cpu));
        let [a, b] = [one.features(&x, false), four.features(&x.repeat([1, 4, 1, 1, 1]), false)].map(|mut p| p.pop().unwrap());
        assert!(f64::try_from((a - b).abs().max()).unwrap() < 1e-5);
    }

    #[test]
    fn channels_in_another_order_give_the_same_response() {
        let ((from, trained), (to, now)) = (network(3, 2), network(3, 2));
        let order = [2, 0, 1];
        let report = load_encoder(&to.variables(), &tensors(&from), Path::new("x"), Some(&order)).unwrap();
        assert!(report.adapted.len() == 1 && report.adapted[0].1.contains("[2, 0, 1]"), "{:?}", report.adapted);
        let x = Tensor::randn([1, 3, 8, 8, 8], (Kind::Float, Device::Cpu));
        // Channel `i` now is channel `order[i]` of those trained on.
        let reordered = x.index_select(1, &Tensor::from_slice(&order.map(|i| i as i64)));
        let [a, b] = [trained.features(&x, false), now.features(&reordered, false)].map(|mut p| p.pop().unwrap());
        assert!(f64::try_from((a - b).abs().max()).unwrap() < 1e-5);
    }

    #[test]
    fn anything_else_that_does_not_fit_is_an_error() {
        let (to, _) = network(1, 2);
        let refused = |saved: &Tensors| load_encoder(&to.variables(), saved, Path::new("file"), None).unwrap_err().to_string();
        let (deeper, _) = network(1, 3);
        assert!(refused(&tensors(&deeper)).contains("another architecture"));
        let (shallower, _) = network(1, 1);
        assert!(refused(&tensors(&shallower)).contains("is missing"));
        let mut misshapen = tensors(&to);
        misshapen.insert("encoder.level1.conv0.bias".into(), Tensor::zeros([7], (Kind::Float, Device::Cpu)));
        let message = refused(&misshapen);
        assert!(message.contains("[7]") && message.contains("[4]") && message.contains("file"), "{message}");
    }
}
