//! Decoders in weights: where a pretrained one lies, and loading it into the one that fine-tuning trains.

use crate::nn::decoder::{is_output, last_output};
use crate::run::tensors::{DECODER, Tensors};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use tch::{Tensor, no_grad};

/// A decoder as weights hold it.
pub struct PretrainedDecoder {
    /// Short name of the task that it was trained with.
    pub task: String,
    /// By their names in the decoder.
    pub tensors: Tensors,
    /// What stands before these names in the weights.
    pub prefix: String,
}

impl PretrainedDecoder {
    /// The decoder of an export, or of a checkpoint's tensors; where several tasks have one, that of the first in the order of the run.
    pub fn find(tensors: &Tensors, description: &Value) -> Option<PretrainedDecoder> {
        let part = |prefix: &str| -> Tensors {
            let named = tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
            named.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect()
        };
        let tasks = tasks(description);
        if tensors.keys().any(|name| name.starts_with(DECODER)) {
            let told = description["decoder"]["task"].as_str().map(str::to_owned);
            let task = told.or_else(|| tasks.into_iter().next()).unwrap_or_else(|| "unknown".to_owned());
            return Some(PretrainedDecoder { task, tensors: part(DECODER), prefix: DECODER.to_owned() });
        }
        let marker = format!(".{DECODER}");
        let holders: BTreeSet<&str> = tensors.keys().filter_map(|name| Some(name.split_once(&marker)?.0)).collect();
        let first = tasks.iter().find(|task| holders.contains(task.as_str())).map(String::as_str);
        let task = first.or_else(|| holders.first().copied())?.to_owned();
        let prefix = format!("{task}{marker}");
        Some(PretrainedDecoder { tensors: part(&prefix), task, prefix })
    }

    /// Copies all but the output layers into the decoder that lies under `prefix` in `target`; gives the names that the loaded tensors
    /// have in the weights. Errors unless every tensor is there, with the right shape, and none that is unknown.
    pub fn load_into(&self, target: &HashMap<String, Tensor>, prefix: &str, from: &Path) -> Result<Vec<String>> {
        let (from, task) = (from.display(), &self.task);
        let wanted: HashMap<&str, &Tensor> = target
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix(prefix)?, t)))
            .filter(|(name, _)| !is_output(name))
            .collect();
        if let Some(name) = wanted.keys().filter(|name| !self.tensors.contains_key(**name)).min() {
            bail!("{from}: the decoder of {task} is another one: {name} is missing");
        }
        let mut loaded = Vec::new();
        for (name, value) in self.taken() {
            let tensor = wanted.get(name.as_str());
            let tensor =
                tensor.with_context(|| format!("{from}: the decoder of {task} is another one: {name} is unknown here"))?;
            let (want, found) = (tensor.size(), value.size());
            ensure!(want == found, "{from}: {name} of the decoder of {task} has shape {found:?}, this network needs {want:?}");
            no_grad(|| tensor.shallow_clone().copy_(value));
            loaded.push(format!("{}{name}", self.prefix));
        }
        Ok(loaded)
    }

    /// All but the output layers.
    pub fn taken(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.tensors.iter().filter(|(name, _)| !is_output(name))
    }

    /// Outputs, and whether it gives them at every resolution.
    pub fn outputs(&self) -> Result<(i64, bool)> {
        let layer = last_output(self.tensors.keys()).with_context(|| format!("the decoder of {} has no output", self.task))?;
        let others = self.tensors.keys().any(|name| is_output(name) && !name.starts_with(&format!("{layer}.")));
        Ok((self.tensors[&format!("{layer}.weight")].size()[0], others))
    }
}

/// Names of the tasks that a run trained, in its order.
fn tasks(description: &Value) -> Vec<String> {
    let task = description.get("settings").and_then(|settings| settings.get("task"));
    let names = match task {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(name)) => vec![name.as_str()],
        _ => vec![],
    };
    names.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::Rank;
    use crate::nn::{Decoder, UNet, UNetConfig};
    use serde_json::json;
    use tch::{Device, nn::VarStore};

    /// The variables of a network of two levels with a decoder below each path.
    fn network(paths: &[&str], outputs: i64, deep: bool, levels: usize, filters: i64) -> HashMap<String, Tensor> {
        let vs = VarStore::new(Device::Cpu);
        let encoder = UNet::new(vs.root() / "encoder", UNetConfig { filters, levels, ..UNetConfig::paper(Rank::Three, 1) });
        for path in paths {
            let path = path.split('.').fold(vs.root(), |path, part| path / part);
            Decoder::new(path, &encoder, outputs, deep);
        }
        vs.variables()
    }

    fn tensors(variables: &HashMap<String, Tensor>) -> Tensors {
        variables.iter().map(|(name, t)| (name.clone(), t.detach().copy())).collect()
    }

    const OURS: &str = "segmentation.decoder.";

    #[test]
    fn every_tensor_but_the_outputs_is_copied() {
        for (path, task) in [("mae.decoder", "mae"), ("decoder", "vf"), ("segmentation.decoder", "segmentation")] {
            let saved = tensors(&network(&[path], 1, false, 3, 2));
            let found = PretrainedDecoder::find(&saved, &json!({ "decoder": { "task": "vf" } })).unwrap();
            assert_eq!((found.task.as_str(), found.outputs().unwrap()), (task, (1, false)));
            // Four classes at every resolution: no output fits, and none is needed.
            let target = network(&["segmentation.decoder"], 4, true, 3, 2);
            let before = tensors(&target);
            let loaded = found.load_into(&target, OURS, Path::new("x")).unwrap();
            let theirs: BTreeSet<String> =
                saved.keys().filter(|n| n.starts_with(path) && !n.contains("output")).cloned().collect();
            assert!(loaded.iter().cloned().collect::<BTreeSet<_>>() == theirs && loaded.len() > 20, "{loaded:?}");
            for (name, tensor) in &target {
                let own = name.strip_prefix(OURS).filter(|rest| !rest.contains("output"));
                let expected = own.map_or(&before[name], |rest| &saved[&format!("{path}.{rest}")]);
                assert_eq!(tensor, expected, "{name}");
            }
            let conv = format!("{OURS}step0.conv0.weight");
            assert_ne!(target[&conv], before[&conv]);
        }
    }

    #[test]
    fn of_several_the_first_of_the_run_and_none_of_tasks_without() {
        let saved = tensors(&network(&["gen.decoder", "mae.decoder"], 1, false, 2, 2));
        let task = |description| PretrainedDecoder::find(&saved, &description).unwrap().task;
        assert_eq!(task(json!({ "settings": { "task": ["rot", "mae", "gen"] } })), "mae");
        assert_eq!(task(json!({ "settings": { "task": ["gen", "mae"] } })), "gen");
        assert!(PretrainedDecoder::find(&tensors(&network(&[], 1, false, 2, 2)), &Value::Null).is_none());
    }

    #[test]
    fn another_decoder_is_an_error() {
        let target = network(&["segmentation.decoder"], 4, false, 3, 2);
        let refused = |levels, filters| {
            let saved = tensors(&network(&["mae.decoder"], 1, false, levels, filters));
            let found = PretrainedDecoder::find(&saved, &Value::Null).unwrap();
            found.load_into(&target, OURS, Path::new("file")).unwrap_err().to_string()
        };
        assert!(refused(2, 2).contains("is missing") && refused(4, 2).contains("mae"));
        let message = refused(3, 4);
        assert!(message.contains("file") && message.contains("mae") && message.contains("needs ["), "{message}");
        let mut saved = tensors(&network(&["mae.decoder"], 1, false, 3, 2));
        saved.insert("mae.decoder.step7.conv0.weight".into(), saved["mae.decoder.step0.conv0.weight"].shallow_clone());
        let found = PretrainedDecoder::find(&saved, &Value::Null).unwrap();
        let message = found.load_into(&target, OURS, Path::new("file")).unwrap_err().to_string();
        assert!(message.contains("step7.conv0.weight is unknown"), "{message}");
    }
}
