//! Scores of many cases in a few numbers.

use super::case::Scores;
use super::table::METRICS;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One metric over the cases in which it is defined.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    pub mean: Option<f64>,
    /// Standard deviation of the sample (divided by n - 1); undefined below two cases.
    pub sd: Option<f64>,
    pub median: Option<f64>,
    /// Cases that were counted.
    pub cases: usize,
    /// Cases that were left out because the metric is undefined there.
    pub undefined: usize,
}

/// One group's metrics over all cases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupSummary {
    pub group: String,
    /// By [`MaskMetric::column`](super::table::MaskMetric::column), all of [`METRICS`].
    #[serde(flatten)]
    pub metrics: BTreeMap<String, Statistics>,
}

/// All cases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub cases: usize,
    /// Mean over cases of [`mean_dice`].
    pub mean_dice: Option<f64>,
    /// Cases without any defined Dice, left out of `mean_dice`.
    pub cases_undefined: usize,
    pub groups: Vec<GroupSummary>,
}

impl Statistics {
    pub fn of(values: impl IntoIterator<Item = Option<f64>>) -> Statistics {
        let all: Vec<Option<f64>> = values.into_iter().collect();
        let mut values: Vec<f64> = all.iter().flatten().copied().collect();
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let mean = mean(&values);
        let sd = mean.filter(|_| n > 1).map(|m| (values.iter().map(|v| (v - m).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt());
        let median = (n > 0).then(|| (values[(n - 1) / 2] + values[n / 2]) / 2.0);
        Statistics { mean, sd, median, cases: n, undefined: all.len() - n }
    }
}

/// `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Mean over the groups of one case in which Dice is defined; `None` if it is in none.
pub fn mean_dice(scores: &[Scores]) -> Option<f64> {
    mean(&scores.iter().filter_map(|s| s.dice()).collect::<Vec<_>>())
}

/// Summary of cases: id, and scores of the groups of these names in their order.
pub fn summarise(groups: &[String], cases: &[(String, Vec<Scores>)]) -> Summary {
    let metric = |g: usize, m: usize| Statistics::of(cases.iter().map(|(_, scores)| scores[g].values[m]));
    let overall = Statistics::of(cases.iter().map(|(_, scores)| mean_dice(scores)));
    let group = |(g, group): (usize, &String)| GroupSummary {
        group: group.clone(),
        metrics: METRICS.iter().enumerate().map(|(m, entry)| (entry.column(), metric(g, m))).collect(),
    };
    Summary {
        cases: cases.len(),
        mean_dice: overall.mean,
        cases_undefined: overall.undefined,
        groups: groups.iter().enumerate().map(group).collect(),
    }
}

/// Positions of the best, the median (the lower of two) and the worst case by a score, undefined ones left out; of fewer than
/// three cases each once.
pub fn best_median_worst(scores: &[Option<f64>]) -> Vec<(&'static str, usize)> {
    let mut order: Vec<(f64, usize)> = scores.iter().enumerate().filter_map(|(i, score)| Some(((*score)?, i))).collect();
    // Of equal scores the first case comes first.
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let n = order.len();
    let places = [("best", 0), ("median", n / 2), ("worst", n.saturating_sub(1))];
    let shown = match n {
        0 => vec![],
        1 => vec![places[0]],
        2 => vec![places[0], places[2]],
        _ => places.to_vec(),
    };
    shown.into_iter().map(|(name, place)| (name, order[place].1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undefined_scores_are_left_out_and_counted() {
        let statistics = Statistics::of([Some(1.0), None, Some(4.0), Some(2.0), Some(9.0)]);
        // By hand: mean 4, squares 9 + 0 + 4 + 25 = 38 over 3.
        let expected =
            Statistics { mean: Some(4.0), sd: Some((38f64 / 3.0).sqrt()), median: Some(3.0), cases: 4, undefined: 1 };
        assert_eq!(statistics, expected);
        assert_eq!(Statistics::of([Some(2.0)]).sd, None);
        assert_eq!(Statistics::of([None]), Statistics { mean: None, sd: None, median: None, cases: 0, undefined: 1 });

        let groups = ["a", "b"].map(String::from);
        let score = |dice: Option<f64>| Scores { values: [dice; METRICS.len()], ..Scores::EMPTY };
        let case = |a, b| (String::new(), vec![score(a), score(b)]);
        let cases = [case(Some(0.5), Some(0.9)), case(None, Some(0.1)), case(None, None)];
        let summary = summarise(&groups, &cases);
        // The mean over cases of the mean over groups, not over all values: (0.7 + 0.1) / 2.
        assert!((summary.mean_dice.unwrap() - 0.4).abs() < 1e-12);
        assert_eq!((summary.cases, summary.cases_undefined), (3, 1));
        let [first, second] = [0, 1].map(|g| summary.groups[g].metrics["hd95_mm"]);
        assert_eq!((first.cases, first.undefined, second.mean), (1, 2, Some(0.5)));
    }

    #[test]
    fn cases_are_picked_by_rank() {
        let picked = |scores: &[Option<f64>]| best_median_worst(scores);
        assert_eq!(picked(&[Some(0.2), None, Some(0.9), Some(0.5)]), [("best", 2), ("median", 3), ("worst", 0)]);
        assert_eq!(picked(&[Some(0.2), Some(0.9)]), [("best", 1), ("worst", 0)]);
        assert_eq!(picked(&[None, Some(0.9)]), [("best", 1)]);
        assert_eq!(picked(&[Some(0.5); 3]), [("best", 0), ("median", 1), ("worst", 2)]);
        assert!(picked(&[None]).is_empty());
    }
}
