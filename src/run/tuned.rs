//! Fine-tuned networks as their files hold them: a run, a checkpoint in one, or an export.

use crate::pth::Format;
use crate::run::folder::locate;
use crate::run::input::Input;
use crate::run::tensors::{ENCODER, Tensors};
use crate::run::weights::{Described, described, read};
use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A fine-tuned network's tensors with what describes them.
pub struct Tuned {
    /// Holds the tensors.
    pub file: PathBuf,
    /// Holds the description.
    pub described_in: PathBuf,
    description: Value,
    /// Whether the names of the tensors above the encoder leave out the task's, as those of an export do.
    exported: bool,
    tensors: Tensors,
}

impl Tuned {
    /// Opens `RUN` (its best checkpoint), `RUN/best`, `RUN/last`, a checkpoint's file, or an exported `.pt` or `.safetensors`. Errors name
    /// what is there instead.
    pub fn open(path: &Path) -> Result<Tuned> {
        let file = match path.is_file() {
            true => path.to_owned(),
            false => {
                let (run, which) = locate(path)?;
                // Says so where it is no run at all.
                run.description()?;
                let file = run.checkpoint(&which);
                ensure!(file.exists(), "{}: no checkpoint `{which}` yet", run.dir.display());
                file
            }
        };
        let format = Format::of(&file)?;
        let expected = || {
            format!(
                "{}: expected a run of `pretext3d finetune`, a checkpoint in one, or its export (.pt, .safetensors)",
                path.display()
            )
        };
        ensure!(format != Format::Checkpoint, "{}, found a file of torch.save", expected());
        let script = format == Format::TorchScript;
        let Described { description, from, run, .. } = described(&file, script)?;
        ensure!(!description.is_null(), "{}, found weights without a description", expected());
        let described_in = from.unwrap_or_else(|| file.clone());
        ensure!(
            description.get("downstream").is_some(),
            "{}: a pretrained encoder cannot predict; give a run of `pretext3d finetune`, or its export",
            path.display()
        );
        let tensors = read(&file, script, &description)?;
        Ok(Tuned { file, described_in, description, exported: run.is_none(), tensors })
    }

    /// What the network takes.
    pub fn input(&self) -> Result<Input> {
        let input = Input::described(&self.description).and_then(|input| input.context("there is none"));
        input.with_context(|| format!("{}: `input`", self.described_in.display()))
    }

    /// A part of the description.
    pub fn part<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let part = self.description.get(key).with_context(|| format!("{}: no `{key}`", self.described_in.display()))?;
        serde_json::from_value(part.clone()).with_context(|| format!("{}: `{key}`", self.described_in.display()))
    }

    /// The tensors by their names in the variable store of a network of this task.
    pub fn tensors(self, task: &str) -> Tensors {
        let name = |name: String| if self.exported && !name.starts_with(ENCODER) { format!("{task}.{name}") } else { name };
        self.tensors.into_iter().map(|(n, tensor)| (name(n), tensor)).collect()
    }
}
