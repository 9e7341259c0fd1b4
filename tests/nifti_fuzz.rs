//! Damaged NIfTI files: reading them never panics and never allocates more than their bytes warrant.

mod counting;

use anyhow::Result;
use counting::{Counting, fuzz};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use ndarray::Array4;
use pretext3d::data::formats::nifti::{self, DataType};
use pretext3d::data::formats::{open, open_from};
use pretext3d::data::volume::Volume;
use pretext3d::transform::spatial::Orientation;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::io::{Read, Write};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// Small whole files: NIfTI-1 of two types, big-endian, and NIfTI-2.
fn seeds() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let data = Array4::from_shape_fn((2, 5, 6, 7), |(c, i, j, k)| (c + i * j + k) as f32);
    let affine = [[-1.5, 0.1, 0.0, 9.0], [0.0, 2.0, 0.3, -4.0], [0.0, 0.0, 2.5, 1.0], [0.0, 0.0, 0.0, 1.0]];
    let mut files: Vec<Vec<u8>> = [DataType::Uint8, DataType::Float32]
        .into_iter()
        .map(|kind| {
            let path = folder.path().join("seed.nii");
            nifti::write(&path, &Volume { data: data.clone(), affine }, kind).unwrap();
            std::fs::read(path).unwrap()
        })
        .collect();
    let fields = [(0, 4, 1), (40, 2, 8), (70, 2, 2), (76, 4, 8), (108, 4, 3), (252, 2, 2), (256, 4, 18)];
    let swap = |bytes: &mut [u8], fields: &[(usize, usize, usize)]| {
        for &(at, size, n) in fields {
            bytes[at..at + size * n].chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
    };
    let mut big = files[1].clone();
    swap(&mut big, &fields);
    swap(&mut big, &[(352, 4, 420)]);
    files.push(big);
    files.push(as_nifti2(&files[0]));
    // By qform, and by spacing alone, in metres, with a slope; without the size, which some tools leave empty.
    let mut turned = files[1].clone();
    turned[254..256].fill(0);
    turned[252] = 1;
    [1.0, 0.0, 0.0, 5.0, 6.0, 7.0f32]
        .iter()
        .enumerate()
        .for_each(|(n, v)| turned[256 + 4 * n..][..4].copy_from_slice(&v.to_le_bytes()));
    let mut plain = files[1].clone();
    plain[252..256].fill(0);
    plain[123] = 1;
    plain[112..116].copy_from_slice(&1f32.to_le_bytes());
    let mut empty = files[0].clone();
    empty[..4].fill(0);
    files.extend([turned, plain, empty]);
    files
}

/// The same file as NIfTI-2.
fn as_nifti2(one: &[u8]) -> Vec<u8> {
    let f32_at = |at: usize| f32::from_le_bytes(one[at..at + 4].try_into().unwrap()) as f64;
    let mut two = vec![0; 544];
    let mut put = |at: usize, value: &[u8]| two[at..at + value.len()].copy_from_slice(value);
    put(0, &540i32.to_le_bytes());
    put(4, b"n+2\0\r\n\x1a\n");
    put(12, &one[70..74]);
    for a in 0..8 {
        put(16 + 8 * a, &i64::from(i16::from_le_bytes([one[40 + 2 * a], one[41 + 2 * a]])).to_le_bytes());
        put(104 + 8 * a, &f32_at(76 + 4 * a).to_le_bytes());
    }
    put(168, &544i64.to_le_bytes());
    put(176, &1f64.to_le_bytes());
    put(344, &[1, 0, 0, 0, 1]);
    (0..18).for_each(|n| put(352 + 8 * n, &f32_at(256 + 4 * n).to_le_bytes()));
    two.extend(&one[352..]);
    two
}

/// One injury.
#[derive(Clone, Debug)]
enum Harm {
    Byte(Index, u8),
    /// An extreme number somewhere in the header's extents, type, spacing, offset or affine.
    Field(Index, Vec<u8>),
    Cut(Index),
    Extra(usize),
}

fn harm() -> impl Strategy<Value = Harm> {
    let mut numbers: Vec<Vec<u8>> = vec![vec![0], vec![1], vec![0xff; 8]];
    numbers.extend(
        [0i16, -1, 1, 2, 7, 8, i16::MAX, i16::MIN, 2304]
            .iter()
            .flat_map(|v| [v.to_le_bytes().to_vec(), v.to_be_bytes().to_vec()]),
    );
    numbers.extend([i64::MAX, i64::MIN, 1 << 20, 1 << 40].iter().map(|v| v.to_le_bytes().to_vec()));
    numbers.extend([f32::NAN, f32::INFINITY, 0.0, -1.0, 1e30, 1e-30, 353.0].iter().map(|v| v.to_le_bytes().to_vec()));
    numbers.extend([f64::NAN, f64::INFINITY, 0.0, -1.0, 1e300].iter().map(|v| v.to_le_bytes().to_vec()));
    prop_oneof![
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, v)| Harm::Byte(at, v)),
        4 => (any::<Index>(), select(numbers)).prop_map(|(at, v)| Harm::Field(at, v)),
        1 => any::<Index>().prop_map(Harm::Cut),
        1 => (1..5000usize).prop_map(Harm::Extra),
    ]
}

fn injure(bytes: &mut Vec<u8>, harm: &Harm) {
    match harm {
        Harm::Byte(at, v) if !bytes.is_empty() => *at.get_mut(bytes) = *v,
        Harm::Field(at, v) if bytes.len() > 552 => {
            let at = 2 * at.index(270);
            bytes[at..at + v.len()].copy_from_slice(v);
        }
        Harm::Cut(at) if !bytes.is_empty() => bytes.truncate(at.index(bytes.len())),
        Harm::Extra(n) => bytes.resize(bytes.len() + n, 0),
        _ => {}
    }
}

#[test]
fn damaged_files_neither_panic_nor_claim_memory() {
    let seeds = seeds();
    for seed in &seeds {
        let whole = open_from("seed", &seed[..]).unwrap().read().unwrap();
        assert_eq!((whole.channels(), whole.shape(), whole.data[[1, 4, 5, 6]]), (2, [5, 6, 7], 27.0));
    }
    // Without sform and qform a NIfTI-2 file's voxels are as long as it says, though no square of that is a number.
    for length in [1e-200f64, 1e200, f64::NAN, 0.] {
        let mut file = seeds[3].clone();
        file[112..120].copy_from_slice(&length.to_le_bytes());
        file[344..352].fill(0);
        let error = open_from("seed", &file[..]).err().unwrap();
        assert!(format!("{error:#}").contains("voxel spacing pixdim[1]"), "{error:#}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scan.nii");
    let strategy = (select(seeds), prop::collection::vec(harm(), 1..4), any::<bool>(), prop::option::weighted(0.5, harm()));
    fuzz("NIfTI", 20_000, &strategy, |(mut file, harms, gz, late), outcomes| {
        harms.iter().for_each(|h| injure(&mut file, h));
        if gz {
            let mut stream = GzEncoder::new(Vec::new(), Compression::fast());
            stream.write_all(&file).unwrap();
            file = stream.finish().unwrap();
            late.iter().for_each(|h| injure(&mut file, h));
        }
        // What is really there, by an independent count.
        let mut there = Vec::new();
        if gz {
            let _ = MultiGzDecoder::new(&file[..]).read_to_end(&mut there);
        }
        let there = there.len().max(file.len());
        let measured = |read: &dyn Fn() -> Result<(Volume, Orientation)>| {
            let before = ALLOCATOR.start();
            let result = read();
            let peak = ALLOCATOR.peak() - before;
            prop_assert!(peak < 16 * there + (1 << 20), "{peak} bytes allocated for {there}");
            Ok(result)
        };
        let result = measured(&|| open_from("scan.nii", &file[..])?.read_ras())?;
        if gz {
            // A file is inflated at once, if it can be.
            std::fs::write(&path, &file).unwrap();
            let of_file = measured(&|| open(&path)?.read_ras())?;
            // Of an error a path's name may say more.
            let bits = |result: &Result<(Volume, Orientation)>| {
                let of = |(volume, orientation): &(Volume, Orientation)| {
                    (*orientation, volume.affine, volume.data.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
                };
                result.as_ref().ok().map(of)
            };
            prop_assert_eq!(bits(&of_file), bits(&result));
        }
        match result {
            Ok((volume, _)) => {
                outcomes.read.set(outcomes.read.get() + 1);
                prop_assert!(!volume.data.is_empty() && volume.data.len() <= there);
                prop_assert!(volume.spacing().iter().all(|s| s.is_finite() && *s > 0.0));
            }
            Err(error) => {
                outcomes.refused.set(outcomes.refused.get() + 1);
                let message = format!("{error:#}");
                prop_assert!(message.starts_with("scan.nii: "), "{}", message);
            }
        }
        Ok(())
    });
}
