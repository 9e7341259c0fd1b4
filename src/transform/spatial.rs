//! Spatial transforms: exact axis permutations with flips, and resampling ones (rotation, zoom).

use crate::dim::{Rank, Shape};
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

    /// This permutation, then `next`.
    pub fn then(self, next: Orientation) -> Orientation {
        Orientation {
            source: next.source.map(|a| self.source[a]),
            flip: std::array::from_fn(|a| next.flip[a] ^ self.flip[next.source[a]]),
        }
    }

    /// `numpy.rot90(x, k=turns, axes=plane)`: quarter turns from `plane.0` towards `plane.1`. Each turns cubes into cubes.
    pub fn rot90(turns: usize, plane: (usize, usize)) -> Self {
        let (a, b) = plane;
        let mut out = Orientation::IDENTITY;
        if turns % 2 == 1 {
            out.source.swap(a, b);
        }
        match turns % 4 {
            1 => out.flip[a] = true,
            2 => (out.flip[a], out.flip[b]) = (true, true),
            3 => out.flip[b] = true,
            _ => {}
        }
        out
    }

    /// Number of different right-angle rotations about single axes: 10 for volumes, 4 for images.
    pub fn rotations(rank: Rank) -> usize {
        1 + 3 * rotation_planes(rank).len()
    }

    /// Axis that the rotation of a class turns about; `None`: it turns nothing.
    pub fn axis_of(class: usize) -> Option<usize> {
        class.checked_sub(1).map(|turn| turn / 3)
    }

    /// The rotation of a class in `0..rotations(rank)`: 0 is the identity; 1, 2, 3 turn by 90, 180, 270 degrees about the first
    /// axis (images: in their plane), 4 to 6 about the second, 7 to 9 about the third.
    pub fn rotation(rank: Rank, class: usize) -> Self {
        match class {
            0 => Orientation::IDENTITY,
            _ => Orientation::rot90((class - 1) % 3 + 1, rotation_planes(rank)[(class - 1) / 3]),
        }
    }
}

/// For each axis of rotation the plane that turns.
fn rotation_planes(rank: Rank) -> &'static [(usize, usize)] {
    match rank {
        Rank::Two => &[(1, 2)],
        Rank::Three => &[(1, 2), (0, 2), (0, 1)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array3, Axis};

    /// Written from the definition on [`Orientation`].
    fn apply(o: Orientation, x: &Array3<i32>) -> Array3<i32> {
        let mut y = x.view().permuted_axes(o.source);
        (0..3).filter(|&a| o.flip[a]).for_each(|a| y.invert_axis(Axis(a)));
        y.to_owned()
    }

    #[test]
    fn rotations_differ_and_four_quarter_turns_are_none() {
        for rank in [Rank::Two, Rank::Three] {
            let n = rank.cube(3);
            let x = Array3::from_shape_fn(n, |(i, j, k)| (i * 9 + j * 3 + k) as i32);
            let turned: Vec<_> = (0..Orientation::rotations(rank)).map(|c| apply(Orientation::rotation(rank, c), &x)).collect();
            assert_eq!(turned.len(), if rank == Rank::Two { 4 } else { 10 });
            for (c, y) in turned.iter().enumerate() {
                assert!(turned[..c].iter().all(|z| z != y), "{rank:?} class {c} equals an earlier one");
                let o = Orientation::rotation(rank, c);
                let four = (0..3).fold(y.clone(), |y, _| apply(o, &y));
                assert_eq!(four, x, "{rank:?} class {c}");
                for d in (0..Orientation::rotations(rank)).map(|class| Orientation::rotation(rank, class)) {
                    assert_eq!(apply(o.then(d), &x), apply(d, y), "{o:?} then {d:?}");
                }
            }
            assert_eq!(turned[0], x);
            // About each axis: twice 90 is 180, 90 then 180 is 270.
            for first in (1..turned.len()).step_by(3) {
                let quarter = Orientation::rotation(rank, first);
                assert_eq!(apply(quarter, &turned[first]), turned[first + 1]);
                assert_eq!(apply(quarter, &turned[first + 1]), turned[first + 2]);
            }
        }
    }

    #[test]
    fn rot90_as_numpy() {
        // numpy.rot90([[1, 2], [3, 4]]) == [[2, 4], [1, 3]]
        let x = Array3::from_shape_vec((1, 2, 2), vec![1, 2, 3, 4]).unwrap();
        assert_eq!(apply(Orientation::rot90(1, (1, 2)), &x).iter().copied().collect::<Vec<_>>(), [2, 4, 1, 3]);
        assert_eq!(Orientation::rot90(1, (0, 2)).output([4, 5, 6]), [6, 5, 4]);
    }
}
