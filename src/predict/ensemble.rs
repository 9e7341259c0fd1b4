//! Several fine-tuned networks that predict as one: the folds of a cross-validation, or runs of other seeds or encoders.
//!
//! The mean is that of probabilities, as over windows and mirror images: each network counts alike, however large its logits are. nnU-Net
//! averages the folds' logits. All networks are in memory at the same time.

use super::model::{DownstreamConfig, Model};
use crate::data::names::some;
use crate::device::{DeviceChoice, Precision};
use crate::dim::Shape;
use crate::print::note;
use crate::tasks::classification::{self, Outputs};
use crate::transform::mirror::{MirrorAxis, Mirroring};
use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;
use tch::Tensor;

/// Networks that take the same scans and give the same outputs.
pub struct Ensemble {
    /// At least one.
    models: Vec<Model>,
}

impl Ensemble {
    /// Loads every one of `weights`, see [`Model::load`]. Errors name two that do not go together, and in what they differ.
    pub fn load(weights: &[PathBuf], device: DeviceChoice, precision: Precision) -> Result<Ensemble> {
        let mut models: Vec<Model> = vec![];
        for path in weights {
            let model = Model::load(path, device, precision)?;
            let same =
                |other: &&Model| matches!((other.file.canonicalize(), model.file.canonicalize()), (Ok(a), Ok(b)) if a == b);
            ensure!(!models.iter().any(|other| same(&other)), "--weights: {} is there twice", model.file.display());
            if let Some(first) = models.first() {
                check_alike(first, &model)?;
            }
            models.push(model);
        }
        ensure!(!models.is_empty(), "--weights: expected at least one network");
        Ok(Ensemble { models })
    }

    /// A network whose inputs and outputs all the others share.
    pub fn first(&self) -> &Model {
        &self.models[0]
    }

    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// As [`Model::classify`].
    pub fn classify(
        &self,
        image: &[f32],
        shape: Shape,
        outputs: Outputs,
        mirroring: Option<&Mirroring>,
    ) -> Result<(u8, Vec<f32>)> {
        let logits = self.models.iter().map(|model| model.whole(image, shape, mirroring)).collect::<Result<Vec<Tensor>>>()?;
        classification::decide(outputs, &logits)
    }

    /// The mean of what the networks say of one scan, each by its own [`Standard`](crate::tasks::regression::Standard).
    pub fn estimate(&self, image: &[f32], shape: Shape, mirroring: Option<&Mirroring>) -> Result<f64> {
        let mut sum = 0.;
        for model in &self.models {
            let DownstreamConfig::Regression { standard, .. } = model.downstream else { bail!("no regression") };
            sum += model.estimate(image, shape, standard, mirroring)?;
        }
        Ok(sum / self.models.len() as f64)
    }

    /// As [`Model::mirroring`]. Says what becomes of classes with a side, and along which axes a network has seen no mirror image.
    pub fn mirroring(&self, wanted: &[MirrorAxis]) -> Result<Mirroring> {
        let mirroring = self.first().mirroring(wanted)?;
        if let Some(text) = &mirroring.note {
            note!("--flips: {text}");
        }
        let mut unseen = [false; 3];
        for model in &self.models {
            let seen = model.mirrored_in_training()?;
            (0..3).for_each(|a| unseen[a] |= mirroring.axes[a] && !seen[a]);
        }
        let unseen = mirroring.names(unseen);
        if !unseen.is_empty() {
            note!(
                "--flips: trained without mirror images along {unseen} (--aug-flip of finetune): averaging over them may cost accuracy"
            );
        }
        Ok(mirroring)
    }
}

/// Errors if two networks take other scans, or give other outputs.
fn check_alike(first: &Model, other: &Model) -> Result<()> {
    let [a, b] = [first, other].map(interface);
    let differ: Vec<&String> =
        a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).filter(|key| a.get(*key) != b.get(*key)).collect();
    let Some(key) = differ.first() else { return Ok(()) };
    let [found, expected] = [&b, &a].map(|of| of.get(*key).unwrap_or(&Value::Null));
    bail!(
        "--weights: {} and {} do not predict together, as they differ in {}: {key} {found}, expected {expected}",
        first.file.display(),
        other.file.display(),
        some(&differ.iter().map(|key| key.as_str()).collect::<Vec<_>>())
    )
}

/// What two networks must have in common.
fn interface(model: &Model) -> serde_json::Map<String, Value> {
    let Value::Object(mut all) = json!(model.downstream) else { unreachable!("an enum with a tag is an object") };
    // Loss, dropout, unlabelled voxels and the training scans' mean are each network's own.
    ["segmentation", "classification", "regression", "standard", "dropout", "ignore"]
        .iter()
        .for_each(|key| drop(all.remove(*key)));
    if let DownstreamConfig::Classification { classification, .. } = &model.downstream {
        all.insert("outputs".into(), json!(classification.outputs()));
    }
    all.insert("rank".into(), json!(model.rank));
    all.insert("channels".into(), json!(model.channels));
    all.insert("slices".into(), json!(model.slices));
    let Value::Object(preprocessing) = json!(model.settings) else { unreachable!("a struct is an object") };
    all.extend(preprocessing);
    all
}
