//! Spatial rank, shapes and boxes, shared by the 2D and the 3D code.

use anyhow::bail;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Spatial extent `[D, H, W]` in voxels; an image has `D = 1`.
pub type Shape = [usize; 3];

/// Number of voxels of a shape.
pub fn voxels(shape: Shape) -> usize {
    shape.iter().product()
}

/// Sizes of voxels as text, `1.00 x 1.00 x 2.50`.
pub fn millimetres(sizes: &[f64]) -> String {
    sizes.iter().map(|mm| format!("{mm:.2}")).collect::<Vec<_>>().join(" x ")
}

/// Spatial rank of the data: 2 for images, 3 for volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Rank {
    Two,
    Three,
}

impl Rank {
    /// Number of spatial axes.
    pub fn n(self) -> usize {
        match self {
            Rank::Two => 2,
            Rank::Three => 3,
        }
    }

    /// The axes of a [`Shape`] that this rank uses.
    pub fn axes(self) -> std::ops::Range<usize> {
        3 - self.n()..3
    }

    /// `side` along every axis in use, 1 along the others.
    pub fn cube(self, side: usize) -> Shape {
        let mut shape = [1; 3];
        self.axes().for_each(|a| shape[a] = side);
        shape
    }

    /// Extents along the axes in use as text, `64 x 64 x 32`.
    pub fn words(self, shape: Shape) -> String {
        shape[self.axes()].iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
    }

    /// Rank of data of this shape: a depth of 1 means images.
    pub fn of(shape: Shape) -> Rank {
        if shape[0] == 1 { Rank::Two } else { Rank::Three }
    }
}

impl From<Rank> for u8 {
    fn from(rank: Rank) -> u8 {
        rank.n() as u8
    }
}

impl TryFrom<u8> for Rank {
    type Error = String;
    fn try_from(n: u8) -> Result<Self, String> {
        match n {
            2 => Ok(Rank::Two),
            3 => Ok(Rank::Three),
            _ => Err(format!("rank must be 2 or 3, found {n}")),
        }
    }
}

/// A whole number for each spatial axis of a rank: a kernel's sides, a stride, a reduction. Written `3x3x1`, in JSON a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<i64>", try_from = "Vec<i64>")]
pub struct PerAxis {
    rank: Rank,
    /// As in a [`Shape`], 1 along an axis that is not in use.
    values: [i64; 3],
}

impl PerAxis {
    /// The same along every axis.
    pub fn all(rank: Rank, n: i64) -> Self {
        PerAxis { rank, values: rank.cube(n as usize).map(|n| n as i64) }
    }

    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// One number for each axis in use.
    pub fn values(&self) -> &[i64] {
        &self.values[self.rank.axes()]
    }

    /// Along an axis of a [`Shape`].
    pub fn along(&self, axis: usize) -> usize {
        self.values[axis] as usize
    }

    /// The number that all axes have.
    pub fn common(&self) -> Option<i64> {
        let values = self.values();
        values.iter().all(|n| *n == values[0]).then_some(values[0])
    }

    /// In words: one number where all axes have the same.
    pub fn words(&self) -> String {
        self.common().map_or(self.to_string(), |n| n.to_string())
    }

    pub fn times(&self, other: &PerAxis) -> Self {
        PerAxis { rank: self.rank, values: std::array::from_fn(|a| self.values[a] * other.values[a]) }
    }

    /// The largest multiples of it within a shape, 0 where there are none.
    pub fn whole(&self, shape: Shape) -> Shape {
        std::array::from_fn(|a| shape[a] / self.along(a) * self.along(a))
    }

    /// As [`PerAxis::whole`], one of it where a side is shorter.
    pub fn whole_or_one(&self, shape: Shape) -> Shape {
        let whole = self.whole(shape);
        std::array::from_fn(|a| whole[a].max(self.along(a)))
    }

    /// How often this goes into another one, which is a multiple of it.
    pub fn ratio(&self, multiple: &PerAxis) -> Self {
        PerAxis { rank: self.rank, values: std::array::from_fn(|a| multiple.values[a] / self.values[a]) }
    }
}

impl TryFrom<Vec<i64>> for PerAxis {
    type Error = String;
    /// Of 2 or 3 numbers of at least 1.
    fn try_from(numbers: Vec<i64>) -> Result<Self, String> {
        let rank = u8::try_from(numbers.len()).ok().and_then(|n| Rank::try_from(n).ok());
        let rank = rank.ok_or_else(|| format!("expected a number for each of 2 or 3 axes, found {}", numbers.len()))?;
        if let Some(n) = numbers.iter().find(|n| **n < 1) {
            return Err(format!("expected numbers of at least 1, found {n}"));
        }
        let mut values = [1; 3];
        values[rank.axes()].copy_from_slice(&numbers);
        Ok(PerAxis { rank, values })
    }
}

impl From<PerAxis> for Vec<i64> {
    fn from(of: PerAxis) -> Vec<i64> {
        of.values().to_vec()
    }
}

impl FromStr for PerAxis {
    type Err = String;
    /// `3x3x1`.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split('x').map(str::parse).collect::<Result<Vec<i64>, _>>();
        numbers.map_err(|_| format!("expected numbers joined by x, such as 3x3x1, found {text:?}"))?.try_into()
    }
}

impl fmt::Display for PerAxis {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let numbers: Vec<String> = self.values().iter().map(i64::to_string).collect();
        write!(f, "{}", numbers.join("x"))
    }
}

/// A whole number for all axes, or one for each of them, as flags and settings files have it: `3` or `3,3,1`, in JSON a number or a
/// list. Which axes there are is known with the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "NumberOrList", try_from = "NumberOrList")]
pub struct Sides(Vec<usize>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum NumberOrList {
    Number(usize),
    List(Vec<usize>),
}

impl Sides {
    /// The same along every axis.
    pub fn all(n: usize) -> Self {
        Sides(vec![n])
    }

    /// The axes of a shape that are in use.
    pub fn of(rank: Rank, shape: Shape) -> Self {
        let sides = &shape[rank.axes()];
        Sides(if sides.iter().all(|n| *n == sides[0]) { vec![sides[0]] } else { sides.to_vec() })
    }

    /// As a flag that is a list has them; `None`: it is not given.
    pub fn given(numbers: &[usize]) -> Option<Self> {
        (!numbers.is_empty()).then(|| Sides(numbers.to_vec()))
    }

    /// Along every axis of data of this rank, 1 along an axis that is not in use. Errors if it is of another rank; `flag`: without dashes.
    pub fn shape(&self, flag: &str, rank: Rank) -> anyhow::Result<Shape> {
        let mut shape = [1; 3];
        match self.0[..] {
            [n] => shape = rank.cube(n),
            _ if self.0.len() == rank.n() => shape[rank.axes()].copy_from_slice(&self.0),
            _ => {
                let axes = match rank {
                    Rank::Two => "rows, columns",
                    Rank::Three => "left to right, back to front, bottom to top",
                };
                bail!("--{flag} has {} numbers, expected 1 or {} ({axes})", self.0.len(), rank.n());
            }
        }
        Ok(shape)
    }
}

impl TryFrom<NumberOrList> for Sides {
    type Error = String;
    fn try_from(found: NumberOrList) -> Result<Self, String> {
        match found {
            NumberOrList::Number(n) => Ok(Sides::all(n)),
            NumberOrList::List(numbers) if (1..=3).contains(&numbers.len()) => Ok(Sides(numbers)),
            NumberOrList::List(numbers) => {
                Err(format!("expected a number for all axes or one for each, found {}", numbers.len()))
            }
        }
    }
}

impl From<Sides> for NumberOrList {
    fn from(sides: Sides) -> Self {
        if let [n] = sides.0[..] { NumberOrList::Number(n) } else { NumberOrList::List(sides.0) }
    }
}

impl FromStr for Sides {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split(',').map(|n| n.trim().parse()).collect::<Result<Vec<usize>, _>>();
        let numbers = numbers.map_err(|_| format!("expected whole numbers such as 128 or 128,128,32, found {text:?}"))?;
        NumberOrList::List(numbers).try_into()
    }
}

impl fmt::Display for Sides {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(usize::to_string).collect();
        write!(f, "{}", numbers.join(","))
    }
}

/// A box of voxels: first corner and extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    pub start: Shape,
    pub size: Shape,
}

impl Region {
    pub fn whole(size: Shape) -> Self {
        Region { start: [0; 3], size }
    }

    /// The smallest box around what is marked, axis by axis; `None` if nothing is.
    pub fn around(marked: &[Vec<bool>; 3]) -> Option<Self> {
        let mut region = Region::whole([0; 3]);
        for (a, marked) in marked.iter().enumerate() {
            region.start[a] = marked.iter().position(|&i| i)?;
            region.size[a] = marked.iter().rposition(|&i| i)? + 1 - region.start[a];
        }
        Some(region)
    }

    /// The smallest box that holds both.
    pub fn hull(&self, other: Region) -> Self {
        let start = std::array::from_fn(|a| self.start[a].min(other.start[a]));
        let end = |a: usize| (self.start[a] + self.size[a]).max(other.start[a] + other.size[a]);
        Region { start, size: std::array::from_fn(|a| end(a) - start[a]) }
    }

    /// Along each axis.
    pub fn ranges(&self) -> [std::ops::Range<usize>; 3] {
        std::array::from_fn(|a| self.start[a]..self.start[a] + self.size[a])
    }

    /// Positions of the box's rows in a volume of this shape, row-major.
    pub fn rows(&self, shape: Shape) -> impl Iterator<Item = std::ops::Range<usize>> {
        let [planes, rows, columns] = self.ranges();
        planes
            .flat_map(move |x0| rows.clone().map(move |x1| (x0 * shape[1] + x1) * shape[2]))
            .map(move |start| start + columns.start..start + columns.end)
    }

    /// Whether the box lies inside a volume of this shape.
    pub fn fits(&self, shape: Shape) -> bool {
        (0..3).all(|a| self.start[a] + self.size[a] <= shape[a])
    }

    /// The same box in the coordinates of a volume in which this one's origin lies at `origin`.
    pub fn shifted(&self, origin: Shape) -> Self {
        Region { start: std::array::from_fn(|a| self.start[a] + origin[a]), size: self.size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn sides_are_read_as_they_are_written_and_go_with_their_rank_alone() {
        for (text, value, two, three) in [
            ("64", json!(64), Some([1, 64, 64]), Some([64; 3])),
            ("8,12,16", json!([8, 12, 16]), None, Some([8, 12, 16])),
            ("8, 12", json!([8, 12]), Some([1, 8, 12]), None),
        ] {
            let sides: Sides = text.parse().unwrap();
            assert_eq!(serde_json::to_value(&sides).unwrap(), value);
            assert_eq!(serde_json::from_value::<Sides>(value).unwrap(), sides);
            assert_eq!(sides.to_string().parse(), Ok(sides.clone()));
            for (rank, shape) in [(Rank::Two, two), (Rank::Three, three)] {
                assert_eq!(sides.shape("window", rank).ok(), shape);
            }
        }
        // A list of one, as runs of earlier versions have for patches.
        assert_eq!(serde_json::from_value::<Sides>(json!([7])).unwrap(), Sides::all(7));
        assert_eq!(Sides::of(Rank::Three, [5, 5, 5]).to_string(), "5");
        assert_eq!(Sides::of(Rank::Two, [1, 5, 6]).to_string(), "5,6");
        let refused = |value: Value| serde_json::from_value::<Sides>(value).is_err();
        assert!(refused(json!([])) && refused(json!([1, 2, 3, 4])) && refused(json!("8")) && refused(json!([1, -2])));
        assert!("8,x".parse::<Sides>().unwrap_err().contains("128,128,32"));
    }
}
