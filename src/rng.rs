//! Every random draw comes from a generator keyed by what it is for, so neither threads nor timing can change a result.

use rand::{Rng as _, SeedableRng};
use std::f32::consts::TAU;

pub type Rng = rand_chacha::ChaCha8Rng;

/// Independent streams of draws under one seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// Training samples: `a` = epoch, `b` = position in the epoch.
    Train = 1,
    /// Validation samples: `a` = 0, `b` = position, the same in every epoch.
    Valid = 2,
    /// The order of the scans: `a` = epoch.
    Order = 3,
    /// Subject-level splits.
    Split = 4,
    /// The jigsaw's permutation set.
    Permutations = 5,
    /// Phantoms: `a` = subject.
    Phantom = 6,
    /// Weight initialisation and, with `a` = step, dropout.
    Network = 7,
    /// Samples written by `inspect`.
    Inspect = 8,
    /// The foreground voxels that are remembered: `a` = scan, `b` = class.
    Foreground = 9,
    /// The voxels that a probe is fitted on: `a` = scan, `b` = class.
    Probe = 10,
    /// Whole windows that statistics are estimated on: `a` = 0, `b` = position.
    Window = 11,
}

/// Generator for one draw: the four numbers are the key itself, so no two can collide.
pub fn rng(seed: u64, stream: Stream, a: u64, b: u64) -> Rng {
    let mut key = [0u8; 32];
    for (chunk, word) in key.chunks_exact_mut(8).zip([seed, stream as u64, a, b]) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    Rng::from_seed(key)
}

/// Two independent standard normal numbers (Box-Muller).
pub fn normal_pair(rng: &mut Rng) -> (f32, f32) {
    // 1 - u lies in (0, 1], so the logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    let (sin, cos) = (TAU * rng.random::<f32>()).sin_cos();
    (radius * cos, radius * sin)
}

/// One standard normal number.
pub fn normal(rng: &mut Rng) -> f32 {
    normal_pair(rng).0
}
