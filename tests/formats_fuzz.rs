//! Damaged NRRD, MetaImage, MGH, ANALYZE and compressed files: reading them never panics and never allocates more than their bytes warrant.

mod counting;

use bzip2::write::BzEncoder;
use counting::Counting;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use pretext3d::data::formats::{open, open_from};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::io::Write;
use std::path::Path;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// Voxels of every whole file: 2 channels of [4, 5, 6] int16.
const BYTES: usize = 2 * 4 * 5 * 6 * 2;

fn voxels() -> Vec<u8> {
    (0..BYTES as u32 / 2).flat_map(|n| (n as i16 * 37 - 900).to_le_bytes()).collect()
}

fn as_text() -> String {
    let text: Vec<String> = voxels().chunks_exact(2).map(|v| i16::from_le_bytes(v.try_into().unwrap()).to_string()).collect();
    text.join(" ")
}

fn nrrd() -> Vec<Vec<u8>> {
    let header = |encoding: &str, sizes: &str, directions: &str| {
        format!(
            "NRRD0004\n# a comment\ntype: short\ndimension: 4\nspace: left-posterior-superior\nsizes: {sizes}\nspace directions: \
             {directions}\nkinds: domain domain domain list\nendian: little\nencoding: {encoding}\nspace origin: (1.5,-2,3e1)\n\
             a key:=a value\n\n"
        )
        .into_bytes()
    };
    // Without directions, and with the voxels big-endian.
    let plain = |lines: &str| {
        format!("NRRD0001\ntype: int16\ndimension: 4\nsizes: 4 5 6 2\nendian: big\nencoding: raw\n{lines}\n").into_bytes()
    };
    let spaced = plain(
        "spacings: 0.5 1 2 nan\naxis mins: -1 0 1 nan\ncenterings: cell node cell none\nkinds: space space space vector\n",
    );
    let named =
        plain("space: RAST\nspace units: \"cm\" \"mm\" \"um\"\nspace directions: (1,0,0,0) (0,1,0,0) (0,0,1,0) (nan,nan)\n");
    let last = |encoding: &str| header(encoding, "4 5 6 2", "(0.5,0,0.1) (0,2,0) (0,0,-3) none");
    let hex: String = voxels().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut gz = GzEncoder::new(vec![], Compression::fast());
    gz.write_all(&voxels()).unwrap();
    let mut bz2 = BzEncoder::new(vec![], bzip2::Compression::fast());
    bz2.write_all(&voxels()).unwrap();
    vec![
        [last("raw"), voxels()].concat(),
        [spaced, voxels()].concat(),
        [named, voxels()].concat(),
        [last("bzip2"), bz2.finish().unwrap()].concat(),
        [header("raw", "2 4 5 6", "none (1,0,0) (0,1,0) (0,0,1)"), voxels()].concat(),
        [last("gzip"), gz.finish().unwrap()].concat(),
        [last("ascii"), as_text().into_bytes()].concat(),
        [last("hex"), hex.into_bytes()].concat(),
    ]
}

fn metaimage() -> Vec<Vec<u8>> {
    let header = |lines: &str| {
        format!(
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n{lines}TransformMatrix = 0 1 0 1 0 0 0 0 \
             -1\nOffset = 1 -2 3.5\nElementSpacing = 0.5 1 2\nDimSize = 4 5 6\nElementNumberOfChannels = 2\nElementType = MET_SHORT\n\
             ElementDataFile = LOCAL\n"
        )
        .into_bytes()
    };
    let mut zlib = ZlibEncoder::new(vec![], Compression::fast());
    zlib.write_all(&voxels()).unwrap();
    let mut gz = GzEncoder::new(vec![], Compression::fast());
    gz.write_all(&voxels()).unwrap();
    let words = |lines: &str| String::from_utf8(header(lines)).unwrap();
    vec![
        [header(""), voxels()].concat(),
        [header("CompressedData = True\n"), zlib.finish().unwrap()].concat(),
        [header("CompressedData = True\n"), gz.finish().unwrap()].concat(),
        [words("").replace("BinaryData = True", "BinaryData = False"), as_text()].concat().into_bytes(),
        [words("HeaderSize = 400\n").into_bytes(), vec![0; 400], voxels()].concat(),
    ]
}

fn mgh() -> Vec<Vec<u8>> {
    let mut file = vec![];
    [1, 4, 5, 6, 2, 4, 0i32].iter().for_each(|n| file.extend(n.to_be_bytes()));
    file.extend(1i16.to_be_bytes());
    [1.5, 2.0, 2.5, -1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 1.0, 0.0, 3.0, 4.0, 5.0f32]
        .iter()
        .for_each(|v| file.extend(v.to_be_bytes()));
    file.resize(284, 0);
    file.extend(voxels());
    let mut unplaced = file.clone();
    unplaced[28] = 0;
    unplaced[29] = 0;
    vec![file, unplaced]
}

/// Headers whose voxels are in a.raw, or half in 1.raw and half in 2.raw.
fn detached() -> Vec<Vec<u8>> {
    let header = |data: &str| {
        format!(
            "NRRD0004\ntype: short\ndimension: 4\nsizes: 4 5 6 2\nspace dimension: 3\nspace directions: (1,0,0) (0,2,0) (0,0,3) none\n\
             endian: little\nencoding: raw\ndata file: {data}\n"
        )
    };
    let meta = |size: &str, data: &str| {
        format!("NDims = 4\nDimSize = 4 5 6 2\nElementType = MET_SHORT\n{size}ElementDataFile = {data}\n")
    };
    let last = header("a.raw").replace("encoding", "byte skip: -1\nencoding");
    let metas = [meta("", "%d.raw 1 2 1"), meta("HeaderSize = -1\n", "a.raw"), meta("", "LIST\n1.raw\n2.raw")];
    let headers = [header("a.raw"), header("%d.raw 1 2 1 3"), header("LIST 3\n1.raw\n2.raw"), last];
    headers.into_iter().chain(metas).map(String::into_bytes).collect()
}

/// ANALYZE with and without an origin and ranges of values, and NIfTI, whose voxels are all in the `.img`.
fn pairs() -> Vec<Vec<u8>> {
    let mut header = vec![0; 348];
    let mut put = |at: usize, value: &[u8]| header[at..at + value.len()].copy_from_slice(value);
    put(0, &348i32.to_le_bytes());
    [4i16, 4, 5, 6, 2].iter().enumerate().for_each(|(a, n)| put(40 + 2 * a, &n.to_le_bytes()));
    [4i16, 16].iter().enumerate().for_each(|(a, n)| put(70 + 2 * a, &n.to_le_bytes()));
    [0.0, 1.5, 2.0, 2.5f32].iter().enumerate().for_each(|(a, v)| put(76 + 4 * a, &v.to_le_bytes()));
    let (mut ranged, mut nifti) = (header.clone(), header.clone());
    [3i16, 2, 1].iter().enumerate().for_each(|(a, n)| ranged[253 + 2 * a..255 + 2 * a].copy_from_slice(&n.to_le_bytes()));
    [900.0, -50.0f32].iter().enumerate().for_each(|(a, v)| ranged[124 + 4 * a..128 + 4 * a].copy_from_slice(&v.to_le_bytes()));
    [3000i32, -900].iter().enumerate().for_each(|(a, n)| ranged[140 + 4 * a..144 + 4 * a].copy_from_slice(&n.to_le_bytes()));
    nifti[344..348].copy_from_slice(b"ni1\0");
    // qform alone: half a turn about x.
    nifti[252..254].copy_from_slice(&1i16.to_le_bytes());
    nifti[256..260].copy_from_slice(&1f32.to_le_bytes());
    vec![header, ranged, nifti]
}

/// MGH in two parts as gzip, zstd and bzip2.
fn packed() -> [(&'static str, Vec<u8>); 3] {
    let file = mgh().remove(0);
    let parts = [&file[..300], &file[300..]];
    let gz = parts.map(|part| {
        let mut stream = GzEncoder::new(vec![], Compression::fast());
        stream.write_all(part).unwrap();
        stream.finish().unwrap()
    });
    let bz2 = parts.map(|part| {
        let mut stream = BzEncoder::new(vec![], bzip2::Compression::best());
        stream.write_all(part).unwrap();
        stream.finish().unwrap()
    });
    let [one, two] = parts.map(|part| compress_to_vec(part, CompressionLevel::Fastest));
    // Between them a frame that says something about the others.
    let said = [0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9].to_vec();
    [("gzip", gz.concat()), ("zstd", [one, said, two].concat()), ("bzip2", bz2.concat())]
}

/// One injury.
#[derive(Clone, Debug)]
enum Harm {
    Byte(Index, u8),
    /// Another word in place of one of the header.
    Word(Index, &'static str),
    /// An extreme number in a binary header.
    Number(Index, [u8; 4]),
    Cut(Index),
    Extra(usize),
}

fn harm(text: bool) -> impl Strategy<Value = Harm> {
    let words = vec![
        "0",
        "-1",
        "1",
        "2",
        "7",
        "16",
        "2147483647",
        "1000000000000",
        "99999999999999999999",
        "1e30",
        "nan",
        "-inf",
        "none",
        "(1,0,0)",
        "(0,0,0)",
        "(",
        "LIST",
        "LOCAL",
        "x%d.raw 1 9999999999 1",
        "x%d 1 5 0",
        "raw",
        "gzip",
        "hex",
        "ascii",
        "double",
        "MET_DOUBLE",
        "block",
        "False",
        "True",
        "list",
        "space",
        ":",
        "=",
        "\n",
        "byte skip: 1000000000000\n",
        "line skip: 3\n",
        "byte skip: -1\n",
        ".",
        "1.raw",
        "9223372036854775807",
        "HeaderSize = 999999999999\n",
    ];
    let numbers = [0i32, -1, 1, 2, 3, 10, i32::MAX, i32::MIN, 1 << 20];
    let numbers: Vec<[u8; 4]> = numbers
        .iter()
        .flat_map(|n| [n.to_le_bytes(), n.to_be_bytes()])
        .chain([f32::NAN, f32::INFINITY, 0.0, 1e30, 1e-30].iter().flat_map(|v| [v.to_le_bytes(), v.to_be_bytes()]))
        .collect();
    let header = if text {
        (any::<Index>(), select(words)).prop_map(|(at, word)| Harm::Word(at, word)).boxed()
    } else {
        (any::<Index>(), select(numbers)).prop_map(|(at, number)| Harm::Number(at, number)).boxed()
    };
    prop_oneof![
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, v)| Harm::Byte(at, v)),
        4 => header,
        1 => any::<Index>().prop_map(Harm::Cut),
        1 => (1..5000usize).prop_map(Harm::Extra),
    ]
}

fn injure(file: &mut Vec<u8>, harm: &Harm) {
    match harm {
        Harm::Byte(at, v) if !file.is_empty() => *at.get_mut(file) = *v,
        Harm::Word(at, word) => {
            // The words of the first 400 bytes: what follows are voxels.
            let blank = |&n: &usize| file[n].is_ascii_whitespace();
            let blanks: Vec<usize> = (0..file.len().min(400)).filter(blank).collect();
            if blanks.len() > 1 {
                let at = at.index(blanks.len() - 1);
                file.splice(blanks[at] + 1..blanks[at + 1], word.bytes());
            }
        }
        Harm::Number(at, number) if file.len() >= 96 => {
            let at = 2 * at.index(46);
            file[at..at + 4].copy_from_slice(number);
        }
        Harm::Cut(at) if !file.is_empty() => file.truncate(at.index(file.len())),
        Harm::Extra(n) => file.resize(file.len() + n, 0),
        _ => {}
    }
}

/// Bytes that a decoder of bzip2 takes for its blocks, and one of zstd for its window, whatever is in them.
const DECODER: usize = 10 << 20;

/// Damages the files `cases` times; reading them takes at most `extra` bytes more than their size warrants. `beside`: the files are headers, written to this folder, where their voxels are.
fn fuzz(format: &str, name: &str, seeds: Vec<Vec<u8>>, text: bool, cases: u32, extra: usize, beside: Option<&Path>) {
    let header = beside.map(|folder| folder.join(name));
    let read = |file: &[u8]| match &header {
        Some(header) => {
            std::fs::write(header, file).unwrap();
            open(header).and_then(|opened| opened.read_ras())
        }
        None => open_from(name, file).and_then(|opened| opened.read_ras()),
    };
    for seed in &seeds {
        let (whole, _) = read(seed).unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!((whole.channels(), whole.data.len()), (2, BYTES / 2));
    }
    // Checksums find nearly every injury of what is compressed: some files stay whole.
    let fewest = if extra > 0 { 0 } else { 1 };
    counting::fuzz(
        format,
        cases,
        &(select(seeds), prop::collection::vec(harm(text), fewest..4)),
        |(mut file, harms), outcomes| {
            harms.iter().for_each(|h| injure(&mut file, h));
            let before = ALLOCATOR.start();
            let result = read(&file);
            let peak = ALLOCATOR.peak() - before;
            let there = file.len().max(BYTES);
            prop_assert!(peak < 16 * there + (1 << 20) + extra, "{peak} bytes allocated for {there}");
            match result {
                Ok((volume, _)) => {
                    outcomes.read.set(outcomes.read.get() + 1);
                    // Compressed zeros are many voxels.
                    prop_assert!(!volume.data.is_empty() && volume.data.len() <= 1100 * there);
                    prop_assert!(volume.spacing().iter().all(|s| s.is_finite() && *s > 0.0));
                }
                Err(error) => {
                    outcomes.refused.set(outcomes.refused.get() + 1);
                    let message = format!("{error:#}");
                    prop_assert!(message.contains(name), "{}", message);
                }
            }
            Ok(())
        },
    );
}

#[test]
fn damaged_files_neither_panic_nor_claim_memory() {
    fuzz("NRRD", "scan.nrrd", nrrd(), true, 5_000, 0, None);
    fuzz("MetaImage", "scan.mha", metaimage(), true, 5_000, 0, None);
    fuzz("MGH", "scan.mgh", mgh(), false, 5_000, 0, None);
    for (name, file) in packed() {
        fuzz(name, "scan.mgz", vec![file], false, 1_000, DECODER, None);
    }
    let folder = tempfile::tempdir().unwrap();
    let halves = voxels();
    for (name, voxels) in
        [("scan.img", &halves[..]), ("a.raw", &halves[..]), ("1.raw", &halves[..BYTES / 2]), ("2.raw", &halves[BYTES / 2..])]
    {
        std::fs::write(folder.path().join(name), voxels).unwrap();
    }
    fuzz("NRRD and MetaImage with other files", "scan.nhdr", detached(), true, 3_000, 0, Some(folder.path()));
    fuzz("ANALYZE and NIfTI pairs", "scan.hdr", pairs(), false, 2_000, 0, Some(folder.path()));
}
