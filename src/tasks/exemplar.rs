use super::Task;
use crate::dim::Rank;
use anyhow::Result;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct ExemplarConfig {}

pub struct Exemplar;

impl Exemplar {
    pub fn boxed(_config: &ExemplarConfig, _window: usize, _channels: usize, _rank: Rank) -> Result<Box<dyn Task>> {
        anyhow::bail!("being built")
    }
}
