//! What features say by themselves: classes and quantities read out of them by a linear map or by the nearest neighbours, fitted in closed form. The
//! encoder that they come from is not trained.

pub mod cross;
pub mod truth;
pub mod voxels;

use tch::{Kind, Tensor};

/// Strengths of the regularisation that are tried on whole scans, on standardised features.
pub const ALPHAS: [f64; 9] = [1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6];

/// Eigenvalues below this share of the largest are rounding errors.
const RANK_TOLERANCE: f64 = 1e-12;

/// Standard deviations below this share of the mean are rounding errors of float32 features.
const CONSTANT: f64 = 1e-6;

/// Features with mean 0 and standard deviation 1 over those that were fitted; one that is constant there becomes 0.
pub struct Standard {
    mean: Tensor,
    scale: Tensor,
}

impl Standard {
    /// Of features `[N, D]`, float64.
    pub fn of(x: &Tensor) -> Standard {
        let mean = x.mean_dim(0, true, Kind::Double);
        let deviation = x.std_dim(0, false, true);
        let scale = deviation.where_self(&deviation.gt_tensor(&(mean.abs() * CONSTANT)), &deviation.ones_like());
        Standard { mean, scale }
    }

    pub fn apply(&self, x: &Tensor) -> Tensor {
        (x - &self.mean) / &self.scale
    }
}

/// `[N, K]`, float64, of classes `[N]`, int64, below `classes`.
pub fn one_hot(truth: &Tensor, classes: usize) -> Tensor {
    truth.one_hot(classes as i64).to_kind(Kind::Double)
}

/// Ridge regression of standardised features on one-hot classes or quantities, with an intercept that is not regularised.
pub struct Ridge {
    /// `[D, K]`.
    weights: Tensor,
    /// `[K]`.
    intercept: Tensor,
    /// Strength of the regularisation.
    pub alpha: f64,
}

impl Ridge {
    /// Of standardised features `[N, D]` and what they are to give, `y` `[N, K]`, float64; with the one of these strengths that has the least
    /// squared error when each sample is left out in turn.
    pub fn fit(x: &Tensor, y: &Tensor, alphas: &[f64]) -> Ridge {
        let (n, d) = x.size2().expect("features are a matrix");
        let intercept = y.mean_dim(0, false, Kind::Double);
        let centred = y - &intercept;
        // x = u diag(s) v^T, from the smaller of the two matrices of inner products.
        let gram = if d < n { x.tr().matmul(x) } else { x.matmul(&x.tr()) };
        let (squares, vectors) = gram.linalg_eigh("L");
        let kept = squares.gt_tensor(&(squares.max() * RANK_TOLERANCE)).nonzero().squeeze_dim(1);
        let (squares, vectors) = (squares.index_select(0, &kept), vectors.index_select(1, &kept));
        let s = squares.sqrt();
        let (u, v) =
            if d < n { (x.matmul(&vectors) / &s, vectors) } else { (vectors.shallow_clone(), x.tr().matmul(&vectors) / &s) };
        let along = u.tr().matmul(&centred);
        let leverages = u.square();
        let error = |alpha: f64| {
            let kept = &squares / (&squares + alpha);
            let residuals = &centred - u.matmul(&(kept.unsqueeze(1) * &along));
            // Of the sample itself in its own prediction, through the intercept and through the features.
            let leverage = leverages.matmul(&kept) + 1. / n as f64;
            (residuals / (leverage.neg() + 1.).unsqueeze(1)).square().mean(Kind::Double).double_value(&[])
        };
        let best = alphas.iter().map(|&alpha| (error(alpha), alpha)).min_by(|a, b| a.0.total_cmp(&b.0));
        let alpha = best.expect("there are strengths to try").1;
        let weights = v.matmul(&((&s / (&squares + alpha)).unsqueeze(1) * &along));
        Ridge { weights, intercept, alpha }
    }

    /// `[N, K]` of standardised features `[N, D]`.
    pub fn predict(&self, x: &Tensor) -> Tensor {
        x.matmul(&self.weights) + &self.intercept
    }
}

/// `[N, K]` of features `[N, D]`: the mean of what the `k` fitted ones at the smallest angle, of `[M, D]`, have, `y` `[M, K]`; of one-hot
/// classes their shares of the votes.
pub fn nearest(x: &Tensor, fitted: &Tensor, y: &Tensor, k: usize) -> Tensor {
    let direction = |x: &Tensor| x / x.square().sum_dim_intlist(1, true, Kind::Double).sqrt().clamp_min(f64::MIN_POSITIVE);
    let k = (k as i64).min(fitted.size()[0]);
    let (_, neighbours) = direction(x).matmul(&direction(fitted).tr()).topk(k, 1, true, true);
    y.index_select(0, &neighbours.flatten(0, 1)).view([-1, k, y.size()[1]]).mean_dim(1, false, Kind::Double)
}

#[cfg(test)]
mod tests {
    use super::truth::{Score, Truth};
    use super::*;
    use tch::Device;

    fn features(n: i64, d: i64, classes: i64) -> (Tensor, Tensor) {
        tch::manual_seed(n + d);
        let truth = Tensor::arange(n, (Kind::Int64, Device::Cpu)).remainder(classes);
        let x = Tensor::randn([n, d], (Kind::Double, Device::Cpu));
        let shift = truth.to_kind(Kind::Double).unsqueeze(1) * Tensor::randn([1, d], (Kind::Double, Device::Cpu));
        (x + shift, truth)
    }

    /// With the intercept as a further feature, solved anew without each sample; of classes and of a quantity far from 0.
    #[test]
    fn ridge_is_the_solution_of_its_equations_and_leaves_out_each_sample() {
        for (n, d, quantity) in [(12, 40, false), (60, 7, false), (12, 40, true), (60, 7, true)] {
            let (x, truth) = features(n, d, 3);
            let x = Standard::of(&x).apply(&x);
            let noise = Tensor::randn([n, 1], (Kind::Double, Device::Cpu));
            let y = if quantity { x.narrow(1, 0, 1) * 12.5 + noise + 50. } else { one_hot(&truth, 3) };
            let ridge = Ridge::fit(&x, &y, &ALPHAS);
            let solve = |rows: &Tensor, alpha: f64| {
                let (x, y) = (x.index_select(0, rows), y.index_select(0, rows));
                let x = Tensor::cat(&[&x, &x.narrow(1, 0, 1).ones_like()], 1);
                let penalty = Tensor::cat(
                    &[x.get(0).narrow(0, 0, d).ones_like() * alpha, Tensor::zeros([1], (Kind::Double, Device::Cpu))],
                    0,
                );
                Tensor::linalg_solve(&(x.tr().matmul(&x) + penalty.diag(0)), &x.tr().matmul(&y), true)
            };
            let all = Tensor::arange(n, (Kind::Int64, Device::Cpu));
            let found = Tensor::cat(&[&ridge.weights, &ridge.intercept.unsqueeze(0)], 0);
            let off = (found - solve(&all, ridge.alpha)).abs().max().double_value(&[]);
            assert!(off < 1e-8, "{n} x {d}, {quantity}: off by {off}");
            let left_out = |alpha: f64| -> f64 {
                let error = |i: i64| {
                    let rest = all.masked_select(&all.ne(i));
                    let row = Tensor::cat(&[x.get(i), Tensor::ones([1], (Kind::Double, Device::Cpu))], 0);
                    (row.unsqueeze(0).matmul(&solve(&rest, alpha)) - y.get(i)).square().sum(Kind::Double).double_value(&[])
                };
                (0..n).map(error).sum()
            };
            let best = ALPHAS.into_iter().min_by(|a, b| left_out(*a).total_cmp(&left_out(*b))).unwrap();
            assert_eq!(ridge.alpha, best, "{n} x {d}, {quantity}");
        }
    }

    #[test]
    fn neighbours_are_those_at_the_smallest_angle_and_ties_go_to_the_lowest_class() {
        let rows = |rows: &[[f64; 2]]| Tensor::from_slice(&rows.concat()).view([-1, 2]);
        let fitted = rows(&[[5., 0.], [0., 0.1], [-1., 0.1], [1., 1.1]]);
        let y = one_hot(&Tensor::from_slice(&[2i64, 1, 0, 1]), 3);
        // Of a scan of this class.
        let is_voted = |x: [f64; 2], k, class: u8| {
            let truth = Truth::Classes { of: vec![class], classes: 3 };
            let Score::Classes(confusion) = truth.score(&nearest(&rows(&[x]), &fitted, &y, k)) else { panic!("of classes") };
            confusion.accuracy() == Some(1.)
        };
        assert!(is_voted([0.1, 0.01], 1, 2) && is_voted([0., 9.], 1, 1) && is_voted([-3., 0.], 1, 0));
        // One vote for 2 and one for 1; more neighbours than there are.
        assert!(is_voted([0.1, 0.05], 2, 1) && is_voted([0.1, 0.05], 9, 1));
        let mean = |k| nearest(&rows(&[[0.1, 0.01]]), &fitted, &rows(&[[40., 1.], [20., 2.], [30., 3.], [25., 4.]]), k);
        assert_eq!([mean(1), mean(2)].map(|y| Vec::<f64>::try_from(y.flatten(0, 1)).unwrap()), [[40., 1.], [32.5, 2.5]]);
    }

    #[test]
    fn constant_features_become_zero() {
        let x = Tensor::from_slice(&[3., 1., 3., 2.]).view([2, 2]);
        let found = Vec::<f64>::try_from(Standard::of(&x).apply(&x).flatten(0, 1)).unwrap();
        assert_eq!(found, [0., -1., 0., 1.]);
    }
}
