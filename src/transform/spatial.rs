//! Spatial transforms: exact axis permutations with flips, and resampling ones (rotation, zoom).

use crate::dim::Shape;
use serde::{Deserialize, Serialize};

/// An exact voxel permutation: output axis `a` is input axis `source[a]`, reversed where `flip[a]`.
/// `out[x0, x1, x2] = in[y]` with `y[source[a]] = if flip[a] { n - 1 - x[a] } else { x[a] }`, `n` the extent of that axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orientation {
    pub source: [usize; 3],
    pub flip: [bool; 3],
}

impl Orientation {
    pub const IDENTITY: Orientation = Orientation { source: [0, 1, 2], flip: [false; 3] };

    /// Shape after the permutation.
    pub fn output(&self, input: Shape) -> Shape {
        self.source.map(|a| input[a])
    }

    /// The permutation that undoes this one.
    pub fn inverse(self) -> Orientation {
        let mut inverse = self;
        for a in 0..3 {
            inverse.source[self.source[a]] = a;
            inverse.flip[self.source[a]] = self.flip[a];
        }
        inverse
    }
}
