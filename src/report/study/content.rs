//! What a report says, in its order.

use super::document::{Block, Field, Table as Grid};
use super::figures::{self, Styles};
use super::words::{
    amount, compared_arm, finding, mean, named, number, of_labels, overall, p_value, percent, reaching, repetitions, section,
};
use super::{given, ranking, rates, settings};
use crate::report::progress::duration;
use crate::study::compare::{Arm, Comparison, Table};
use crate::study::labels::Labels;
use crate::study::read::Records;
use crate::study::repetitions::Repetitions;
use crate::study::stats::{Estimate, MIN_REPETITIONS};
use crate::study::{Convergence, compared};

/// Missing cells that are named.
const NAMED: usize = 12;

/// State of the sweep, tables and sentences: what a terminal shows as well.
pub fn summary(common: &Records, own: Option<&Records>) -> Vec<Block> {
    let mut blocks = vec![Block::Heading(1, common.title())];
    blocks.extend(repetitions(common).into_iter().map(Block::Paragraph));
    let mut said = warnings(own.unwrap_or(common));
    if own.is_some() {
        let others: Vec<String> = warnings(common).into_iter().filter(|warning| !said.contains(warning)).collect();
        said.extend(others.into_iter().map(|warning| format!("at the common rate: {warning}")));
    }
    blocks.extend(said.into_iter().map(Block::Warning));
    match own {
        None => blocks.extend(results(common, "")),
        Some(own) => {
            blocks.extend(results(own, ", every arm at its own learning rate"));
            blocks.extend(results(common, ", all at the common learning rate"));
            blocks.extend(rates::chosen(common));
        }
    }
    blocks
}

/// Means, comparisons and sentences of one way to choose learning rates, which `rate` names.
fn results(records: &Records, rate: &str) -> Vec<Block> {
    let (ranks, folds, metric) = (records.ranks(), records.has_folds(), records.metric());
    let (tables, mut blocks) = (records.tables(), Vec::new());
    for table in &tables {
        blocks.push(Block::Heading(2, section(table, metric, tables.len() > 1) + rate));
        blocks.push(Block::Table(means(records, table)));
        if table.scratch.is_empty() {
            blocks
                .push(Block::Paragraph("The sweep plans no pair of a pretrained arm and scratch: nothing to compare.".into()));
        }
        let families = [
            (&table.scratch, "scratch", "training from scratch".to_owned()),
            (&table.random, "random frozen", "frozen random weights".to_owned()),
            (&table.flat, "2D", "the same in 2D".to_owned()),
        ];
        let given =
            table.given.iter().map(|(name, comparisons)| (comparisons, name.as_str(), format!("the given weights {name}")));
        for (comparisons, other, whole) in families.into_iter().chain(given).filter(|f| !f.0.is_empty()) {
            blocks.push(Block::Heading(3, format!("Difference to {other}")));
            blocks.push(Block::Paragraph(overall(comparisons, &whole)));
            let sentence = |c: &Comparison| {
                let (arm, labels) = (compared_arm(c, &ranks, other), of_labels(records, c.labels));
                format!("{arm}, {labels}: {}", finding(c, folds))
            };
            blocks.push(Block::List(comparisons.iter().map(sentence).collect()));
            blocks.push(Block::Table(differences(records, comparisons, other)));
        }
    }
    blocks
}

/// Everything else: definitions, figures, convergence, published numbers, records.
pub fn rest(records: &Records, tables: &[Table], convergence: &[Convergence]) -> Vec<Block> {
    let styles = Styles::of(records);
    let bars = "Bars are 95 % intervals over repetitions, cut where they leave the axes.";
    let mut blocks = vec![Block::Heading(2, "What these numbers are".into()), Block::List(definitions(records, tables))];
    blocks.extend(ranking::ranking(records, tables));
    blocks.push(Block::Heading(2, "Data efficiency".into()));
    let figure = figures::efficiency(records, &styles, tables);
    blocks.push(Block::Picture("efficiency.png", format!("{}. {bars}", figure.title), figure));
    if tables.len() > 1 {
        blocks.push(Block::Heading(2, "Gain against the share of unlabelled scans".into()));
        blocks.extend(scaling(records, tables));
        let figure = figures::scaling(records, &styles, tables);
        blocks.push(Block::Picture("scaling.png", format!("{}. {bars}", figure.title), figure));
    }
    if !convergence.is_empty() {
        blocks.push(Block::Heading(2, "Convergence".into()));
        let part = |c: &Convergence, sentence: String| match c.unlabelled {
            Some(share) => format!("{} of the unlabelled scans, {sentence}", percent(share)),
            None => sentence,
        };
        let sentences = convergence.iter().flat_map(|c| c.reach.iter().flat_map(|r| reaching(records, r)).map(|s| part(c, s)));
        blocks.push(Block::List(sentences.collect()));
        blocks.extend(ranking::reached(records, convergence));
        let figure = figures::convergence(records, &styles, convergence);
        blocks.push(Block::Picture("convergence.png", format!("{}. Means over repetitions.", figure.title), figure));
    }
    blocks.extend(settings::by_arm(records));
    blocks.extend(given::weights(records));
    blocks.extend(published(records, tables));
    blocks.extend(pretraining(records));
    blocks.push(Block::Heading(2, "Every finished run".into()));
    blocks.push(Block::Table(runs(records)));
    blocks
}

fn warnings(records: &Records) -> Vec<String> {
    let (done, all) = (records.done().count(), records.sweep.cells.len());
    let mut said = Vec::new();
    let named = |ids: &[&str]| {
        let more = if ids.len() > NAMED { format!(" and {} more", ids.len() - NAMED) } else { String::new() };
        ids[..ids.len().min(NAMED)].join(", ") + &more
    };
    if done < all {
        let missing = records.sweep.cells.iter().zip(&records.finished).filter(|(_, f)| f.is_none());
        let missing: Vec<&str> = missing.map(|(c, _)| c.id.as_str()).collect();
        said.push(format!("incomplete: {done} of {all} cells; missing: {}", named(&missing)));
    }
    let undefined: Vec<&str> = records.done().filter(|(_, f)| f.result.score.is_none()).map(|(c, _)| c.id.as_str()).collect();
    if !undefined.is_empty() {
        said.push(format!("the score is undefined, and left out, in {}", named(&undefined)));
    }
    let bare: Vec<&str> = records.done().filter(|(_, f)| f.history.is_empty()).map(|(c, _)| c.id.as_str()).collect();
    if !bare.is_empty() {
        said.push(format!("no metrics.jsonl, so no convergence of their arm and fraction, in {}", named(&bare)));
    }
    let warned: Vec<(&str, &String)> =
        records.done().filter_map(|(c, f)| Some((c.id.as_str(), f.result.warnings.first()?))).collect();
    if let Some((_, first)) = warned.first() {
        let cells: Vec<&str> = warned.iter().map(|(id, _)| *id).collect();
        said.push(format!("fine-tuning warned of the weights of {}; the first: {first}", named(&cells)));
    }
    said.extend(given::changed(records));
    said.extend(records.notes.iter().cloned());
    let unfair =
        [("all but the encoder's start", records.unfair()), ("their subjects in 2D and in 3D", records.unfair_ranks())];
    for (what, pairs) in unfair.iter().filter(|(_, pairs)| !pairs.is_empty()) {
        let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
        said.push(format!("these cells should share {what}, and do not: {}", named(&pairs)));
    }
    said
}

/// Means and intervals, the best of a column strong.
fn means(records: &Records, table: &Table) -> Grid {
    let ranks = records.ranks();
    let mut head = vec!["arm".to_string()];
    head.extend(table.labels.iter().map(|&labels| of_labels(records, labels)));
    let best = |column: usize| {
        let values = table.means.iter().filter_map(|row| Some(row[column]?.mean));
        match records.lower_is_better() {
            true => values.fold(f64::INFINITY, f64::min),
            false => values.fold(f64::NEG_INFINITY, f64::max),
        }
    };
    let best: Vec<f64> = (0..table.labels.len()).map(best).collect();
    let field = |(value, best): (&Option<Estimate>, &f64)| match value {
        Some(e) => Field { text: mean(e), strong: e.mean == *best },
        None => "missing".into(),
    };
    let row = |(arm, values): (&Arm, &Vec<Option<Estimate>>)| {
        let name = named(arm, &ranks, records.other_encoder(arm, &arm.scratch()), "scratch");
        std::iter::once(name.into()).chain(values.iter().zip(&best).map(field)).collect()
    };
    Grid { head, rows: table.arms.iter().zip(&table.means).map(row).collect() }
}

fn differences(records: &Records, comparisons: &[Comparison], other: &str) -> Grid {
    let ranks = records.ranks();
    let head = ["arm", "labels", &format!("minus {other} (95 %)"), "p", "p, Holm", "pairs", "p over cases (Wilcoxon)"];
    let row = |c: &Comparison| {
        let cases = match &c.cases {
            Some(test) => {
                format!("{} ({} cases{})", p_value(Some(test.p)), c.case_count, if test.exact { "" } else { ", approx." })
            }
            None => "-".into(),
        };
        vec![
            compared_arm(c, &ranks, other).into(),
            amount(records, c.labels).into(),
            c.paired.map_or("-".into(), |p| mean(&p.difference)).into(),
            p_value(c.paired.and_then(|p| p.p)).into(),
            p_value(c.holm).into(),
            format!("{} of {}", c.pairs, c.planned).into(),
            cases.into(),
        ]
    };
    Grid { head: head.map(String::from).into(), rows: comparisons.iter().map(row).collect() }
}

fn definitions(records: &Records, tables: &[Table]) -> Vec<String> {
    let folds = records.has_folds();
    let unit = if folds { "fold" } else { "seed" };
    let [better, worse] = if records.lower_is_better() { ["below", "above"] } else { ["above", "below"] };
    let mut said = Vec::new();
    let definition = match records.metric() {
        "dice" => Some(
            "Dice is the mean over test cases of the mean over classes, background left out. A class that neither the truth nor \
             the prediction has is undefined in that case and left out of the mean; one that only one of them has scores 0.",
        ),
        "kappa" => Some(
            "Kappa is Cohen's with quadratic weights over the ordered classes, of all test scans together: 0 is the agreement of \
             chance. In tests over cases, which are scans (the eyes of one person count as two), a scan's score is 1 less the \
             squared distance of true and predicted class, as a share of the largest.",
        ),
        "balanced_accuracy" => Some(
            "Balanced accuracy is the mean over classes of the share of a class's test scans that got it. In tests over cases, which are \
             scans, one that got its class scores 1 and another 0.",
        ),
        "mae" => Some(
            "The mean absolute error is the mean over test scans of the distance of the predicted to the true quantity, in its unit.",
        ),
        _ => None,
    };
    said.extend(definition.map(str::to_owned));
    said.push(format!(
        "{}: {} is better. The epoch with the best validation score is the one that is tested.",
        records.metric(),
        if records.lower_is_better() { "lower" } else { "higher" }
    ));
    said.push(format!(
        "Means are over {unit}s, with the 95 % interval of Student's t distribution (as the interval of a mean it may leave the \
         score's range); the best mean of a column is emphasised, which alone shows no gain."
    ));
    if folds {
        said.push(
            "Folds share training subjects and are not independent. The seeds of a fold are averaged first, and the variance of a \
             mean over n of K folds is that of Nadeau and Bengio (2003): the folds' own times 1/n + 1/(K - 1), not 1/n."
                .into(),
        );
    } else if records.repetitions.iter().any(Repetitions::splits_vary) {
        said.push(
            "Splits share subjects and are not independent: the variance of a mean over n of them is that of Nadeau and Bengio \
             (2003), their own times 1/n + the tested subjects over the others, not 1/n."
                .into(),
        );
    }
    said.push(format!(
        "Differences are of pairs of the same share of labels{}, with the interval and the two-sided p-value of the paired t-test. \
         A gain (loss) is an interval wholly {better} ({worse}) 0; anything else shows none. Fewer than {MIN_REPETITIONS} {unit}s, or \
         pairs that all differ by the same, allow no verdict.",
        if folds { ", seed and fold" } else { " and seed" }
    ));
    if tables.iter().any(|t| !t.flat.is_empty()) {
        said.push(format!(
            "Differences to 2D are those of 3D minus 2D of the same pretext task, arm, share of labels and repetition: {better} 0, the \
             third dimension helps. The two networks differ in their number of weights as well."
        ));
    }
    if tables.iter().any(|t| !t.scratch.is_empty() || !t.flat.is_empty()) {
        said.push(
            "Holm adjusts the p-values for all comparisons of their table. Wilcoxon's signed-rank test takes each test case once, \
             its difference averaged over the pairs: it speaks about other cases with these trained networks, not about other \
             trainings."
                .into(),
        );
    }
    said.push("Baselines (scratch, random) do not depend on unlabelled scans and stand in every table.".into());
    if records.sweep.cells.iter().any(|cell| cell.given) {
        said.push(
            "Given weights stand in every table too. Their encoder is that of their file; where it is another than scratch's, a \
             difference to scratch is one of the networks as well, not of the pretraining alone."
                .into(),
        );
    }
    said
}

/// Differences to scratch, columns are shares of unlabelled scans.
fn scaling(records: &Records, tables: &[Table]) -> Vec<Block> {
    let mut head = vec!["arm".to_string(), "labels".to_string()];
    head.extend(tables.iter().map(|t| format!("{} unlabelled", percent(t.unlabelled))));
    let mut rows = Vec::new();
    for arm in compared(tables) {
        for labels in records.labels() {
            let find = |t: &Table| t.scratch.iter().find(|c| c.arm == arm && c.labels == labels).and_then(|c| c.paired);
            let fields = tables.iter().map(|t| find(t).map_or("-".into(), |p| mean(&p.difference).into()));
            let names: [Field; 2] = [arm.label(&records.ranks()).into(), amount(records, labels).into()];
            rows.push(names.into_iter().chain(fields).collect());
        }
    }
    vec![Block::Paragraph("Difference to scratch with its 95 % interval.".into()), Block::Table(Grid { head, rows })]
}

fn published(records: &Records, tables: &[Table]) -> Vec<Block> {
    if records.sweep.published.is_empty() {
        return Vec::new();
    }
    let metric = records.metric();
    // Ours with all unlabelled scans, the most that any arm had.
    let ours = |pretext: &str, fraction: f64| {
        let Some(table) = tables.last() else { return String::new() };
        let column = table.labels.iter().position(|labels| *labels == Labels::Share(fraction));
        let rows = table.arms.iter().zip(&table.means).filter(|(arm, _)| arm.pretext == pretext);
        let values = rows.filter_map(|(arm, row)| Some(format!("{} {}", arm.label(&records.ranks()), mean(&row[column?]?))));
        values.collect::<Vec<_>>().join("; ")
    };
    let rows = records.sweep.published.iter().map(|p| {
        let ours = ours(&p.pretext, p.fraction);
        let ours = if ours.is_empty() { "-".to_string() } else { ours };
        vec![
            p.pretext.as_str().into(),
            percent(p.fraction).into(),
            p.value.to_string().into(),
            p.metric.as_str().into(),
            p.source.as_str().into(),
            ours.into(),
        ]
    });
    let head = ["pretext", "labels", "published", "its definition", "source", &format!("ours, {metric}")];
    vec![
        Block::Heading(2, "Published numbers".into()),
        Block::Paragraph(format!(
            "Measured by others, on their data and by their definition, which differs from that of {metric} here: not to be \
             compared value by value, and part of no statistic above."
        )),
        Block::Table(Grid { head: head.map(String::from).into(), rows: rows.collect() }),
    ]
}

fn pretraining(records: &Records) -> Vec<Block> {
    if records.pretraining.is_empty() {
        return Vec::new();
    }
    let value = |v: Option<f64>| v.map_or("-".to_string(), number);
    let rows = records.pretraining.iter().map(|(run, r)| {
        let rank = r.rank.map_or(String::new(), |rank| format!(" {rank}D"));
        vec![
            run.as_str().into(),
            format!("{}{rank}", r.pretext).into(),
            percent(r.unlabelled).into(),
            r.metric.as_str().into(),
            value(r.value).into(),
            value(r.chance).into(),
            r.epochs.to_string().into(),
            duration(r.seconds).into(),
        ]
    });
    let head = ["run", "task", "unlabelled", "metric", "reached", "chance", "epochs", "time"];
    let table = Grid { head: head.map(String::from).into(), rows: rows.collect() };
    vec![Block::Heading(2, "Pretraining".into()), Block::Table(table)]
}

fn runs(records: &Records) -> Grid {
    let short = |fingerprint: &str| fingerprint.chars().take(8).collect::<String>();
    let rows = records.runs().map(|(cell, f)| {
        let r = &f.result;
        vec![
            cell.id.as_str().into(),
            cell.fold.map_or(cell.seed.to_string(), |fold| format!("{} / {fold}", cell.seed)).into(),
            r.score.map_or("undefined".into(), number).into(),
            format!("{} of {}", r.best_epoch, r.epochs).into(),
            format!("{} / {} / {}", r.train_subjects, r.val_subjects, r.test_subjects).into(),
            duration(r.seconds).into(),
            r.peak_memory_mib.map_or("-".into(), |m| format!("{m:.0} MiB")).into(),
            r.weights_fingerprint.as_deref().map_or("-".into(), short).into(),
            short(&r.data_fingerprint).into(),
            short(&r.split_fingerprint).into(),
        ]
    });
    let seed = if records.has_folds() { "seed / fold" } else { "seed" };
    let subjects = "subjects (train / val / test)";
    let head = ["run", seed, records.metric(), "best epoch", subjects, "time", "peak memory", "weights", "data", "split"];
    Grid { head: head.map(String::from).into(), rows: rows.collect() }
}
