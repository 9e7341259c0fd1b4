use super::index::INDEX;
use super::*;
use crate::data::Arrays;
use crate::data::layouts::{Layout, Volumes};
use crate::data::preprocess::{Dtype, Grid, Intensity, Settings, Threshold};
use crate::rng::{Stream, rng};
use ndarray::{Array3, Array4};
use rand::Rng as _;
use std::collections::BTreeMap;

/// All 48 axis permutations with flips.
fn orientations() -> Vec<Orientation> {
    let axes = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let flip = |bits: usize| [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0];
    axes.iter().flat_map(|&source| (0..8).map(move |bits| Orientation { source, flip: flip(bits) })).collect()
}

fn settings(dtype: Dtype) -> Settings {
    Settings {
        grid: Grid::Cube { side: 8 },
        foreground: Threshold::Auto,
        intensity: Intensity::MinMax,
        dtype,
        volumes: Volumes::Channels,
    }
}

/// A store of random scans of different shapes, and the same values (rounded to the stored type) in memory.
fn store(folder: &Path, dtype: Dtype, shapes: &[[usize; 4]]) -> (Arrays, Vec<Array3<u8>>) {
    let mut random = rng(3, Stream::Train, 0, 0);
    let mut index = Index::new(Layout::Folder, settings(dtype), vec!["t1".into(); shapes[0][0]], None);
    let mut arrays = Arrays { ids: vec![], images: vec![] };
    let mut labels = vec![];
    for (n, &[c, d, h, w]) in shapes.iter().enumerate() {
        let id = format!("sub {n}");
        let mut image = Array4::from_shape_fn((c, d, h, w), |_| random.random_range(-3.0f32..3.0));
        let label = Array3::from_shape_fn((d, h, w), |_| random.random_range(0..5u8));
        let name = file_name(&id);
        let (bytes, fingerprint) =
            file::write(&folder.join(&name), image.view(), Some(label.view()), dtype, BTreeMap::new()).unwrap();
        index.subjects.push(Entry {
            id: id.clone(),
            file: name,
            bytes,
            shape: [d, h, w],
            spacing: [1.0, 2.0, 3.0],
            contrast: None,
            label: true,
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
        if dtype == Dtype::F16 {
            image.mapv_inplace(|v| half::f16::from_f32(v).to_f32());
        }
        arrays.ids.push(id);
        arrays.images.push(image);
        labels.push(label);
    }
    index.complete = true;
    index.write(folder).unwrap();
    (arrays, labels)
}

#[test]
fn regions_equal_the_naive_copy_in_all_48_orientations() {
    for dtype in [Dtype::F16, Dtype::F32] {
        let folder = tempfile::tempdir().unwrap();
        let (arrays, labels) = store(folder.path(), dtype, &[[2, 35, 21, 40], [2, 17, 33, 19], [2, 1, 50, 37]]);
        let store = Store::within(folder.path(), Limits { files: 2, ..Limits::default() }, LOOKED_AT).unwrap();
        let label_arrays: Vec<_> = labels.iter().map(|l| l.mapv(f32::from).insert_axis(ndarray::Axis(0))).collect();
        let label_arrays = Arrays { ids: arrays.ids.clone(), images: label_arrays };
        let mut random = rng(4, Stream::Train, 0, 0);
        for (n, orientation) in orientations().into_iter().cycle().take(192).enumerate() {
            let scan = n % 3;
            let shape = store.shape(scan);
            let size = shape.map(|n| random.random_range(1..=n));
            let start = [0, 1, 2].map(|a| random.random_range(0..=shape[a] - size[a]));
            let region = Region { start, size };
            let (mut got, mut expected) = (vec![0.0; 2 * voxels(size)], vec![1.0; 2 * voxels(size)]);
            store.read(scan, region, orientation, &mut got).unwrap();
            arrays.read(scan, region, orientation, &mut expected).unwrap();
            assert_eq!(got, expected, "{dtype:?} {region:?} {orientation:?}");
            let (mut got, mut expected) = (vec![0; voxels(size)], vec![1.0; voxels(size)]);
            store.label(scan, region, orientation, &mut got).unwrap();
            label_arrays.read(scan, region, orientation, &mut expected).unwrap();
            assert!(got.iter().zip(&expected).all(|(&a, &b)| f32::from(a) == b), "label {region:?} {orientation:?}");
        }
        assert_eq!(store.inner.files.held().0, 2);
    }
}

#[test]
fn slices_equal_the_volume_with_its_axes_moved_in_all_orientations() {
    let folder = tempfile::tempdir().unwrap();
    let (arrays, labels) = store(folder.path(), Dtype::F32, &[[2, 9, 14, 11], [2, 12, 7, 19]]);
    let volumes = Store::open(folder.path()).unwrap();
    assert_eq!((volumes.slices(), volumes.rank().unwrap()), (None, Rank::Three));
    let mut random = rng(5, Stream::Train, 0, 0);
    for (slices, [across, rows, columns]) in
        [(Slices::Sagittal, [0, 1, 2]), (Slices::Coronal, [1, 0, 2]), (Slices::Axial, [2, 0, 1])]
    {
        let store = volumes.clone().sliced(Some(slices)).unwrap();
        assert_eq!((store.slices(), store.rank().unwrap()), (Some(slices), Rank::Two));
        assert_eq!(store.spacing(0), [across, rows, columns].map(|a| volumes.index().subjects[0].spacing[a]));
        let move_axes = |image: &Array4<f32>| image.view().permuted_axes([0, across + 1, rows + 1, columns + 1]).to_owned();
        let moved =
            |images: Vec<Array4<f32>>| Arrays { ids: arrays.ids.clone(), images: images.iter().map(move_axes).collect() };
        let classes = labels.iter().map(|l| l.mapv(f32::from).insert_axis(ndarray::Axis(0))).collect();
        let (images, classes) = (moved(arrays.images.clone()), moved(classes));
        for (n, orientation) in orientations().into_iter().enumerate() {
            let (scan, shape) = (n % 2, store.shape(n % 2));
            assert_eq!(shape, images.shape(scan));
            let size = shape.map(|n| random.random_range(1..=n));
            let region = Region { start: [0, 1, 2].map(|a| random.random_range(0..=shape[a] - size[a])), size };
            let (mut got, mut expected) = (vec![0.0; 2 * voxels(size)], vec![1.0; 2 * voxels(size)]);
            store.read(scan, region, orientation, &mut got).unwrap();
            images.read(scan, region, orientation, &mut expected).unwrap();
            assert_eq!(got, expected, "{slices:?} {region:?} {orientation:?}");
            let (mut got, mut expected) = (vec![0; voxels(size)], vec![1.0; voxels(size)]);
            store.label(scan, region, orientation, &mut got).unwrap();
            classes.read(scan, region, orientation, &mut expected).unwrap();
            assert!(got.iter().zip(&expected).all(|(&a, &b)| f32::from(a) == b), "{slices:?} {region:?} {orientation:?}");
        }
        let whole = store.whole_label(0).unwrap();
        let whole = ndarray::ArrayView3::from_shape(store.shape(0), &whole).unwrap();
        assert_eq!(slices.to_stored(whole), labels[0], "back in the volume's axes");
    }

    let flat = tempfile::tempdir().unwrap();
    self::store(flat.path(), Dtype::F32, &[[1, 1, 4, 5]]);
    let error = Store::open(flat.path()).unwrap().sliced(Some(Slices::Axial)).err().unwrap().to_string();
    assert!(error.contains("--slices axial") && error.contains("images"), "{error}");
}

#[test]
fn reads_that_do_not_fit_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    store(folder.path(), Dtype::F16, &[[1, 8, 8, 8]]);
    let store = Store::open(folder.path()).unwrap();
    let outside = Region { start: [1, 0, 0], size: [8, 8, 8] };
    let error = store.read(0, outside, Orientation::IDENTITY, &mut [0.0; 512]).unwrap_err().to_string();
    assert!(error.contains("sub 0") && error.contains("leaves"), "{error}");
    let error = store.read(0, Region::whole([8; 3]), Orientation::IDENTITY, &mut [0.0; 511]).unwrap_err().to_string();
    assert!(error.contains("511") && error.contains("512"), "{error}");
}

#[test]
fn subsets_keep_their_order_and_refuse_unknown_ids() {
    let folder = tempfile::tempdir().unwrap();
    store(folder.path(), Dtype::F32, &[[1, 2, 3, 4], [1, 3, 4, 5], [1, 4, 5, 6]]);
    let store = Store::open(folder.path()).unwrap();
    let subset = store.subset(&["sub 2".into(), "sub 0".into()]).unwrap();
    assert_eq!((subset.len(), subset.id(0), subset.shape(0), subset.scan(1)), (2, "sub 2", [4, 5, 6], 0));
    assert!(store.subset(&["nobody".into()]).err().unwrap().to_string().contains("nobody"));
    assert_eq!(store.find("sub 1"), Some(1));
}

#[test]
fn a_damaged_store_names_what_is_wrong() {
    let fresh = || {
        let folder = tempfile::tempdir().unwrap();
        store(folder.path(), Dtype::F16, &[[1, 4, 4, 4], [1, 4, 4, 4]]);
        let subject = folder.path().join(file_name("sub 1"));
        (folder, subject)
    };
    let error = |folder: &Path| format!("{:#}", Store::open(folder).err().expect("must not open"));

    let empty = tempfile::tempdir().unwrap();
    assert!(error(empty.path()).contains("not a store"));

    let (folder, subject) = fresh();
    std::fs::remove_file(&subject).unwrap();
    assert!(error(folder.path()).contains("missing") && error(folder.path()).contains(&file_name("sub 1")));

    let (folder, subject) = fresh();
    let bytes = std::fs::read(&subject).unwrap();
    std::fs::write(&subject, &bytes[..bytes.len() - 3]).unwrap();
    assert!(error(folder.path()).contains("truncated") && error(folder.path()).contains(&file_name("sub 1")));
    assert!(format!("{:#}", Mapped::open(&subject).err().unwrap()).contains("truncated"));

    for (from, to, expected) in [
        ("\"version\": 1", "\"version\": 9", "version 9"),
        ("\"complete\": true", "\"complete\": false", "not complete"),
        ("pretext3d-store", "other", "expected `pretext3d-store`"),
        ("\"subjects\"", "\"Subjects\"", "subjects"),
    ] {
        let (folder, _) = fresh();
        let path = folder.path().join(INDEX);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        std::fs::write(&path, text.replace(from, to)).unwrap();
        assert!(error(folder.path()).contains(expected), "{}", error(folder.path()));
    }

    // Same length, other contents: found when the file is mapped, and no panic whatever byte is hit.
    let (folder, subject) = fresh();
    let whole = std::fs::read(&subject).unwrap();
    for at in 0..256 {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x15;
        std::fs::write(&subject, &bytes).unwrap();
        let store = Store::open(folder.path()).unwrap();
        if let Err(error) = store.read(1, Region::whole([4; 3]), Orientation::IDENTITY, &mut [0.0; 64]) {
            assert!(format!("{error:#}").contains(&file_name("sub 1")), "{error:#}");
        }
    }
}

#[test]
fn little_is_mapped_however_much_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (arrays, _) = store(folder.path(), Dtype::F32, &[[1, 8, 8, 8]; 9]);
    let whole = Region::whole([8; 3]);
    let read = |store: &Store, scan: usize| {
        let mut out = [0.; 512];
        store.read(scan, whole, Orientation::IDENTITY, &mut out).unwrap();
        assert_eq!(Some(&out[..]), arrays.images[scan].as_slice());
    };
    let bytes = Store::open(folder.path()).unwrap().index().subjects[0].bytes;
    for (limits, expected) in [
        (Limits { files: 4, bytes: u64::MAX }, 4),
        (Limits { files: 100, bytes: 3 * bytes }, 3),
        (Limits { files: 100, bytes: bytes - 1 }, 1),
        (Limits::default(), 9),
    ] {
        let store = Store::within(folder.path(), limits, LOOKED_AT).unwrap();
        for scan in (0..9).chain([0, 8, 4, 8]) {
            store.read_ahead(scan);
            read(&store, scan);
            let held = store.inner.files.held();
            assert!(held.0 <= expected && held.1 <= limits.bytes.max(bytes), "{limits:?}: {held:?}");
        }
        assert_eq!(store.inner.files.held().0, expected);
    }
    // What is read ahead of a large file covers the voxels that are asked for, and no others' channels.
    let file = Mapped::open(&folder.path().join(file_name("sub 3"))).unwrap();
    let (start, size) = ([1, 2, 3], [2, 5, 4]);
    let bytes = file.bytes_of(0, Region { start, size });
    assert_eq!(bytes.len(), 4 * (((2 * 8 + 6) * 8 + 6) - ((8 + 2) * 8 + 3) + 1));
    assert_eq!(file.bytes_of(0, whole).len(), 4 * 512);
    assert!(file.bytes_of(0, Region { start, size: [0, 5, 4] }).is_empty());
}

#[test]
fn of_many_files_only_the_names_are_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    store(folder.path(), Dtype::F16, &[[1, 4, 4, 4]; 3]);
    let open = || Store::within(folder.path(), Limits::default(), 2);
    let subject = folder.path().join(file_name("sub 1"));
    let bytes = std::fs::read(&subject).unwrap();
    // Found when it is read, whatever is left of it.
    for left in [bytes.len() - 3, 20, 0] {
        std::fs::write(&subject, &bytes[..left]).unwrap();
        let store = open().unwrap();
        store.read_ahead(1);
        let error = store.read(1, Region::whole([4; 3]), Orientation::IDENTITY, &mut [0.; 64]).unwrap_err();
        assert!(format!("{error:#}").contains("truncated") && format!("{error:#}").contains(&file_name("sub 1")), "{error:#}");
        store.read(2, Region::whole([4; 3]), Orientation::IDENTITY, &mut [0.; 64]).unwrap();
    }
    let mut longer = bytes.clone();
    longer.extend([0; 64]);
    std::fs::write(&subject, longer).unwrap();
    assert!(open().unwrap().file(1).is_err());
    std::fs::remove_file(&subject).unwrap();
    let error = open().err().unwrap().to_string();
    assert!(error.contains("missing") && error.contains(&file_name("sub 1")), "{error}");
}

#[test]
fn checksums_find_any_changed_voxel_and_a_file_of_another_scan() {
    let folder = tempfile::tempdir().unwrap();
    store(folder.path(), Dtype::F16, &[[1, 4, 4, 4]; 3]);
    let index = Index::read(folder.path()).unwrap();
    let seen = std::sync::Mutex::new(vec![]);
    let wrong = |index: &Index| verify::verify(folder.path(), index, &|id| seen.lock().unwrap().push(id.to_owned())).unwrap();
    assert_eq!(wrong(&index), [""; 0]);
    assert_eq!(seen.lock().unwrap().len(), 3);
    let paths: Vec<_> = (0..3).map(|n| folder.path().join(file_name(&format!("sub {n}")))).collect();
    let bytes = std::fs::read(&paths[1]).unwrap();
    // The first and the last voxel of the image, and of the label.
    let voxels = bytes.len() - 3 * 64;
    for at in [voxels, voxels + 2 * 64 - 1, voxels + 2 * 64, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        std::fs::write(&paths[1], changed).unwrap();
        let found = wrong(&index);
        assert!(found.len() == 1 && found[0].contains("sub_1") && found[0].contains("other voxels"), "{found:?}");
    }
    std::fs::copy(&paths[0], &paths[1]).unwrap();
    std::fs::remove_file(&paths[2]).unwrap();
    let found = wrong(&index);
    assert!(found.len() == 2 && found[0].contains("another file") && found[1].contains("sub_2"), "{found:?}");
    let mut index = index;
    index.subjects[0].values.insert("age".into(), crate::data::layouts::columns::Value::Text("9".into()));
    assert!(wrong(&index).iter().any(|line| line.contains(INDEX)));
    index.complete = false;
    assert!(verify::verify(folder.path(), &index, &|_| ()).unwrap_err().to_string().contains("not complete"));
}

#[test]
fn file_names_are_safe_and_distinct() {
    assert_eq!(file_name("BraTS-001_t1.x"), "BraTS-001_t1.x.safetensors");
    let odd = ["../x", "a/b", "a_b", "a b", ".", "", "é", "a\0b"];
    let names: std::collections::HashSet<String> = odd.iter().map(|id| file_name(id)).collect();
    assert_eq!(names.len(), odd.len());
    assert!(names.iter().all(|n| !n.contains('/') && !n.starts_with('.') && n.is_ascii()));
}

#[test]
fn the_fingerprint_follows_settings_and_voxels_only() {
    let fingerprint = |dtype, shapes: &[[usize; 4]]| {
        let folder = tempfile::tempdir().unwrap();
        store(folder.path(), dtype, shapes);
        Store::open(folder.path()).unwrap().index().fingerprint.clone()
    };
    let shapes = [[1, 2, 3, 4]];
    assert_eq!(fingerprint(Dtype::F16, &shapes), fingerprint(Dtype::F16, &shapes));
    assert_ne!(fingerprint(Dtype::F16, &shapes), fingerprint(Dtype::F32, &shapes));
    assert_ne!(fingerprint(Dtype::F16, &shapes), fingerprint(Dtype::F16, &[[1, 4, 3, 2]]));
}
