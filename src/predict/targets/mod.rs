//! Pretrained encoders for other programs, as the folders that these read.

mod huggingface;
mod monai;
mod nnunet;

use super::statistics::calibrate;
use crate::fs::{is_temporary, remove_temporaries, write_atomic};
use crate::nn::EncoderConfig;
use crate::run::folder::Run;
use crate::run::input::Input;
use crate::run::tensors::{ENCODER, Tensors};
use crate::run::weights::Pretrained;
use crate::sample::windows::Windows;
use crate::tasks::TaskKind;
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::fs::DirEntry;
use std::io::Write;
use std::path::{Path, PathBuf};
use tch::Device;

/// Who is to read an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum Target {
    /// A checkpoint for nnU-Net, of the encoders plainconv and resenc-*
    NnUNet,
    /// A bundle with MONAI's DynUNet, of the encoder plainconv
    Monai,
    /// model.safetensors and config.json, of every encoder
    HuggingFace,
}

/// What there is to write, and where.
struct Delivery<'a> {
    given: Pretrained,
    input: Input,
    /// Of the run.
    settings: serde_json::Map<String, Value>,
    target: Target,
    out: &'a Path,
    written: Vec<PathBuf>,
}

/// Writes a pretraining run's encoder into the folder `out`, which is made; returns the files. `plans`: nnU-Net's plans of the data that it
/// will be trained on. `windows`: as for [`export_run`](super::export::export_run). Errors, with what can be done, if the target has no such network.
pub fn deliver(
    run: &Run,
    which: &str,
    target: Target,
    out: &Path,
    plans: Option<&Path>,
    windows: Option<(&Windows, Device)>,
) -> Result<Vec<String>> {
    ensure!(plans.is_none() || target == Target::NnUNet, "--plans goes with --to nnunet");
    check_new(target, out)?;
    ensure!(
        run.description()?.get("downstream").is_none(),
        "--to hands a pretrained encoder over; {} is a fine-tuned network",
        run.dir.display()
    );
    let mut given = Pretrained::open(&run.checkpoint(which))?;
    if let Some((windows, device)) = windows {
        calibrate(&mut given, windows, device)?;
    }
    let input = given.input.clone().with_context(|| format!("{}: no `input`", run.config_file().display()))?;
    let mut delivery = Delivery { given, input, settings: run.settings()?, target, out, written: vec![] };
    match target {
        Target::NnUNet => nnunet::write(&mut delivery, plans)?,
        Target::Monai => monai::write(&mut delivery)?,
        Target::HuggingFace => huggingface::write(&mut delivery)?,
    }
    let mark = out.join(UNFINISHED);
    std::fs::remove_file(&mark).with_context(|| mark.display().to_string())?;
    Ok(delivery.written.iter().map(|path| path.display().to_string()).collect())
}

/// In the folder as long as files of the export are missing, with the target's name. Each file appears whole, but a program that reads the
/// folder needs all of them.
const UNFINISHED: &str = ".unfinished";

/// Errors if `out` holds anything but an export to the same target that did not end, whose files are then written anew.
fn check_new(target: Target, out: &Path) -> Result<()> {
    let mark = out.join(UNFINISHED);
    if !mark.exists() {
        // One that was killed as it wrote the mark has left that alone.
        let is_left = |file: std::io::Result<DirEntry>| file.is_ok_and(|file| is_temporary(&file.file_name()));
        let empty = out.read_dir().map_or(!out.exists(), |mut files| files.all(is_left));
        ensure!(empty, "--out {}: expected a new or empty folder", out.display());
        return remove_temporaries(out);
    }
    let before = std::fs::read_to_string(&mark).with_context(|| mark.display().to_string())?;
    ensure!(
        before == name_of(target),
        "--out {}: holds an export --to {before} that did not end; delete it, or name another folder",
        out.display()
    );
    remove_temporaries(out)
}

/// As --to takes it.
fn name_of(target: Target) -> String {
    target.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Delivery<'_> {
    /// A file of the folder, which is to be written.
    fn file(&mut self, name: &str) -> Result<PathBuf> {
        if self.written.is_empty() {
            write_atomic(&self.out.join(UNFINISHED), |file| Ok(write!(file, "{}", name_of(self.target))?))?;
        }
        let path = self.out.join(name);
        self.written.push(path.clone());
        Ok(path)
    }

    fn text(&mut self, name: &str, text: &str) -> Result<()> {
        write_atomic(&self.file(name)?, |file| Ok(file.write_all(text.as_bytes())?))
    }

    fn json(&mut self, name: &str, value: &Value) -> Result<()> {
        self.text(name, &(serde_json::to_string_pretty(value)? + "\n"))
    }

    /// The encoder's tensors without their prefix.
    fn encoder(&self) -> Tensors {
        let own =
            |(name, tensor): (&String, &tch::Tensor)| Some((name.strip_prefix(ENCODER)?.to_owned(), tensor.shallow_clone()));
        self.given.tensors.iter().filter_map(own).collect()
    }

    fn tasks(&self) -> Vec<TaskKind> {
        let names = self.settings.get("task").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        names.filter_map(|name| TaskKind::from_str(name, false).ok()).collect()
    }

    /// What reads on from the network needs to know.
    fn about(&self) -> Value {
        json!({
            "network": self.given.config,
            "levels": self.given.config.levels(),
            "task": self.settings.get("task"),
            "channels": self.input.channels,
            "contrasts": self.input.contrasts,
            "slices": self.input.slices,
            "orientation": "RAS+",
            "mean_spacing_mm": self.input.mean_spacing,
            "preprocessing": self.input.preprocessing,
        })
    }

    /// A model card, but for its licence.
    fn card(&mut self, library: &str, tags: &[&str], how: &str) -> Result<()> {
        let name = json!(self.given.config.architecture());
        let rank = self.given.config.rank().n();
        let tags: String = ["medical", "self-supervised"].iter().chain(tags).map(|tag| format!("- {tag}\n")).collect();
        let cited: String = self.tasks().into_iter().map(|task| format!("- {}: {}\n", task.name(), citation(task))).collect();
        let text = format!(
            "---\n# license: yours to choose\nlibrary_name: {library}\npipeline_tag: image-feature-extraction\ntags:\n{tags}- {rank}d\n---\n\n# {} encoder, \
             pretrained without labels\n\n{how}\n\nTrained on {}, on voxels of {} mm on average (left to right, posterior to \
             anterior, inferior to superior).\n\nThe licence of these weights, and what they were trained on, are for you to state.\n\n## \
             Methods\n\n{cited}",
            name.as_str().unwrap_or_default(),
            self.input.trained_on(),
            crate::dim::millimetres(&self.input.mean_spacing),
        );
        self.text("README.md", &text)
    }
}

/// What to cite for a pretext task.
fn citation(task: TaskKind) -> &'static str {
    match task {
        TaskKind::Mae => {
            "Wald, T., et al. (2024). Revisiting MAE pre-training for 3D medical image \
             segmentation. arXiv:2410.23132"
        }
        TaskKind::Gen => {
            "Zhou, Z., Sodha, V., Pang, J., Gotway, M. B., & Liang, J. (2021). Models Genesis. Medical Image Analysis, 67, 101840"
        }
        TaskKind::Vf => {
            "Wang, G., et al. (2023). MIS-FM: 3D medical image segmentation using foundation models \
             pretrained on a large-scale unannotated dataset. arXiv:2306.16925"
        }
        TaskKind::Simclr => {
            "Chen, T., Kornblith, S., Norouzi, M., & Hinton, G. (2020). A simple framework for contrastive learning of visual \
             representations. International Conference on Machine Learning, 1597-1607"
        }
        TaskKind::Rot | TaskKind::Rpl | TaskKind::Jig | TaskKind::Cpc | TaskKind::Exe => {
            "Taleb, A., Loetzsch, W., Danz, N., Severin, J., Gaertner, T., Bergner, B., & Lippert, C. (2020). 3D self-supervised methods for \
             medical imaging. Advances in Neural Information Processing Systems, 33, 18158-18172"
        }
    }
}

/// That an encoder has no twin in a target, and which one has.
fn no_twin<T>(config: &EncoderConfig, target: &str, why: &str, instead: &str) -> Result<T> {
    let name = json!(config.architecture());
    bail!("--to {target}: the encoder is {}: {why}; pretrain with --encoder {instead}", name.as_str().unwrap_or_default())
}
