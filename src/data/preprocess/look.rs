//! What is to be known of a channel before it is resampled, in one pass over it.

use super::intensity::{Summary, Sums};
use crate::data::identity;
use crate::data::labelling::whole_label;
use crate::data::number::{BLOCK, LANES, Number, all_are, side_by_side};
use crate::data::scan::{Channel, Pieces, Scan};
use crate::dim::{Region, Shape};
use rayon::prelude::*;
use std::collections::BTreeSet;

/// Values that are looked at before the next ones are made: few enough to stay in cache.
const PIECE: usize = 8 * BLOCK;

/// What one pass over a channel tells.
#[derive(Clone, Debug)]
pub struct Look {
    /// By which the channel is known again.
    pub id: Option<String>,
    pub summary: Summary,
    pub highest: Highest,
    /// Its first values if it holds whole numbers as a label does: a few, or more that are alike in patches, as the regions of an atlas.
    pub few_values: Option<Vec<i64>>,
}

impl Look {
    /// At a channel of this shape that is not empty.
    pub fn at(channel: &Channel, shape: Shape) -> Look {
        channel.pieces(PIECE, Looking(shape))
    }

    /// At each channel.
    pub fn all(scan: &Scan) -> Vec<Look> {
        scan.channels.par_iter().map(|channel| Look::at(channel, scan.shape)).collect()
    }
}

/// A look at a channel of this shape.
struct Looking(Shape);

impl Pieces for Looking {
    type Seen = Look;

    fn of<T: Number>(self, each: impl FnOnce(&mut dyn FnMut(&[T]))) -> Look {
        let (mut id, mut sums, mut highest) = (identity::Image::new(self.0), Sums::default(), HighestOf::new(self.0));
        let mut few = Some(FewValues::default());
        each(&mut |values| {
            id.add(values);
            sums.add(values);
            highest.add(values);
            few = few.take().and_then(|few| few.add(values));
        });
        Look { id: id.id(), summary: sums.summary(), highest: highest.floats(), few_values: few.and_then(FewValues::values) }
    }
}

/// The highest value of each plane, row and column of voxels: of all that have one index along an axis.
#[derive(Clone, Debug)]
pub struct Highest {
    along: [Vec<f32>; 3],
}

/// A [`Highest`] in the making.
struct HighestOf<T> {
    along: [Vec<T>; 3],
    /// Values that were looked at.
    n: usize,
}

impl<T: Number> HighestOf<T> {
    fn new(shape: Shape) -> Self {
        HighestOf { along: shape.map(|n| vec![T::LOWEST; n]), n: 0 }
    }

    /// Takes the next values.
    fn add(&mut self, mut values: &[T]) {
        let [planes, rows, columns] = &mut self.along;
        while !values.is_empty() {
            let (row, column) = (self.n / columns.len(), self.n % columns.len());
            let (part, rest) = values.split_at(values.len().min(columns.len() - column));
            let mut lanes = [T::LOWEST; LANES];
            let (whole, last) = part.as_chunks();
            let (whole_columns, last_columns) = columns[column..][..part.len()].as_chunks_mut();
            for (values, columns) in whole.iter().zip(whole_columns) {
                (lanes, *columns) = (side_by_side(&lanes, values, T::or_higher), side_by_side(columns, values, T::or_higher));
            }
            for (column, &v) in last_columns.iter_mut().zip(last) {
                *column = column.or_higher(v);
            }
            let highest = lanes.iter().chain(last).fold(T::LOWEST, |highest, &v| highest.or_higher(v));
            let (plane, row) = (row / rows.len(), row % rows.len());
            planes[plane] = planes[plane].or_higher(highest);
            rows[row] = rows[row].or_higher(highest);
            self.n += part.len();
            values = rest;
        }
    }

    fn floats(self) -> Highest {
        Highest { along: self.along.map(|line| line.into_iter().map(T::into).collect()) }
    }
}

/// Smallest box that holds every voxel which is above its channel's threshold in any channel; `None` if there is no such voxel.
pub fn bounding_box(channels: &[(&Highest, f32)]) -> Option<Region> {
    let inside = [0, 1, 2].map(|a| {
        let lines = channels.first().map_or(0, |(highest, _)| highest.along[a].len());
        (0..lines).map(|i| channels.iter().any(|(highest, threshold)| highest.along[a][i] > *threshold)).collect()
    });
    Region::around(&inside)
}

/// The values of a channel as long as it may be a label.
#[derive(Default)]
struct FewValues<T> {
    background: Option<T>,
    last: Option<T>,
    values: BTreeSet<i64>,
    /// Neighbours that are not both background, and those of them that are alike.
    pairs: usize,
    alike: usize,
}

impl<T: Number> FewValues<T> {
    const FEW: usize = 32;
    const REGIONS: usize = 1024;
    /// Neighbours that are looked at before a channel of more values is given up, and the share of them that must be alike.
    const NEIGHBOURS: usize = 4096;
    const ALIKE: f64 = 0.6;

    /// Takes the next values; `None`: it is no label.
    fn add(mut self, values: &[T]) -> Option<Self> {
        self.background = self.background.or(values.first().copied());
        let mut values = values.iter();
        while let Some(&value) = values.next() {
            let same = self.last == Some(value);
            if same && self.last == self.background {
                // More of the background says nothing.
                let (lanes, _) = values.as_slice().as_chunks::<LANES>();
                let more = lanes.iter().take_while(|lanes| all_are(*lanes, value)).count();
                values = values.as_slice()[more * LANES..].iter();
                continue;
            }
            if self.last.is_some() {
                self.pairs += 1;
                self.alike += usize::from(same);
            }
            if !same {
                self.last = Some(value);
                self.values.insert(whole_label(value.into())?);
                let patches = self.pairs < Self::NEIGHBOURS || self.in_patches();
                if self.values.len() > Self::REGIONS || self.values.len() > Self::FEW && !patches {
                    return None;
                }
            }
        }
        Some(self)
    }

    fn in_patches(&self) -> bool {
        self.alike as f64 >= Self::ALIKE * self.pairs as f64
    }

    fn values(self) -> Option<Vec<i64>> {
        let few = self.values.len() <= Self::FEW || self.in_patches();
        few.then(|| self.values.into_iter().take(Self::FEW).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::scan::Voxels;
    use crate::dim::voxels;
    use crate::rng::{Stream, rng};
    use rand::Rng as _;

    fn look(values: Vec<f32>, shape: Shape) -> Look {
        Look::at(&Channel::float32(values), shape)
    }

    #[test]
    fn the_box_is_the_smallest_that_holds_every_channels_foreground() {
        // More than a piece.
        let shape = [5, 60, 40];
        let mut random = rng(2, Stream::Train, 0, 0);
        for _ in 0..50 {
            let mut channels = [vec![0.0f32; 12_000], vec![0.0f32; 12_000]];
            let marks: Vec<Shape> = (0..random.random_range(1..4)).map(|_| shape.map(|n| random.random_range(0..n))).collect();
            for mark in &marks {
                channels[random.random_range(0..2)][(mark[0] * 60 + mark[1]) * 40 + mark[2]] = 1.0;
            }
            let looks = channels.map(|values| look(values, shape));
            let found = bounding_box(&[(&looks[0].highest, 0.5), (&looks[1].highest, 0.5)]).unwrap();
            for a in 0..3 {
                let (low, high) = (marks.iter().map(|m| m[a]).min().unwrap(), marks.iter().map(|m| m[a]).max().unwrap());
                assert_eq!((found.start[a], found.size[a]), (low, high + 1 - low));
            }
        }
        assert_eq!(bounding_box(&[(&look(vec![0.0; 12_000], shape).highest, 0.5)]), None);
    }

    #[test]
    fn whole_numbers_look_as_they_do_as_floats() {
        let mut random = rng(4, Stream::Train, 0, 0);
        // Scans and labels, of more than a piece; rows that are no whole number of lanes.
        for (shape, values) in [([4, 60, 47], 0..200u8), ([3, 70, 61], 0..2), ([90, 9, 16], 7..8)] {
            let of = (0..voxels(shape)).map(|_| random.random_range(values.clone())).collect::<Vec<_>>();
            for stored in [
                Voxels::Uint8(of.clone()),
                Voxels::Uint16(of.iter().map(|&v| 300 * u16::from(v)).collect()),
                Voxels::Int16(of.iter().map(|&v| 300 * (i16::from(v) - 100)).collect()),
            ] {
                let channel = Channel::new(stored, None);
                let floats = Channel::float32(channel.clone().into_floats());
                assert_eq!(format!("{:?}", Look::at(&channel, shape)), format!("{:?}", Look::at(&floats, shape)));
            }
        }
    }
}
