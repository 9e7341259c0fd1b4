//! The contracting half of a U-Net, for volumes and images (method 4; Taleb et al. 2020, appendix).

use super::blocks::{STAGE_KERNEL, Stage, max_pool};
use super::script::ScriptModule;
use super::{Encoder, Level, NormKind, limits};
use crate::dim::{PerAxis, Rank};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use tch::{Tensor, nn};

/// Shape of the U-Net encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UNetConfig {
    pub rank: Rank,
    pub in_channels: i64,
    /// Filters of the first level, doubled at each further one.
    pub filters: i64,
    /// Resolutions, with a max-pooling by 2 between them.
    pub levels: usize,
    /// Dropout probability after each level, 0 for none.
    pub dropout: f64,
    #[serde(default = "NormKind::before_the_choice")]
    pub norm: NormKind,
}

impl UNetConfig {
    /// The network that these tensors are the weights of, by their names `<prefix>level{i}.conv0.weight` and shapes; `None`: of
    /// another one.
    pub fn of(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> Option<Self> {
        let first = tensors.get(&format!("{prefix}level0.conv0.weight"))?.size();
        let rank = Rank::try_from(u8::try_from(first.len()).ok()?.checked_sub(2)?).ok()?;
        let levels = (0..).take_while(|i| tensors.contains_key(&format!("{prefix}level{i}.conv0.weight"))).count();
        let norm = match tensors.contains_key(&format!("{prefix}level0.norm0.running_mean")) {
            true => NormKind::Batch,
            false => NormKind::Instance,
        };
        Some(UNetConfig { rank, in_channels: first[1], filters: first[0], levels, dropout: 0., norm })
    }

    /// The paper's network.
    pub fn paper(rank: Rank, in_channels: i64) -> Self {
        UNetConfig { rank, in_channels, filters: 16, levels: 5, dropout: 0., norm: NormKind::Batch }
    }

    /// Errors unless a network can have this shape.
    pub fn check(&self) -> Result<()> {
        limits::within("levels", &limits::LEVELS, [self.levels])?;
        limits::within("input channels", &limits::CHANNELS, [self.in_channels])?;
        limits::within("--filters", &limits::CHANNELS, [self.filters])
    }

    /// Weights of all convolutions.
    pub fn weights(&self) -> u128 {
        let (kernel, mut inputs) = (PerAxis::all(self.rank, STAGE_KERNEL), self.in_channels);
        let of = |Level { channels, .. }: Level| {
            let entering = std::mem::replace(&mut inputs, channels);
            limits::weights(entering, channels, kernel.values()) + limits::weights(channels, channels, kernel.values())
        };
        self.pyramid().into_iter().map(of).sum()
    }

    /// The encoder's pyramid, finest first.
    pub fn pyramid(&self) -> Vec<Level> {
        (0..self.levels).map(|i| Level { channels: self.filters << i, reduction: PerAxis::all(self.rank, 1 << i) }).collect()
    }
}

/// U-Net encoder; its parameters are `level{i}.conv{0,1}` and `level{i}.norm{0,1}`.
#[derive(Debug)]
pub struct UNet {
    config: UNetConfig,
    stages: Vec<Stage>,
    levels: Vec<Level>,
}

impl UNet {
    pub fn new(vs: nn::Path, config: UNetConfig) -> Self {
        let levels = config.pyramid();
        let mut inputs = config.in_channels;
        let stages = levels
            .iter()
            .enumerate()
            .map(|(i, level)| {
                let path = &vs / format!("level{i}");
                let stage = Stage::new(path, config.rank, config.norm, inputs, level.channels, config.dropout);
                inputs = level.channels;
                stage
            })
            .collect();
        UNet { config, stages, levels }
    }
}

impl Encoder for UNet {
    fn rank(&self) -> Rank {
        self.config.rank
    }

    fn in_channels(&self) -> i64 {
        self.config.in_channels
    }

    fn levels(&self) -> &[Level] {
        &self.levels
    }

    fn norm(&self) -> NormKind {
        self.config.norm
    }

    fn features(&self, x: &Tensor, train: bool) -> Vec<Tensor> {
        let mut pyramid: Vec<Tensor> = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let map = match pyramid.last() {
                None => stage.forward(x, train),
                Some(finer) => stage.forward(&max_pool(finer, self.config.rank), train),
            };
            pyramid.push(map);
        }
        pyramid
    }

    fn script(&self) -> ScriptModule {
        let n = self.config.rank.n();
        let mut source = String::from("def forward(self, x: Tensor) -> List[Tensor]:\n    f0 = self.level0.forward(x)\n");
        for i in 1..self.stages.len() {
            writeln!(source, "    f{i} = self.level{i}.forward(torch.max_pool{n}d(f{}, 2))", i - 1).unwrap();
        }
        let names: Vec<String> = (0..self.stages.len()).map(|i| format!("f{i}")).collect();
        writeln!(source, "    return [{}]", names.join(", ")).unwrap();
        self.stages
            .iter()
            .enumerate()
            .fold(ScriptModule::new(source), |module, (i, stage)| module.child(format!("level{i}"), stage.script()))
    }
}
