//! Small networks on the deepest feature map, shared by the tasks.

use super::blocks::{global_average, max_pool};
use super::norm::{Norm, NormKind};
use super::script::ScriptModule;
use super::{Encoder, Mode, step};
use crate::dim::{Rank, Shape, voxels};
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use tch::nn::{self, Init, Module, init};
use tch::{Kind, Tensor};

/// Of the hidden layers of the pretext tasks' heads.
pub const DROPOUT: f64 = 0.5;
/// Added to squared lengths: the root's gradient at 0 is infinite.
pub const EPS: f64 = 1e-12;

/// How the deepest feature map becomes a vector, and the layers after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum HeadKind {
    /// Pool 2, flatten, 2048 - 1024 - outputs with batch normalisation and dropout 0.5 (the reference's `big_fully`).
    Big,
    /// Global average, then one linear layer: far fewer parameters, and blind to where a feature is.
    Gap,
}

impl HeadKind {
    /// Widths of the hidden layers.
    pub fn hidden(self) -> &'static [i64] {
        match self {
            HeadKind::Big => &[2048, 1024],
            HeadKind::Gap => &[],
        }
    }
}

/// Turns the deepest map `[N, C, ...]` into vectors `[N, F]`.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    kind: HeadKind,
    rank: Rank,
    /// Whether pooling by 2 leaves anything.
    halve: bool,
    /// Length `F` of each vector.
    pub features: i64,
}

impl Pool {
    /// Errors if a view of this shape is smaller than the encoder can pool.
    pub fn new(kind: HeadKind, encoder: &dyn Encoder, view: Shape) -> Result<Self> {
        let (rank, deepest) = (encoder.rank(), encoder.deepest());
        let map = encoder.deepest_shape(view);
        ensure!(
            voxels(map) > 0,
            "a patch of {view:?} voxels is too small: the encoder pools every side by {}; give a larger --window, or --levels with \
             fewer levels",
            deepest.reduction.words()
        );
        let halve = rank.axes().all(|a| map[a] >= 2);
        let cells: usize = rank.axes().map(|a| if halve { map[a] / 2 } else { map[a] }).product();
        let features = match kind {
            HeadKind::Big => deepest.channels * cells as i64,
            HeadKind::Gap => deepest.channels,
        };
        Ok(Pool { kind, rank, halve, features })
    }

    pub fn forward(&self, map: &Tensor) -> Tensor {
        match self.kind {
            HeadKind::Gap => global_average(map),
            // `contiguous`: the order of the features must not depend on the memory layout.
            HeadKind::Big if self.halve => max_pool(map, self.rank).contiguous().flatten(1, -1),
            HeadKind::Big => map.contiguous().flatten(1, -1),
        }
    }
}

/// Vectors `[N, inputs]` to logits `[N, outputs]`; hidden layers with ReLU, batch normalisation and dropout.
#[derive(Debug)]
pub struct Mlp {
    hidden: Vec<(nn::Linear, Norm)>,
    last: nn::Linear,
    dropout: f64,
}

impl Mlp {
    /// `widths`: of the hidden layers.
    pub fn new(vs: nn::Path, widths: &[i64], dropout: f64, inputs: i64, outputs: i64) -> Self {
        let mut inputs = inputs;
        let hidden = widths
            .iter()
            .enumerate()
            .map(|(i, &width)| {
                let layer = linear(&vs / format!("linear{i}"), inputs, width);
                inputs = width;
                (layer, Norm::new(&vs / format!("norm{i}"), NormKind::Batch, width))
            })
            .collect();
        Mlp { hidden, last: linear(&vs / "output", inputs, outputs), dropout }
    }

    pub fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        let (mut x, train) = (x.shallow_clone(), mode.trains_head());
        for (layer, norm) in &self.hidden {
            x = step::dropout(&norm.forward(&layer.forward(&x).relu(), train), self.dropout, train);
        }
        self.last.forward(&x)
    }

    pub fn script(&self) -> ScriptModule {
        let mut source = String::from("def forward(self, x: Tensor) -> Tensor:\n");
        for i in 0..self.hidden.len() {
            writeln!(source, "    x = self.norm{i}.forward(torch.relu(self.linear{i}.forward(x)))").unwrap();
            writeln!(source, "    x = torch.dropout(x, {}, self.training)", self.dropout).unwrap();
        }
        source += "    return self.output.forward(x)\n";
        let module = self.hidden.iter().enumerate().fold(ScriptModule::new(source), |module, (i, (layer, norm))| {
            module.child(format!("linear{i}"), linear_script(layer)).child(format!("norm{i}"), norm.script())
        });
        module.child("output", linear_script(&self.last))
    }
}

/// Rows `[..., E]` at length 1; a row of zeros stays one, with a finite gradient.
pub fn unit_vectors(x: &Tensor) -> Tensor {
    let length = (x.square().sum_dim_intlist(-1, true, Kind::Float) + EPS).sqrt();
    x / length
}

fn linear_script(layer: &nn::Linear) -> ScriptModule {
    let source = "def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight, self.bias)\n";
    ScriptModule::new(source).parameter("weight", &layer.ws).parameter("bias", layer.bs.as_ref().expect("made with a bias"))
}

/// Linear layer with He-scaled weights and zero bias.
pub fn linear(vs: nn::Path, inputs: i64, outputs: i64) -> nn::Linear {
    let he = init::DEFAULT_KAIMING_NORMAL;
    nn::linear(vs, inputs, outputs, nn::LinearConfig { ws_init: he, bs_init: Some(Init::Const(0.)), bias: true })
}
