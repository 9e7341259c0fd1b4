use super::*;
use crate::data::formats;
use std::fs;

/// All 24 rotations of a cube: output axis `a` reads input axis `source[a]`, reversed where `flip[a]`.
fn rotations() -> Vec<([usize; 3], [bool; 3])> {
    let mut all = Vec::new();
    for (source, odd) in [([0, 1, 2], 0), ([1, 2, 0], 0), ([2, 0, 1], 0), ([0, 2, 1], 1), ([2, 1, 0], 1), ([1, 0, 2], 1)] {
        for bits in 0..8u32 {
            if (bits.count_ones() + odd) % 2 == 0 {
                all.push((source, [bits & 1 > 0, bits & 2 > 0, bits & 4 > 0]));
            }
        }
    }
    all
}

fn rotated(data: &[f32], n: usize, (source, flip): ([usize; 3], [bool; 3])) -> Vec<f32> {
    let at = |x: [usize; 3]| {
        let mut y = [0; 3];
        (0..3).for_each(|a| y[source[a]] = if flip[a] { n - 1 - x[a] } else { x[a] });
        data[(y[0] * n + y[1]) * n + y[2]]
    };
    (0..n * n * n).map(|v| at([v / (n * n), v / n % n, v % n])).collect()
}

fn correlation(a: &[f32], b: &[f32]) -> f64 {
    let n = a.len() as f64;
    let mean = |v: &[f32]| v.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let (ma, mb) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (f64::from(*x) - ma, f64::from(*y) - mb);
        (ab, aa, bb) = (ab + x * y, aa + x * x, bb + y * y);
    }
    ab / (aa * bb).sqrt()
}

/// Best Dice that marking everything above, or everything below, one threshold reaches.
fn best_threshold(image: &[f32], truth: &[bool]) -> f64 {
    let mut order: Vec<usize> = (0..image.len()).collect();
    order.sort_by(|&a, &b| image[a].total_cmp(&image[b]));
    let total = truth.iter().filter(|t| **t).count() as f64;
    let (mut below, mut best) = (0.0, 0.0f64);
    for (k, &v) in order.iter().enumerate() {
        below += f64::from(u8::from(truth[v]));
        let n = (k + 1) as f64;
        if k + 1 == order.len() || image[order[k + 1]] > image[v] {
            let above = (image.len() as f64 - n, total - below);
            best = best.max(2.0 * below / (n + total)).max(2.0 * above.1 / (above.0 + total));
        }
    }
    best
}

fn flat(volume: &Volume) -> &[f32] {
    volume.data.as_slice().expect("standard layout")
}

#[test]
fn a_mean_anatomy_has_no_rotational_symmetry() {
    let size = 32;
    for model in [Recipe::Brain { size }, Recipe::Abdomen { size }] {
        let mut mean = vec![0.0f32; size * size * size];
        for subject in 0..6 {
            let case = model.case(1, subject);
            mean.iter_mut().zip(flat(&case.images[0].1)).for_each(|(m, v)| *m += v.clamp(-300.0, 1000.0));
        }
        for rotation in rotations().into_iter().skip(1) {
            let alike = correlation(&mean, &rotated(&mean, size, rotation));
            assert!(alike < 0.9, "{}: {rotation:?} gives a correlation of {alike:.3}", model.name());
        }
        assert!(correlation(&mean, &rotated(&mean, size, rotations()[0])) > 0.999, "the first rotation is the identity");
    }
}

#[test]
fn a_glioma_has_necrosis_in_a_rim_in_oedema() {
    for (size, subjects) in [(32, 12), (64, 4)] {
        let (mut necrosis, mut open, mut rim, mut in_oedema) = (0, 0, 0, 0);
        for subject in 0..subjects {
            let label = Recipe::Brain { size }.case(3, subject).label;
            let at = |x: [usize; 3]| label.data[[0, x[0], x[1], x[2]]];
            for value in [1.0, 2.0, 4.0] {
                assert!(flat(&label).contains(&value), "size {size}, subject {subject}: no label {value}");
            }
            for (index, &value) in label.data.indexed_iter() {
                let index = [index.1, index.2, index.3];
                for a in 0..3 {
                    for other in [index[a].wrapping_sub(1), index[a] + 1].into_iter().filter(|&i| i < size) {
                        let mut neighbour = index;
                        neighbour[a] = other;
                        match (value, at(neighbour)) {
                            (1.0, n) => (necrosis, open) = (necrosis + 1, open + usize::from(n != 1.0 && n != 4.0)),
                            (4.0, n) if n != 4.0 && n != 1.0 => (rim, in_oedema) = (rim + 1, in_oedema + usize::from(n == 2.0)),
                            _ => (),
                        }
                    }
                }
            }
        }
        assert!(open * 50 <= necrosis, "size {size}: {open} of {necrosis} faces of necrosis open outwards");
        assert!(in_oedema * 2 > rim, "size {size}: {in_oedema} of {rim} outer faces of the rim lie in oedema");
    }
}

#[test]
fn a_threshold_does_not_find_the_tumour() {
    let (size, subjects) = (48, 6);
    for model in [Recipe::Brain { size }, Recipe::Abdomen { size }] {
        let mut dice = vec![0.0; model.contrasts().len()];
        for subject in 0..subjects {
            let case = model.case(5, subject);
            let tumour = if dice.len() == 1 { 2.0 } else { 1.0 };
            let truth: Vec<bool> = flat(&case.label).iter().map(|&v| v >= tumour).collect();
            assert!(truth.contains(&true), "{} {subject}: no tumour", model.name());
            let scores = case.images.iter().map(|(_, image)| best_threshold(flat(image), &truth));
            dice.iter_mut().zip(scores).for_each(|(d, score)| *d += score / subjects as f64);
        }
        eprintln!("{}: best Dice of a threshold {dice:.2?}", model.name());
        assert!(dice.iter().all(|&d| d < 0.6), "{}: {dice:.2?}", model.name());
    }
}

#[test]
fn subjects_differ_and_repeat() {
    for model in [Recipe::Brain { size: 32 }, Recipe::Abdomen { size: 32 }] {
        let [a, again, b, other] = [(0, 0), (0, 0), (0, 1), (1, 0)].map(|(seed, subject)| model.case(seed, subject));
        assert_eq!(flat(&a.images[0].1), flat(&again.images[0].1));
        assert_eq!(a.label.data, again.label.data);
        for different in [b, other] {
            let alike = correlation(flat(&a.images[0].1), flat(&different.images[0].1));
            assert!((0.4..0.98).contains(&alike), "{}: correlation {alike:.3}", model.name());
            assert_ne!(a.label.data, different.label.data);
        }
    }
}

#[test]
fn folders_are_the_same_for_any_count_and_threads_and_restart() {
    let temporary = tempfile::tempdir().unwrap();
    let (one, many) = (temporary.path().join("one"), temporary.path().join("many"));
    let model = Recipe::Brain { size: 32 };
    generate(&model, 2, 7, &one, Some(1), || ()).unwrap();
    generate(&model, 4, 7, &many, Some(4), || ()).unwrap();
    for id in ["brain_0000", "brain_0001"] {
        for name in ["t1", "t1ce", "t2", "flair", "seg"] {
            let file = format!("{id}/{id}_{name}.nii.gz");
            assert_eq!(fs::read(one.join(&file)).unwrap(), fs::read(many.join(&file)).unwrap(), "{file}");
        }
    }
    // A subject with a file missing is made again; the others are kept; more subjects are added.
    let seg = one.join("brain_0001/brain_0001_seg.nii.gz");
    let before = fs::read(&seg).unwrap();
    fs::remove_file(&seg).unwrap();
    assert_eq!(generate(&model, 3, 7, &one, None, || ()).unwrap(), Made { new: 2, kept: 1 });
    assert_eq!(fs::read(&seg).unwrap(), before);
    for (what, subjects, seed) in [("fewer", 2, 7), ("other settings", 3, 8)] {
        let error = generate(&model, subjects, seed, &one, None, || ()).unwrap_err().to_string();
        assert!(error.contains("use another folder") && error.contains(what), "{error}");
    }
    fs::write(temporary.path().join("note.txt"), "mine").unwrap();
    let error = generate(&model, 1, 0, temporary.path(), None, || ()).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
}

#[test]
fn sizes_out_of_range_are_refused_with_the_numbers() {
    let error =
        generate(&Recipe::Abdomen { size: 31 }, 1, 0, std::path::Path::new("unused"), None, || ()).unwrap_err().to_string();
    assert!(error.contains("31") && error.contains("32"), "{error}");
}

#[test]
fn a_label_map_keeps_its_values_and_place() {
    let temporary = tempfile::tempdir().unwrap();
    let data = Array4::from_shape_fn((1, 30, 40, 50), |(_, i, j, k)| match (i, j, k) {
        (8..22, 10..20, 10..40) => 17.0,
        (8..22, 20..30, 10..40) => 300.0,
        _ => 0.0,
    });
    let affine = [[-2.0, 0.0, 0.0, 10.0], [0.0, 0.0, 3.0, 20.0], [0.0, 1.5, 0.0, -5.0], [0.0, 0.0, 0.0, 1.0]];
    let map = Volume { data, affine };
    let model = Recipe::Labels { map: Box::new(LabelMap::new(&map, None).unwrap()), contrasts: 2 };
    generate(&model, 2, 0, temporary.path(), Some(2), || ()).unwrap();
    let [t1, t2, seg] = ["t1", "t1ce", "seg"].map(|name| {
        formats::open(&temporary.path().join(format!("labels_0001/labels_0001_{name}.nii.gz"))).unwrap().read().unwrap()
    });
    assert_eq!(seg.data.dim(), map.data.dim());
    let moved = seg.data.iter().zip(&map.data).filter(|(a, b)| a != b).count();
    assert!((100..20_000).contains(&moved), "{moved} voxels changed");
    for value in [17.0, 300.0] {
        assert!(flat(&seg).contains(&value));
    }
    for (row, expected) in seg.affine.iter().zip(map.affine) {
        assert!(row.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{:?}", seg.affine);
    }
    assert!(correlation(flat(&t1), flat(&t2)) < 0.999, "contrasts have intensities of their own");
    assert!(flat(&t1).iter().zip(flat(&seg)).all(|(v, l)| *l != 0.0 || *v == 0.0), "background is 0");

    // A cube around the whole map: same centre of the grid, one spacing.
    let cube = LabelMap::new(&map, Some(32)).unwrap();
    let case = Recipe::Labels { map: Box::new(cube), contrasts: 1 }.case(0, 0);
    let centre = |v: &Volume| -> [f64; 3] {
        let shape = v.shape();
        std::array::from_fn(|r| v.affine[r][3] + (0..3).map(|a| v.affine[r][a] * (shape[a] - 1) as f64 / 2.0).sum::<f64>())
    };
    assert_eq!(case.label.shape(), [32; 3]);
    assert!(centre(&case.label).iter().zip(centre(&map)).all(|(a, b)| (a - b).abs() < 1e-6));
    assert!(case.label.spacing().iter().all(|s| (s - 150.0 / 32.0).abs() < 1e-6), "{:?}", case.label.spacing());

    let error = |data: Array4<f32>| LabelMap::new(&Volume { data, affine }, None).err().unwrap().to_string();
    assert!(error(Array4::from_elem((1, 4, 4, 4), 0.5)).contains("0.5"));
    assert!(error(Array4::zeros((1, 4, 4, 4))).contains("background"));
    assert!(error(Array4::ones((2, 4, 4, 4))).contains("one 3D label map"));
}

#[test]
fn photographs_show_a_fundus_with_the_lesions_of_their_grade() {
    let size = 96;
    let mut counts = [0usize; 5];
    for subject in 0..24 {
        let case = Recipe::Fundus { size }.case(5, subject);
        let [_, h, w] = case.label.shape();
        let (_, photograph) = &case.images[0];
        assert_eq!(photograph.data.dim(), (3, 1, h, w));
        assert!(photograph.data.iter().all(|v| (0. ..=255.).contains(v) && v.fract() == 0.));
        // Black around, red inside, and not all alike.
        let mean = |c: usize, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>| {
            photograph.data.slice(ndarray::s![c, 0, rows, columns]).mean().unwrap()
        };
        assert!(mean(0, 0..h, 0..2) < 10.);
        let [red, green, blue] = [0, 1, 2].map(|c| mean(c, h / 4..3 * h / 4, w / 4..3 * w / 4));
        assert!(red > 1.3 * green && green > blue && red > 60., "subject {subject}: {red} {green} {blue}");
        // What the lesions say is what the grade means; at this size a microaneurysm may cover no pixel.
        let (grade, _) = retinopathy::grades(&mut rng(5, Stream::Phantom, subject, part::LESION));
        counts[grade] += 1;
        let present = |lesion: f32| flat(&case.label).contains(&lesion);
        let (bleeding, exudates, proliferation) = (present(2.), present(3.), present(4.));
        match grade {
            0 => assert!(flat(&case.label).iter().all(|&v| v == 0.)),
            1 => assert!(!bleeding && !exudates && !proliferation),
            2 | 3 => assert!(bleeding && !proliferation),
            _ => assert!(bleeding && proliferation),
        }
    }
    assert!(counts[0] > 0 && counts[2] > 0, "{counts:?}");
}

#[test]
fn grades_are_as_unequal_as_in_aptos_and_noisy() {
    let (mut of_lesions, mut given, mut differ) = ([0f64; 5], [0f64; 5], 0);
    let n = 20_000;
    for subject in 0..n {
        let (lesions, grader) = retinopathy::grades(&mut rng(1, Stream::Phantom, subject, part::LESION));
        of_lesions[lesions] += 1. / n as f64;
        given[grader] += 1. / n as f64;
        differ += u64::from(lesions != grader);
        assert!(lesions.abs_diff(grader) <= 1);
    }
    assert!(of_lesions.iter().zip(retinopathy::SHARES).all(|(a, b)| (a - b).abs() < 0.01), "{of_lesions:?}");
    assert!((differ as f64 / n as f64 - 0.1).abs() < 0.01, "{differ} of {n}");
    assert!(given[0] > 0.4 && given[3] < 0.1, "{given:?}");
}

#[test]
fn a_folder_of_photographs_is_read_as_aptos_is() {
    let temporary = tempfile::tempdir().unwrap();
    let model = Recipe::Fundus { size: 48 };
    generate(&model, 4, 2, temporary.path(), Some(2), || ()).unwrap();
    let found = crate::data::layouts::open(temporary.path(), None).unwrap();
    assert_eq!((found.layout, found.subjects.len()), (crate::data::layouts::Layout::Images, 4));
    for (subject, k) in found.subjects.iter().zip(0..) {
        let (_, grade) = retinopathy::grades(&mut rng(2, Stream::Phantom, k, part::LESION));
        assert_eq!((subject.id.clone(), subject.class), (format!("fundus_{k:04}"), Some(grade as u8)));
        let read = subject.channels[0].read().unwrap();
        let drawn = &model.case(2, k).images[0].1;
        assert!(read.data.iter().zip(&drawn.data).all(|(a, b)| (255. * a - b).abs() < 1e-3), "PNG keeps every value");
    }
    // Grown, the table has all of them.
    generate(&model, 6, 2, temporary.path(), None, || ()).unwrap();
    let found = crate::data::layouts::open(temporary.path(), None).unwrap();
    assert!(found.subjects.len() == 6 && found.subjects.iter().all(|s| s.class.is_some()) && found.problems.is_empty());
    let others = generate(&Recipe::Fundus { size: 49 }, 6, 2, temporary.path(), None, || ()).unwrap_err().to_string();
    assert!(others.contains("use another folder"), "{others}");
}
