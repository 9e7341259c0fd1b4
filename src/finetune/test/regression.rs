//! Scores of a regression.

use crate::data::Scans;
use crate::data::layouts::columns::Column;
use crate::data::store::Subset;
use crate::finetune::test::{TestEnd, Tested, each_case};
use crate::group;
use crate::predict::model::Model;
use crate::report::quantities::Quantities;
use crate::run::record::CaseScore;
use crate::tasks::regression::Standard;
use crate::train::stop::Stop;
use anyhow::{Context, Result};
use serde_json::{Map, json};
use std::path::Path;

/// Predicts every scan and writes `predictions.csv`, `scores.json` and `calibration.png`. A case's score is its absolute error.
pub fn test(model: &Model, column: &Column, standard: Standard, scans: &Subset, folder: &Path, stop: &Stop) -> Result<TestEnd> {
    let predicted =
        each_case(scans, stop, |scan| Ok(vec![model.estimate(&scans.whole(scan)?, scans.shape(scan), standard, None)?]))?;
    let Some(predicted) = predicted else { return Ok(TestEnd::Stopped) };
    if !group::is_first() {
        return Ok(TestEnd::Elsewhere);
    }
    let mut predictions = Quantities::new(column, standard.mean);
    let mut cases = Vec::new();
    for (scan, predicted) in predicted.into_iter().flatten().enumerate() {
        let id = scans.id(scan);
        let truth = scans.quantity(scan).with_context(|| format!("{id}: has no quantity"))?;
        predictions.add(id, Some(truth), predicted);
        cases.push(CaseScore { id: id.to_owned(), score: Some((predicted - truth).abs()) });
    }
    let errors = predictions.errors().context("the test side is empty")?;
    let scores = [("r_squared", errors.r_squared()), ("mae.mean_of_training", predictions.baseline(&errors))];
    let scores = Map::from_iter(scores.map(|(name, value)| (name.to_owned(), json!(value))));
    predictions.write(&folder.join("predictions.csv"))?;
    predictions.write_scores(&folder.join("scores.json"), &errors)?;
    predictions.draw(&folder.join("calibration.png"), "Test side", &errors)?;
    let (score, summary) = (errors.mean_absolute(), predictions.summary(&errors));
    Ok(TestEnd::Scored(Tested { metric: "mae", score, scores, cases, summary }))
}
