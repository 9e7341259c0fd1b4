//! Scores of a classification.

use crate::data::Scans;
use crate::data::store::Subset;
use crate::finetune::test::{TestEnd, Tested, each_case};
use crate::group;
use crate::predict::model::Model;
use crate::report::classes::Predictions;
use crate::report::confusion::write_confusion;
use crate::run::record::CaseScore;
use crate::tasks::classification::{Outputs, Score};
use crate::train::stop::Stop;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Predicts every scan and writes `predictions.csv`, `scores.json` and `confusion.png`. A case's score is [`Score::of_case`].
pub fn test(
    model: &Model,
    classes: &[String],
    outputs: Outputs,
    score: Score,
    scans: &Subset,
    folder: &Path,
    stop: &Stop,
) -> Result<TestEnd> {
    let predicted = each_case(scans, stop, |scan| {
        let (class, probabilities) = model.classify(&scans.whole(scan)?, scans.shape(scan), outputs, None)?;
        Ok(std::iter::once(f64::from(class)).chain(probabilities.into_iter().map(f64::from)).collect())
    })?;
    let Some(predicted) = predicted else { return Ok(TestEnd::Stopped) };
    if !group::is_first() {
        return Ok(TestEnd::Elsewhere);
    }
    let mut predictions = Predictions::new(classes);
    let mut cases = Vec::new();
    for (scan, numbers) in predicted.iter().enumerate() {
        let id = scans.id(scan);
        let truth = scans.class(scan).with_context(|| format!("{id}: has no class"))?;
        let (class, probabilities) = (numbers[0] as u8, numbers[1..].iter().map(|&p| p as f32).collect::<Vec<_>>());
        predictions.add(id, Some(truth), class, &probabilities);
        cases.push(CaseScore { id: id.to_owned(), score: Some(score.of_case(truth, class, classes.len())) });
    }
    let confusion = predictions.confusion().context("the test side is empty")?;
    let further = [("accuracy", confusion.accuracy()), ("balanced_accuracy", confusion.balanced_accuracy())];
    let further = further.into_iter().filter(|(name, _)| *name != score.name());
    let mut scores: Map<String, Value> = further.map(|(name, value)| (name.to_owned(), json!(value))).collect();
    scores.extend(classes.iter().enumerate().map(|(k, name)| (format!("recall.{name}"), json!(confusion.recall(k)))));
    predictions.write(&folder.join("predictions.csv"))?;
    predictions.write_scores(&folder.join("scores.json"), &confusion)?;
    write_confusion(&folder.join("confusion.png"), "Test side", classes, &confusion)?;
    let (metric, score) = (score.name(), score.of(&confusion));
    Ok(TestEnd::Scored(Tested { metric, score, scores, cases, summary: confusion.to_string() }))
}
