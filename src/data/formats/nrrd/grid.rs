//! Which axes are space, which is the channels', and where the voxels lie.

use super::fields::{Fields, quoted};
use crate::data::volume::Affine;
use crate::dim::Shape;
use anyhow::{Context, Result, bail, ensure};

/// What the axes of a file are.
pub struct Grid {
    pub shape: Shape,
    pub channels: usize,
    /// The channels' axis is the first, the fastest.
    pub interleaved: bool,
    /// Axes of space: 3, or 2 of a slice.
    pub rank: usize,
    /// In the file's own space and unit: the directions of the three axes, then the origin.
    pub vectors: [[f64; 3]; 4],
    /// Numbers of a vector.
    pub width: usize,
    /// The header line that names the space.
    pub space: String,
    /// To RAS+ millimetres.
    pub affine: Affine,
}

/// Kinds of an axis along which voxels lie, or nothing is said.
const OF_SPACE: [&str; 5] = ["space", "domain", "time", "???", "none"];

impl Grid {
    pub fn of(fields: &Fields) -> Result<Grid> {
        let rank: usize = fields.need("dimension")?.parse().ok().filter(|rank| (1..=16).contains(rank)).with_context(|| {
            format!("field `dimension`: expected 2 to 4, found \"{}\"", fields.get("dimension").unwrap_or_default())
        })?;
        let sizes: Vec<usize> = fields.numbers("sizes", rank)?.context("no field `sizes`")?;
        if sizes.contains(&0) {
            bail!("sizes {sizes:?} hold 0, expected positive ones");
        }
        let space = Space::of(fields, rank)?;
        let (axes, other) = split(fields, rank, &sizes, &space)?;
        let (channels, interleaved) = match other[..] {
            [] => (1, false),
            [axis] if axis + 1 == rank => (sizes[axis], false),
            [0] => (sizes[0], true),
            _ => bail!("sizes {sizes:?} with axes {other:?} that are not of space, expected one, the first or the last"),
        };
        let mut shape = [1; 3];
        axes.iter().zip(&mut shape).for_each(|(&axis, n)| *n = sizes[axis]);
        let vectors = space.vectors(fields, &axes)?;
        let [x, y, z, origin] = vectors;
        let mut affine = [[0.0; 4], [0.0; 4], [0.0; 4], [0.0, 0.0, 0.0, 1.0]];
        for (r, row) in affine.iter_mut().take(3).enumerate() {
            *row = [x[r], y[r], z[r], origin[r]].map(|v| v * space.to_ras[r] * space.unit[r]);
        }
        let given = space.directions.iter().flatten().flatten().next().map(|vector| vector.len().min(3));
        let width = given.unwrap_or(axes.len());
        let space = match (space.name.as_str(), width) {
            ("", 3) if given.is_none() => "space: left-posterior-superior".to_string(),
            ("", _) => format!("space dimension: {width}"),
            (name, _) => format!("space: {name}"),
        };
        Ok(Grid { shape, channels, interleaved, rank: axes.len(), vectors, width, space, affine })
    }
}

/// The axes of the grid, and those of one that lie along no direction of space; those of extent 1 among the latter say nothing.
fn split(fields: &Fields, rank: usize, sizes: &[usize], space: &Space) -> Result<(Vec<usize>, Vec<usize>)> {
    let kinds: Option<Vec<&str>> = fields.get("kinds").map(|kinds| kinds.split_whitespace().collect());
    if let Some(kinds) = &kinds {
        ensure!(kinds.len() == rank, "field `kinds`: expected {rank}, found {}", kinds.len());
    }
    let of_space = |axis: usize| match &space.directions {
        Some(directions) => directions[axis].is_some(),
        None => kinds.as_ref().is_none_or(|kinds| OF_SPACE.iter().any(|kind| kinds[axis].eq_ignore_ascii_case(kind))),
    };
    let (mut axes, mut other): (Vec<usize>, Vec<usize>) = (0..rank).partition(|&axis| of_space(axis));
    // A series: the axes of space, then time.
    if axes.len() == 4 && other.is_empty() {
        other.extend(axes.pop());
    }
    other.retain(|&axis| sizes[axis] > 1);
    ensure!(
        (2..=3).contains(&axes.len()),
        "{rank} axes of sizes {sizes:?}, {} of them of space, expected 2 or 3 and one more for channels or time",
        axes.len()
    );
    Ok((axes, other))
}

/// What the file says of the space its voxels are in.
struct Space {
    /// Of each axis of the file, in millimetres of the file's own space.
    directions: Option<Vec<Option<Vec<f64>>>>,
    /// In lower case and without time.
    name: String,
    /// Factors from the space's axes to RAS.
    to_ras: [f64; 3],
    /// Millimetres of the space's units.
    unit: [f64; 3],
}

impl Space {
    fn of(fields: &Fields, rank: usize) -> Result<Space> {
        let directions = fields.vectors("space directions")?;
        if let Some(directions) = &directions {
            ensure!(directions.len() == rank, "field `space directions`: expected {rank}, found {}", directions.len());
            let fit = directions.iter().flatten().all(|direction| (2..=4).contains(&direction.len()));
            ensure!(fit, "field `space directions`: expected vectors of 2 to 4 numbers");
        }
        let name = fields.get("space").unwrap_or_default().to_lowercase();
        let name = match name.strip_suffix("-time").unwrap_or(&name) {
            "ras" | "rast" => "right-anterior-superior",
            "las" | "last" => "left-anterior-superior",
            "lps" | "lpst" => "left-posterior-superior",
            other => other,
        };
        let to_ras = match name {
            "right-anterior-superior" => [1.0, 1.0, 1.0],
            "left-anterior-superior" => [-1.0, 1.0, 1.0],
            // Where a file does not say what left is, ITK takes this, too.
            "left-posterior-superior" | "scanner-xyz" | "3d-right-handed" | "3d-left-handed" | "" => [-1.0, -1.0, 1.0],
            other => {
                bail!("field `space`: expected right-anterior-superior, left-posterior-superior or the like, found \"{other}\"")
            }
        };
        let mut unit = [1.0; 3];
        for (unit, name) in unit.iter_mut().zip(fields.get("space units").map(quoted).unwrap_or_default()) {
            *unit = match name.to_lowercase().as_str() {
                "mm" | "millimeter" | "millimetre" | "" | "???" => 1.0,
                "um" | "micron" | "micrometer" | "micrometre" => 0.001,
                "cm" | "centimeter" | "centimetre" => 10.0,
                "m" | "meter" | "metre" => 1000.0,
                other => bail!("field `space units`: expected mm, um, cm or m, found \"{other}\""),
            };
        }
        Ok(Space { directions, name: name.to_string(), to_ras, unit })
    }

    /// Directions of three axes and the origin, in the file's own space.
    fn vectors(&self, fields: &Fields, axes: &[usize]) -> Result<[[f64; 3]; 4]> {
        let three = |vector: &[f64]| std::array::from_fn(|r| vector.get(r).copied().unwrap_or(0.0));
        let mut out = [[0.0; 3]; 4];
        match &self.directions {
            Some(directions) => {
                for (to, &axis) in out.iter_mut().zip(axes) {
                    *to = three(directions[axis].as_deref().unwrap_or_default());
                }
                if let Some(origin) = fields.vectors("space origin")? {
                    out[3] = three(origin.first().and_then(Option::as_deref).unwrap_or_default());
                }
            }
            None => {
                let rank = fields.need("sizes")?.split_whitespace().count();
                // Axes without a spacing have NaN there.
                let of = |name: &str| anyhow::Ok(fields.numbers::<f64>(name, rank)?.unwrap_or_else(|| vec![f64::NAN; rank]));
                let (spacings, starts) = (of("spacings")?, of("axis mins")?);
                let centred: Vec<&str> = fields.get("centerings").into_iter().flat_map(str::split_whitespace).collect();
                for (a, &axis) in axes.iter().enumerate() {
                    let spacing = if spacings[axis].is_nan() { 1.0 } else { spacings[axis] };
                    out[a][a] = spacing;
                    // A cell's middle is half a voxel from where it begins.
                    let middle = if centred.get(axis) == Some(&"node") { 0.0 } else { spacing / 2.0 };
                    out[3][a] = if starts[axis].is_nan() { 0.0 } else { starts[axis] + middle };
                }
            }
        }
        if axes.len() == 2 {
            // A slice of 1 mm.
            let [a, b, ..] = out;
            let normal = [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
            let length = normal.iter().map(|v| v * v).sum::<f64>().sqrt();
            out[2] = normal.map(|v| v / length);
        }
        Ok(out)
    }
}
