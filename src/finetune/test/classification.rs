//! Scores of a classification.

use crate::data::Scans;
use crate::data::store::Subset;
use crate::finetune::test::Tested;
use crate::predict::model::Model;
use crate::report::classes::Predictions;
use crate::report::confusion::write_confusion;
use crate::report::progress::Counter;
use crate::run::record::CaseScore;
use crate::tasks::classification::{Outputs, Score};
use crate::train::stop::Stop;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Predicts every scan and writes `predictions.csv`, `scores.json` and `confusion.png`; `None` if a signal comes. A case's score is
/// [`Score::of_case`].
pub fn test(
    model: &Model,
    classes: &[String],
    outputs: Outputs,
    score: Score,
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
        cases.push(CaseScore { id: id.to_owned(), score: Some(score.of_case(truth, class, classes.len())) });
        counter.inc(id);
    }
    drop(counter);
    let confusion = predictions.confusion().context("the test side is empty")?;
    let further = [("accuracy", confusion.accuracy()), ("balanced_accuracy", confusion.balanced_accuracy())];
    let further = further.into_iter().filter(|(name, _)| *name != score.name());
    let mut scores: Map<String, Value> = further.map(|(name, value)| (name.to_owned(), json!(value))).collect();
    scores.extend(classes.iter().enumerate().map(|(k, name)| (format!("recall.{name}"), json!(confusion.recall(k)))));
    predictions.write(&folder.join("predictions.csv"))?;
    predictions.write_scores(&folder.join("scores.json"), &confusion)?;
    write_confusion(&folder.join("confusion.png"), "Test side", classes, &confusion)?;
    let (metric, score) = (score.name(), score.of(&confusion));
    Ok(Some(Tested { metric, score, scores, cases, summary: confusion.to_string() }))
}
