//! Where the foreground of labelled scans lies, and patches that are sure to hold some of it, or of what is labelled at all.

use crate::data::Scans;
use crate::data::labelling::{IGNORE, Labelling};
use crate::data::store::Subset;
use crate::dim::{Region, Shape, voxels};
use crate::rng::{self, Rng, Stream};
use crate::sample::padded::extended;
use anyhow::{Context, Result, ensure};
use rand::Rng as _;
use rayon::prelude::*;

/// Voxels of a class that are remembered of a scan, 16 KiB; more of them would not change what patches look like.
const REMEMBERED: usize = 4096;

/// Foreground voxels of every scan of a labelled set.
pub struct Foreground {
    scans: Vec<ClassVoxels>,
    classes: usize,
}

struct ClassVoxels {
    id: String,
    shape: Shape,
    /// Voxels of each class, background included.
    counts: Vec<u64>,
    /// For each class above 0 that the scan has, up to [`REMEMBERED`] voxels, row-major.
    positions: Vec<Vec<u32>>,
    /// As many of all voxels that are labelled; none where every voxel is.
    labelled: Vec<u32>,
}

impl Foreground {
    /// Reads the labels of all scans once. Where a class has more than 4096 voxels in a scan, as many are drawn, the same ones
    /// each time and in each subset. Errors, naming the file: a scan without a label, a class that is not of `labelling`; and
    /// if no scan has any foreground.
    pub fn of(subset: &Subset, labelling: &Labelling) -> Result<Foreground> {
        let classes = labelling.labels.len();
        let scans = (0..subset.len())
            .into_par_iter()
            .map(|scan| {
                let file = file(subset, scan);
                ClassVoxels::read(subset, scan, classes, labelling.ignore.is_some()).with_context(|| file.display().to_string())
            })
            .collect::<Result<Vec<ClassVoxels>>>()?;
        let found = Foreground { scans, classes };
        ensure!(
            (0..found.scans.len()).any(|scan| found.has(scan)),
            "{}: the {} labelled scans hold no foreground, only class 0 ({})",
            subset.store().folder().display(),
            found.scans.len(),
            some(&found.scans)
        );
        Ok(found)
    }

    /// Whether a scan holds a voxel of a class above 0.
    pub fn has(&self, scan: usize) -> bool {
        !self.scans[scan].positions.is_empty()
    }

    /// Voxels of each class over all scans, class 0 first; those that nobody labelled are not counted.
    pub fn per_class_counts(&self) -> Vec<u64> {
        (0..self.classes).map(|class| self.scans.iter().map(|scan| scan.counts[class]).sum()).collect()
    }

    /// Draws a patch of a scan. With `foreground`, one of the classes that the scan has is drawn, then one of its voxels, then one
    /// of the patches that contain it, each uniformly; a scan without foreground, and `foreground` false, give a uniform patch, and where
    /// only some voxels are labelled, one that contains one of these (nnU-Net does the same).
    ///
    /// The voxel is not put in the middle of the patch, as nnU-Net does: the network would learn that what it looks for lies
    /// in the middle, and the rim, which sliding-window prediction reads too, would be trained on background.
    ///
    /// A scan that is smaller than the patch lies as [`Padded`](super::padded::Padded) has it.
    pub fn region(&self, scan: usize, patch: Shape, foreground: bool, rng: &mut Rng) -> Region {
        let ClassVoxels { shape, positions, labelled, .. } = &self.scans[scan];
        let (extent, before) = extended(*shape, patch);
        let among = match foreground && !positions.is_empty() {
            true => &positions[rng.random_range(0..positions.len())],
            false => labelled,
        };
        let voxel = (!among.is_empty()).then(|| {
            let index = among[rng.random_range(0..among.len())] as usize;
            let at = [index / (shape[1] * shape[2]), index / shape[2] % shape[1], index % shape[2]];
            std::array::from_fn::<_, 3, _>(|a| at[a] + before[a])
        });
        let start = std::array::from_fn(|a| {
            let last = extent[a] - patch[a];
            let (low, high) = voxel.map_or((0, last), |x| ((x[a] + 1).saturating_sub(patch[a]), x[a].min(last)));
            rng.random_range(low..=high)
        });
        Region { start, size: patch }
    }
}

impl ClassVoxels {
    /// `sparse`: voxels may be of [`IGNORE`].
    fn read(subset: &Subset, scan: usize, classes: usize, sparse: bool) -> Result<ClassVoxels> {
        let shape = subset.shape(scan);
        let n = voxels(shape);
        ensure!(u32::try_from(n).is_ok(), "{shape:?} voxels are more than 2^32");
        let label = subset.whole_label(scan)?;
        let mut all = [0u64; 256];
        label.iter().for_each(|&class| all[usize::from(class)] += 1);
        let ignored = if sparse { std::mem::take(&mut all[usize::from(IGNORE)]) } else { 0 };
        let strange = (classes..256).find(|&class| all[class] > 0);
        if let Some(class) = strange {
            anyhow::bail!("the label holds class {class} ({} voxels), the task has classes 0 to {}", all[class], classes - 1);
        }
        let draws = |class: u8| rng::rng(0, Stream::Foreground, subset.scan(scan) as u64, class.into());
        let there = (1..classes as u8).filter(|&class| all[usize::from(class)] > 0);
        let of = |class: u8| remembered(&label, all[usize::from(class)], draws(class), |c| c == class);
        let positions = there.map(of).collect();
        let labelled = match ignored {
            0 => vec![],
            _ => remembered(&label, n as u64 - ignored, draws(IGNORE), |class| class != IGNORE),
        };
        Ok(ClassVoxels { id: subset.id(scan).into(), shape, positions, labelled, counts: all[..classes].to_vec() })
    }
}

/// Up to [`REMEMBERED`] of the `count` voxels whose class `is` is true of, drawn.
fn remembered(label: &[u8], count: u64, mut draws: Rng, is: impl Fn(u8) -> bool) -> Vec<u32> {
    let count = count as usize;
    let mut chosen = rand::seq::index::sample(&mut draws, count, count.min(REMEMBERED)).into_vec();
    chosen.sort_unstable();
    let mut chosen = chosen.into_iter().peekable();
    let those = label.iter().enumerate().filter(|&(_, &class)| is(class));
    those.enumerate().filter(|(nth, _)| chosen.next_if_eq(nth).is_some()).map(|(_, (at, _))| at as u32).collect()
}

/// A subject's file in the store.
fn file(subset: &Subset, scan: usize) -> std::path::PathBuf {
    let store = subset.store();
    store.folder().join(&store.index().subjects[subset.scan(scan)].file)
}

/// The first ids, for a message.
fn some(scans: &[ClassVoxels]) -> String {
    let mut ids: Vec<&str> = scans.iter().take(5).map(|scan| scan.id.as_str()).collect();
    if scans.len() > ids.len() {
        ids.push("...");
    }
    ids.join(", ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::data::labelling::LabelValue;
    use crate::data::layouts::{Layout, Volumes};
    use crate::data::preprocess::{Dtype, Grid, Intensity, Settings, Threshold};
    use crate::data::store::{Entry, Index, Store, file, file_name};
    use ndarray::Array3;
    use std::path::Path;

    /// A store of these labels, each also the image.
    pub fn store(folder: &Path, labels: &[Option<Array3<u8>>]) -> Store {
        let settings = Settings {
            grid: Grid::Cube { side: 8 },
            foreground: Threshold::Auto,
            intensity: Intensity::MinMax,
            dtype: Dtype::F16,
            volumes: Volumes::Channels,
        };
        let mut index = Index::new(Layout::Folder, settings, vec!["t1".into()], None);
        for (n, label) in labels.iter().enumerate() {
            let (d, h, w) = label.as_ref().map_or((4, 4, 4), |l| l.dim());
            let id = format!("s{n}");
            let classes = label.clone().unwrap_or_else(|| Array3::zeros((d, h, w)));
            let image = classes.mapv(f32::from).insert_axis(ndarray::Axis(0));
            let path = folder.join(file_name(&id));
            let view = label.as_ref().map(|l| l.view());
            let (bytes, fingerprint) = file::write(&path, image.view(), view, Dtype::F16, Default::default()).unwrap();
            index.subjects.push(Entry {
                file: file_name(&id),
                id,
                bytes,
                shape: [d, h, w],
                spacing: [1.; 3],
                contrast: None,
                label: label.is_some(),
                class: None,
                values: Default::default(),
                split: None,
                fingerprint,
                images: vec![],
                outside: None,
                resampled: vec![],
                missing: vec![],
                few_values: vec![],
            });
        }
        index.complete = true;
        index.write(folder).unwrap();
        Store::open(folder).unwrap()
    }

    fn label(shape: Shape, voxels: &[([usize; 3], u8)]) -> Option<Array3<u8>> {
        let mut label = Array3::zeros(shape);
        voxels.iter().for_each(|&(at, class)| label[at] = class);
        Some(label)
    }

    /// So many classes.
    pub fn plain(classes: usize) -> Labelling {
        (0..classes as i64).map(LabelValue::unnamed).collect::<Vec<_>>().into()
    }

    pub fn all(store: &Store) -> Subset {
        store.subset(store.ids()).unwrap()
    }

    #[test]
    fn patches_contain_foreground_and_stay_inside() {
        let folder = tempfile::tempdir().unwrap();
        let voxels = [([0, 0, 0], 1), ([8, 11, 6], 2), ([4, 5, 3], 2), ([8, 0, 6], 4)];
        let flat = [([0, 3, 9], 3)];
        let store = store(folder.path(), &[label([9, 12, 7], &voxels), label([1, 8, 10], &flat), label([9, 9, 9], &[])]);
        let found = Foreground::of(&all(&store), &plain(5)).unwrap();
        assert_eq!(found.per_class_counts(), [9 * 12 * 7 + 80 + 729 - 5, 1, 2, 1, 1]);
        assert_eq!([0, 1, 2].map(|scan| found.has(scan)), [true, true, false]);
        let mut rng = rng::rng(1, Stream::Train, 0, 0);
        for (scan, shape, voxels) in [(0, [9, 12, 7], &voxels[..]), (1, [1, 8, 10], &flat)] {
            for _ in 0..300 {
                let patch = shape.map(|n: usize| rng.random_range(1..=n));
                let region = found.region(scan, patch, true, &mut rng);
                assert!(region.fits(shape) && region.size == patch);
                let inside = |at: &[usize; 3]| (0..3).all(|a| (region.start[a]..region.start[a] + patch[a]).contains(&at[a]));
                assert!(voxels.iter().any(|(at, _)| inside(at)), "{region:?}");
            }
        }
        assert_eq!(found.region(2, [9; 3], true, &mut rng).start, [0; 3], "no foreground: any patch");
        assert_eq!(found.region(0, [9, 14, 7], true, &mut rng).start, [0; 3], "in the middle of 14 voxels");
    }

    /// Counts of outcomes that should be equally likely, within five standard deviations of it.
    fn uniform(counts: impl Iterator<Item = usize>, draws: usize) {
        let counts: Vec<usize> = counts.collect();
        let expected = draws as f64 / counts.len() as f64;
        assert!(counts.iter().all(|&n| (n as f64 - expected).abs() < 5. * expected.sqrt()), "{counts:?}");
    }

    #[test]
    fn classes_voxels_and_places_are_uniform() {
        let folder = tempfile::tempdir().unwrap();
        // Class 1 has one voxel, class 2 has forty, far from it and from each other's patches.
        let mut voxels: Vec<([usize; 3], u8)> = (0..40).map(|i| ([0, 4, 20 + 2 * i], 2)).collect();
        voxels.push(([0, 4, 8], 1));
        let store = store(folder.path(), &[label([1, 9, 110], &voxels)]);
        let found = Foreground::of(&all(&store), &plain(3)).unwrap();
        let mut rng = rng::rng(2, Stream::Train, 0, 0);
        let draws = 8000;
        let starts: Vec<Shape> = (0..draws).map(|_| found.region(0, [1, 3, 5], true, &mut rng).start).collect();
        let first: Vec<&Shape> = starts.iter().filter(|s| s[2] <= 8).collect();
        uniform([first.len(), draws - first.len()].into_iter(), draws);
        // The 3 x 5 places of a patch around the voxel.
        uniform((0..15).map(|p| first.iter().filter(|s| ***s == [0, 2 + p / 5, 4 + p % 5]).count()), first.len());
        // One voxel wide, a patch is the voxel itself.
        let at: Vec<usize> = (0..draws).map(|_| found.region(0, [1, 1, 1], true, &mut rng).start[2]).collect();
        let second: Vec<&usize> = at.iter().filter(|&&x| x != 8).collect();
        uniform((0..40).map(|i| second.iter().filter(|&&&x| x == 20 + 2 * i).count()), second.len());
        // Without foreground: 106 places along the last axis.
        let any: Vec<usize> = (0..draws).map(|_| found.region(0, [1, 9, 5], false, &mut rng).start[2]).collect();
        uniform((0..106).map(|x| any.iter().filter(|&&s| s == x).count()), draws);
    }

    #[test]
    fn large_classes_are_subsampled_evenly_and_always_alike() {
        let folder = tempfile::tempdir().unwrap();
        let big = Array3::from_shape_fn((40, 40, 40), |(d, _, _)| u8::from(d >= 20));
        let store = store(folder.path(), &[label([4; 3], &[([1, 2, 3], 1)]), Some(big.clone())]);
        let found = Foreground::of(&all(&store), &plain(2)).unwrap();
        assert_eq!(found.scans[0].positions, [vec![16 + 8 + 3]]);
        let positions = &found.scans[1].positions[0];
        assert_eq!(positions.len(), REMEMBERED);
        assert!(positions.windows(2).all(|w| w[0] < w[1]) && positions.iter().all(|&p| p >= 20 * 1600));
        uniform((20..40).map(|d| positions.iter().filter(|&&p| p / 1600 == d).count()), REMEMBERED);
        let alone = Foreground::of(&store.subset(&["s1".into()]).unwrap(), &plain(2)).unwrap();
        assert_eq!(&alone.scans[0].positions[0], positions);
    }

    #[test]
    fn patches_lie_where_voxels_are_labelled() {
        let folder = tempfile::tempdir().unwrap();
        // Background in one place, a class in another, nobody labelled the rest; and a scan where all is labelled.
        let mut sparse = Array3::from_elem((12, 12, 40), IGNORE);
        sparse.slice_mut(ndarray::s![3..5, 4..6, 2..4]).fill(0);
        sparse[[9, 9, 30]] = 2;
        let dense = label([12, 12, 40], &[([1, 2, 3], 1)]);
        let scans = all(&store(folder.path(), &[Some(sparse), dense]));
        let labelling = Labelling { ignore: Some(9), ..plain(3) };
        let found = Foreground::of(&scans, &labelling).unwrap();
        // Over what is labelled alone.
        assert_eq!(found.per_class_counts(), [8 + 12 * 12 * 40 - 1, 1, 1]);
        let mut rng = rng::rng(1, Stream::Train, 0, 0);
        let draws = 900;
        let mut starts = |scan, wanted| -> Vec<Shape> {
            (0..draws).map(|_| found.region(scan, [4, 4, 4], wanted, &mut rng).start).collect()
        };
        let reaches = |start: &Shape, at: Shape| (0..3).all(|a| (start[a]..start[a] + 4).contains(&at[a]));
        assert!(starts(0, true).iter().all(|start| reaches(start, [9, 9, 30])));
        let any = starts(0, false);
        let of_class = any.iter().filter(|start| reaches(start, [9, 9, 30])).count();
        let others = any.iter().filter(|&&[d, h, w]| d <= 4 && h <= 5 && w <= 3).count();
        // One of nine labelled voxels.
        assert!(of_class + others == draws && (60..140).contains(&of_class), "{of_class} and {others} of {draws}");
        assert!(starts(1, false).iter().any(|start| start[2] > 20), "anywhere where all is labelled");

        // Without a value for it, the class is a strange one.
        let error = format!("{:#}", Foreground::of(&scans, &plain(3)).err().unwrap());
        assert!(error.contains("s0.safetensors") && error.contains("class 255 (5751 voxels)"), "{error}");
    }

    #[test]
    fn bad_labels_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let strange = label([4; 3], &[([0, 0, 0], 1), ([1, 1, 1], 5)]);
        let store = store(folder.path(), &[label([4; 3], &[]), None, strange]);
        let error = |ids: &[&str], classes| {
            let ids: Vec<String> = ids.iter().map(|id| id.to_string()).collect();
            format!("{:#}", Foreground::of(&store.subset(&ids).unwrap(), &plain(classes)).err().unwrap())
        };
        let message = error(&["s0", "s2"], 4);
        assert!(message.contains("s2.safetensors") && message.contains("class 5 (1 voxels)"), "{message}");
        assert!(message.contains("classes 0 to 3"), "{message}");
        assert!(error(&["s0", "s1"], 4).contains("s1.safetensors"));
        assert!(error(&["s0"], 4).contains("no foreground, only class 0 (s0)"));
        assert!(Foreground::of(&store.subset(&["s2".into()]).unwrap(), &plain(6)).is_ok());
    }
}
