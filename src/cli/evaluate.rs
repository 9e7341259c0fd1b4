//! `evaluate`: predicted segmentations against the true ones.

use crate::data::labelling::{IGNORE, IGNORE_NAME, LabelValue, Labelling, whole_label};
use crate::data::layouts::segmentations::{Segmentation, Truths, below, pair, truths};
use crate::data::layouts::{self, Dataset, Labels, Reading, Source, Subject};
use crate::data::volume::{Affine, Volume, same_grid, spacing};
use crate::dim::Shape;
use crate::fs::check_writable;
use crate::metrics::brats;
use crate::metrics::case::{Empty, Group, Scores, score_case};
use crate::metrics::regions::{self, Masks, Regions};
use crate::metrics::summary::{best_median_worst, mean_dice};
use crate::metrics::table::{NSD_TOLERANCE_MM, check_tolerance};
use crate::print::{self, note, say};
use crate::report::cases::{CaseView, write_cases};
use crate::report::progress::Counter;
use crate::report::scores::{table, write_scores};
use anyhow::{Context, Result, bail, ensure};
use ndarray::{Array3, Axis};
use rayon::prelude::*;
use serde_json::{Map, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Score predicted segmentations against the true ones
///
/// Writes scores.csv (one row a case and class: Dice, Jaccard, HD95 and average surface distance in mm, normalised surface Dice,
/// volumes in ml; an empty cell is undefined), scores.json (mean, standard deviation, median, counts) and prints a table. Distances are taken on the
/// files' own grid. A prediction belongs to the label of the same case: the subject's id in a dataset, otherwise the file's name
/// without extension and without _seg, _label or _mask.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of predicted segmentations
    #[arg(long, value_name = "DIR")]
    predictions: PathBuf,
    /// Folder of true segmentations, or a dataset with labels in any layout that `preprocess` reads
    #[arg(long, value_name = "PATH")]
    labels: PathBuf,
    /// Scans of the same cases, a folder or dataset as for `preprocess`: also draw the best, median and worst case, cases.png
    #[arg(long, value_name = "PATH")]
    images: Option<PathBuf>,
    /// Channel of the images to draw [default: the first]
    #[arg(long, value_name = "NAME", requires = "images")]
    channel: Option<String>,
    /// Masks to score [default: the regions that the dataset describes, otherwise each class]
    #[arg(long, value_enum)]
    regions: Option<Regions>,
    /// Description of the labels as in nnU-Net's dataset.json: names, regions, and the value that nobody labelled, which is not scored
    /// [default: that of the dataset]
    #[arg(long, value_name = "FILE")]
    description: Option<PathBuf>,
    /// Label values that may occur beside the background 0, e.g. 1,2,4; any other is an error [default: those that the dataset
    /// describes, by its names, otherwise all that are found]
    #[arg(long, value_name = "VALUES", value_delimiter = ',', allow_hyphen_values = true)]
    classes: Vec<i64>,
    /// Millimetres up to which the normalised surface Dice takes two surfaces for the same
    #[arg(long, value_name = "MM", default_value_t = NSD_TOLERANCE_MM)]
    nsd_tolerance: f64,
    /// What becomes of a class that is empty in a case
    #[arg(long, value_enum, default_value = "skip")]
    empty: Empty,
    /// Go on if labels have no prediction; they are counted, and named in scores.json
    #[arg(long)]
    allow_missing: bool,
    /// Folder to write into [default: that of the predictions]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Threads, 1 to 1024; each holds one case in memory at a time [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// What is scored.
struct Scoring {
    /// What the values that may occur mean; `None`: any may.
    labels: Option<Labelling>,
    /// Name and label values of each group; `None`: every value that is found.
    groups: Option<Masks>,
    regions: Option<Regions>,
    empty: Empty,
    /// Of the normalised surface Dice, millimetres.
    tolerance: f64,
}

/// A case's scores by group, and the values that its files hold.
struct Scored {
    scores: BTreeMap<String, Scores>,
    values: BTreeSet<i64>,
}

impl Scoring {
    fn new(args: &Args, described: Option<Labelling>) -> Result<Scoring> {
        let brats = args.regions == Some(Regions::Brats);
        let assumption = brats::assumption(described.as_ref().map_or(&[], |described| &described.labels));
        if let (true, Some(assumption)) = (brats, assumption) {
            note!("--regions brats: {assumption}; a dataset as --labels, with its description, says it otherwise");
        }
        // The dataset's names, even where --classes gives the values.
        let mut groups = match &described {
            Some(described) if brats || args.classes.is_empty() => Some(regions::scored(args.regions, described)?),
            _ => None,
        };
        let mut labels = described;
        if !args.classes.is_empty() {
            let distinct: BTreeSet<i64> = args.classes.iter().copied().collect();
            ensure!(distinct.len() == args.classes.len(), "--classes: a value is given twice in {:?}", args.classes);
            ensure!(!distinct.contains(&0), "--classes: 0 is the background, which is not scored");
            let ignore = labels.and_then(|described| described.ignore);
            let given =
                Labelling { labels: unnamed([0].into_iter().chain(args.classes.iter().copied())), regions: vec![], ignore };
            given.check().context("--classes")?;
            groups = Some(groups.map_or_else(|| regions::scored(args.regions, &given), Ok)?);
            labels = Some(given);
        }
        if brats && labels.is_none() {
            labels = Some(unnamed(0..=4).into());
            groups = Some(brats::REGIONS.map(|(name, values)| (name.to_string(), values.to_vec())).to_vec());
        }
        let mut names = BTreeSet::new();
        for (name, values) in groups.iter().flatten() {
            ensure!(names.insert(name), "label values {values:?} and another are both named {name:?}; give them as --classes");
        }
        Ok(Scoring { labels, groups, regions: args.regions, empty: args.empty, tolerance: args.nsd_tolerance })
    }

    /// Classes of a file's voxels: positions in `values`, to which new values are added; [`IGNORE`] where nobody labelled, which no
    /// prediction says.
    fn classes(&self, volume: &Volume, source: &Source, predicted: bool, values: &mut Vec<i64>) -> Result<Vec<u8>> {
        let file = source.display();
        ensure!(volume.channels() == 1, "{file}: {} channels, expected a segmentation of one", volume.channels());
        let (mut last, mut class) = (f32::NAN, 0);
        let mut out = Vec::with_capacity(volume.data.len());
        for &value in &volume.data {
            if value != last {
                let whole = whole_label(value);
                let whole =
                    whole.with_context(|| format!("{file}: value {value}, expected a segmentation of whole numbers"))?;
                let ignored = self.labels.as_ref().is_some_and(|labels| labels.ignore == Some(whole));
                if let Some(labels) = &self.labels {
                    let known = labels.class_of(whole).is_some();
                    ensure!(known, "{file}: label value {whole}, expected one of {}", labels.values());
                    ensure!(
                        !(ignored && predicted),
                        "{file}: value {whole} is that of voxels that nobody labelled (`{IGNORE_NAME}`), which a prediction does not hold"
                    );
                }
                class = match values.iter().position(|v| *v == whole) {
                    _ if ignored => IGNORE,
                    Some(at) => at as u8,
                    None => {
                        values.push(whole);
                        let at = values.len() - 1;
                        ensure!(at < usize::from(IGNORE), "{file}: more than {IGNORE} label values");
                        at as u8
                    }
                };
                last = value;
            }
            out.push(class);
        }
        Ok(out)
    }

    fn score(&self, truth: &Source, prediction: &Source) -> Result<Scored> {
        let mut values = vec![0];
        let (truth, shape, affine) = {
            let volume = truth.read_ras()?.0;
            (self.classes(&volume, truth, false, &mut values)?, volume.shape(), volume.affine)
        };
        let prediction = self.read_like(prediction, "its label", true, shape, &affine, &mut values)?;
        let labels = unnamed(values.iter().copied());
        let groups = match &self.groups {
            Some(groups) => groups.iter().map(|(name, values)| Group::union(name, values, &labels)).collect(),
            None => Group::classes(&labels),
        };
        let scores = score_case(&truth, &prediction, shape, spacing(&affine), &groups, self.tolerance)?;
        let scores = groups.into_iter().map(|g| g.name).zip(scores.into_iter().map(|s| s.with(self.empty))).collect();
        Ok(Scored { scores, values: values.into_iter().collect() })
    }

    /// Classes of a file that must lie on the given grid.
    fn read_like(
        &self,
        source: &Source,
        first: &str,
        predicted: bool,
        shape: Shape,
        affine: &Affine,
        values: &mut Vec<i64>,
    ) -> Result<Vec<u8>> {
        let volume = source.read_ras()?.0;
        same_grid(first, shape, affine, &source.display(), volume.shape(), &volume.affine)?;
        self.classes(&volume, source, predicted, values)
    }

    /// Names and values of the groups, after all cases have been seen.
    fn groups(&self, cases: &[(String, Scored)]) -> Result<Masks> {
        if let Some(groups) = &self.groups {
            let with = |value: i64| cases.iter().find(|(_, case)| case.values.contains(&value)).map(|(id, _)| id);
            let both = groups.iter().any(|(name, values)| name == "ET" && values.contains(&3) && values.contains(&4));
            if let (Some(Regions::Brats), true, Some(three), Some(four)) = (self.regions, both, with(3), with(4)) {
                bail!("label value 3 in case {three} and 4 in case {four}: enhancing tumour is one or the other");
            }
            return Ok(groups.clone());
        }
        let found: BTreeSet<i64> = cases.iter().flat_map(|(_, case)| case.values.iter().copied()).filter(|v| *v != 0).collect();
        ensure!(!found.is_empty(), "every file holds background alone: there is no class to score; name them with --classes");
        Ok(found.into_iter().map(|value| (value.to_string(), vec![value])).collect())
    }
}

fn unnamed(values: impl IntoIterator<Item = i64>) -> Vec<LabelValue> {
    values.into_iter().map(|value| LabelValue { value, name: value.to_string() }).collect()
}

/// The first few of many, for messages.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join("\n  ");
    if more > 0 { format!("{shown}\n  and {more} more") } else { shown }
}

/// The scans that pictures of cases show.
struct Images {
    folder: PathBuf,
    dataset: Dataset,
    /// Position of the channel that is shown.
    channel: usize,
}

impl Images {
    /// Errors if there is no such channel, or no scan of one of the cases.
    fn open<'a>(folder: &Path, channel: Option<&str>, mut cases: impl Iterator<Item = &'a str>) -> Result<Images> {
        let dataset = layouts::open_as(folder, Reading { labels: Labels::Unwanted, ..Reading::default() })?;
        let channel = match channel {
            None => 0,
            Some(name) => dataset.channels.iter().position(|c| c == name).with_context(|| {
                format!("--channel: no channel `{name}` in {}, which has {}", folder.display(), dataset.channels.join(", "))
            })?,
        };
        let images = Images { folder: folder.to_owned(), dataset, channel };
        cases.try_for_each(|case| images.subject(case).map(drop))?;
        Ok(images)
    }

    fn subject(&self, case: &str) -> Result<&Subject> {
        let of = |id: &str| self.dataset.subjects.iter().find(|s| s.id == id);
        let subject = of(case).or_else(|| of(case.rsplit('/').next().unwrap_or(case)));
        subject.with_context(|| format!("{}: no scan of case `{case}`", self.folder.display()))
    }
}

pub fn run(args: Args) -> Result<()> {
    check_tolerance(args.nsd_tolerance)?;
    let out = args.out.as_ref().unwrap_or(&args.predictions);
    check_writable(["scores.csv", "scores.json", "cases.png"].map(|name| out.join(name))).context("--out")?;
    let predictions = below(&args.predictions)?;
    let Truths { files: truths, labels, problems } = truths(&args.labels)?;
    for problem in problems {
        note!("left out: {problem}");
    }
    let described =
        args.description.as_ref().map(|file| layouts::described_labels(file).context("--description")).transpose()?;
    let plan = Scoring::new(&args, described.or(labels))?;
    let pairs = pair(&truths, &predictions)?;
    let names = |of: &[Segmentation], which: &[usize]| which.iter().map(|&i| of[i].source.display()).collect::<Vec<_>>();
    let alone = names(&predictions, &pairs.without_truth);
    ensure!(alone.is_empty(), "{} predictions without a label in {}:\n  {}", alone.len(), args.labels.display(), list(&alone));
    let missing = names(&truths, &pairs.without_prediction);
    let n = missing.len();
    if n > 0 && !args.allow_missing {
        bail!(
            "{n} labels without a prediction in {} (add --allow-missing to leave them out):\n  {}",
            args.predictions.display(),
            list(&missing)
        );
    }

    let images = args.images.as_ref().map(|folder| {
        let cases = pairs.pairs.iter().map(|&(t, _)| truths[t].id.as_str());
        Images::open(folder, args.channel.as_deref(), cases)
    });
    let images = images.transpose()?;

    let counter = Counter::new("evaluate", pairs.pairs.len(), print::attended());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0).into()).build()?;
    let score = |&(t, p): &(usize, usize)| {
        let (truth, prediction) = (&truths[t], &predictions[p]);
        let scored = plan.score(&truth.source, &prediction.source);
        counter.inc(&truth.id);
        scored.map(|scored| (truth.id.clone(), scored)).map_err(|error| format!("{error:#}"))
    };
    let (cases, faults): (Vec<_>, Vec<_>) =
        pool.install(|| pairs.pairs.par_iter().map(score).collect::<Vec<_>>()).into_iter().partition(Result::is_ok);
    drop(counter);
    let faults: Vec<String> = faults.into_iter().filter_map(Result::err).collect();
    ensure!(faults.is_empty(), "{} of {} cases cannot be scored:\n  {}", faults.len(), pairs.pairs.len(), list(&faults));
    let cases: Vec<(String, Scored)> = cases.into_iter().filter_map(Result::ok).collect();

    let groups = plan.groups(&cases)?;
    let absent = Scores::EMPTY.with(plan.empty);
    let in_order =
        |scored: Scored| groups.iter().map(|(name, _)| scored.scores.get(name).copied().unwrap_or(absent)).collect::<Vec<_>>();
    let cases: Vec<(String, Vec<Scores>)> = cases.into_iter().map(|(id, scored)| (id, in_order(scored))).collect();
    let names: Vec<String> = groups.iter().map(|(name, _)| name.clone()).collect();
    let settings = json!({
        "predictions": args.predictions,
        "labels": args.labels,
        "groups": groups.iter().map(|(name, values)| (name.clone(), json!(values))).collect::<Map<_, _>>(),
        "empty": args.empty,
        "nsd_tolerance_mm": args.nsd_tolerance,
        "without_prediction": pairs.without_prediction.iter().map(|&t| &truths[t].id).collect::<Vec<_>>(),
    });
    let summary = write_scores(out, &names, &cases, &settings)?;
    say!("{}", table(&summary, plan.tolerance));
    if n > 0 {
        say!("{n} labels without a prediction left out, the first: {}", missing[0]);
    }
    let mut written = "scores.csv, scores.json".to_string();
    if let Some(images) = images {
        let files: Vec<_> = pairs.pairs.iter().map(|&(t, p)| (&truths[t], &predictions[p])).collect();
        if draw(&out.join("cases.png"), &images, &plan, &files, &cases)? {
            written += ", cases.png";
        } else {
            say!("no figure: Dice is defined in no case");
        }
    }
    say!("{}: {written}", out.display());
    Ok(())
}

/// Draws the best, median and worst case by the mean Dice; false if it is defined in none.
fn draw(
    path: &Path,
    images: &Images,
    plan: &Scoring,
    files: &[(&Segmentation, &Segmentation)],
    cases: &[(String, Vec<Scores>)],
) -> Result<bool> {
    let dice: Vec<Option<f64>> = cases.iter().map(|(_, scores)| mean_dice(scores)).collect();
    // One numbering of the values for all three pictures.
    let mut values: Vec<i64> = vec![0];
    let labels = plan.labels.as_ref().map_or(&[][..], |labelling| &labelling.labels);
    values.extend(labels.iter().map(|l| l.value).filter(|v| *v != 0));
    let mut shown = vec![];
    for (place, i) in best_median_worst(&dice) {
        let (truth, prediction) = files[i];
        let id = &truth.id;
        let (source, plane) = match &images.subject(id)?.channels[..] {
            [only] => (only, images.channel),
            many => (&many[images.channel], 0),
        };
        let volume = source.read_ras()?.0;
        let (shape, affine) = (volume.shape(), volume.affine);
        ensure!(plane < volume.channels(), "{}: {} channels, no {plane}", source.display(), volume.channels());
        let mut classes = |file: &Segmentation, predicted: bool| -> Result<Array3<u8>> {
            let classes = plan.read_like(&file.source, &source.display(), predicted, shape, &affine, &mut values)?;
            Ok(Array3::from_shape_vec(shape, classes)?)
        };
        let pictures = (classes(truth, false)?, classes(prediction, true)?);
        let caption = format!("{place}: {id}, Dice {:.3}", dice[i].unwrap_or(f64::NAN));
        shown.push((caption, volume.data.index_axis_move(Axis(0), plane), pictures));
    }
    if shown.is_empty() {
        return Ok(false);
    }
    let name = |value: &i64| {
        let known = labels.iter().find(|l| l.value == *value).map(|l| l.name.clone());
        known.unwrap_or_else(|| value.to_string())
    };
    let names: Vec<String> = values.iter().map(name).collect();
    let rows: Vec<CaseView> = shown
        .iter()
        .map(|(caption, image, (truth, prediction))| CaseView {
            caption: caption.clone(),
            image: image.view(),
            truth: truth.view(),
            prediction: prediction.view(),
        })
        .collect();
    write_cases(path, "Best, median and worst case by Dice", &names, &rows)?;
    Ok(true)
}
