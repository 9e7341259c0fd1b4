//! What an encoder may be at most, so that an absurd number in a file or a flag is an error and not an overflow or a failed allocation.

use anyhow::{Result, ensure};
use std::fmt::Debug;
use std::ops::RangeInclusive;

/// Resolutions of an encoder; nnU-Net takes as many for images of 8192 pixels a side.
pub const LEVELS: RangeInclusive<usize> = 1..=12;
/// Of the input or of any level's map.
pub const CHANNELS: RangeInclusive<i64> = 1..=1 << 16;
/// Convolutions or residual blocks of a level.
pub const BLOCKS: RangeInclusive<usize> = 1..=256;
/// Side of a kernel in voxels; smaller ones are no [`PerAxis`](crate::dim::PerAxis).
pub const KERNEL: i64 = 31;
/// Voxels of the input per voxel of the deepest map along an axis: halved into each level but the first.
pub const REDUCTION: i64 = 1 << (*LEVELS.end() - 1);
/// Weights of all convolutions, 8 GiB of float32.
const WEIGHTS: u128 = 1 << 31;

/// Errors if one of the numbers is outside of a range of the above.
pub fn within<T: PartialOrd + Debug + Copy>(
    what: &str,
    range: &RangeInclusive<T>,
    found: impl IntoIterator<Item = T>,
) -> Result<()> {
    for n in found {
        let (least, most) = (range.start(), range.end());
        ensure!(range.contains(&n), "{what} must be {least:?} to {most:?}, found {n:?}");
    }
    Ok(())
}

/// Weights of convolutions between maps of these channels.
pub fn weights(inputs: i64, outputs: i64, kernel: &[i64]) -> u128 {
    kernel.iter().chain([&inputs, &outputs]).map(|&n| n as u128).product()
}

/// Errors if an encoder of so many weights is too large for any machine.
pub fn check_weights(n: u128) -> Result<()> {
    ensure!(n <= WEIGHTS, "an encoder of {n} weights, expected at most {WEIGHTS}: take fewer filters, features or levels");
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::dim::{PerAxis, Rank};
    use crate::nn::{Architecture, EncoderConfig, EncoderFlags};
    use serde_json::json;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn absurd_shapes_are_errors() {
        let plain = |change: fn(&mut EncoderFlags)| {
            let mut flags = EncoderFlags { encoder: Some(Architecture::PlainConv), ..EncoderFlags::default() };
            change(&mut flags);
            flags.config(Rank::Three, 1, 0.)
        };
        let sides = |text: &str| text.parse::<PerAxis>().unwrap();
        for (found, says) in [
            (plain(|f| f.features = vec![1; 70]), "--features must be 1 to 12, found 70"),
            (plain(|f| f.blocks = vec![1; 70]), "--blocks must be 1 to 12, found 70"),
            (plain(|f| f.levels = Some(usize::MAX)), "--levels must be 1 to 12"),
            (plain(|f| f.filters = Some(1 << 62)), "--filters must be 1 to 65536"),
            (plain(|f| (f.filters, f.levels) = (Some(1 << 62), Some(1))), "--filters must be 1 to 65536"),
            (plain(|f| (f.encoder, f.filters) = (None, Some(1 << 62))), "--filters must be 1 to 65536"),
            (plain(|f| (f.encoder, f.filters, f.levels) = (None, Some(1 << 16), Some(12))), "expected at most 2147483648"),
            (plain(|f| f.features = vec![1 << 16; 6]), "expected at most 2147483648"),
            (plain(|f| f.blocks = vec![usize::MAX; 6]), "--blocks must be 1 to 256"),
            (plain(|f| f.kernels = vec![PerAxis::all(Rank::Three, 1001)]), "--kernels must be 1 to 31, found 1001"),
            (
                plain(|f| {
                    let huge = PerAxis::all(Rank::Three, 1 << 32);
                    f.strides = vec![PerAxis::all(Rank::Three, 1), huge, huge];
                }),
                "--strides must be 1 to 2048",
            ),
        ] {
            let message = found.unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
        assert!(plain(|f| f.levels = Some(12)).is_ok());
        // Of a kernel along one axis only, no voxel is left out where nothing is said of strides.
        let thick =
            EncoderFlags { encoder: Some(Architecture::PlainConv), kernels: vec![sides("3x3x1")], ..Default::default() };
        let EncoderConfig::NnUNet { stages, .. } = thick.config(Rank::Three, 1, 0.).unwrap() else { unreachable!() };
        assert_eq!(stages.strides[..3], [sides("1x1x1"), sides("2x2x1"), sides("2x2x2")]);
        // What a file says of itself, and what its tensors say.
        let unet = json!({ "rank": 3, "in_channels": 1, "filters": 4, "levels": 2, "dropout": 0.0 });
        for (key, value) in
            [("in_channels", json!(0)), ("filters", json!(0)), ("filters", json!(1i64 << 62)), ("levels", json!(70))]
        {
            let mut wrong = unet.clone();
            wrong[key] = value;
            assert!(serde_json::from_value::<EncoderConfig>(wrong).is_err(), "{key}");
        }
        let of = |stages: usize, dims: &[i64]| {
            let name = |i| format!("encoder.stages.{i}.0.convs.0.conv.weight");
            let tensors = (0..stages).map(|i| (name(i), Tensor::zeros(dims, (Kind::Float, Device::Cpu)))).collect();
            EncoderConfig::of(&tensors, "encoder.").map_err(|e| e.to_string())
        };
        assert!(of(1, &[2, 1, 3, 3, 3]).is_ok());
        assert!(of(70, &[1, 1, 3, 3, 3]).unwrap_err().contains("levels must be 1 to 12, found 70"));
        assert!(of(1, &[1 << 40, 0, 3, 3, 3]).unwrap_err().contains("input channels must be 1 to 65536, found 0"));
        assert!(of(2, &[1000, 1, 1, 1, 1]).unwrap_err().contains("at least 1001000 weights, it holds 2000"));
    }
}
