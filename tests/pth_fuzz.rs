//! Damaged files of torch.save: reading them never panics and never allocates much more than their bytes.

mod counting;

use counting::{Counting, fuzz};
use pretext3d::pth::{Checkpoint, Value, View};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::cell::Cell;
use std::path::Path;
use tch::Kind;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// Whole files in each of torch's formats, made by `data/pth/make.py`.
fn seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pth");
    ["all.pth", "protocol5.pth", "legacy.pth"].map(|name| std::fs::read(folder.join(name)).unwrap()).to_vec()
}

/// One injury.
#[derive(Clone, Debug)]
enum Harm {
    Byte(Index, u8),
    /// An opcode, or a large number, somewhere.
    Bytes(Index, &'static [u8]),
    Cut(Index),
    /// A piece of the file in place of another.
    Copy(Index, Index, usize),
}

fn harm() -> impl Strategy<Value = Harm> {
    let pieces: Vec<&'static [u8]> = vec![
        b"R",
        b"b",
        b"Q",
        b"h\x00",
        b"q\x01",
        b"(",
        b"t",
        b"u",
        b"e",
        b".",
        b"]",
        b"cos\nsystem\n",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"J\xff\xff\xff\x7f",
        b"J\xff\xff\xff\xff",
        b"X\xff\xff\xff\xff",
        b"\x8b\xff\xff\xff\x7f",
        &[0xff; 8],
    ];
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, v)| Harm::Byte(at, v)),
        4 => (any::<Index>(), select(pieces)).prop_map(|(at, v)| Harm::Bytes(at, v)),
        1 => any::<Index>().prop_map(Harm::Cut),
        2 => (any::<Index>(), any::<Index>(), 1..64usize).prop_map(|(from, to, n)| Harm::Copy(from, to, n)),
    ]
}

fn injure(bytes: &mut Vec<u8>, harm: &Harm) {
    // Most of what matters lies before the storages, and at the end of an archive.
    let place = |index: &Index, n: usize| index.index(bytes.len().saturating_sub(n).max(1));
    match harm {
        Harm::Byte(at, value) => {
            let at = place(at, 1);
            bytes[at] = *value;
        }
        Harm::Bytes(at, piece) => {
            let at = place(at, piece.len());
            bytes.iter_mut().skip(at).zip(*piece).for_each(|(byte, new)| *byte = *new);
        }
        Harm::Cut(at) => bytes.truncate(at.index(bytes.len()).max(1)),
        Harm::Copy(from, to, n) => {
            let (from, to) = (place(from, *n), place(to, *n));
            let piece: Vec<u8> = bytes[from..].iter().take(*n).copied().collect();
            bytes.iter_mut().skip(to).zip(piece).for_each(|(byte, new)| *byte = new);
        }
    }
}

/// Sets the checksums of an archive's members to 0, as torch writes them where it computes none.
fn forget_checksums(bytes: &mut [u8]) {
    let headers: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(b"PK\x01\x02")).collect();
    headers.into_iter().for_each(|at| bytes.iter_mut().skip(at + 16).take(4).for_each(|byte| *byte = 0));
}

/// Every tensor in a value, whatever holds it.
fn views<'a>(value: &'a Value<View>, found: &mut Vec<&'a View>) {
    match value {
        Value::Tensor(view) => found.push(view),
        Value::List(items) => items.iter().for_each(|item| views(item, found)),
        Value::Dict(entries) => entries.iter().for_each(|(_, item)| views(item, found)),
        _ => {}
    }
}

#[test]
fn damaged_files_neither_panic_nor_claim_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pth");
    let strategy = (select(seeds()), prop::collection::vec(harm(), 1..4), any::<bool>());
    let tensors = Cell::new(0);
    fuzz("weights of torch.save", 3_000, &strategy, |(mut file, harms, mend), outcomes| {
        harms.iter().for_each(|harm| injure(&mut file, harm));
        if mend {
            forget_checksums(&mut file);
        }
        std::fs::write(&path, &file).unwrap();
        let before = ALLOCATOR.start();
        let opened = Checkpoint::open(&path);
        let error = match &opened {
            Ok(checkpoint) => {
                outcomes.read.set(outcomes.read.get() + 1);
                let mut found = Vec::new();
                views(&checkpoint.value, &mut found);
                let tensor = |view: &View| -> anyhow::Result<()> {
                    // Every element is there to be read.
                    let _ = checkpoint.tensor(view)?.to_kind(Kind::Double).sum(Kind::Double);
                    tensors.set(tensors.get() + 1);
                    Ok(())
                };
                // Whoever asks for a tensor knows of which file.
                let _ = found.into_iter().try_for_each(tensor);
                None
            }
            Err(error) => {
                outcomes.refused.set(outcomes.refused.get() + 1);
                Some(anyhow::anyhow!("{error:#}"))
            }
        };
        let peak = ALLOCATOR.peak() - before;
        prop_assert!(peak < 64 * file.len() + (1 << 20), "{peak} bytes allocated for {}", file.len());
        if let Some(error) = error {
            let message = format!("{error:#}");
            prop_assert!(message.starts_with(&path.display().to_string()), "{}", message);
        }
        Ok(())
    });
    assert!(tensors.get() > 3_000, "{} tensors", tensors.get());
}
