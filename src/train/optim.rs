//! Optimizers on libtorch's fused kernels, with state that is ours to save.

use crate::ffi::{self, Rule, StepSizes};
use crate::run::tensors::Tensors;
use crate::train::schedule::Rates;
use anyhow::{Result, bail, ensure};
use serde::Serialize;
use std::collections::BTreeMap;
use tch::{Kind, Tensor, nn::VarStore, no_grad};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;
const SGD_MOMENTUM: f64 = 0.9;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay.
    #[value(name = "adamw")]
    AdamW,
    Adam,
    /// With momentum 0.9.
    Sgd,
}

/// Parameters that share a learning rate and a weight decay, with their moments.
struct ParameterGroup {
    /// Whether they go by the rate of given weights, not by that of new ones.
    given: bool,
    weight_decay: f64,
    names: Vec<String>,
    params: Vec<Tensor>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    steps: Vec<Tensor>,
}

/// One optimizer over every trainable variable of a [`VarStore`].
pub struct Optimizer {
    rule: Rule,
    groups: Vec<ParameterGroup>,
    clip: f64,
}

impl Optimizer {
    /// `given`: whether the variable of a name goes by the rate of given weights. Weight decay applies to tensors of two or more
    /// dimensions only: not to biases, not to normalisation. Gradients are clipped to a joint norm of `clip`, 0 for no clipping.
    pub fn new(kind: OptimizerKind, vs: &VarStore, given: impl Fn(&str) -> bool, weight_decay: f64, clip: f64) -> Self {
        let rule = match kind {
            OptimizerKind::AdamW => Rule::AdamW,
            OptimizerKind::Adam => Rule::Adam,
            OptimizerKind::Sgd => Rule::Sgd,
        };
        let trainable: BTreeMap<String, Tensor> = vs.variables().into_iter().filter(|(_, t)| t.requires_grad()).collect();
        let group = |from_given: bool, decayed: bool| {
            let (names, params): (Vec<_>, Vec<_>) = trainable
                .iter()
                .filter(|(n, t)| given(n) == from_given && (t.dim() >= 2) == decayed)
                .map(|(n, t)| (n.clone(), t.shallow_clone()))
                .unzip();
            let zeros = || params.iter().map(|p: &Tensor| no_grad(|| p.zeros_like())).collect();
            ParameterGroup {
                given: from_given,
                weight_decay: if decayed { weight_decay } else { 0. },
                first: zeros(),
                second: if rule == Rule::Sgd { vec![] } else { zeros() },
                steps: params.iter().map(|p| Tensor::zeros([], (Kind::Float, p.device()))).collect(),
                names,
                params,
            }
        };
        let groups = [(false, true), (false, false), (true, true), (true, false)].map(|(given, decayed)| group(given, decayed));
        Optimizer { rule, groups: groups.into_iter().filter(|g| !g.params.is_empty()).collect(), clip }
    }

    /// Applies the accumulated gradients at these rates and clears them; returns the joint gradient norm before clipping, a
    /// scalar on the parameters' device.
    pub fn step(&mut self, rates: Rates) -> Result<Tensor> {
        let active: Vec<Vec<usize>> =
            self.groups.iter().map(|g| (0..g.params.len()).filter(|&i| g.params[i].grad().defined()).collect()).collect();
        let pick = |tensors: &[Tensor], indices: &[usize]| -> Vec<Tensor> {
            indices.iter().filter_map(|&i| tensors.get(i).map(Tensor::shallow_clone)).collect()
        };
        let grads: Vec<Vec<Tensor>> =
            self.groups.iter().zip(&active).map(|(g, a)| a.iter().map(|&i| g.params[i].grad()).collect()).collect();
        let all: Vec<Tensor> = grads.iter().flatten().map(Tensor::shallow_clone).collect();
        ensure!(!all.is_empty(), "no parameter received a gradient");
        let norm = ffi::clip_gradients(&all, self.clip)?;
        for ((group, active), grads) in self.groups.iter().zip(&active).zip(&grads) {
            if active.is_empty() {
                continue;
            }
            let first = pick(&group.first, active);
            let second = if self.rule == Rule::Sgd {
                first.iter().map(Tensor::shallow_clone).collect()
            } else {
                pick(&group.second, active)
            };
            let lr = if group.given { rates.given } else { rates.new };
            let beta1 = if self.rule == Rule::Sgd { SGD_MOMENTUM } else { BETA1 };
            let sizes = StepSizes { lr, beta1, beta2: BETA2, weight_decay: group.weight_decay, eps: EPS };
            let state = ffi::Moments { first: &first, second: &second, steps: &pick(&group.steps, active) };
            ffi::optimizer_step(self.rule, &pick(&group.params, active), grads, state, sizes)?;
        }
        for group in &mut self.groups {
            for p in &mut group.params {
                ffi::clear_gradient(p);
            }
        }
        Ok(norm)
    }

    /// Everything that a checkpoint must hold, by name.
    pub fn state(&self) -> Tensors {
        let mut state = Tensors::new();
        for group in &self.groups {
            for (what, tensors) in [("first", &group.first), ("second", &group.second), ("steps", &group.steps)] {
                state.extend(group.names.iter().zip(tensors).map(|(n, t)| (format!("{what}.{n}"), t.shallow_clone())));
            }
        }
        state
    }

    /// Restores what [`Optimizer::state`] gave; errors on a missing, superfluous or misshapen tensor.
    pub fn restore(&mut self, mut saved: Tensors) -> Result<()> {
        for (name, mut tensor) in self.state() {
            let Some(value) = saved.remove(&name) else { bail!("optimizer state {name} is missing") };
            ensure!(
                value.size() == tensor.size(),
                "optimizer state {name}: expected {:?}, found {:?}",
                tensor.size(),
                value.size()
            );
            no_grad(|| tensor.copy_(&value));
        }
        ensure!(saved.is_empty(), "optimizer state for unknown parameters: {:?}", saved.keys().collect::<Vec<_>>());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Adam and SGD as their papers write them, on one number.
    struct Naive {
        kind: OptimizerKind,
        p: f64,
        m: f64,
        v: f64,
        t: i32,
    }

    impl Naive {
        fn step(&mut self, g: f64, lr: f64, decay: f64) {
            self.t += 1;
            let mut g = g;
            match self.kind {
                OptimizerKind::AdamW => self.p -= lr * decay * self.p,
                _ => g += decay * self.p,
            }
            if self.kind == OptimizerKind::Sgd {
                self.m = SGD_MOMENTUM * self.m + g;
                self.p -= lr * self.m;
                return;
            }
            self.m = BETA1 * self.m + (1. - BETA1) * g;
            self.v = BETA2 * self.v + (1. - BETA2) * g * g;
            let (m, v) = (self.m / (1. - BETA1.powi(self.t)), self.v / (1. - BETA2.powi(self.t)));
            self.p -= lr * m / (v.sqrt() + EPS);
        }
    }

    #[test]
    fn fused_steps_follow_the_formulas() {
        for kind in [OptimizerKind::AdamW, OptimizerKind::Adam, OptimizerKind::Sgd] {
            for clip in [0., 0.5] {
                tch::manual_seed(3);
                let vs = VarStore::new(Device::Cpu);
                let weight = vs.root().randn("weight", &[2, 3], 0., 1.);
                let bias = vs.root().randn("bias", &[3], 0., 1.);
                let values = |t: &Tensor| Vec::<f64>::try_from(t.flatten(0, -1).to_kind(Kind::Double)).unwrap();
                let start = |t: &Tensor| values(t).iter().map(|&p| Naive { kind, p, m: 0., v: 0., t: 0 }).collect::<Vec<_>>();
                let (mut naive_weight, mut naive_bias) = (start(&weight), start(&bias));
                // Each at a rate of its own, the gradients clipped jointly.
                let mut optimizer = Optimizer::new(kind, &vs, |name| name == "bias", 0.1, clip);
                for step in 0..6 {
                    let lr = 0.05 / (1. + step as f64);
                    let (gw, gb) =
                        (Tensor::randn([2, 3], (Kind::Float, Device::Cpu)), Tensor::randn([3], (Kind::Float, Device::Cpu)));
                    ((&weight * &gw).sum(Kind::Float) + (&bias * &gb).sum(Kind::Float)).backward();
                    let norm = optimizer.step(Rates { new: lr, given: 0.3 * lr }).unwrap().double_value(&[]);
                    let squares: f64 = values(&gw).iter().chain(&values(&gb)).map(|g| g * g).sum();
                    assert!((norm - squares.sqrt()).abs() < 1e-5);
                    let scale = if clip > 0. { (clip / norm).min(1.) } else { 1. };
                    naive_weight.iter_mut().zip(values(&gw)).for_each(|(n, g)| n.step(g * scale, lr, 0.1));
                    // No weight decay on a bias.
                    naive_bias.iter_mut().zip(values(&gb)).for_each(|(n, g)| n.step(g * scale, 0.3 * lr, 0.));
                }
                for (tensor, naive) in [(&weight, &naive_weight), (&bias, &naive_bias)] {
                    for (value, expected) in values(tensor).iter().zip(naive) {
                        assert!((value - expected.p).abs() < 1e-4, "{kind:?} clip {clip}: {value} for {}", expected.p);
                    }
                }
            }
        }
    }
}
