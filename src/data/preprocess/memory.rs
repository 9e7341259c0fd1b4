//! What a scan takes of memory, said before it is taken where it is much.

use crate::machine;
use indicatif::HumanBytes;

/// More voxels a channel than this are taken for a wrong spacing; the largest cube has as many.
pub(super) const MAX_VOXELS: f64 = (1u64 << 30) as f64;
/// What is worth a line.
const LARGE: u64 = 1 << 30;
/// Of a voxel in memory.
pub const FLOAT: usize = size_of::<f32>();

/// A line on this many bytes, of which `parts` says what they are for; `None` if they are few.
pub fn line(bytes: usize, parts: &str) -> Option<String> {
    told(bytes as u64, available(), parts)
}

/// Bytes that this process may still take, as far as the system says.
fn available() -> Option<u64> {
    let [free, limit] = [machine::memory().map(|[_, free]| free), machine::memory_limit()];
    free.into_iter().chain(limit).min()
}

fn told(bytes: u64, available: Option<u64>, parts: &str) -> Option<String> {
    let more = available.filter(|&available| bytes > available);
    let more = more.map_or(String::new(), |available| {
        format!("; WARNING: more than the {} that are free here: the system may end this process", HumanBytes(available))
    });
    (bytes > LARGE).then(|| format!("takes about {} of memory: {parts}{more}", HumanBytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::told;
    use crate::data::layouts::Volumes;
    use crate::data::preprocess::look::Look;
    use crate::data::preprocess::{Dtype, Grid, Intensity, Placement, Settings, Threshold};
    use crate::data::scan::Scan;
    use crate::data::volume::Volume;
    use ndarray::Array4;

    #[test]
    fn a_large_grid_is_told_and_one_of_billions_of_voxels_is_refused() {
        let affine = std::array::from_fn(|r| std::array::from_fn(|c| f64::from(u8::from(r == c))));
        let data = Array4::from_shape_fn((2, 10, 10, 10), |(_, i, j, k)| (i + j + k) as f32);
        let scan = Scan::from(Volume { data, affine });
        let looks = Look::all(&scan);
        let place = |mm: f64| {
            let (foreground, intensity) = (Threshold::Above { value: -1. }, Intensity::MinMax);
            Placement::find(
                scan.shape,
                &scan.affine,
                &looks,
                None,
                &Settings {
                    grid: Grid::Spacing { mm: [mm; 3] },
                    foreground,
                    intensity,
                    dtype: Dtype::F16,
                    volumes: Volumes::Channels,
                },
            )
        };
        assert_eq!(place(0.1).unwrap().memory(&scan.channels), None);
        let told = place(0.02).unwrap().memory(&scan.channels).unwrap();
        assert!(
            told.starts_with("takes about 1.98 GiB of memory: 2 channels") && told.ends_with("[500, 500, 500] as stored"),
            "{told}"
        );
        let refused = place(0.009).unwrap_err().to_string();
        assert!(
            refused.contains("would become [1111, 1111, 1111], 5.11 GiB a channel") && refused.contains("spacing"),
            "{refused}"
        );
    }

    #[test]
    fn only_much_memory_is_worth_a_line() {
        assert_eq!(super::line(1 << 30, "little"), None);
        assert_eq!(told(5 << 30, Some(6 << 30), "much").unwrap(), "takes about 5.00 GiB of memory: much");
        let too_much = told(5 << 30, Some(4 << 30), "too much").unwrap();
        assert!(too_much.contains("too much; WARNING: more than the 4.00 GiB that are free here"), "{too_much}");
    }
}
