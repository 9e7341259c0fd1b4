//! What the artefacts of magnetic resonance make of a channel, for comparison with others.
//!
//! `mr_change OUT D,H,W FILE CHANGE...` reads the channel, `[D, H, W]` float32 in little-endian order, and writes `OUT/<n>.f32` for the
//! `n`-th change, in the same form. A change is JSON as in a sample's record, `{"blur": {"sigma": [1, 1, 1]}}`.

use anyhow::{Context, Result, ensure};
use pretext3d::dim::{Shape, voxels};
use pretext3d::transform::mr::MrChange;
use std::path::PathBuf;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [out, shape, file, changes @ ..] = &arguments[..] else {
        anyhow::bail!("usage: mr_change OUT D,H,W FILE CHANGE...");
    };
    let shape: Vec<usize> = shape.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let shape: Shape = shape.try_into().ok().context("three sides")?;
    let bytes = std::fs::read(file)?;
    ensure!(bytes.len() == 4 * voxels(shape), "{file}: {} bytes, not those of {shape:?}", bytes.len());
    let channel: Vec<f32> = bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
    for (n, change) in changes.iter().enumerate() {
        let change: MrChange = serde_json::from_str(change).with_context(|| change.clone())?;
        let mut changed = channel.clone();
        change.apply(&mut changed, shape);
        let bytes: Vec<u8> = changed.iter().flat_map(|x| x.to_le_bytes()).collect();
        std::fs::write(PathBuf::from(out).join(format!("{n}.f32")), bytes)?;
    }
    Ok(())
}
