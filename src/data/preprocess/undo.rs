//! From the stored grid back into the scan's own space: the inverse of preprocessing, for predictions.

use super::Metadata;
use super::resample::{self, Axis, Tap, mix};
use super::spool::Spool;
use crate::data::labelling::Decoding;
use crate::data::volume::{Strides, gather, permute_affine, spacing};
use crate::dim::{Region, Shape, voxels};
use crate::transform::spatial::Orientation;
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};

/// Which part of a file's voxels the stored grid covers.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// Extent of the scan in RAS+ order, unless it is [permuted](Origin::permuted).
    scan: Shape,
    /// From the file's axes to the scan's.
    orientation: Orientation,
    /// From the scan to the stored grid.
    axes: [Axis; 3],
    /// Box of the scan outside of which all is background: what the grid covers, but for what was added to hold labels.
    foreground: Region,
}

impl Origin {
    /// From the metadata of a subject. Errors if they contradict each other, or the stored grid's `shape`.
    pub fn new(metadata: &Metadata, shape: Shape) -> Result<Origin> {
        let orientation = metadata.orientation;
        let scan = orientation.output(metadata.original_shape);
        let Region { start, size } = metadata.crop;
        ensure!(
            metadata.crop.fits(scan) && !size.contains(&0),
            "box of {size:?} voxels from {start:?} on, expected one inside the scan of {scan:?} (RAS+)"
        );
        let affine = permute_affine(&metadata.original_affine, metadata.original_shape, orientation);
        let axes = metadata.settings.grid.axes(metadata.crop, spacing(&affine));
        let expected = resample::shape(&axes);
        ensure!(expected == shape, "stored grid of {shape:?}, expected {expected:?} by its metadata");
        let foreground = metadata.outside.as_ref().map_or(metadata.crop, |outside| outside.foreground);
        ensure!(
            metadata.crop.hull(foreground) == metadata.crop,
            "foreground {foreground:?} outside of the box {:?}",
            metadata.crop
        );
        Ok(Origin { scan, orientation, axes, foreground })
    }

    /// The same with the scan's axes, and those of the stored grid, in another order: new axis `a` is axis `order[a]`.
    pub fn permuted(self, order: [usize; 3]) -> Origin {
        let Region { start, size } = self.foreground;
        Origin {
            scan: order.map(|a| self.scan[a]),
            orientation: self.orientation.then(Orientation { source: order, ..Orientation::IDENTITY }),
            axes: order.map(|a| self.axes[a]),
            foreground: Region { start: order.map(|a| start[a]), size: order.map(|a| size[a]) },
        }
    }
}

/// Brings probabilities back, plane by plane as they come: linear interpolation of each output in the box, the class of each
/// voxel, class 0 outside the foreground, axes turned to the file's.
pub struct Back {
    origin: Origin,
    decoding: Decoding,
    inverse: [Axis; 3],
    /// Along the first axis, one for each plane of the box.
    taps: Vec<Tap>,
    /// The last two planes that came, resampled within themselves, `[K, h, w]` of the box.
    before: Vec<f32>,
    last: Vec<f32>,
    mixed: Vec<f32>,
    /// Planes that came, and planes of the box that are done.
    came: usize,
    done: usize,
    /// Of the scan.
    classes: Vec<u8>,
    /// Where to keep the probabilities, if they are wanted.
    folder: Option<PathBuf>,
    probabilities: Option<Spool>,
    /// `[K, ..]` of a plane of the scan.
    whole: Vec<f32>,
}

/// A prediction in the space of the scan's file.
pub struct Brought {
    classes: Vec<u8>,
    /// Where the file's voxels `[i, j, k]` lie among them.
    strides: Strides,
    /// Of the file.
    shape: Shape,
    /// If they were asked for.
    pub probabilities: Option<Spool>,
}

impl Brought {
    /// The classes at place `k` of the file's third axis, `out[i + n * j]`.
    pub fn slice(&self, k: usize, out: &mut [u8]) {
        let [i, j, _] = self.shape;
        gather(&self.classes, self.strides.beginning_at(k).reversed(), [1, j, i], out, &|v| v);
    }
}

impl Back {
    /// `probabilities`: keep them too, on disk in this folder, 4 bytes an output for each voxel of the scan.
    pub fn new(origin: Origin, decoding: Decoding, probabilities: Option<&Path>) -> Back {
        let inverse = origin.axes.map(|a| a.inverse());
        let classes = vec![0; voxels(origin.scan)];
        let taps = inverse[0].taps();
        let folder = probabilities.map(Path::to_owned);
        let empty = Vec::new;
        Back {
            origin,
            decoding,
            inverse,
            taps,
            before: empty(),
            last: empty(),
            mixed: empty(),
            came: 0,
            done: 0,
            classes,
            folder,
            probabilities: None,
            whole: empty(),
        }
    }

    /// Takes the stored grid's next plane along the first axis, `[K, H, W]`.
    pub fn plane(&mut self, probabilities: &[f32]) -> Result<()> {
        let [depth, h, w] = resample::shape(&self.origin.axes);
        ensure!(
            self.came < depth && !probabilities.is_empty() && probabilities.len().is_multiple_of(h * w),
            "plane {} of {} probabilities, expected {depth} planes of {h} x {w} voxels",
            self.came,
            probabilities.len()
        );
        let classes = probabilities.len() / (h * w);
        std::mem::swap(&mut self.before, &mut self.last);
        let size = self.inverse[1].out * self.inverse[2].out;
        self.last.resize(classes * size, 0.0);
        let within = [Axis::resize(0, 1, 1), self.inverse[1], self.inverse[2]];
        for (plane, out) in probabilities.chunks_exact(h * w).zip(self.last.chunks_exact_mut(size)) {
            resample::linear(plane, [1, h, w], &within, out);
        }
        self.came += 1;
        while let Some(&tap) = self.taps.get(self.done).filter(|tap| tap.high < self.came) {
            self.finish_plane(tap)?;
            self.done += 1;
        }
        Ok(())
    }

    /// One plane of the box, from the stored planes on both sides of it.
    fn finish_plane(&mut self, tap: Tap) -> Result<()> {
        let of = |plane: usize| if plane + 1 == self.came { &self.last } else { &self.before };
        self.mixed.resize(self.last.len(), 0.0);
        mix(of(tap.low), of(tap.high), tap.weight, &mut self.mixed);
        let (scan, [axis, rows, columns]) = (self.origin.scan, self.origin.axes);
        let mut plane = vec![0; rows.n * columns.n];
        self.decoding.classes(&self.mixed, &mut plane);
        let d = axis.start + self.done;
        let [within, inside_rows, inside] = self.origin.foreground.ranges();
        let kept = inside.start - columns.start..inside.end - columns.start;
        // The rows of the box that are foreground, and where they lie in a plane of the scan.
        let lines: Vec<(usize, usize)> =
            inside_rows.filter(|_| within.contains(&d)).map(|h| (h - rows.start, h * scan[2] + inside.start)).collect();
        let row = |h: usize| h * columns.n + kept.start..h * columns.n + kept.end;
        let size = scan[1] * scan[2];
        for &(h, to) in &lines {
            self.classes[d * size + to..][..kept.len()].copy_from_slice(&plane[row(h)]);
        }
        if self.folder.is_none() {
            return Ok(());
        }
        self.background_until(d)?;
        for (class, whole) in self.mixed.chunks_exact(plane.len()).zip(self.whole.chunks_exact_mut(size)) {
            for &(h, to) in &lines {
                whole[to..][..kept.len()].copy_from_slice(&class[row(h)]);
            }
        }
        self.probabilities.as_mut().expect("made with the first plane").push(&self.whole)
    }

    /// What lies outside of the box up to a plane of the scan, and the plane as if it did, too.
    fn background_until(&mut self, plane: usize) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let size = self.origin.scan[1] * self.origin.scan[2];
        let outputs = self.last.len() / (self.inverse[1].out * self.inverse[2].out);
        let spool = match &mut self.probabilities {
            Some(spool) => spool,
            none => none.insert(Spool::new(folder, outputs, self.origin.scan, self.origin.orientation.inverse())?),
        };
        self.whole.resize(outputs * size, 0.0);
        self.whole.fill(0.0);
        self.whole[..size].fill(self.decoding.first_of_background());
        while spool.planes() < plane {
            spool.push(&self.whole)?;
        }
        Ok(())
    }

    /// The file's classes, and their probabilities if they were asked for. Errors if a plane is missing.
    pub fn finish(mut self) -> Result<Brought> {
        let depth = self.origin.axes[0].out;
        ensure!(self.came == depth, "{} planes of the stored grid, expected {depth}", self.came);
        let (scan, back) = (self.origin.scan, self.origin.orientation.inverse());
        self.background_until(scan[0])?;
        let strides = Strides::row_major(scan).oriented(scan, back);
        Ok(Brought { classes: self.classes, strides, shape: back.output(scan), probabilities: self.probabilities })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::formats::nifti::{self, DataType};
    use crate::data::labelling::LabelValue;
    use crate::data::layouts::{Source, Subject, Volumes};
    use crate::data::preprocess::{Dtype, Grid, Intensity, Plan, Settings, Threshold, prepare};
    use crate::data::volume::{Volume, to_ras};
    use crate::rng::{Rng, Stream, rng};
    use ndarray::{Array3, Array4};
    use rand::Rng as _;

    fn turn(random: &mut Rng) -> Orientation {
        let source = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][random.random_range(0..6)];
        Orientation { source, flip: [0; 3].map(|_| random.random()) }
    }

    /// One class's probability at a voxel of the box: trilinear over the stored grid, by the definition of the grids.
    fn naive(plane: impl Fn([usize; 3]) -> f32, axes: &[Axis; 3], x: [usize; 3]) -> f64 {
        let p = [0, 1, 2].map(|a| {
            let (n, m) = (axes[a].n as f64, axes[a].out as f64);
            ((x[a] as f64 + 0.5 - n / 2.0) / axes[a].step + m / 2.0 - 0.5).clamp(0.0, m - 1.0)
        });
        (0..8).fold(0.0, |sum, corner| {
            let up = [0, 1, 2].map(|a| corner >> a & 1);
            let weight: f64 = (0..3).map(|a| if up[a] == 1 { p[a].fract() } else { 1.0 - p[a].fract() }).product();
            let at = [0, 1, 2].map(|a| (p[a] as usize + up[a]).min(axes[a].out - 1));
            sum + weight * f64::from(plane(at))
        })
    }

    /// Classes `[i, j, k]` of the file.
    fn label(brought: &Brought) -> Array3<u8> {
        let [i, j, k] = brought.shape;
        let mut slices = Array3::zeros((k, j, i));
        slices.outer_iter_mut().enumerate().for_each(|(k, mut out)| brought.slice(k, out.as_slice_mut().unwrap()));
        slices.reversed_axes().as_standard_layout().into_owned()
    }

    #[test]
    fn streamed_planes_equal_the_definition() {
        let folder = tempfile::tempdir().unwrap();
        let mut random = rng(2, Stream::Train, 0, 0);
        for _ in 0..40 {
            let scan = [0; 3].map(|_| random.random_range(1..16usize));
            let axes = [0, 1, 2].map(|a| {
                let n = random.random_range(1..=scan[a]);
                let start = random.random_range(0..=scan[a] - n);
                if random.random_bool(0.5) {
                    Axis::resize(start, n, random.random_range(1..20))
                } else {
                    Axis::respace(start, n, random.random_range(0.5..3.0), random.random_range(0.5..3.0))
                }
            });
            let orientation = turn(&mut random);
            let [d, h, w] = resample::shape(&axes);
            let classes = random.random_range(1..5usize);
            let stored = Array4::from_shape_fn((d, classes, h, w), |_| random.random::<f32>());
            let (mut foreground, all) = (Region::whole([0; 3]), random.random_bool(0.5));
            for (a, axis) in axes.iter().enumerate() {
                foreground.size[a] = if all { axis.n } else { random.random_range(1..=axis.n) };
                foreground.start[a] = axis.start + random.random_range(0..=axis.n - foreground.size[a]);
            }
            let decoding = match random.random_bool(0.5) {
                true => Decoding::Classes,
                false => Decoding::Regions((0..classes).map(|_| random.random_range(1..9)).collect()),
            };
            // Planes across any axis.
            let order = turn(&mut random).source;
            let origin = Origin { scan, orientation, axes, foreground }.permuted(order);
            let mut back = Back::new(origin, decoding.clone(), Some(folder.path()));
            let [x, y, z] = order.map(|a| [0, 2, 3][a]);
            let turned = stored.view().permuted_axes([x, 1, y, z]);
            let turned = turned.as_standard_layout();
            turned.outer_iter().for_each(|plane| back.plane(plane.as_slice().unwrap()).unwrap());
            let more = turned.index_axis(ndarray::Axis(0), 0);
            assert!(back.plane(more.as_slice().unwrap()).is_err(), "one plane too many");
            let brought = back.finish().unwrap();
            let file = orientation.inverse().output(scan);
            assert_eq!(brought.shape, file);
            let label = label(&brought);
            let mut probabilities = Array4::zeros((classes, file[2], file[1], file[0]));
            for c in 0..classes {
                for k in 0..file[2] {
                    let mut out = probabilities.slice_mut(ndarray::s![c, k, .., ..]);
                    brought.probabilities.as_ref().unwrap().slice(c, k, out.as_slice_mut().unwrap()).unwrap();
                }
            }
            for ((i, j, k), &class) in label.indexed_iter() {
                // Where this voxel of the file lies in RAS+: `ras[x] = file[y]` with y as Orientation defines it.
                let y = [i, j, k];
                let x = [0, 1, 2].map(|a| {
                    let source = orientation.source[a];
                    if orientation.flip[a] { file[source] - 1 - y[source] } else { y[source] }
                });
                let inside = (0..3).all(|a| foreground.ranges()[a].contains(&x[a]));
                let expected: Vec<f64> = (0..classes)
                    .map(|c| match inside {
                        true => naive(|[p, q, r]| stored[[p, c, q, r]], &axes, [0, 1, 2].map(|a| x[a] - axes[a].start)),
                        false => f64::from(u8::from(c == 0 && decoding == Decoding::Classes)),
                    })
                    .collect();
                for (c, &expected) in expected.iter().enumerate() {
                    let found = probabilities[[c, k, j, i]];
                    assert!((f64::from(found) - expected).abs() < 1e-5, "{found}, expected {expected} at {y:?} of {axes:?}");
                }
                match &decoding {
                    Decoding::Classes => {
                        let best = expected.iter().fold(0.0, |a: f64, &b| a.max(b));
                        assert!(expected[class as usize] > best - 2e-5, "class {class} of {expected:?}");
                    }
                    Decoding::Regions(written) => {
                        let last = (0..classes).rev().find(|&region| expected[region] > 0.5);
                        let close = expected.iter().any(|p| (p - 0.5).abs() < 2e-5);
                        assert!(close || class == last.map_or(0, |region| written[region]), "class {class} of {expected:?}");
                    }
                }
            }
        }
        let axes = [Axis::resize(0, 2, 2); 3];
        let origin = Origin { scan: [2; 3], orientation: Orientation::IDENTITY, axes, foreground: Region::whole([2; 3]) };
        assert!(Back::new(origin, Decoding::Classes, None).finish().err().unwrap().to_string().contains("0 planes"));
    }

    fn dice(a: &Array3<u8>, b: &Array3<u8>, class: u8) -> f64 {
        let both = a.iter().zip(b).filter(|&(&a, &b)| a == class && b == class).count();
        2.0 * both as f64 / a.iter().chain(b).filter(|&&v| v == class).count() as f64
    }

    /// Files in every orientation, through the real preprocessing and back.
    #[test]
    fn a_label_comes_back_to_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let shape = [30, 26, 22];
        let steps = [1.5, 1.0, 2.0];
        let mut random = rng(3, Stream::Train, 0, 0);
        for case in 0..12 {
            let turn = turn(&mut random);
            let mut affine = [[0.0; 4]; 4];
            for a in 0..3 {
                affine[a][turn.source[a]] = if turn.flip[a] { -steps[a] } else { steps[a] };
                affine[a][3] = random.random_range(-50.0..50.0);
            }
            affine[3][3] = 1.0;
            assert_eq!(to_ras(&affine).unwrap(), turn);
            let radius = |i: usize, j: usize, k: usize, centre: [f64; 3]| {
                let x = [i as f64 - centre[0], j as f64 - centre[1], k as f64 - centre[2]];
                x.iter().map(|v| v * v).sum::<f64>().sqrt()
            };
            let (middle, off) = ([14.0, 13.0, 11.0], [16.0, 11.0, 12.5]);
            let head = |i, j, k| radius(i, j, k, middle) < 9.0;
            let truth = Array3::from_shape_fn(shape, |(i, j, k)| match radius(i, j, k, off) {
                _ if !head(i, j, k) => 0u8,
                r if r < 3.5 => 2,
                r if r < 6.0 => 1,
                _ => 0,
            });
            let image = Array4::from_shape_fn((1, shape[0], shape[1], shape[2]), |(_, i, j, k)| {
                if head(i, j, k) { 100.0 + random.random_range(0.0f32..50.0) } else { 0.0 }
            });
            let [scan_file, label_file] = ["scan.nii", "label.nii"].map(|name| folder.path().join(format!("{case}{name}")));
            nifti::write(&scan_file, &Volume { data: image, affine }, DataType::Float32).unwrap();
            let values = truth.mapv(|class| [0.0, 1.0, 4.0][class as usize]).insert_axis(ndarray::Axis(0));
            nifti::write(&label_file, &Volume { data: values, affine }, DataType::Uint8).unwrap();
            let subject = Subject {
                id: "p".into(),
                channels: vec![Source::File(scan_file)],
                label: Some(Source::File(label_file)),
                ..Subject::default()
            };
            // The scan's own grid (RAS+), a finer one, one that is finer and has another aspect.
            for (grid, least) in [
                (Grid::Spacing { mm: steps }, 1.0),
                (Grid::Spacing { mm: [0.75, 0.8, 0.9] }, 0.96),
                (Grid::Cube { side: 36 }, 0.96),
            ] {
                let settings = Settings {
                    grid,
                    foreground: Threshold::Auto,
                    intensity: Intensity::MinMax,
                    dtype: Dtype::F32,
                    volumes: Volumes::Channels,
                };
                let labels = [0, 1, 4].map(|value| LabelValue { value, name: value.to_string() });
                let plan =
                    Plan { settings, available: vec!["t1".into()], channels: vec![0], labels: Some(labels.to_vec().into()) };
                let prepared = prepare(&subject, &plan, &|line| panic!("{line}")).unwrap();
                let stored = prepared.label.unwrap();
                let metadata = Metadata::parse(&prepared.text).unwrap();
                let (d, h, w) = stored.dim();
                assert!(Origin::new(&metadata, [d, h, w + 1]).unwrap_err().to_string().contains("stored grid of"));
                let mut back = Back::new(Origin::new(&metadata, [d, h, w]).unwrap(), Decoding::Classes, None);
                for plane in stored.outer_iter() {
                    let hot: Vec<f32> = (0..3).flat_map(|c| plane.iter().map(move |&v| f32::from(u8::from(v == c)))).collect();
                    back.plane(&hot).unwrap();
                }
                let found = label(&back.finish().unwrap());
                for class in 1..3 {
                    let dice = dice(&found, &truth, class);
                    assert!(dice >= least, "{grid:?}, {turn:?}, class {class}: Dice {dice}");
                }
                assert!(least < 1.0 || found == truth);
            }
        }
    }
}
