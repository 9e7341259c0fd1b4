//! What is to be known of a channel before it is resampled, in one pass over it.

use super::intensity::{BLOCK, LANES, Summary, Sums};
use crate::data::identity;
use crate::data::labelling::whole_label;
use crate::data::scan::{Channel, Scan};
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
        let (mut id, mut sums, mut highest) = (identity::Image::new(shape), Sums::default(), Highest::new(shape));
        let mut few = Some(FewValues::default());
        channel.pieces(PIECE, |values| {
            id.add(values);
            sums.add(values);
            highest.add(values);
            few = few.take().and_then(|few| few.add(values));
        });
        Look { id: id.id(), summary: sums.summary(), highest, few_values: few.and_then(FewValues::values) }
    }

    /// At each channel.
    pub fn all(scan: &Scan) -> Vec<Look> {
        scan.channels.par_iter().map(|channel| Look::at(channel, scan.shape)).collect()
    }
}

/// The highest value of each plane, row and column of voxels: of all that have one index along an axis.
#[derive(Clone, Debug)]
pub struct Highest {
    along: [Vec<f32>; 3],
    /// Values that were looked at.
    n: usize,
}

impl Highest {
    fn new(shape: Shape) -> Highest {
        Highest { along: shape.map(|n| vec![f32::NEG_INFINITY; n]), n: 0 }
    }

    /// Takes the next values.
    fn add(&mut self, mut values: &[f32]) {
        let [planes, rows, columns] = &mut self.along;
        while !values.is_empty() {
            let (row, column) = (self.n / columns.len(), self.n % columns.len());
            let (part, rest) = values.split_at(values.len().min(columns.len() - column));
            let mut lanes = [f32::NEG_INFINITY; LANES];
            let (whole, last) = part.as_chunks();
            let (whole_columns, last_columns) = columns[column..][..part.len()].as_chunks_mut();
            for (values, columns) in whole.iter().zip(whole_columns) {
                (lanes, *columns) = (higher(&lanes, values), higher(columns, values));
            }
            for (column, &v) in last_columns.iter_mut().zip(last) {
                *column = if v > *column { v } else { *column };
            }
            let highest = lanes.iter().chain(last).fold(f32::NEG_INFINITY, |highest, &v| if v > highest { v } else { highest });
            let (plane, row) = (row / rows.len(), row % rows.len());
            planes[plane] = planes[plane].max(highest);
            rows[row] = rows[row].max(highest);
            self.n += part.len();
            values = rest;
        }
    }
}

/// The higher of each pair; of a number and NaN the first one. An array, not a slice, becomes vector registers.
#[inline(always)]
fn higher(a: &[f32; LANES], b: &[f32; LANES]) -> [f32; LANES] {
    std::array::from_fn(|k| if b[k] > a[k] { b[k] } else { a[k] })
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
struct FewValues {
    background: Option<f32>,
    last: Option<f32>,
    values: BTreeSet<i64>,
    /// Neighbours that are not both background, and those of them that are alike.
    pairs: usize,
    alike: usize,
}

impl FewValues {
    const FEW: usize = 32;
    const REGIONS: usize = 1024;
    /// Neighbours that are looked at before a channel of more values is given up, and the share of them that must be alike.
    const NEIGHBOURS: usize = 4096;
    const ALIKE: f64 = 0.6;

    /// Takes the next values; `None`: it is no label.
    fn add(mut self, values: &[f32]) -> Option<FewValues> {
        self.background = self.background.or(values.first().copied());
        let mut values = values.iter();
        while let Some(&value) = values.next() {
            let same = self.last == Some(value);
            if same && self.last == self.background {
                // More of the background says nothing.
                let more = values.as_slice().iter().take_while(|v| **v == value).count();
                values = values.as_slice()[more..].iter();
                continue;
            }
            if self.last.is_some() {
                self.pairs += 1;
                self.alike += usize::from(same);
            }
            if !same {
                self.last = Some(value);
                self.values.insert(whole_label(value)?);
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
}
