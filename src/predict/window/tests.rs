//! Against all windows at once, in double precision, from the definition.

use crate::predict::window::*;
use crate::rng::{Stream, rng};
use crate::transform::mirror::Mirroring;
use rand::Rng as _;
use std::cell::Cell;

const CLASSES: i64 = 3;

fn noise(size: &[i64], seed: u64) -> Tensor {
    let mut random = rng(seed, Stream::Train, 0, 0);
    let values: Vec<f32> = (0..size.iter().product::<i64>()).map(|_| random.random_range(-1.0..1.0)).collect();
    Tensor::from_slice(&values).reshape(size)
}

/// A network that sees neighbours and knows left from right: one convolution of random weights.
fn convolution(rank: Rank, channels: i64) -> impl Fn(&Tensor) -> Result<Tensor> {
    let n = rank.n();
    let mut size = vec![CLASSES, channels];
    size.extend([3].repeat(n));
    let weights = noise(&size, 7) * 3.0;
    move |x: &Tensor| {
        Ok(match n {
            2 => x.conv2d(&weights, None::<Tensor>, [1, 1], [1, 1], [1, 1], 1),
            _ => x.conv3d(&weights, None::<Tensor>, [1, 1, 1], [1, 1, 1], [1, 1, 1], 1),
        })
    }
}

fn collect(window: &Window, image: &Tensor, network: Forward) -> Tensor {
    collect_across(0, window, image, &[network])
}

/// Planes across an axis, stacked along it.
fn collect_across(across: usize, window: &Window, image: &Tensor, networks: &[Forward]) -> Tensor {
    let mut planes = vec![];
    let mut size = image.size();
    size[0] = CLASSES;
    size.remove(across + 1);
    let mut sink = |plane: &[f32]| {
        planes.push(Tensor::from_slice(plane).reshape(&size));
        Ok(())
    };
    window.probabilities(image, across, networks, &mut sink).unwrap();
    Tensor::stack(&planes, across as i64 + 1)
}

/// First voxels along an axis as MONAI's `dense_patch_slices` finds them.
fn monai_starts(size: i64, patch: i64, overlap: f64) -> Vec<i64> {
    let interval = if patch == size { patch } else { ((patch as f64 * (1.0 - overlap)) as i64).max(1) };
    let count = (0..(size + interval - 1) / interval).find(|n| n * interval + patch >= size).unwrap() + 1;
    (0..count).map(|n| n * interval - (n * interval + patch - size).max(0)).collect()
}

fn naive(window: &Window, image: &Tensor, network: Forward) -> Tensor {
    let inner = image.size();
    let patch = window.patch.map(|n| n as i64);
    let mut padded = image.shallow_clone();
    for a in 0..3 {
        let missing = (patch[a] - inner[a + 1]).max(0);
        let fill = |n: i64| {
            let mut size = padded.size();
            size[a + 1] = n;
            image.amin([1, 2, 3], true).expand(size, false)
        };
        padded = Tensor::cat(&[fill(missing / 2), padded.shallow_clone(), fill(missing - missing / 2)], a as i64 + 1);
    }
    let size: Vec<i64> = padded.size()[1..].to_vec();
    let mut weights = ndarray::Array3::<f64>::zeros(window.patch);
    for ((x, y, z), weight) in weights.indexed_iter_mut() {
        let square: f64 = [x, y, z]
            .iter()
            .zip(window.patch)
            .map(|(&x, n)| ((x as f64 - (n as f64 - 1.0) / 2.0) / (n as f64 / 8.0)).powi(2))
            .sum();
        *weight = (-square / 2.0).exp().max(1e-3);
    }
    let weights = Tensor::from_slice(weights.as_slice().unwrap()).reshape(patch);
    let (sum, total) = (
        Tensor::zeros([CLASSES, size[0], size[1], size[2]], (Kind::Double, Device::Cpu)),
        Tensor::zeros([size[0], size[1], size[2]], (Kind::Double, Device::Cpu)),
    );
    let starts: Vec<Vec<i64>> = (0..3).map(|a| monai_starts(size[a], patch[a], window.overlap)).collect();
    for &x in &starts[0] {
        for &y in &starts[1] {
            for &z in &starts[2] {
                let cut = |t: &Tensor, first: i64| {
                    t.narrow(first, x, patch[0]).narrow(first + 1, y, patch[1]).narrow(first + 2, z, patch[2])
                };
                let one = cut(&padded, 1).unsqueeze(0);
                let logits = match window.rank {
                    Rank::Two => network(&one.squeeze_dim(2)).unwrap().unsqueeze(2),
                    Rank::Three => network(&one).unwrap(),
                };
                let _ = cut(&sum, 1).g_add_(&(logits.to_kind(Kind::Double).softmax(1, Kind::Double).get(0) * &weights));
                let _ = cut(&total, 0).g_add_(&weights);
            }
        }
    }
    let mean = sum / total;
    (0..3).fold(mean, |mean, a| mean.narrow(a + 1, (size[a as usize] - inner[a as usize + 1]) / 2, inner[a as usize + 1]))
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn window(rank: Rank, patch: Shape, overlap: f64, batch_size: usize) -> Window {
    Window { rank, patch, overlap, batch_size, mirroring: None, decoding: Decoding::Classes, device: Device::Cpu }
}

#[test]
fn slab_by_slab_equals_all_windows_at_once() {
    let cases = [
        (Rank::Three, [8, 8, 8], [19, 13, 21]),
        (Rank::Three, [8, 6, 4], [8, 11, 17]),
        (Rank::Three, [7, 8, 9], [5, 30, 8]),
        (Rank::Three, [9, 8, 8], [4, 3, 7]),
        (Rank::Two, [1, 8, 9], [1, 21, 30]),
        (Rank::Two, [1, 16, 8], [1, 11, 9]),
        (Rank::Two, [1, 8, 8], [5, 12, 9]),
        (Rank::Two, [1, 8, 9], [7, 8, 10]),
    ];
    for (case, (rank, patch, size)) in cases.into_iter().enumerate() {
        let image = noise(&[2, size[0], size[1], size[2]], case as u64);
        let network = convolution(rank, 2);
        for overlap in [0.0, 0.25, 0.5, 0.9] {
            let expected = naive(&window(rank, patch, overlap, 1), &image, &network);
            for batch_size in [1, 3, 20] {
                let found = collect(&window(rank, patch, overlap, batch_size), &image, &network);
                let off = difference(&found, &expected);
                assert!(off < 1e-5, "{rank:?} {patch:?} in {size:?}, overlap {overlap}, batch {batch_size}: {off}");
                // Slabs across another axis, and a second network that says the same.
                for across in (1..3).filter(|_| rank == Rank::Three && batch_size == 3) {
                    let window = window(rank, patch, overlap, batch_size);
                    let off = difference(&collect_across(across, &window, &image, &[&network, &network]), &expected);
                    assert!(off < 1e-5, "{patch:?} in {size:?} across axis {across}, overlap {overlap}: {off}");
                }
            }
        }
    }
}

#[test]
fn flips_average_the_network_over_mirror_images() {
    for (rank, patch) in [(Rank::Three, [6, 7, 8]), (Rank::Two, [1, 7, 8])] {
        let mirroring = Some(Mirroring::new(&[], rank, None, &[]).unwrap());
        let flips = Window { mirroring, ..window(rank, patch, 0.5, 2) };
        let size = patch.map(|n| n as i64);
        let network = convolution(rank, 1);
        // One window, so that mirroring the scan is mirroring the window.
        let image = noise(&[1, size[0], size[1], size[2]], 3);
        let mut sum = Tensor::zeros([CLASSES, size[0], size[1], size[2]], (Kind::Float, Device::Cpu));
        let combinations: Vec<Vec<i64>> = (0..8)
            .map(|bits| (1..4).filter(|a| bits >> (a - 1) & 1 == 1).collect::<Vec<i64>>())
            .filter(|axes| rank == Rank::Three || !axes.contains(&1))
            .collect();
        for axes in &combinations {
            sum += collect(&Window { mirroring: None, ..flips.clone() }, &image.flip(axes), &network).flip(axes);
        }
        let expected = sum / combinations.len() as f64;
        let found = collect(&flips, &image, &network);
        assert!(difference(&found, &expected) < 1e-6);
        let plain = collect(&Window { mirroring: None, ..flips.clone() }, &image, &network);
        assert!(difference(&found, &plain) > 1e-2, "flips change what a network says that is not symmetric");

        // Classes that are the left and the right one of a structure are exchanged where those change places.
        let mirroring = Some(Mirroring::new(&[], rank, None, &["", "lung left", "lung right"]).unwrap());
        let sided = collect(&Window { mirroring, ..flips.clone() }, &image, &network);
        let across = if rank == Rank::Two { 3 } else { 1 };
        let mut sum = sided.zeros_like();
        for axes in &combinations {
            let mirrored = collect(&Window { mirroring: None, ..flips.clone() }, &image.flip(axes), &network).flip(axes);
            let classes = Tensor::from_slice(if axes.contains(&across) { &[0i64, 2, 1] } else { &[0, 1, 2] });
            sum += mirrored.index_select(0, &classes);
        }
        assert!(difference(&sided, &(sum / combinations.len() as f64)) < 1e-6 && difference(&sided, &found) > 1e-3);

        // A network that looks at single voxels is symmetric: any number of windows, flips change nothing.
        let image = noise(&[1, if rank == Rank::Three { 11 } else { 1 }, 15, 20], 4);
        let pointwise = |x: &Tensor| Ok(Tensor::cat(&[x.shallow_clone(), x * 2.0 - 0.3, x.square()], 1));
        let plain = collect(&Window { mirroring: None, ..flips.clone() }, &image, &pointwise);
        assert!(difference(&collect(&flips, &image, &pointwise), &plain) < 1e-6);
        assert!(difference(&plain, &pointwise(&image.unsqueeze(0)).unwrap().softmax(1, Kind::Float).get(0)) < 1e-6);
    }
}

#[test]
fn planes_leave_as_soon_as_no_window_touches_them() {
    let (windows, planes) = (Cell::new(0), Cell::new(0));
    let network = |x: &Tensor| {
        windows.set(windows.get() + x.size()[0]);
        Ok(Tensor::cat(&[x, x], 1))
    };
    let cut = window(Rank::Three, [8, 8, 8], 0.5, 2);
    // Three windows within a slab; slabs start at 0, 4, .., 28, 29.
    let image = noise(&[1, 37, 8, 14], 1);
    cut.probabilities(&image, 0, &[&network], &mut |plane| {
        assert_eq!(plane.len(), 2 * 8 * 14);
        let x: i64 = planes.get();
        planes.set(x + 1);
        let slabs = if x < 29 { x / 4 + 1 } else { 9 };
        assert_eq!(windows.get(), 3 * slabs, "plane {x}");
        Ok(())
    })
    .unwrap();
    assert_eq!(planes.get(), 37);
}

#[test]
fn slabs_lie_across_the_axis_along_which_they_are_the_smallest() {
    let thin = window(Rank::Three, [16, 16, 16], 0.5, 1);
    assert_eq!(thin.thinnest([512, 512, 1200]), 2);
    assert_eq!(thin.slab([512, 512, 1200], 2), 512 * 512 * 16);
    assert_eq!(thin.thinnest([64, 64, 64]), 0);
    // Along an axis where the scan is smaller than a window, a slab is as thick as the window.
    assert_eq!(thin.slab([8, 32, 32], 0), 16 * 32 * 32);
    assert_eq!((thin.thinnest([8, 32, 40]), thin.count([8, 32, 40])), (2, 3 * 4));
    let images = window(Rank::Two, [1, 16, 16], 0.5, 4);
    assert_eq!((images.thinnest([10, 20, 400]), images.slab([10, 20, 400], 0)), (0, 4 * 20 * 400));
}

#[test]
fn what_cannot_be_is_refused() {
    let image = noise(&[1, 8, 8, 8], 1);
    let good = window(Rank::Three, [4, 4, 4], 0.5, 1);
    let refused = |window: Window, network: Forward, says: &str| {
        let error = window.classes(&image, &[network]).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    let same = |x: &Tensor| Ok(x.shallow_clone());
    refused(Window { overlap: 1.0, ..good.clone() }, &same, "overlap");
    refused(Window { overlap: f64::NAN, ..good.clone() }, &same, "overlap");
    refused(Window { batch_size: 0, ..good.clone() }, &same, "batch");
    refused(Window { patch: [4, 0, 4], ..good.clone() }, &same, "patch");
    refused(Window { rank: Rank::Two, ..good.clone() }, &same, "images");
    refused(good.clone(), &|x: &Tensor| Ok(x.narrow(2, 0, 3)), "[1, 1, 3, 4, 4] for [1, 1, 4, 4, 4]");
    refused(good.clone(), &|_: &Tensor| anyhow::bail!("out of memory"), "out of memory");
    // The classes are those of the largest logits, the first of equals.
    let classes =
        good.classes(&image, &[&|x: &Tensor| Ok(Tensor::cat(&[x.zeros_like(), x.shallow_clone(), x.zeros_like()], 1))]);
    let expected: Vec<u8> = Vec::<f32>::try_from(image.flatten(0, -1)).unwrap().iter().map(|&v| u8::from(v > 0.0)).collect();
    assert_eq!(classes.unwrap(), expected);
}
