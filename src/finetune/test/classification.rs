//! Scores of a classification.

use crate::data::Scans;
use crate::data::store::Subset;
use crate::finetune::test::Tested;
use crate::predict::model::Model;
use crate::report::classes::Predictions;
use crate::report::confusion::write_confusion;
use crate::report::progress::Counter;
use crate::run::record::CaseScore;
use crate::tasks::classification::Outputs;
use crate::train::stop::Stop;
use anyhow::{Context, Result};
use serde_json::{Map, json};
use std::path::Path;

/// Predicts every scan and writes `predictions.csv`, `scores.json` and `confusion.png`; `None` if a signal comes.
///
/// A case's score is what it adds to weighted agreement: 1 less the squared distance of true and predicted class, as a share of the
/// largest possible one.
pub fn test(
    model: &Model,
    classes: &[String],
    outputs: Outputs,
    scans: &Subset,
    folder: &Path,
    stop: &Stop,
) -> Result<Option<Tested>> {
    let counter = Counter::new("test", scans.len(), console::user_attended_stderr());
    let mut predictions = Predictions::new(classes);
    let mut cases = Vec::new();
    for scan in 0..scans.len() {
        if stop.asked() {
            return Ok(None);
        }
        let id = scans.id(scan);
        let truth = scans.class(scan).with_context(|| format!("{id}: has no class"))?;
        let (class, probabilities) = model
            .classify(&scans.whole(scan)?, scans.shape(scan), outputs, None)
            .with_context(|| format!("testing on {id}"))?;
        predictions.add(id, Some(truth), class, &probabilities);
        let distance = (f64::from(truth) - f64::from(class)) / (classes.len() - 1).max(1) as f64;
        cases.push(CaseScore { id: id.to_owned(), score: Some(1. - distance * distance) });
        counter.inc(id);
    }
    drop(counter);
    let confusion = predictions.confusion().context("the test side is empty")?;
    let (kappa, accuracy) = (confusion.weighted_kappa(), confusion.accuracy());
    let mut scores = Map::from_iter([("accuracy".to_owned(), json!(accuracy))]);
    scores.extend(classes.iter().enumerate().map(|(k, name)| (format!("recall.{name}"), json!(confusion.recall(k)))));
    predictions.write(&folder.join("predictions.csv"))?;
    predictions.write_scores(&folder.join("scores.json"), &confusion)?;
    write_confusion(&folder.join("confusion.png"), "Test side", classes, &confusion)?;
    Ok(Some(Tested { metric: "kappa", score: kappa, scores, cases, summary: confusion.to_string() }))
}
