//! Knowing a scan again, whatever was done to it since: by its images as they were read.

use crate::data::volume::Volume;
use crate::dim::voxels;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// SHA-256 of each channel of a scan as read: extents and values as float32, in RAS+ order, before anything is cut, resampled or
/// scaled. How a file stores its values, compresses them or orders its axes does not matter. A channel of one value has none: scans that
/// have nothing else in common share it.
pub fn images(volume: &Volume) -> Vec<String> {
    let shape = volume.shape();
    let data = volume.data.as_standard_layout();
    let channels = data.as_slice().expect("standard layout").par_chunks_exact(voxels(shape).max(1));
    channels.filter(|values| values.iter().any(|v| v != &values[0])).map(|values| image(values, shape)).collect()
}

fn image(values: &[f32], shape: [usize; 3]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{shape:?}"));
    let mut block = [0f32; 1024];
    for values in values.chunks(block.len()) {
        let block = &mut block[..values.len()];
        // Minus zero becomes zero.
        block.iter_mut().zip(values).for_each(|(out, v)| *out = v + 0.);
        hash.update(bytemuck::cast_slice(block));
    }
    hex(&hash.finalize())
}

/// Lowercase hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::spatial::Orientation;
    use ndarray::{Array4, Axis, concatenate};

    #[test]
    fn an_image_is_known_again_in_any_order_of_axes_and_among_any_channels() {
        let affine = std::array::from_fn(|r| std::array::from_fn(|c| f64::from(u8::from(r == c))));
        let data = Array4::from_shape_fn((2, 3, 4, 5), |(c, i, j, k)| (c * 7 + i * 31 + j * 11 + k) as f32 - 9.);
        let scan = Volume { data: data.clone(), affine };
        let both = images(&scan);
        assert!(both.len() == 2 && both[0] != both[1] && both[0].len() == 64);

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
}
