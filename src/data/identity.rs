//! Knowing a scan again, whatever was done to it since: by its images as they were read.

use crate::data::formats::image::{Photograph, Samples};
use crate::data::number::{Number, all_are};
use crate::dim::Shape;
use bytemuck::Pod;
use std::collections::BTreeSet;
use twox_hash::XxHash3_128;

/// How ids begin. Those of earlier versions, SHA-256, begin with a hexadecimal digit and cannot be compared.
const KIND: char = 'x';

/// Whether this version can tell by such an id whether a scan is the same.
pub fn is_known(id: &str) -> bool {
    id.starts_with(KIND)
}

/// A hash (XXH3, 128 bits) of a channel of a scan as read: extents and values as float32, in RAS+ order, before anything is cut, resampled or
/// scaled. How a file stores its values, compresses them or orders its axes does not matter. A channel of one value has none: scans that
/// have nothing else in common share it.
pub struct Image {
    hash: Hash,
    /// Of a channel that is constant so far.
    constant: Option<f32>,
    empty: bool,
}

impl Image {
    pub fn new(shape: Shape) -> Image {
        Image { hash: Hash::new(shape), constant: None, empty: true }
    }

    /// Takes the next values.
    pub fn add<T: Number>(&mut self, values: &[T]) {
        if self.empty {
            (self.constant, self.empty) = (values.first().map(|&v| v.into()), values.is_empty());
        }
        let same = |first: &f32| values.first().is_none_or(|&v| v.into() == *first && all_are(values, v));
        self.constant = self.constant.filter(same);
        let mut block = [0f32; 1024];
        for values in values.chunks(block.len()) {
            let block = &mut block[..values.len()];
            // Minus zero becomes zero.
            block.iter_mut().zip(values).for_each(|(out, &v)| *out = v.into() + 0.);
            self.hash.write(bytemuck::cast_slice(block));
        }
    }

    pub fn id(self) -> Option<String> {
        (self.constant.is_none() && !self.empty).then(|| self.hash.id())
    }
}

/// As [`Image`], of these channels of a photograph: their samples. 8 bits and the same in 16 are the same.
pub fn photograph(photograph: &Photograph, wanted: &[usize]) -> Vec<String> {
    let wanted: BTreeSet<usize> = wanted.iter().copied().collect();
    match &photograph.samples {
        Samples::Eight(samples) => planes(samples, photograph, &wanted),
        Samples::Sixteen(samples) if samples.iter().all(|v| v % WIDER == 0) => {
            planes(&samples.iter().map(|v| (v / WIDER) as u8).collect::<Vec<_>>(), photograph, &wanted)
        }
        Samples::Sixteen(samples) => planes(samples, photograph, &wanted),
    }
}

/// 16 bits of white for 8.
const WIDER: u16 = u16::MAX / u8::MAX as u16;

fn planes<S: Pod + PartialEq>(samples: &[S], photograph: &Photograph, wanted: &BTreeSet<usize>) -> Vec<String> {
    let &Photograph { channels, height, width, .. } = photograph;
    // Each channel with its hash, and whether it has one value only.
    let mut hashes: Vec<_> = wanted.iter().map(|&c| (c, Hash::new([1, height, width]), true)).collect();
    let mut plane = [S::zeroed(); 4096];
    for pixels in samples.chunks(plane.len() * channels) {
        for (c, hash, constant) in &mut hashes {
            let plane = &mut plane[..pixels.len() / channels];
            plane.iter_mut().zip(pixels.iter().skip(*c).step_by(channels)).for_each(|(to, &from)| *to = from);
            *constant &= plane.iter().all(|v| *v == samples[*c]);
            hash.write(bytemuck::cast_slice(plane));
        }
    }
    hashes.into_iter().filter(|(_, _, constant)| !constant).map(|(_, hash, _)| hash.id()).collect()
}

struct Hash(XxHash3_128);

impl Hash {
    fn new(shape: Shape) -> Hash {
        let mut hash = XxHash3_128::new();
        hash.write(format!("{shape:?}").as_bytes());
        Hash(hash)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    fn id(self) -> String {
        format!("{KIND}{:032x}", self.0.finish_128())
    }
}

/// Lowercase hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::volume::Volume;
    use crate::transform::spatial::Orientation;
    use ndarray::{Array4, ArrayView3, Axis, concatenate};

    fn images(volume: &Volume) -> Vec<String> {
        let of = |channel: ArrayView3<f32>| {
            let mut image = Image::new(volume.shape());
            // In pieces of any size.
            channel.iter().copied().collect::<Vec<_>>().chunks(7).for_each(|values| image.add(values));
            image.id()
        };
        volume.data.outer_iter().filter_map(of).collect()
    }

    #[test]
    fn an_image_is_known_again_in_any_order_of_axes_and_among_any_channels() {
        let affine = std::array::from_fn(|r| std::array::from_fn(|c| f64::from(u8::from(r == c))));
        let data = Array4::from_shape_fn((2, 3, 4, 5), |(c, i, j, k)| (c * 7 + i * 31 + j * 11 + k) as f32 - 9.);
        let scan = Volume { data: data.clone(), affine };
        let both = images(&scan);
        assert!(both.len() == 2 && both[0] != both[1] && both.iter().all(|id| is_known(id) && id.len() == 33));

        let turned = scan.permute(Orientation { source: [2, 0, 1], flip: [true, false, true] });
        assert_ne!(images(&turned), both);
        assert_eq!(images(&turned.to_ras().unwrap().0), both);
        let second = Volume { data: data.select(Axis(0), &[1]), affine };
        assert_eq!(images(&second), both[1..]);
        // A constant channel says nothing, minus zero is zero, and one other voxel makes another scan.
        let flat = Array4::from_elem((1, 3, 4, 5), 3.);
        let with_flat = concatenate(Axis(0), &[flat.view(), second.data.view()]).unwrap();
        assert_eq!(images(&Volume { data: with_flat, affine }), both[1..]);
        let mut other = second;
        other.data[[0, 0, 0, 2]] = if other.data[[0, 0, 0, 2]] == 0. { -0. } else { panic!("expected a zero here") };
        assert_eq!(images(&other), both[1..]);
        other.data[[0, 2, 3, 4]] += 1e-3;
        assert_ne!(images(&other), both[1..]);
        // The same values in another shape are another image.
        let reshaped = Volume { data: data.to_shape((2, 3, 5, 4)).unwrap().to_owned(), affine };
        assert!(images(&reshaped).iter().all(|image| !both.contains(image)));
    }

    #[test]
    fn a_photograph_is_known_again_in_any_depth_and_by_any_channel() {
        let (height, width) = (70, 90);
        let bytes: Vec<u8> = (0..3 * height * width).map(|i| (i * i / 7 % 251) as u8).collect();
        let of = |samples, channels| {
            photograph(&Photograph { samples, channels, height, width }, &(0..channels).collect::<Vec<_>>())
        };
        let ids = of(Samples::Eight(bytes.clone()), 3);
        assert!(ids.len() == 3 && ids[0] != ids[1] && ids.iter().all(|id| is_known(id)));
        let wide: Vec<u16> = bytes.iter().map(|&v| u16::from(v) * WIDER).collect();
        assert_eq!(of(Samples::Sixteen(wide.clone()), 3), ids);
        for c in 0..3 {
            let grey = bytes.iter().skip(c).step_by(3).copied().collect();
            assert_eq!(of(Samples::Eight(grey), 1), ids[c..c + 1]);
        }
        let mut other = wide;
        *other.last_mut().unwrap() ^= 1;
        let other = of(Samples::Sixteen(other), 3);
        assert!(other.iter().all(|id| !ids.contains(id)));
        // Black in one channel.
        let black = bytes.iter().enumerate().map(|(i, &v)| if i % 3 == 1 { 0 } else { v }).collect();
        assert_eq!(of(Samples::Eight(black), 3), [&ids[..1], &ids[2..]].concat());
    }
}
