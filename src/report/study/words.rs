//! Numbers and findings in words. What is said follows the interval, never the mean alone.

use super::compare::{Arm, Comparison, Table, Verdict};
use super::converge::Reach;
use crate::stats::Estimate;

/// p-values below this count as shown after the adjustment for several comparisons: the intervals' own level.
const ALPHA: f64 = 1.0 - crate::stats::LEVEL;

/// `10 %` of 0.1.
pub fn percent(share: f64) -> String {
    format!("{} %", (share * 1e4).round() / 1e2)
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

/// `3 seeds`; of a cross-validation `3 runs`, each a seed and a fold.
pub fn units(n: usize, folds: bool) -> String {
    format!("{n} {}{}", if folds { "run" } else { "seed" }, if n == 1 { "" } else { "s" })
}

/// What one comparison shows, after its name.
pub fn finding(comparison: &Comparison, folds: bool) -> String {
    let (n, planned) = (comparison.pairs(), comparison.planned);
    let missing = match planned - n {
        0 => String::new(),
        missing => format!("; {missing} of {planned} pairs missing"),
    };
    let Some(difference) = comparison.paired.map(|p| p.difference) else {
        return format!("no finished pair, nothing to compare{missing}");
    };
    let (value, size) = (number(difference.mean), number(difference.mean.abs()));
    let said = match (comparison.verdict(), difference.interval) {
        (Verdict::Gain, Some(interval)) => format!("gain of {size} ({})", range(interval)),
        (Verdict::Loss, Some([low, high])) => format!("loss of {size} ({})", range([-high, -low])),
        (_, Some(interval)) => format!("no gain shown: difference {value} ({})", range(interval)),
        (_, None) => {
            return format!("one {} only: no interval; difference {value}{missing}", if folds { "run" } else { "seed" });
        }
    };
    format!("{said}, {}{missing}", units(n, folds))
}

/// What the comparisons of one table show together; `other` is what they compare with.
pub fn overall(comparisons: &[Comparison], other: &str) -> String {
    let count = |verdict| comparisons.iter().filter(|c| c.verdict() == verdict).count();
    let [gains, losses, neither, unknown] = [Verdict::Gain, Verdict::Loss, Verdict::Neither, Verdict::Unknown].map(count);
    let all = comparisons.len();
    if unknown == all {
        return format!("No statement on gain or loss is possible: none of {all} comparisons with {other} has two pairs.");
    }
    let mut said = if gains == 0 { format!("No gain over {other} is shown. ") } else { String::new() };
    said += &format!("Of {all} comparisons with {other}, {gains} show a gain, {losses} a loss, {neither} neither");
    if unknown > 0 {
        said += &format!(", and {unknown} have fewer than two pairs");
    }
    let kept = |verdict| comparisons.iter().filter(|c| c.verdict() == verdict && c.holm.is_some_and(|p| p < ALPHA)).count();
    let tests = all - unknown;
    let (kept, lost) = (kept(Verdict::Gain), kept(Verdict::Loss));
    if gains + losses > 0 {
        said += &match (kept, lost) {
            (0, 0) => format!("; none survives Holm's adjustment for {tests} comparisons"),
            _ => format!("; {kept} gains and {lost} losses survive Holm's adjustment for {tests} comparisons"),
        };
    }
    said + "."
}

/// `reaches scratch's final 0.620 at epoch 12 of 50; scratch itself at 48`, one sentence an arm.
pub fn reaching(reach: &Reach, ranks: &[usize]) -> Vec<String> {
    let Reach { fraction, goal, epochs, own, .. } = reach;
    let (labels, goal) = (percent(*fraction), number(*goal));
    let sentence = |(arm, first): &(Arm, Option<usize>)| {
        let name = arm.label(ranks);
        match first {
            Some(first) => format!(
                "{name}, {labels} of the labels: reaches scratch's final {goal} at epoch {first} of {epochs}; scratch itself at {own}"
            ),
            None => format!(
                "{name}, {labels} of the labels: never reaches scratch's final {goal} in {epochs} epochs; scratch itself at {own}"
            ),
        }
    };
    reach.first.iter().map(sentence).collect()
}

/// The title of a table's section.
pub fn section(table: &Table, metric: &str, several: bool) -> String {
    match several {
        true => format!("Test {metric}, pretrained on {} of the unlabelled scans", percent(table.unlabelled)),
        false => format!("Test {metric}"),
    }
}
