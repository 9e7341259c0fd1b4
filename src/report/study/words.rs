//! Numbers and findings in words. What is said follows the interval, never the mean alone.

use crate::study::cell::Cell;
use crate::study::compare::{Arm, Comparison, Table, Verdict};
use crate::study::converge::{Reach, Reached};
use crate::study::labels::Labels;
use crate::study::read::Records;
use crate::study::repetitions::Repetitions;
use crate::study::stats::{Estimate, LEVEL, MIN_REPETITIONS};
use std::collections::BTreeSet;

/// p-values below this count as shown after the adjustment for several comparisons: the intervals' own level.
const ALPHA: f64 = 1.0 - LEVEL;

/// `10 %` of 0.1.
pub fn percent(share: f64) -> String {
    format!("{} %", (share * 1e4).round() / 1e2)
}

/// `10 %`, or `3 (2.3 %)` of a number of subjects; of training sides of several sizes the share of the first.
pub fn amount(records: &Records, labels: Labels) -> String {
    match labels {
        Labels::Share(share) => percent(share),
        Labels::Subjects(n) => format!("{n} ({})", share_of(records, labels)),
    }
}

/// `10 % of the labels`, or `3 labelled subjects (2.3 %)`.
pub fn of_labels(records: &Records, labels: Labels) -> String {
    match labels {
        Labels::Share(share) => format!("{} of the labels", percent(share)),
        Labels::Subjects(n) => format!("{n} labelled subject{} ({})", if n == 1 { "" } else { "s" }, share_of(records, labels)),
    }
}

fn share_of(records: &Records, labels: Labels) -> String {
    let first = records.sweep.cells.iter().find(|cell| Labels::of(cell) == labels);
    first.map_or("-".into(), |cell| percent(cell.fraction))
}

/// Three decimals, or two digits of what would be 0 with them.
pub fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 5e-4 { format!("{value:.1e}") } else { format!("{value:.3}") }
}

/// Two values with `to` between them.
pub fn range([low, high]: [f64; 2]) -> String {
    format!("{} to {}", number(low), number(high))
}

/// `0.712 (0.690 to 0.734)`.
pub fn mean(estimate: &Estimate) -> String {
    match estimate.interval {
        Some(interval) => format!("{} ({})", number(estimate.mean), range(interval)),
        None => number(estimate.mean),
    }
}

pub fn p_value(p: Option<f64>) -> String {
    p.map_or("-".into(), |p| if p < 1e-3 { "< 0.001".into() } else { format!("{p:.3}") })
}

/// `3 seeds`; of a cross-validation `3 folds`, each the mean over its seeds.
pub fn units(n: usize, folds: bool) -> String {
    format!("{n} {}{}", if folds { "fold" } else { "seed" }, if n == 1 { "" } else { "s" })
}

/// What one comparison shows, after its name.
pub fn finding(comparison: &Comparison, folds: bool) -> String {
    let planned = comparison.planned;
    let missing = match planned - comparison.pairs {
        0 => String::new(),
        missing => format!("; {missing} of {planned} pairs missing"),
    };
    let Some(difference) = comparison.paired.map(|p| p.difference) else {
        return format!("no finished pair, nothing to compare{missing}");
    };
    let (value, size) = (number(difference.mean), number(difference.mean.abs()));
    let n = difference.n;
    let shown = mean(&difference);
    let said = match (comparison.verdict(), comparison.better_by(difference.interval)) {
        (Verdict::Gain, Some(interval)) => format!("gain of {size} ({})", range(interval)),
        (Verdict::Loss, Some([low, high])) => format!("loss of {size} ({})", range([-high, -low])),
        (Verdict::Unknown, _) if n < MIN_REPETITIONS => {
            format!("no verdict, which needs {}: difference {shown}", units(MIN_REPETITIONS, folds))
        }
        (Verdict::Unknown, _) => format!("no verdict, all pairs differ by the same {value}"),
        _ => format!("no gain shown: difference {shown}"),
    };
    format!("{said}, {}{missing}", units(n, folds))
}

/// The arm, and where its encoder is another in kind than the other's, that.
pub fn compared_arm(comparison: &Comparison, ranks: &[usize], other: &str) -> String {
    named(&comparison.arm, ranks, comparison.other_encoder, other)
}

/// As [`compared_arm`], of what is known of an arm.
pub fn named(arm: &Arm, ranks: &[usize], other_encoder: bool, other: &str) -> String {
    let name = arm.label(ranks);
    if other_encoder { format!("{name} (another encoder than {other})") } else { name }
}

/// What the comparisons of one table show together; `other` is what they compare with.
pub fn overall(comparisons: &[Comparison], other: &str) -> String {
    let count = |verdict| comparisons.iter().filter(|c| c.verdict() == verdict).count();
    let [gains, losses, neither, unknown] = [Verdict::Gain, Verdict::Loss, Verdict::Neither, Verdict::Unknown].map(count);
    let all = comparisons.len();
    if unknown == all {
        return format!(
            "No statement on gain or loss is possible: none of {all} comparisons with {other} has {MIN_REPETITIONS} repetitions \
             that differ."
        );
    }
    let mut said = if gains == 0 { format!("No gain over {other} is shown. ") } else { String::new() };
    said += &format!("Of {all} comparisons with {other}, {gains} show a gain, {losses} a loss, {neither} neither");
    if unknown > 0 {
        said += &format!(", and {unknown} allow no verdict");
    }
    let kept = |verdict| comparisons.iter().filter(|c| c.verdict() == verdict && c.holm.is_some_and(|p| p < ALPHA)).count();
    let tests = all - unknown;
    let (kept, lost) = (kept(Verdict::Gain), kept(Verdict::Loss));
    if gains + losses > 0 {
        said += &match (kept, lost) {
            (0, 0) => format!("; none survives Holm's adjustment for {tests} comparisons"),
            _ => format!("; of the gains {kept} and of the losses {lost} survive Holm's adjustment for {tests} comparisons"),
        };
    }
    said + "."
}

/// `reaches scratch's final 0.620 at epoch 12 of 50; scratch itself at 48`, one sentence an arm.
pub fn reaching(records: &Records, reach: &Reach) -> Vec<String> {
    let Reach { labels, goal, epochs, own, .. } = reach;
    let (labels, goal) = (of_labels(records, *labels), number(*goal));
    let sentence = |Reached { arm, first, .. }: &Reached| {
        let name = arm.label(&records.ranks());
        match first {
            Some(first) => format!(
                "{name}, {labels}: reaches scratch's final {goal} at epoch {first} of {epochs}; scratch itself at {own}"
            ),
            None => {
                format!("{name}, {labels}: never reaches scratch's final {goal} in {epochs} epochs; scratch itself at {own}")
            }
        }
    };
    reach.first.iter().map(sentence).collect()
}

/// What a repetition varies and what all share, one paragraph for each sweep that says otherwise than the first.
pub fn repetitions(records: &Records) -> Vec<String> {
    let mut said: Vec<String> = records.repetitions.iter().map(|r| varied(r, &records.sweep.cells)).collect();
    said.dedup();
    said
}

fn varied(repetitions: &Repetitions, cells: &[Cell]) -> String {
    let seeds = repetitions.draws.len();
    let splits = repetitions.folds.is_some() || repetitions.splits_vary();
    // The folds of one division all average the same seeds.
    let seeds_vary = repetitions.folds.is_none() || repetitions.splits_vary();
    let (mut own, mut shared) = (Vec::new(), Vec::new());
    let mut put = |varies: bool, own_name: &str, shared_name: &str| match varies {
        true => own.push(own_name.to_owned()),
        false => shared.push(shared_name.to_owned()),
    };
    let of_each = if repetitions.folds.is_some() { "fold" } else { "repetition" };
    put(splits, "the split", "the split");
    let (samples, n) = ("the initialisation and of the order of samples", seeds);
    let same = if seeds > 1 { format!("the {n} seeds of {samples}") } else { format!("the seed of {samples}") };
    put(seeds > 1 && seeds_vary, "the initialisation and the order of samples", &same);
    if repetitions.subsets {
        put(splits || repetitions.distinct(|draw| draw.subset) > 1, "the label subset", "the label subset");
    }
    if cells.iter().any(Cell::is_pretrained_here) {
        let encoders = repetitions.distinct(|draw| draw.pretraining);
        let by_split = repetitions.pretrained_by_split && splits;
        let each = match encoders {
            0 | 1 => format!("one encoder for each {of_each}"),
            n if n < seeds && !by_split => format!("{n} encoders"),
            _ => "one encoder for each repetition".to_owned(),
        };
        let same = if encoders > 1 {
            format!("the {encoders} encoders of every fold")
        } else {
            "the encoder (one for all repetitions)".to_owned()
        };
        put(by_split || encoders > 1 && seeds_vary, &format!("the pretraining ({each})"), &same);
    }
    let given: BTreeSet<&str> = cells.iter().filter(|cell| cell.given).map(|cell| cell.pretext.as_str()).collect();
    if !given.is_empty() {
        let names = given.into_iter().collect::<Vec<_>>().join(", ");
        put(false, "", &format!("the given weights ({names})"));
    }
    let count = match repetitions.folds {
        Some(folds) => format!("{folds} folds of {}", units(seeds.max(1), false)),
        None => units(seeds.max(1), false),
    };
    let list = |names: &[String]| match names {
        [] => "nothing".to_owned(),
        [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
        [only, ..] => only.clone(),
    };
    format!("Repetitions ({count}) vary {}. The same for all, and in no interval: {}.", list(&own), list(&shared))
}

/// The title of a table's section.
pub fn section(table: &Table, metric: &str, several: bool) -> String {
    match several {
        true => format!("Test {metric}, pretrained on {} of the unlabelled scans", percent(table.unlabelled)),
        false => format!("Test {metric}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::stats::paired;

    fn comparison(own: &[f64], other: &[f64], planned: usize) -> Comparison {
        let arm = Arm { rank: 3, pretext: "rot".into(), given: false, arm: "warmup".into(), base: "warmup".into() };
        let paired = paired(own, other, 0.0);
        let holm = paired.and_then(|p| p.p);
        Comparison {
            arm,
            labels: Labels::Share(0.1),
            lower_is_better: false,
            other_encoder: false,
            planned,
            pairs: own.len(),
            paired,
            holm,
            corrected: None,
            cases: None,
            case_count: 0,
        }
    }

    #[test]
    fn findings_follow_the_interval_and_name_missing_pairs() {
        // By SciPy 1.17.1: differences .05, .06, .04 have the interval .0252 to .0748; .1, -.05, .06 have -.1563 to .2296.
        let cases = [
            (vec![0.55, 0.66, 0.44], vec![0.5, 0.6, 0.4], 3, "gain of 0.050 (0.025 to 0.075), 3 seeds"),
            (vec![0.5, 0.6, 0.4], vec![0.55, 0.66, 0.44], 4, "loss of 0.050 (0.025 to 0.075), 3 seeds; 1 of 4 pairs missing"),
            (vec![0.6, 0.55, 0.46], vec![0.5, 0.6, 0.4], 3, "no gain shown: difference 0.037 (-0.156 to 0.230), 3 seeds"),
            (vec![0.5, 0.6, 0.4], vec![0.5, 0.6, 0.4], 3, "no gain shown: difference 0.000, 3 seeds"),
            (vec![0.9], vec![0.1], 1, "no verdict, which needs 3 seeds: difference 0.800, 1 seed"),
            (vec![1.5, 2.5, 3.5], vec![1.0, 2.0, 3.0], 3, "no verdict, all pairs differ by the same 0.500, 3 seeds"),
            (vec![], vec![], 3, "no finished pair, nothing to compare; 3 of 3 pairs missing"),
        ];
        for (own, other, planned, said) in &cases {
            assert_eq!(finding(&comparison(own, other, *planned), false), *said);
        }
        // Of errors the lower ones are better.
        let errors =
            |own: &[f64], other: &[f64]| finding(&Comparison { lower_is_better: true, ..comparison(own, other, 3) }, false);
        assert_eq!(errors(&[5., 6., 4.], &[5.5, 6.6, 4.4]), "gain of 0.500 (0.252 to 0.748), 3 seeds");
        assert_eq!(errors(&[5.5, 6.6, 4.4], &[5., 6., 4.]), "loss of 0.500 (0.252 to 0.748), 3 seeds");
        let all: Vec<Comparison> = cases.iter().map(|(own, other, planned, _)| comparison(own, other, *planned)).collect();
        assert_eq!(
            overall(&all, "scratch"),
            "Of 7 comparisons with scratch, 1 show a gain, 1 a loss, 2 neither, and 3 allow no verdict; of the gains 1 \
             and of the losses 1 survive Holm's adjustment for 4 comparisons."
        );
        assert!(overall(&all[1..4], "scratch").starts_with("No gain over scratch is shown. Of 3 comparisons"));
        assert!(overall(&all[4..], "scratch").starts_with("No statement on gain or loss is possible"));
    }

    #[test]
    fn small_numbers_are_never_shown_as_zero() {
        assert_eq!([0.0, 0.1234, -0.0004, 5e-4, 0.99996].map(number), ["0.000", "0.123", "-4.0e-4", "0.001", "1.000"]);
        assert_eq!([0.05, 1.0, 1.0 / 3.0, 0.005].map(percent), ["5 %", "100 %", "33.33 %", "0.5 %"]);
    }

    #[test]
    fn what_no_interval_holds_is_said() {
        let cell = serde_json::json!({ "id": "a", "pretext": "rot", "arm": "full", "fraction": 1, "seed": 0, "unlabelled": 1, "rank": 3 });
        let cells = [serde_json::from_value(cell).unwrap()];
        let said = |more: serde_json::Value| {
            let mut settings =
                serde_json::json!({ "seeds": [0, 1, 2, 3], "pretrain_seeds": [0, 1, 2, 3], "unlabelled": "store" });
            settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            varied(&Repetitions::of(&settings).unwrap(), &cells)
        };
        let by_seed = said(serde_json::json!({}));
        assert!(by_seed.contains("the pretraining (one encoder for each repetition). The same"), "{by_seed}");
        assert!(said(serde_json::json!({ "pretrain_seeds": [0, 0, 1, 1] })).contains("the pretraining (2 encoders). The same"));
        // Every fold is the mean over the same seeds and encoders.
        let folds = said(serde_json::json!({ "folds": 5 }));
        assert!(
            folds.ends_with(
                "vary the split. The same for all, and in no interval: the 4 seeds of the initialisation and of the order of samples \
                 and the 4 encoders of every fold."
            ),
            "{folds}"
        );
        let several = said(serde_json::json!({ "folds": 5, "split_seeds": [0, 1, 2, 3] }));
        assert!(several.contains("the initialisation and the order of samples and the pretraining"), "{several}");
    }
}
