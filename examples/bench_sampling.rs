//! Samples a second from a store on one core: random crops, each turned by a random multiple of 90 degrees and flipped.
//! `cargo run --release --example bench_sampling -- STORE [SIDE]`; without a store, one of random voxels, 32 x 128^3, is made.

use anyhow::{Context, Result};
use pretext3d::data::Scans;
use pretext3d::data::layouts::Layout;
use pretext3d::data::preprocess::{Dtype, Foreground, Grid, Intensity, Settings};
use pretext3d::data::store::{Entry, Index, Store, file, file_name};
use pretext3d::dim::Region;
use pretext3d::rng::{Stream, rng};
use pretext3d::transform::spatial::Orientation;
use rand::Rng;
use std::path::Path;
use std::time::Instant;

const SUBJECTS: usize = 32;
const SIDE: usize = 128;
const SAMPLES: usize = 4000;
const ROUNDS: usize = 5;

fn random_store(folder: &Path) -> Result<()> {
    let settings = Settings {
        grid: Grid::Cube { side: SIDE },
        foreground: Foreground::Auto,
        intensity: Intensity::MinMax,
        dtype: Dtype::F16,
    };
    let mut index = Index::new(Layout::Folder, settings, vec!["image".into()], None);
    let mut random = rng(0, Stream::Phantom, 0, 0);
    for n in 0..SUBJECTS {
        let image = ndarray::Array4::from_shape_simple_fn((1, SIDE, SIDE, SIDE), || random.random::<f32>());
        let id = format!("random{n:02}");
        let name = file_name(&id);
        let (bytes, fingerprint) = file::write(&folder.join(&name), image.view(), None, Dtype::F16, Default::default())?;
        let (shape, spacing) = ([SIDE; 3], [1.0; 3]);
        index.subjects.push(Entry { id, file: name, bytes, shape, spacing, label: false, split: None, fingerprint });
    }
    index.complete = true;
    index.write(folder)
}

/// A turn about one axis by a multiple of 90 degrees, or none, then flips.
fn draw(random: &mut impl Rng) -> Orientation {
    let mut source = [0, 1, 2];
    if random.random_bool(0.5) {
        let axis = random.random_range(0..3);
        source.swap((axis + 1) % 3, (axis + 2) % 3);
    }
    Orientation { source, flip: random.random() }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let made = std::env::temp_dir().join(format!("pretext3d-bench-{}", std::process::id()));
    let given = args.next();
    if given.is_none() {
        random_store(&made)?;
    }
    let store = Store::open(given.as_deref().map_or(made.as_path(), Path::new))?;
    let side: usize = args.next().map_or(Ok(64), |side| side.parse()).context("SIDE is not a number")?;
    let mut random = rng(1, Stream::Train, 0, 0);
    let mut out = vec![0.0; store.channels() * side.pow(3)];
    let mut rates = vec![];
    // The first round maps the files and warms the page cache.
    for round in 0..=ROUNDS {
        let start = Instant::now();
        for _ in 0..SAMPLES {
            let scan = random.random_range(0..store.len());
            let corner = store.shape(scan).map(|n| random.random_range(0..=n.saturating_sub(side)));
            store.read(scan, Region { start: corner, size: [side; 3] }, draw(&mut random), &mut out)?;
        }
        if round > 0 {
            rates.push(SAMPLES as f64 / start.elapsed().as_secs_f64());
        }
    }
    rates.sort_by(f64::total_cmp);
    println!(
        "crops of {side}^3, random turn and flips, one core: median {:.0} samples/s of {ROUNDS} rounds {rates:.0?}",
        rates[ROUNDS / 2]
    );
    if given.is_none() {
        std::fs::remove_dir_all(&made)?;
    }
    Ok(())
}
