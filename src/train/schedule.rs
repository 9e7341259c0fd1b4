//! Learning rates as a function of the step.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    Constant,
    /// Falls from the full rate to 0, that of the last step, along half a cosine.
    Cosine,
}

/// Rates of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of new layers; of everything where nothing is given.
    pub new: f64,
    /// Of the weights that a fine-tuning was given.
    pub given: f64,
}

/// Linear warm-up from `floor`, then constant or cosine, for all weights alike. Where the given ones are fixed at first, the new
/// layers have a warm-up of their own and stay at their peak; then, from the first step in which the given ones move, everything
/// goes through warm-up and decay: the optimizer knows nothing of the given weights' gradients yet.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub kind: ScheduleKind,
    /// Rates after warm-up.
    pub peak: Rates,
    /// Share of the peak that a warm-up starts with.
    pub floor: f64,
    /// Of the first warm-up.
    pub warmup_steps: u64,
    /// Steps in which the given weights are fixed; all of them where they are never trained.
    pub frozen_steps: u64,
    /// Of the warm-up after these.
    pub unfreeze_warmup_steps: u64,
    pub total_steps: u64,
}

impl Schedule {
    /// Rates of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> Rates {
        let (frozen, total) = (self.frozen_steps, self.total_steps);
        let (share, fixed) = if frozen == 0 {
            (self.rise_and_decay(step, self.warmup_steps, total), false)
        } else if frozen >= total {
            (self.rise_and_decay(step, self.warmup_steps, total), true)
        } else if step < frozen {
            (self.rise(step, shortened(self.warmup_steps, frozen)), true)
        } else {
            (self.rise_and_decay(step - frozen, self.unfreeze_warmup_steps, total - frozen), false)
        };
        Rates { new: share * self.peak.new, given: if fixed { 0. } else { share * self.peak.given } }
    }

    /// Whether the given weights have another rate than the new layers in some step.
    pub fn differs(&self) -> bool {
        self.frozen_steps > 0 || self.peak.given != self.peak.new
    }

    /// Share of the peak within `steps` steps that begin with a warm-up and then decay.
    fn rise_and_decay(&self, step: u64, warmup: u64, steps: u64) -> f64 {
        let warmup = shortened(warmup, steps);
        match self.kind {
            _ if step < warmup => self.rise(step, warmup),
            ScheduleKind::Constant => 1.,
            // A single step has no last one to fall to.
            ScheduleKind::Cosine if steps <= 1 => 1.,
            ScheduleKind::Cosine => {
                let [done, all] = [step, steps - 1].map(|step| (step - warmup) as f64);
                0.5 * (1. + (std::f64::consts::PI * (done / all).min(1.)).cos())
            }
        }
    }

    /// Share of the peak in a warm-up of `warmup` steps, and after it.
    fn rise(&self, step: u64, warmup: u64) -> f64 {
        if step < warmup { self.floor + (1. - self.floor) * step as f64 / warmup as f64 } else { 1. }
    }
}

/// A warm-up of less than half of the steps: a short run is at its peak, and decays, too.
fn shortened(warmup: u64, steps: u64) -> u64 {
    warmup.min(steps.saturating_sub(1) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Schedule = Schedule {
        kind: ScheduleKind::Cosine,
        peak: Rates { new: 2., given: 2. },
        floor: 0.1,
        warmup_steps: 4,
        frozen_steps: 0,
        unfreeze_warmup_steps: 0,
        total_steps: 105,
    };

    fn near(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 1e-12
    }

    /// Rates of every step, of the new layers and of the given ones.
    fn rates(schedule: &Schedule) -> [Vec<f64>; 2] {
        let all: Vec<Rates> = (0..schedule.total_steps).map(|step| schedule.at(step)).collect();
        [all.iter().map(|r| r.new).collect(), all.iter().map(|r| r.given).collect()]
    }

    #[test]
    fn one_warm_up_then_decay() {
        for (step, rate) in [(0, 0.2), (1, 0.65), (2, 1.1), (3, 1.55), (4, 2.), (54, 1.), (104, 0.), (105, 0.), (500, 0.)] {
            assert!(
                near(PLAIN.at(step).new, rate) && PLAIN.at(step).given == PLAIN.at(step).new,
                "step {step}: {:?}",
                PLAIN.at(step)
            );
        }
        assert!(PLAIN.at(103).new > 1e-4);
        let constant = Schedule { kind: ScheduleKind::Constant, ..PLAIN };
        assert!(constant.at(4).new == 2. && constant.at(104).new == 2.);
        // Given weights at a rate of their own keep its ratio in every step.
        let slower = Schedule { peak: Rates { new: 2., given: 0.5 }, ..PLAIN };
        assert!(slower.differs() && !PLAIN.differs());
        assert!(
            (0..105)
                .all(|step| slower.at(step).new == PLAIN.at(step).new && near(slower.at(step).given, PLAIN.at(step).new / 4.))
        );
    }

    #[test]
    fn short_runs_reach_the_peak_and_decay() {
        for warmup_steps in [10, 30] {
            let [rates, _] = rates(&Schedule { warmup_steps, total_steps: 10, ..PLAIN });
            assert!(rates[..5].is_sorted() && rates[3] < 2. && rates[4] == 2., "{rates:?}");
            assert!(rates[4..].is_sorted_by(|a, b| a > b) && near(rates[9], 0.), "{rates:?}");
        }
        let first = |total_steps| rates(&Schedule { total_steps, ..PLAIN })[0].clone();
        assert_eq!(first(1), [2.]);
        assert!(first(2)[0] == 2. && near(first(2)[1], 0.));
        assert!(near(first(3)[0], 0.2) && first(3)[1] == 2. && near(first(3)[2], 0.));
    }

    #[test]
    fn the_whole_network_has_a_second_warm_up_when_the_given_weights_begin_to_move() {
        let schedule = Schedule {
            peak: Rates { new: 2., given: 0.5 },
            frozen_steps: 20,
            unfreeze_warmup_steps: 8,
            total_steps: 109,
            ..PLAIN
        };
        let [new, given] = rates(&schedule);
        // Alone: their own rise, then the peak.
        assert!(near(new[0], 0.2) && near(new[3], 1.55) && new[4..20].iter().all(|&rate| rate == 2.), "{new:?}");
        assert!(given[..20].iter().all(|&rate| rate == 0.));
        // Together: from the floor of each peak, again to it, then to 0.
        assert!(near(new[20], 0.2) && near(given[20], 0.05) && near(given[24], 0.275) && (new[28], given[28]) == (2., 0.5));
        assert!(near(new[68], 1.) && near(given[68], 0.25) && near(new[108], 0.) && near(given[108], 0.));
        assert!((20..109).all(|step| near(given[step], new[step] / 4.)));
        // The first is less than half of its phase, the second of the rest.
        let [new, _] = rates(&Schedule { warmup_steps: 90, unfreeze_warmup_steps: 90, ..schedule });
        assert!(new[8] < 2. && new[9..20].iter().all(|&rate| rate == 2.) && new[63] < 2. && new[64] == 2. && new[65] < 2.);
    }

    #[test]
    fn weights_that_are_never_trained_leave_the_schedule_of_the_others_as_it_is() {
        for frozen_steps in [105, u64::MAX] {
            let frozen = Schedule { frozen_steps, unfreeze_warmup_steps: 50, ..PLAIN };
            let [new, given] = rates(&frozen);
            assert!(new == rates(&PLAIN)[0] && given.iter().all(|&rate| rate == 0.) && frozen.differs());
        }
    }
}
