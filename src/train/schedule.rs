//! Learning-rate schedules.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    Constant,
    /// Falls from the full rate to 0, that of the last step, along half a cosine.
    Cosine,
}

/// Most of the steps that may be warm-up: a short run decays too.
const MAX_WARMUP: f64 = 0.5;

/// Learning rate as a function of the step: linear warm-up from 0, then constant or cosine.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub kind: ScheduleKind,
    pub lr: f64,
    pub warmup_steps: u64,
    pub total_steps: u64,
}

impl Schedule {
    /// Rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        let warmup_steps = self.warmup_steps.min((MAX_WARMUP * self.total_steps as f64) as u64);
        if step < warmup_steps {
            return self.lr * (step + 1) as f64 / warmup_steps as f64;
        }
        match self.kind {
            ScheduleKind::Constant => self.lr,
            // A single step has no last one to fall to.
            ScheduleKind::Cosine if self.total_steps <= 1 => self.lr,
            ScheduleKind::Cosine => {
                let [done, all] = [step, self.total_steps - 1].map(|step| (step - warmup_steps) as f64);
                self.lr * 0.5 * (1. + (std::f64::consts::PI * if done < all { done / all } else { 1. }).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        let schedule = |kind| Schedule { kind, lr: 2., warmup_steps: 4, total_steps: 105 };
        let cosine = schedule(ScheduleKind::Cosine);
        assert_eq!([0, 1, 3, 4].map(|s| cosine.at(s)), [0.5, 1., 2., 2.]);
        assert!((cosine.at(54) - 1.).abs() < 1e-12);
        assert!(cosine.at(103) > 1e-4 && [104, 105, 500].iter().all(|&step| cosine.at(step).abs() < 1e-12));
        assert_eq!(schedule(ScheduleKind::Constant).at(104), 2.);
        // A warm-up as long as the run, or longer, is cut to half of it: the rate rises, and falls again.
        for warmup_steps in [10, 30] {
            let short = Schedule { kind: ScheduleKind::Cosine, lr: 1., warmup_steps, total_steps: 10 };
            let rates: Vec<f64> = (0..10).map(|step| short.at(step)).collect();
            assert!(rates[..5].is_sorted() && rates[4] == 1. && rates[5..].is_sorted_by(|a, b| a > b), "{rates:?}");
            assert!(rates[9].abs() < 1e-12, "{rates:?}");
        }
        let short = |total_steps, step| Schedule { kind: ScheduleKind::Cosine, lr: 1., warmup_steps: 1, total_steps }.at(step);
        assert!(short(1, 0) == 1. && short(2, 0) == 1. && short(2, 1).abs() < 1e-12);
    }
}
