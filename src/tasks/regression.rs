//! Regression on whole scans: a quantity such as the age of the person.
//!
//! The network is that of a classification with one output, which is trained on the quantity less its mean over the training scans, in
//! units of its standard deviation there. Validation is judged by the mean absolute error in the quantity's own unit.

use super::whole::{WholeHead, check_size, input, sample};
use super::{Amounts, Batch, Downstream, Drawn, Head, MetricInfo, Outcome, Task, each_scan};
use crate::data::Scans;
use crate::dim::Shape;
use crate::metrics::errors::Errors;
use crate::nn::script::ScriptModule;
use crate::nn::{Encoder, Mode, step};
use crate::rng::Rng;
use crate::transform::augment::Augmenter;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Reduction, Tensor, nn, no_grad};

/// Error, in standard deviations, up to which [`RegressionLoss::SmoothL1`] is squared.
const BETA: f64 = 1.;

/// Of the standardised quantity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RegressionLoss {
    /// Half the squared error up to one standard deviation of the quantity, beyond that the absolute one: outliers count less
    #[default]
    #[value(name = "smooth-l1")]
    #[serde(rename = "smooth-l1")]
    SmoothL1,
    /// The squared error
    Squared,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
#[command(next_help_heading = "Regression")]
pub struct RegressionConfig {
    /// Loss of the quantity, which is standardised by the mean and the standard deviation of the training scans
    #[arg(long, value_enum, default_value_t = Self::default().regression_loss)]
    pub regression_loss: RegressionLoss,
}

/// What the network's output is of a quantity, and back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standard {
    pub mean: f64,
    /// Over `n`, as numpy's.
    pub sd: f64,
}

impl Standard {
    /// Of the training scans. Errors if these do not differ.
    pub fn of(quantities: &[f64]) -> Result<Standard> {
        let n = quantities.len() as f64;
        let mean = quantities.iter().sum::<f64>() / n;
        let sd = (quantities.iter().map(|q| (q - mean).powi(2)).sum::<f64>() / n).sqrt();
        ensure!(sd > 0., "all {n} training scans have the same quantity, {mean}: there is nothing to learn");
        Ok(Standard { mean, sd })
    }

    fn apply(self, quantity: f64) -> f64 {
        (quantity - self.mean) / self.sd
    }

    pub fn undo(self, output: f64) -> f64 {
        self.mean + self.sd * output
    }

    /// TorchScript of the same.
    pub fn undo_source(self, output: &str) -> String {
        format!("{:?} + {:?} * {output}", self.mean, self.sd)
    }
}

/// Regression on scans that have a quantity.
pub struct Regression {
    config: RegressionConfig,
    dropout: f64,
    augmenter: Augmenter,
    shape: Shape,
    standard: Standard,
}

impl Regression {
    /// `shape`: of every scan.
    pub fn new(config: &RegressionConfig, dropout: f64, augmenter: Augmenter, shape: Shape, standard: Standard) -> Self {
        Regression { config: config.clone(), dropout, augmenter, shape, standard }
    }
}

/// Metric by which validation chooses.
const MAE: &str = "mae";

impl Task for Regression {
    fn name(&self) -> &'static str {
        "regression"
    }

    fn view_shape(&self) -> Shape {
        self.shape
    }

    /// The standardised quantity, as its bits.
    fn targets(&self) -> usize {
        1
    }

    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn> {
        let target = to_target(self.standard.apply(quantity_of(scans, scan)?));
        let augmentation = sample(scans, scan, self.shape, &self.augmenter, rng, out)?;
        Ok(Drawn { targets: vec![target], params: json!({ "augmentation": augmentation }) })
    }

    fn caption(&self, drawn: &Drawn) -> String {
        format!("{:.2}", self.standard.undo(f64::from_bits(drawn.targets[0] as u64)))
    }

    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>> {
        check_size(encoder, self.shape)?;
        Ok(Box::new(RegressionHead::new(vs, encoder, &self.config, self.dropout, self.standard)))
    }

    fn amounts(&self) -> Amounts {
        Amounts { batch: 16, draws: 1, epochs: 20 }
    }

    fn metrics(&self) -> Vec<MetricInfo> {
        vec![MetricInfo { name: MAE, chance: None }]
    }

    fn lower_is_better(&self) -> bool {
        true
    }
}

fn quantity_of(scans: &dyn Scans, scan: usize) -> Result<f64> {
    scans.quantity(scan).with_context(|| format!("{}: has no quantity", scans.id(scan)))
}

/// A number as a target, which are whole: its bits.
fn to_target(number: f64) -> i64 {
    number.to_bits() as i64
}

/// Numbers `[B]`, float32, of targets `[B, 1]`.
fn of_targets(targets: &Tensor) -> Tensor {
    targets.squeeze_dim(1).view_dtype(Kind::Double).to_kind(Kind::Float)
}

/// The network above the encoder, with its loss.
pub struct RegressionHead {
    head: WholeHead,
    loss: RegressionLoss,
    standard: Standard,
}

impl RegressionHead {
    pub fn new(vs: &nn::Path, encoder: &dyn Encoder, config: &RegressionConfig, dropout: f64, standard: Standard) -> Self {
        RegressionHead { head: WholeHead::new(vs, encoder, dropout, 1), loss: config.regression_loss, standard }
    }

    /// The network above the encoder as TorchScript, from its pyramid to the standardised quantity `[B, 1]`.
    pub fn script(&self) -> ScriptModule {
        self.head.script()
    }

    /// Mean loss of outputs `[B]` for standardised quantities `[B]`.
    fn loss(&self, outputs: &Tensor, targets: &Tensor) -> Tensor {
        match self.loss {
            RegressionLoss::SmoothL1 => outputs.smooth_l1_loss(targets, Reduction::Mean, BETA),
            RegressionLoss::Squared => outputs.mse_loss(targets, Reduction::Mean),
        }
    }
}

impl Head for RegressionHead {
    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> Outcome {
        let outputs = self.head.forward(encoder, &batch.views.squeeze_dim(1), mode).to_kind(Kind::Float).squeeze_dim(1);
        let targets = of_targets(&batch.targets);
        let rows = targets.size()[0];
        let error = no_grad(|| step::mean((&outputs - &targets).abs().mean(Kind::Float), rows) * self.standard.sd);
        Outcome { loss: step::mean(self.loss(&outputs, &targets), rows), metrics: vec![error] }
    }

    fn downstream(&self) -> Option<&dyn Downstream> {
        Some(self)
    }
}

impl Downstream for RegressionHead {
    /// The standardised quantity, `[B, 1]`.
    fn logits(&self, encoder: &dyn Encoder, x: &Tensor) -> Tensor {
        self.head.forward(encoder, x, Mode::Eval).to_kind(Kind::Float)
    }

    fn judge(
        &self,
        encoder: &dyn Encoder,
        scans: &dyn Scans,
        device: Device,
        place: &dyn Fn(&Tensor) -> Result<()>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<(String, f64)>>> {
        let judged = each_scan(scans, stop, |scan| {
            let truth = quantity_of(scans, scan)?;
            let x = input(scans, scan, encoder, device)?;
            place(&x)?;
            let output = self.logits(encoder, &x).squeeze_dim(1);
            let target = Tensor::from_slice(&[self.standard.apply(truth) as f32]).to_device(device);
            let predicted = self.standard.undo(output.double_value(&[0]));
            Ok(vec![truth, predicted, self.loss(&output, &target).double_value(&[])])
        })?;
        Ok(judged.map(|judged| {
            let errors = Errors::of(judged.iter().map(|judged| (judged[0], judged[1])));
            let loss = judged.iter().map(|judged| judged[2]).sum::<f64>() / judged.len() as f64;
            let metrics = [(MAE, errors.mean_absolute()), ("r_squared", errors.r_squared()), ("loss", Some(loss))];
            metrics.map(|(name, value)| (name.to_owned(), value.unwrap_or(f64::NAN))).into()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_numbers_to_the_last_bit_of_a_float() {
        let numbers = [0., -1.5, 1e-3, 123.456, -7e5];
        let targets: Vec<i64> = numbers.iter().map(|&number| to_target(number)).collect();
        let back: Vec<f32> = Vec::try_from(of_targets(&Tensor::from_slice(&targets).view([-1, 1]))).unwrap();
        assert_eq!(back, numbers.map(|number| number as f32));
    }

    #[test]
    fn what_is_standardised_comes_back() {
        let standard = Standard::of(&[20., 40., 60., 80.]).unwrap();
        assert!(standard.mean == 50. && (standard.sd - 500f64.sqrt()).abs() < 1e-12);
        assert_eq!((standard.apply(50.), standard.undo(standard.apply(72.))), (0., 72.));
        assert!(Standard::of(&[3., 3.]).unwrap_err().to_string().contains("the same quantity, 3"));
    }
}
