//! Classification of whole scans: the grade of a photograph, the diagnosis of a person (method 4 and 6).
//!
//! The network is the encoder, the average of its deepest map, and one hidden layer. Where classes have an order, output `k` says whether the
//! class is at least `k` unless the user says otherwise, and validation is judged by quadratic weighted kappa; where they have none, by
//! balanced accuracy.

use super::whole::{WholeHead, check_size, input, sample};
use super::{Amounts, Batch, Downstream, Drawn, Head, MetricInfo, Outcome, Task, each_scan};
use crate::data::Scans;
use crate::dim::Shape;
use crate::metrics::agreement::Confusion;
use crate::nn::script::ScriptModule;
use crate::nn::{Encoder, Mode, step};
use crate::rng::Rng;
use crate::transform::augment::Augmenter;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Reduction, Tensor, nn, no_grad};

/// What the outputs mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Outputs {
    /// Ordered classes: output k is the logit of "at least class k"; the class is the number of outputs above one half, less one
    Ordinal,
    /// Unordered classes
    Softmax,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
#[command(next_help_heading = "Classification")]
pub struct ClassificationConfig {
    /// What the outputs mean [default: ordinal where the classes have an order, as numbers and grades do, else softmax]
    #[arg(long, value_enum)]
    pub outputs: Option<Outputs>,
    /// The classes in their order, e.g. control,mci,dementia [default: numbers by size; names by the alphabet, which is no order]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Dropout probability before the outputs
    #[arg(long, value_name = "P", default_value_t = Self::default().head_dropout)]
    pub head_dropout: f64,
}

impl Default for ClassificationConfig {
    fn default() -> Self {
        ClassificationConfig { outputs: None, classes: vec![], head_dropout: 0.5 }
    }
}

impl ClassificationConfig {
    /// What the outputs mean; those of runs of earlier versions are ordered.
    pub fn outputs(&self) -> Outputs {
        self.outputs.unwrap_or(Outputs::Ordinal)
    }

    /// Checks ranges that the parser cannot.
    pub fn check(&self) -> Result<()> {
        ensure!(
            (0. ..1.).contains(&self.head_dropout),
            "--head-dropout must be at least 0 and below 1, found {}",
            self.head_dropout
        );
        Ok(())
    }
}

/// Classification of scans that have a class.
pub struct Classification {
    config: ClassificationConfig,
    augmenter: Augmenter,
    shape: Shape,
    /// Names, in order.
    classes: Vec<String>,
    /// In the loss, one for each class.
    weights: Vec<f64>,
    score: Score,
}

impl Classification {
    /// `shape`: of every scan; `weights`: of each class in the loss.
    pub fn new(
        config: &ClassificationConfig,
        augmenter: Augmenter,
        shape: Shape,
        classes: Vec<String>,
        weights: Vec<f64>,
        score: Score,
    ) -> Self {
        Classification { config: config.clone(), augmenter, shape, classes, weights, score }
    }
}

/// What a classification is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Quadratic weighted kappa, of classes that have an order.
    Kappa,
    BalancedAccuracy,
}

impl Score {
    pub fn new(ordered: bool) -> Score {
        if ordered { Score::Kappa } else { Score::BalancedAccuracy }
    }

    pub fn name(self) -> &'static str {
        match self {
            Score::Kappa => "kappa",
            Score::BalancedAccuracy => "balanced_accuracy",
        }
    }

    /// `None` where it is undefined.
    pub fn of(self, confusion: &Confusion) -> Option<f64> {
        match self {
            Score::Kappa => confusion.weighted_kappa(),
            Score::BalancedAccuracy => confusion.balanced_accuracy(),
        }
    }

    /// What a case adds to it: 1 less the squared distance of true and predicted class, as a share of the largest possible one; without an
    /// order 1 if they are the same.
    pub fn of_case(self, truth: u8, class: u8, classes: usize) -> f64 {
        match self {
            Score::Kappa => {
                let distance = (f64::from(truth) - f64::from(class)) / (classes - 1).max(1) as f64;
                1. - distance * distance
            }
            Score::BalancedAccuracy => f64::from(u8::from(truth == class)),
        }
    }
}

impl Task for Classification {
    fn name(&self) -> &'static str {
        "classification"
    }

    fn view_shape(&self) -> Shape {
        self.shape
    }

    fn targets(&self) -> usize {
        1
    }

    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn> {
        let class = class_of(scans, scan)?;
        let augmentation = sample(scans, scan, self.shape, &self.augmenter, rng, out)?;
        Ok(Drawn { targets: vec![augmentation.class(class).into()], params: json!({ "augmentation": augmentation }) })
    }

    fn caption(&self, drawn: &Drawn) -> String {
        self.classes[drawn.targets[0] as usize].clone()
    }

    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>> {
        check_size(encoder, self.shape)?;
        Ok(Box::new(ClassificationHead::new(vs, encoder, &self.config, &self.weights, self.score)))
    }

    fn amounts(&self) -> Amounts {
        Amounts { batch: 16, draws: 1, epochs: 20 }
    }

    fn metrics(&self) -> Vec<MetricInfo> {
        vec![MetricInfo { name: "accuracy", chance: None }]
    }

    fn selects(&self) -> &'static str {
        self.score.name()
    }
}

fn class_of(scans: &dyn Scans, scan: usize) -> Result<u8> {
    scans.class(scan).with_context(|| format!("{}: has no class", scans.id(scan)))
}

/// The network above the encoder, with its loss.
pub struct ClassificationHead {
    head: WholeHead,
    outputs: Outputs,
    weights: Vec<f64>,
    score: Score,
}

impl ClassificationHead {
    /// `weights`: of each class in the loss.
    pub fn new(vs: &nn::Path, encoder: &dyn Encoder, config: &ClassificationConfig, weights: &[f64], score: Score) -> Self {
        let head = WholeHead::new(vs, encoder, config.head_dropout, weights.len() as i64);
        ClassificationHead { head, outputs: config.outputs(), weights: weights.to_vec(), score }
    }

    /// The network above the encoder as TorchScript, from its pyramid to logits `[B, K]`.
    pub fn script(&self) -> ScriptModule {
        self.head.script()
    }

    /// [`probabilities`] as a TorchScript method of the exported network.
    pub fn probabilities_source(&self) -> &'static str {
        match self.outputs {
            Outputs::Softmax => "def probabilities(self, x: Tensor) -> Tensor:\n    return torch.softmax(self.forward(x), 1)\n",
            Outputs::Ordinal => {
                "def probabilities(self, x: Tensor) -> Tensor:\n    p = torch.sigmoid(self.forward(x))\n    p = torch.cummin(torch.cat([torch.ones_like(p[:, :1]), p[:, 1:]], 1), 1)[0]\n    return torch.cat([p[:, :-1] - p[:, 1:], p[:, -1:]], 1)\n"
            }
        }
    }

    /// Loss `[B]` of each of the logits `[B, K]` for classes `[B]`.
    fn losses(&self, logits: &Tensor, classes: &Tensor) -> Tensor {
        let logits = logits.to_kind(Kind::Float);
        match self.outputs {
            Outputs::Softmax => logits.cross_entropy_loss::<Tensor>(classes, None, Reduction::None, -100, 0.),
            Outputs::Ordinal => {
                let k = Tensor::arange(logits.size()[1], (Kind::Int64, logits.device()));
                let at_least = classes.unsqueeze(1).ge_tensor(&k).to_kind(Kind::Float);
                let losses = logits.binary_cross_entropy_with_logits::<Tensor>(&at_least, None, None, Reduction::None);
                losses.mean_dim(1, false, Kind::Float)
            }
        }
    }

    /// Their mean, each sample with the weight of its class.
    fn loss(&self, logits: &Tensor, classes: &Tensor) -> Tensor {
        let weights: Vec<f32> = self.weights.iter().map(|&w| w as f32).collect();
        let weights = Tensor::from_slice(&weights).to_device(logits.device()).take(classes);
        // A batch of classes of weight 0 has a loss of 0, not of 0 / 0.
        let losses = (self.losses(logits, classes) * &weights).sum(Kind::Float);
        let [losses, total] = step::sums([losses, weights.sum(Kind::Float)]);
        losses / total.clamp_min(f64::from(f32::MIN_POSITIVE))
    }
}

/// Classes `[B]` of logits `[B, K]`.
pub fn classes(outputs: Outputs, logits: &Tensor) -> Tensor {
    match outputs {
        Outputs::Softmax => logits.argmax(1, false),
        Outputs::Ordinal => (logits.gt(0.).sum_dim_intlist(1, false, Kind::Int64) - 1).clamp_min(0),
    }
}

/// Probabilities `[B, K]` of logits `[B, K]`, summing to 1. For ordered outputs they are the differences of "at least k": the
/// first output counts as certain, and each one is lowered to the one before it.
pub fn probabilities(outputs: Outputs, logits: &Tensor) -> Tensor {
    match outputs {
        Outputs::Softmax => logits.softmax(1, Kind::Float),
        Outputs::Ordinal => {
            let k = logits.size()[1];
            let at_least = logits.to_kind(Kind::Float).sigmoid();
            let at_least = Tensor::cat(&[at_least.narrow(1, 0, 1).ones_like(), at_least.narrow(1, 1, k - 1)], 1).cummin(1).0;
            Tensor::cat(&[at_least.narrow(1, 0, k - 1) - at_least.narrow(1, 1, k - 1), at_least.narrow(1, k - 1, 1)], 1)
        }
    }
}

/// Class and the probability of each, of one scan by the logits `[1, K]` of one or several networks. Of several the probabilities are the
/// means; with ordered outputs the class is then the last one that is reached with more than one half.
pub fn decide(outputs: Outputs, logits: &[Tensor]) -> Result<(u8, Vec<f32>)> {
    let each: Vec<Tensor> = logits.iter().map(|logits| probabilities(outputs, logits)).collect();
    let mean = Tensor::stack(&each, 0).mean_dim(0, false, Kind::Float);
    let class = match (logits, outputs) {
        ([one], _) => classes(outputs, one),
        (_, Outputs::Softmax) => mean.argmax(1, false),
        (_, Outputs::Ordinal) => mean.flip([1]).cumsum(1, Kind::Float).gt(0.5).sum_dim_intlist(1, false, Kind::Int64) - 1,
    };
    Ok((u8::try_from(class.int64_value(&[0]))?, Vec::try_from(mean.squeeze_dim(0).to_device(Device::Cpu))?))
}

impl Head for ClassificationHead {
    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> Outcome {
        let x = batch.views.squeeze_dim(1);
        let truth = batch.targets.squeeze_dim(1);
        let logits = self.head.forward(encoder, &x, mode);
        let right = no_grad(|| {
            let right = classes(self.outputs, &logits).eq_tensor(&truth).to_kind(Kind::Float).mean(Kind::Float);
            step::mean(right, truth.size()[0])
        });
        Outcome { loss: self.loss(&logits, &truth), metrics: vec![right] }
    }

    fn downstream(&self) -> Option<&dyn Downstream> {
        Some(self)
    }
}

impl Downstream for ClassificationHead {
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
            let truth = class_of(scans, scan)?;
            let x = input(scans, scan, encoder, device)?;
            place(&x)?;
            let logits = self.logits(encoder, &x);
            let loss = self.losses(&logits, &Tensor::from_slice(&[i64::from(truth)]).to_device(device)).double_value(&[0]);
            Ok(vec![f64::from(truth), classes(self.outputs, &logits).double_value(&[0]), loss])
        })?;
        let of = |numbers: &Vec<f64>| Judged { truth: numbers[0] as u8, predicted: numbers[1] as u8, loss: numbers[2] };
        Ok(judged.map(|judged| summarise(self.score, &self.weights, &judged.iter().map(of).collect::<Vec<_>>())))
    }
}

/// One scan's class, the predicted one, and the loss of it.
struct Judged {
    truth: u8,
    predicted: u8,
    loss: f64,
}

/// The score, accuracy and the mean loss, weighted as in training by `weights`, one a class. Kappa is undefined where truth and prediction
/// hold one and the same class only.
fn summarise(score: Score, weights: &[f64], judged: &[Judged]) -> Vec<(String, f64)> {
    let [truth, predicted]: [Vec<u8>; 2] =
        [|j: &Judged| j.truth, |j: &Judged| j.predicted].map(|of| judged.iter().map(of).collect());
    let confusion = Confusion::of(&truth, &predicted, weights.len());
    let weight = |j: &Judged| weights[usize::from(j.truth)];
    let loss = judged.iter().map(|j| weight(j) * j.loss).sum::<f64>() / judged.iter().map(weight).sum::<f64>();
    let metrics = [(score.name(), score.of(&confusion)), ("accuracy", confusion.accuracy()), ("loss", Some(loss))];
    metrics.map(|(name, value)| (name.to_owned(), value.unwrap_or(f64::NAN))).into()
}

#[cfg(test)]
mod tests;
