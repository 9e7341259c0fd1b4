//! Means with intervals, paired comparisons and what several of them at once are worth. A test's p-values are two-sided.

use statrs::distribution::{Continuous, ContinuousCDF, Normal, StudentsT};

/// Share of intervals that hold the true value.
pub const LEVEL: f64 = 0.95;

/// Repetitions that a test, and with it a verdict on gain or loss, needs at least.
pub const MIN_REPETITIONS: usize = 3;

/// Standard deviations up to this share of the largest value are rounding: the values are the same.
const SAME: f64 = 1e-12;

/// Differences up to which the signed-rank test counts every assignment of signs; counts up to `2^50` are exact as `f64`.
const EXACT_PAIRS: usize = 50;

/// A mean and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub n: usize,
    pub mean: f64,
    /// Standard deviation of a value, over `n - 1`; needs two values.
    pub sd: Option<f64>,
    /// 95 % interval of the mean by Student's t distribution; none of values that are all the same, which say nothing of how much
    /// others would vary.
    pub interval: Option<[f64; 2]>,
}

/// Differences of pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    pub difference: Estimate,
    /// Of the paired t-test; needs [`MIN_REPETITIONS`] pairs that do not all differ by the same. 1 if all differences are 0.
    pub p: Option<f64>,
}

/// Wilcoxon's signed-rank test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignedRank {
    /// Differences other than 0; the others are left out.
    pub n: usize,
    /// The smaller one of the two sums of ranks.
    pub statistic: f64,
    pub p: f64,
    /// Every assignment of signs was counted; otherwise the normal approximation, corrected for ties and continuity.
    pub exact: bool,
}

/// Mean, standard deviation and interval of finite values; nothing without any.
///
/// `overlap` is 0 for independent values. Where they come from trainings that share subjects, it is the number of tested
/// subjects over that of the others, `1 / (K - 1)` for K folds: the variance of the mean is then `sd^2 (1 / n + overlap)`.
///
/// Source: Nadeau & Bengio, *Inference for the generalization error*, Machine Learning 52 (2003).
pub fn estimate(values: &[f64], overlap: f64) -> Option<Estimate> {
    let n = values.len();
    let mean = values.iter().sum::<f64>() / n as f64;
    let sd = (n > 1).then(|| (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt());
    let largest = values.iter().fold(0f64, |largest, v| largest.max(v.abs()));
    let interval = sd.filter(|sd| *sd > SAME * largest).map(|sd| {
        let reach = quantile(0.5 + LEVEL / 2.0, n - 1) * error_of_mean(sd, n, overlap);
        [mean - reach, mean + reach]
    });
    (n > 0).then_some(Estimate { n, mean, sd, interval })
}

/// Differences `a - b` and the paired t-test, with `overlap` as for [`estimate`]; nothing without a pair.
pub fn paired(a: &[f64], b: &[f64], overlap: f64) -> Option<Paired> {
    assert_eq!(a.len(), b.len(), "pairs have two sides");
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let difference = estimate(&differences, overlap)?;
    let Estimate { n, mean, sd, interval } = difference;
    let test = |sd| 2.0 * student(n - 1).sf(mean.abs() / error_of_mean(sd, n, overlap));
    let p = match interval {
        Some(_) => sd.map(test),
        None => (mean == 0.0).then_some(1.0),
    };
    Some(Paired { difference, p: p.filter(|_| n >= MIN_REPETITIONS) })
}

/// Standard error of the mean of `n` values.
fn error_of_mean(sd: f64, n: usize, overlap: f64) -> f64 {
    sd * (1.0 / n as f64 + overlap).sqrt()
}

/// Tests whether differences lie about 0; nothing if none differs from 0.
///
/// Source: Wilcoxon, *Individual comparisons by ranking methods*, Biometrics Bulletin 1 (1945); differences of 0 are left out
/// and ties take the mean of their ranks.
pub fn signed_rank(differences: &[f64]) -> Option<SignedRank> {
    let mut sorted: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    sorted.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let n = sorted.len();
    let (mut positive, mut ties, mut rank) = (0.0, 0.0, 0.0);
    for tied in sorted.chunk_by(|a, b| a.abs() == b.abs()) {
        let t = tied.len() as f64;
        positive += tied.iter().filter(|d| **d > 0.0).count() as f64 * (rank + (t + 1.0) / 2.0);
        ties += t.powi(3) - t;
        rank += t;
    }
    let count = n as f64;
    let statistic = f64::min(positive, count * (count + 1.0) / 2.0 - positive);
    let exact = n <= EXACT_PAIRS && ties == 0.0;
    let tail = if exact {
        let (assignments, total) = (rank_sums(n), count.exp2());
        assignments[..=statistic as usize].iter().sum::<f64>() / total
    } else {
        let variance = count * (count + 1.0) * (2.0 * count + 1.0) / 24.0 - ties / 48.0;
        let distance = (count * (count + 1.0) / 4.0 - statistic - 0.5).max(0.0);
        Normal::standard().sf(distance / variance.sqrt())
    };
    (n > 0).then_some(SignedRank { n, statistic, p: (2.0 * tail).min(1.0), exact })
}

/// How many subsets of the ranks 1 to `n` have each sum.
fn rank_sums(n: usize) -> Vec<f64> {
    let mut counts = vec![0.0; n * (n + 1) / 2 + 1];
    counts[0] = 1.0;
    for rank in 1..=n {
        for sum in (rank..counts.len()).rev() {
            counts[sum] += counts[sum - rank];
        }
    }
    counts
}

/// Holm's adjustment of the p-values of one family: each may be compared with the level that the whole family is to keep.
///
/// Source: Holm, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6 (1979).
pub fn holm(p: &[f64]) -> Vec<f64> {
    multiplied(p).into_iter().map(|p| p.min(1.0)).collect()
}

/// Holm's adjustment as factors of the p-values, which may lead above 1.
pub fn holm_factors(p: &[f64]) -> Vec<f64> {
    let count = p.len() as f64;
    multiplied(p).iter().zip(p).map(|(adjusted, p)| if *p > 0.0 { adjusted / p } else { count }).collect()
}

fn multiplied(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![0.0; p.len()];
    let mut largest = 0f64;
    for (i, &at) in order.iter().enumerate() {
        largest = largest.max((p.len() - i) as f64 * p[at]);
        adjusted[at] = largest;
    }
    adjusted
}

/// The interval of an estimate that is one of several: its share of error is divided by `factor`, from 1 on.
pub fn corrected(estimate: &Estimate, factor: f64) -> Option<[f64; 2]> {
    let [low, high] = estimate.interval?;
    let reach = |error: f64| quantile(1.0 - error / 2.0, estimate.n - 1);
    let half = (high - low) / 2.0 * reach((1.0 - LEVEL) / factor) / reach(1.0 - LEVEL);
    Some([estimate.mean - half, estimate.mean + half])
}

fn student(freedom: usize) -> StudentsT {
    StudentsT::new(0.0, 1.0, freedom as f64).expect("degrees of freedom are at least 1")
}

/// Quantile of Student's t distribution, as precise as its distribution function: one Newton step on the crate's own.
fn quantile(share: f64, freedom: usize) -> f64 {
    let t = student(freedom);
    let rough = t.inverse_cdf(share);
    rough + (t.sf(rough) - (1.0 - share)) / t.pdf(rough)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, rng};
    use rand::Rng;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9 * b.abs().max(1e-3), "{a}, expected {b}");
    }

    #[test]
    fn intervals_and_tests_agree_with_scipy() {
        // SciPy 1.17.1:
        //   a, b = [.71, .68, .74, .70, .66], [.65, .66, .69, .71, .60]
        //   stats.t.interval(.95, 4, np.mean(a), stats.sem(a)), np.std(a, ddof=1), stats.ttest_rel(a, b),
        //   stats.ttest_rel(a, b).confidence_interval(.95)
        //   stats.t.ppf(.975, [1, 2, 30, 300])
        let (a, b) = ([0.71, 0.68, 0.74, 0.70, 0.66], [0.65, 0.66, 0.69, 0.71, 0.60]);
        let mean = estimate(&a, 0.0).unwrap();
        close(mean.interval.unwrap()[0], 0.6603384662330314);
        close(mean.interval.unwrap()[1], 0.7356615337669687);
        close(mean.sd.unwrap(), 0.030331501776206176);
        let pairs = paired(&a, &b, 0.0).unwrap();
        close(pairs.p.unwrap(), 0.05760157179880444);
        close(pairs.difference.interval.unwrap()[0], -0.0018656628163945047);
        close(pairs.difference.interval.unwrap()[1], 0.07386566281639453);
        let t = [12.706204736174694, 4.302652729749462, 2.0422724563012378, 1.9679030112610865];
        [1, 2, 30, 300].into_iter().zip(t).for_each(|(freedom, t)| close(quantile(0.975, freedom), t));

        assert!(estimate(&[], 0.0).is_none() && paired(&[], &[], 0.0).is_none());
    }

    #[test]
    fn what_varies_too_little_to_test_has_no_p() {
        let (a, b) = ([0.71, 0.68, 0.74], [0.65, 0.66, 0.69]);
        let test = |n: usize| paired(&a[..n], &b[..n], 0.0).unwrap();
        assert!((test(1).p, test(1).difference.interval, test(1).difference.sd) == (None, None, None));
        assert!(test(2).p.is_none() && test(2).difference.interval.is_some() && test(3).p.is_some());
        assert_eq!(paired(&a, &a, 0.0).unwrap().p, Some(1.0));
        // All differ by 0.1, but for rounding: an interval of width 0 would be certain of what three pairs cannot know.
        let same = paired(&[0.3, 0.7, 1.2], &[0.2, 0.6, 1.1], 0.0).unwrap();
        assert!(same.difference.sd.unwrap() > 0.0 && (same.p, same.difference.interval) == (None, None), "{same:?}");
    }

    #[test]
    fn folds_that_share_subjects_count_for_less() {
        // With the differences above, 5 folds, SciPy 1.17.1:
        //   d = np.subtract(a, b); t = d.mean() / (d.std(ddof=1) * np.sqrt(1 / 5 + 1 / 4)); 2 * stats.t.sf(t, 4)
        //   d.mean() - stats.t.ppf(.975, 4) * d.std(ddof=1) * np.sqrt(1 / 5 + 1 / 4)
        let (a, b) = ([0.71, 0.68, 0.74, 0.70, 0.66], [0.65, 0.66, 0.69, 0.71, 0.60]);
        let folds = paired(&a, &b, 0.25).unwrap();
        close(folds.p.unwrap(), 0.15325877700281718);
        close(folds.difference.interval.unwrap()[0], -0.02079849422459177);
        assert_eq!(folds.difference.mean, paired(&a, &b, 0.0).unwrap().difference.mean);
    }

    #[test]
    fn signed_ranks_agree_with_scipy_and_with_every_assignment_counted() {
        // SciPy 1.17.1: stats.wilcoxon(d, method="exact"); with ties or many values
        // stats.wilcoxon(d, method="asymptotic", correction=True); statistic, p-value.
        let many: Vec<f64> = (0..60).map(|i| ((i * 37 % 101) as f64 - 40.0) / 7.0 + i as f64 / 1000.0).collect();
        let cases = [
            (vec![3.0, -1.0, 4.0, 1.5, -9.0, 2.6, 5.0, 35.0, 8.0, -9.7], 18.0, 0.375, true),
            (vec![0.3, -0.3, 0.0, 0.1, 0.5, -0.2, 0.5, 0.5, 0.7, 0.0, -0.1, 0.9], 9.0, 0.06548681808490474, false),
            (many, 602.0, 0.021419856207743976, false),
        ];
        for (differences, statistic, p, exact) in cases {
            let test = signed_rank(&differences).unwrap();
            assert!((test.statistic, test.exact) == (statistic, exact), "{test:?}");
            close(test.p, p);
        }
        assert!(signed_rank(&[0.0, 0.0]).is_none());

        let mut rng = rng(0, Stream::Inspect, 0, 0);
        for n in 1..12usize {
            let differences: Vec<f64> = (0..n).map(|_| rng.random_range(-1.0..2.0)).collect();
            let test = signed_rank(&differences).unwrap();
            let sums = (0..1u32 << n).map(|signs| (1..=n).filter(|r| signs >> (r - 1) & 1 == 1).sum::<usize>() as f64);
            let middle = (n * (n + 1)) as f64 / 4.0;
            let further = sums.filter(|sum| (sum - middle).abs() >= (test.statistic - middle).abs()).count();
            close(test.p, further as f64 / (1u32 << n) as f64);
        }
    }

    #[test]
    fn corrected_intervals_say_what_the_adjusted_p_says() {
        // SciPy 1.17.1, a - b as above: d.mean() + np.array([-1, 1]) * stats.t.ppf(1 - .05 / 3 / 2, 4) * stats.sem(d)
        let (a, b) = ([0.71, 0.68, 0.74, 0.70, 0.66], [0.65, 0.66, 0.69, 0.71, 0.60]);
        let pair = paired(&a, &b, 0.0).unwrap();
        let [low, high] = corrected(&pair.difference, 3.0).unwrap();
        close(low, -0.0180179257150);
        close(high, 0.0900179257150);
        // Where an interval just holds 0, the p-value is the level that its width stands for.
        let edge = corrected(&pair.difference, 0.05 / pair.p.unwrap()).unwrap();
        assert!(edge[0].abs() < 1e-9, "{edge:?}");
        // By hand: 5 x 0.005, 4 x 0.01, 3 x 0.03, then as much as the one before, and once.
        let factors = holm_factors(&[0.01, 0.04, 0.03, 0.005, 0.6]);
        factors.iter().zip([4.0, 2.25, 3.0, 5.0, 1.0]).for_each(|(a, b)| close(*a, b));
        assert_eq!(holm_factors(&[0.7, 0.8]), [2.0, 1.4 / 0.8]);
    }

    #[test]
    fn holm_keeps_the_familys_level() {
        // By hand: 5 x 0.005, 4 x 0.01, 3 x 0.03, then 2 x 0.04 raised to the one before, 1 x 0.6.
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005, 0.6]);
        adjusted.iter().zip([0.04, 0.09, 0.09, 0.025, 0.6]).for_each(|(a, b)| close(*a, b));
        assert_eq!(holm(&[0.7, 0.8]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }
}
