//! The test of a fine-tuned run: its best epoch on the test side, scored on the stored grid, and the run's record.

mod classification;
mod regression;

use super::config::FinetuneConfig;
use super::sides::Sides;
use crate::data::Scans;
use crate::data::identity::hex;
use crate::data::labelling::LabelValue;
use crate::data::slices::Slices;
use crate::data::split::Split;
use crate::data::store::Subset;
use crate::dim::{Shape, voxels};
use crate::group::{self, work};
use crate::machine;
use crate::metrics::case::{Scores, score_case};
use crate::metrics::regions;
use crate::metrics::summary::{best_median_worst, mean_dice};
use crate::predict::model::{DownstreamConfig, Model};
use crate::predict::window::{Window, default_batch};
use crate::print::{self, note, say};
use crate::report::cases::{CaseView, write_cases};
use crate::report::progress::Counter;
use crate::report::scores::{table, write_scores};
use crate::run::folder::{Progress, Run, TEST};
use crate::run::history::History;
use crate::run::record::{self, CellResult, RESULT};
use crate::tasks::classification::Score;
use crate::tasks::segmentation::Predicted;
use crate::train::session::Ended;
use crate::train::stop::Stop;
use anyhow::{Context, Result};
use ndarray::ArrayView3;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// What was measured on the test side.
struct Tested {
    /// Name of the score.
    metric: &'static str,
    score: Option<f64>,
    /// Further means, by name.
    scores: Map<String, Value>,
    cases: Vec<record::CaseScore>,
    /// For a terminal.
    summary: String,
}

/// How a test ended.
enum TestEnd {
    Stopped,
    Scored(Tested),
    /// On a rank other than the first, which writes what all have scored.
    Elsewhere,
}

/// Where the test's scores go.
pub fn folder(run: &Run) -> PathBuf {
    run.dir.join(TEST)
}

/// Scores the best checkpoint, the scans shared out between the ranks, and writes `test/` and `result.json` into the run's folder, unless a
/// signal comes.
pub fn test(config: &FinetuneConfig, run: &Run, split: &Split, sides: &Sides, metric: &str, stop: &Stop) -> Result<Ended> {
    let model = Model::load(&run.dir.join("best"), config.train.device, config.train.precision)?;
    let folder = folder(run);
    let tested = match &model.downstream {
        DownstreamConfig::Segmentation { patch, .. } => segmentation(config, &model, *patch, sides, &folder, stop)?,
        DownstreamConfig::Classification { classes, ordered, classification, .. } => {
            let (outputs, score) = (classification.outputs(), Score::new(*ordered));
            classification::test(&model, classes, outputs, score, &sides.test, &folder, stop)?
        }
        DownstreamConfig::Regression { column, standard, .. } => {
            regression::test(&model, column, *standard, &sides.test, &folder, stop)?
        }
    };
    let tested = match tested {
        TestEnd::Stopped => return Ok(Ended::Stopped),
        TestEnd::Elsewhere => return Ok(Ended::Finished),
        TestEnd::Scored(tested) => tested,
    };
    let summary = tested.summary.clone();
    run.write(RESULT, &record(config, run, split, sides, metric, tested)?)?;
    say!("{summary}\n{}: scores in {}", run.dir.join(RESULT).display(), folder.display());
    Ok(Ended::Finished)
}

fn segmentation(
    config: &FinetuneConfig,
    model: &Model,
    patch: Shape,
    sides: &Sides,
    folder: &Path,
    stop: &Stop,
) -> Result<TestEnd> {
    let labelling = model.downstream.labelling();
    let groups = regions::groups(&regions::scored(config.regions, &labelling)?, &labelling);
    let (rank, device, overlap) = (model.rank, model.device, config.segmentation.overlap);
    let (batch_size, decoding) = (default_batch(rank), labelling.decoding());
    let window = Window { rank, patch, overlap, batch_size, mirroring: None, decoding, device };
    let predict = |scan| Predicted::of(sides.test.as_ref(), scan, &window, &|x| model.forward(x));
    let entry = |scan| &sides.test.store().index().subjects[sides.test.scan(scan)];
    let outside: Vec<usize> = (0..sides.test.len()).filter_map(|scan| entry(scan).outside.as_ref().map(|o| o.voxels)).collect();
    if !outside.is_empty() {
        note!(
            "{} labelled voxels of {} test scans lie outside of the foreground's box and count as missed",
            outside.iter().sum::<usize>(),
            outside.len()
        );
    }
    let scored = each_case(&sides.test, stop, |scan| {
        let Predicted { truth, classes, .. } = predict(scan)?;
        let (shape, spacing) = (sides.test.shape(scan), sides.test.spacing(scan));
        let scores = score_case(&truth, &classes, shape, spacing, &groups, config.nsd_tolerance)?;
        Ok(scores.iter().flat_map(Scores::numbers).collect())
    })?;
    let Some(scored) = scored else { return Ok(TestEnd::Stopped) };
    if !group::is_first() {
        return Ok(TestEnd::Elsewhere);
    }
    let case = |(scan, numbers): (usize, &Vec<f64>)| (sides.test.id(scan).to_owned(), Scores::of_numbers(numbers));
    let cases: Vec<(String, Vec<Scores>)> = scored.iter().enumerate().map(case).collect();
    let names: Vec<String> = groups.iter().map(|g| g.name.clone()).collect();
    let settings = json!({
        "data": config.train.data,
        "grid": "as stored",
        "groups": groups,
        "checkpoint": "best",
        "nsd_tolerance_mm": config.nsd_tolerance,
    });
    let summary = write_scores(folder, &names, &cases, &settings)?;
    draw(&folder.join("cases.png"), &labelling.labels, &sides.test, &cases, &predict)?;
    let mut scores = Map::new();
    for group in &summary.groups {
        for (metric, statistics) in &group.metrics {
            scores.insert(format!("{metric}.{}", group.group), json!(statistics.mean));
            scores.insert(format!("{metric}.{}.cases", group.group), json!(statistics.cases));
        }
    }
    let cases = cases.iter().map(|(id, s)| record::CaseScore { id: id.clone(), score: mean_dice(s) }).collect();
    let (score, summary) = (summary.mean_dice, table(&summary, config.nsd_tolerance));
    Ok(TestEnd::Scored(Tested { metric: "dice", score, scores, cases, summary }))
}

/// The numbers that `score` gives for each test scan, shared out between the ranks; `None` if a signal comes.
fn each_case(scans: &Subset, stop: &Stop, score: impl Fn(usize) -> Result<Vec<f64>>) -> Result<Option<Vec<Vec<f64>>>> {
    let counter = Counter::new("test", work::own(scans.len()).count(), print::attended());
    work::each(scans.len(), &|| stop.asked(), |scan| {
        let numbers = score(scan).with_context(|| format!("testing on {}", scans.id(scan)))?;
        counter.inc(scans.id(scan));
        Ok(numbers)
    })
}

/// A picture of the best, the median and the worst case, on the last channel (in BraTS's order FLAIR, which shows most).
fn draw(
    path: &Path,
    labels: &[LabelValue],
    scans: &Subset,
    cases: &[(String, Vec<Scores>)],
    predict: &dyn Fn(usize) -> Result<Predicted>,
) -> Result<()> {
    let dice: Vec<Option<f64>> = cases.iter().map(|(_, scores)| mean_dice(scores)).collect();
    let mut shown = Vec::new();
    for (place, scan) in best_median_worst(&dice) {
        let caption = format!("{place}: {}, Dice {:.3}", cases[scan].0, dice[scan].unwrap_or(f64::NAN));
        shown.push((caption, scans.shape(scan), predict(scan)?));
    }
    let mut rows = Vec::new();
    let slices = scans.store().slices();
    for (caption, shape, predicted) in &shown {
        let last = &predicted.image[predicted.image.len() - voxels(*shape)..];
        let [truth, prediction] = [&predicted.truth, &predicted.classes].map(|classes| stored(slices, *shape, classes));
        rows.push(CaseView {
            caption: caption.clone(),
            image: stored(slices, *shape, last)?,
            truth: truth?,
            prediction: prediction?,
        });
    }
    let names: Vec<String> = labels.iter().map(|l| l.name.clone()).collect();
    if rows.is_empty() { Ok(()) } else { write_cases(path, "Best, median and worst test case by Dice", &names, &rows) }
}

/// A scan's values in stored axes.
fn stored<T>(slices: Option<Slices>, shape: Shape, values: &[T]) -> Result<ArrayView3<'_, T>> {
    let view = ArrayView3::from_shape(shape, values)?;
    Ok(match slices {
        Some(slices) => slices.to_stored(view),
        None => view,
    })
}

/// What a sweep compares and a report shows.
fn record(
    config: &FinetuneConfig,
    run: &Run,
    split: &Split,
    sides: &Sides,
    metric: &str,
    tested: Tested,
) -> Result<CellResult> {
    let rows = History::read(&run.dir)?;
    let best = Progress::read(&run.checkpoint("best"))?;
    let description = run.description()?;
    let pretrained = description.get("pretrained").cloned().unwrap_or_default();
    let text = |key: &str| pretrained.get(key).and_then(Value::as_str).map(str::to_owned);
    let kebab = |value: Value| value.as_str().unwrap_or_default().to_owned();
    Ok(CellResult {
        version: record::VERSION,
        task: kebab(json!(config.task)),
        pretext: config.baseline().map_or_else(|| text("pretext").unwrap_or_default(), str::to_owned),
        arm: kebab(json!(config.arm())),
        fraction: config.train.fraction,
        seed: config.train.seed,
        fold: split.fold.map(|fold| fold.number),
        unlabelled: pretrained.get("unlabelled").and_then(Value::as_f64).unwrap_or(1.),
        rank: sides.test.store().rank()?.n(),
        epochs: rows.len(),
        best_epoch: best.epoch as usize,
        validation_metric: metric.to_owned(),
        seconds: rows.iter().filter_map(|r| r.get("seconds")).sum(),
        peak_memory_mib: machine::peak_memory().map(|bytes| (bytes >> 20) as f64),
        encoder: Some(run.network()?.to_string()),
        weights: text("file"),
        weights_fingerprint: text("fingerprint"),
        warnings: pretrained.get("warnings").map(|w| serde_json::from_value(w.clone())).transpose()?.unwrap_or_default(),
        data_fingerprint: sides.test.store().index().fingerprint.clone(),
        split_fingerprint: hex(&Sha256::digest(serde_json::to_vec(split)?)),
        train_subjects: sides.train.len(),
        val_subjects: sides.valid.len(),
        test_subjects: sides.test.len(),
        metric: tested.metric.into(),
        lower_is_better: config.task.lower_is_better(),
        score: tested.score,
        scores: tested.scores,
        cases: tested.cases,
    })
}
