//! A scan in the type that its file stores: mostly a quarter or a half of what float32 takes, which it becomes piece by piece, in cache.

use super::number::Number;
use super::volume::{Affine, Volume, spacing};
use crate::dim::Shape;
use ndarray::{Array4, ArrayView3};
use std::ops::Range;

/// Channels and the affine of their voxel indices, as those of a [`Volume`].
#[derive(Clone, Debug)]
pub struct Scan {
    pub channels: Vec<Channel>,
    pub shape: Shape,
    pub affine: Affine,
}

/// One channel's voxels, row-major.
#[derive(Clone, Debug)]
pub struct Channel {
    stored: Voxels,
    /// Slope and intercept of voxels that are not float32.
    scale: Option<(f64, f64)>,
}

#[derive(Clone, Debug)]
pub enum Voxels {
    Uint8(Vec<u8>),
    Uint16(Vec<u16>),
    Int16(Vec<i16>),
    Float32(Vec<f32>),
}

/// What goes through a channel's values piece by piece, in whichever type they are stored.
pub trait Pieces {
    type Seen;

    /// `each` hands all pieces in order to what it is given.
    fn of<T: Number>(self, each: impl FnOnce(&mut dyn FnMut(&[T]))) -> Self::Seen;
}

/// What gives float32 by place.
pub trait Floats {
    /// Those of a range; `buffer` is for values that are stored otherwise.
    fn floats<'a>(&'a self, range: Range<usize>, buffer: &'a mut Vec<f32>) -> &'a [f32];
}

impl Floats for [f32] {
    fn floats<'a>(&'a self, range: Range<usize>, _: &'a mut Vec<f32>) -> &'a [f32] {
        &self[range]
    }
}

impl Floats for Channel {
    fn floats<'a>(&'a self, range: Range<usize>, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        buffer.clear();
        // Through float64, as nibabel does.
        macro_rules! convert {
            ($values:expr) => {
                match self.scale {
                    None => buffer.extend($values[range].iter().map(|&v| f32::from(v))),
                    Some((slope, inter)) => {
                        buffer.extend($values[range].iter().map(|&v| (f64::from(v) * slope + inter) as f32))
                    }
                }
            };
        }
        match &self.stored {
            Voxels::Uint8(values) => convert!(values),
            Voxels::Uint16(values) => convert!(values),
            Voxels::Int16(values) => convert!(values),
            Voxels::Float32(values) => return &values[range],
        }
        buffer
    }
}

impl Channel {
    pub fn new(stored: Voxels, scale: Option<(f64, f64)>) -> Channel {
        Channel { stored, scale }
    }

    pub fn float32(values: Vec<f32>) -> Channel {
        Channel::new(Voxels::Float32(values), None)
    }

    pub fn voxels(&self) -> usize {
        match &self.stored {
            Voxels::Uint8(values) => values.len(),
            Voxels::Uint16(values) => values.len(),
            Voxels::Int16(values) => values.len(),
            Voxels::Float32(values) => values.len(),
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        let each = match &self.stored {
            Voxels::Uint8(_) => size_of::<u8>(),
            Voxels::Uint16(_) | Voxels::Int16(_) => size_of::<u16>(),
            Voxels::Float32(_) => size_of::<f32>(),
        };
        each * self.voxels()
    }

    /// All values in order, so many at a time, as what they are stored as: whole numbers that have no scale, or float32.
    pub fn pieces<P: Pieces>(&self, size: usize, pieces: P) -> P::Seen {
        match (&self.stored, self.scale) {
            (Voxels::Uint8(values), None) => pieces.of(|take| values.chunks(size).for_each(take)),
            (Voxels::Uint16(values), None) => pieces.of(|take| values.chunks(size).for_each(take)),
            (Voxels::Int16(values), None) => pieces.of(|take| values.chunks(size).for_each(take)),
            (Voxels::Float32(values), _) => pieces.of(|take| values.chunks(size).for_each(take)),
            (_, Some(_)) => pieces.of(|take| {
                let mut buffer = vec![];
                for start in (0..self.voxels()).step_by(size) {
                    take(self.floats(start..self.voxels().min(start + size), &mut buffer));
                }
            }),
        }
    }

    /// All values in order.
    pub fn into_floats(self) -> Vec<f32> {
        match self {
            Channel { stored: Voxels::Float32(values), .. } => values,
            other => {
                let mut values = Vec::with_capacity(other.voxels());
                other.floats(0..other.voxels(), &mut values);
                values
            }
        }
    }
}

impl Scan {
    /// Distance between neighbouring voxels along each axis, in millimetres.
    pub fn spacing(&self) -> [f64; 3] {
        spacing(&self.affine)
    }

    /// All channels as float32.
    pub fn into_volume(self) -> Volume {
        let Scan { channels, shape: [i, j, k], affine } = self;
        let shape = (channels.len(), i, j, k);
        let mut channels = channels.into_iter().map(Channel::into_floats);
        let mut values = channels.next().unwrap_or_default();
        channels.for_each(|more| values.extend(more));
        Volume { data: Array4::from_shape_vec(shape, values).expect("channels of this shape"), affine }
    }
}

impl From<Volume> for Scan {
    fn from(volume: Volume) -> Scan {
        let (shape, affine) = (volume.shape(), volume.affine);
        let channel = |data: ArrayView3<f32>| Channel::float32(data.iter().copied().collect());
        Scan { channels: volume.data.outer_iter().map(channel).collect(), shape, affine }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Collect;

    impl Pieces for Collect {
        type Seen = Vec<f32>;

        fn of<T: Number>(self, each: impl FnOnce(&mut dyn FnMut(&[T]))) -> Vec<f32> {
            let mut found = vec![];
            each(&mut |values| found.extend(values.iter().map(|&v| v.into())));
            found
        }
    }

    #[test]
    fn integers_are_scaled_in_float64_in_pieces_of_any_size() {
        let stored: Vec<i16> = (-300..300).map(|v| v * 100).collect();
        let expected: Vec<f32> = stored.iter().map(|&v| (f64::from(v) * 0.37 - 1000.25) as f32).collect();
        let channel = Channel::new(Voxels::Int16(stored), Some((0.37, -1000.25)));
        assert_eq!((channel.voxels(), channel.bytes()), (600, 1200));
        for size in [1, 7, 600, 1000] {
            assert_eq!(channel.pieces(size, Collect), expected);
        }
        let mut affine = [[0.; 4]; 4];
        (0..4).for_each(|a| affine[a][a] = 1.);
        let bright = Channel::new(Voxels::Uint8((0..600).map(|v| (v % 256) as u8).collect()), None);
        assert_eq!(bright.pieces(7, Collect), bright.clone().into_floats());
        let volume = Scan { channels: vec![channel, bright], shape: [10, 20, 3], affine }.into_volume();
        assert_eq!(volume.data.as_slice().unwrap()[..600], expected);
        assert_eq!(volume.data[[1, 5, 1, 2]], 49.);
        assert_eq!(Scan::from(volume.clone()).into_volume().data, volume.data);
    }
}
