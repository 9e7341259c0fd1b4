//! Numbers as files store them, many at a time.

/// Values handled side by side, so that the compiler uses vector registers.
pub const LANES: usize = 16;
/// Values that are added up in single precision: few, so that rounding does not grow with the volume.
pub const BLOCK: usize = 64 * LANES;

/// A voxel's value as it is stored. Each is a float32 as well, exactly.
pub trait Number: Copy + Default + PartialOrd + Into<f32> {
    const LOWEST: Self;
    const HIGHEST: Self;

    /// The lower of two; of a number and NaN the first one.
    fn or_lower(self, other: Self) -> Self {
        if other < self { other } else { self }
    }

    /// The higher of two; of a number and NaN the first one.
    fn or_higher(self, other: Self) -> Self {
        if other > self { other } else { self }
    }

    /// Lowest and highest of some values, but for NaN.
    fn range(values: &[Self]) -> [Self; 2];

    /// Sum of up to [`BLOCK`] values.
    fn sum(values: &[Self]) -> f64;
}

macro_rules! whole {
    ($($t:ty)*) => {
        $(impl Number for $t {
            const LOWEST: $t = <$t>::MIN;
            const HIGHEST: $t = <$t>::MAX;

            fn range(values: &[$t]) -> [$t; 2] {
                let low = values.iter().fold(<$t>::MAX, |low, &v| low.min(v));
                [low, values.iter().fold(<$t>::MIN, |high, &v| high.max(v))]
            }

            fn sum(values: &[$t]) -> f64 {
                f64::from(values.iter().map(|&v| i32::from(v)).sum::<i32>())
            }
        })*
    };
}

whole! { u8 u16 i16 }

impl Number for f32 {
    const LOWEST: f32 = f32::NEG_INFINITY;
    const HIGHEST: f32 = f32::INFINITY;

    fn range(values: &[f32]) -> [f32; 2] {
        let low = lanes(values, f32::INFINITY, f32::or_lower).into_iter().fold(f32::INFINITY, f32::min);
        [low, lanes(values, f32::NEG_INFINITY, f32::or_higher).into_iter().fold(f32::NEG_INFINITY, f32::max)]
    }

    fn sum(values: &[f32]) -> f64 {
        lanes(values, 0.0, |sum, v| sum + v).into_iter().map(f64::from).sum()
    }
}

/// Each lane's values folded from `start` on.
fn lanes(values: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut folded = [start; LANES];
    let (whole, last) = values.as_chunks();
    for values in whole {
        folded = side_by_side(&folded, values, &f);
    }
    for (folded, &v) in folded.iter_mut().zip(last) {
        *folded = f(*folded, v);
    }
    folded
}

/// `f` of each pair. Arrays, not slices, become vector registers.
#[inline(always)]
pub fn side_by_side<T: Copy>(a: &[T; LANES], b: &[T; LANES], f: impl Fn(T, T) -> T) -> [T; LANES] {
    std::array::from_fn(|k| f(a[k], b[k]))
}

/// Whether all are this one. Looks at all of them, which is quicker than to stop at the first that is not.
pub fn all_are<T: Number>(values: &[T], one: T) -> bool {
    values.iter().fold(true, |same, &v| same & (v == one))
}
