//! A pretrained network with the head of one of its tasks, to look at what it makes of samples.

use crate::dim::Rank;
use crate::nn::Encoder;
use crate::print::note;
use crate::run::input::Input;
use crate::run::tensors::DECODER;
use crate::run::weights::{Pretrained, load_encoder};
use crate::tasks::{Batch, Picture, Task};
use crate::train::network::{Network, own_statistic};
use anyhow::{Context, Result, bail, ensure};
use tch::no_grad;

/// Loads encoder and head of a task, every tensor of them. Errors if the weights lack one, hold one that is unknown here, or are of other
/// channels than the store.
pub fn load(given: &Pretrained, task: &dyn Task, rank: Rank, input: &Input) -> Result<Network> {
    let (file, name) = (given.file.display(), task.name());
    ensure!(
        given.config.rank() == rank,
        "--weights {file}: of {}D data, the store holds {}D data",
        given.config.rank().n(),
        rank.n()
    );
    if let Some(trained) = &given.input {
        let (needs, has) = (&trained.channels, &input.channels);
        ensure!(
            needs == has,
            "--weights {file}: the network takes the channels {needs:?} in this order, the store has {has:?}"
        );
        trained.fit(input).warnings.iter().for_each(|warning| note!("warning: {file}: {warning}"));
    }
    let network = Network::new(given.config.clone(), &[task], 0).context("--weights")?;
    let variables = network.vs.variables();
    load_encoder(&variables, &given.tensors, &given.file, None)?;
    let exported = given.decoder.as_ref().filter(|decoder| decoder.task == name && decoder.prefix == DECODER);
    let (head, statistics) = (format!("{name}."), format!("{name}.statistics."));
    for (variable, tensor) in &variables {
        let saved = match variable.strip_prefix(&head) {
            // Of several tasks each has statistics of the encoder that are its own.
            None if tensor.requires_grad() => continue,
            None => match given.tensors.get(&own_statistic(name, variable)) {
                None => continue,
                own => own,
            },
            Some(part) => {
                given.tensors.get(variable).or_else(|| part.strip_prefix(DECODER).and_then(|part| exported?.tensors.get(part)))
            }
        };
        let saved = saved.with_context(|| {
            format!("--weights {file}: {variable} is missing; give the folder of a run that was pretrained with {name}, with its --{name}- flags")
        })?;
        let (want, found) = (tensor.size(), saved.size());
        ensure!(want == found, "--weights {file}: {variable} has shape {found:?}, this network needs {want:?}");
        no_grad(|| tensor.shallow_clone().copy_(saved));
    }
    let unknown =
        |saved: &&String| saved.starts_with(&head) && !saved.starts_with(&statistics) && !variables.contains_key(*saved);
    if let Some(saved) = given.tensors.keys().find(unknown) {
        bail!("--weights {file}: {saved} is unknown here; give the --{name}- flags that the run had");
    }
    Ok(network)
}

/// What a network makes of the one sample of a batch. Errors if that is no picture.
pub fn pictures(network: &Network, task: &dyn Task, batch: &Batch) -> Result<Vec<Picture>> {
    let pictures = no_grad(|| network.heads[0].pictures(network.encoder.as_ref() as &dyn Encoder, batch));
    ensure!(
        !pictures.is_empty(),
        "--weights: what a network makes of {} is no picture; it is of tasks with a decoder",
        task.name()
    );
    Ok(pictures)
}
