//! TensorBoard event files with scalars: TFRecord framing around a handful of protobuf fields.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An open event file. What was written is surely on its way to the disk only after [`EventWriter::flush`].
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

/// What TensorBoard knows event files by; seconds since 1970 follow.
const PREFIX: &str = "events.out.tfevents.";

/// The latest one among a folder's event files, 0 without any.
fn latest_stamp(folder: &Path) -> Result<u64> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()).max().unwrap_or(0))
}

/// Seconds since 1970.
pub fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

impl EventWriter {
    /// A new event file in `folder`, beside those of earlier runs of a resumed training. TensorBoard then drops what they
    /// hold from `first_step` on.
    pub fn create(folder: &Path, first_step: u64) -> Result<EventWriter> {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let now = wall_time();
        // TensorBoard reads the files in the order of their names: after those that are there, also where the clock was set back.
        let stamp = (now as u64).max(latest_stamp(folder)? + 1);
        let path = folder.join(format!("{PREFIX}{stamp:010}.pretext3d.{}.0", std::process::id()));
        let file = File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
        let mut writer = EventWriter { path, file: BufWriter::new(file) };
        writer.event(now, 0, |event| bytes(event, 3, b"brain.Event:2"))?;
        if first_step > 0 {
            // A session log saying START.
            writer.event(now, first_step, |event| bytes(event, 7, &[1 << 3, 1]))?;
        }
        Ok(writer)
    }

    /// Adds a point; `wall_time` is in seconds since 1970.
    pub fn scalar(&mut self, tag: &str, step: u64, wall_time: f64, value: f32) -> Result<()> {
        let mut entry = Vec::new();
        bytes(&mut entry, 1, tag.as_bytes());
        entry.push(2 << 3 | 5);
        entry.extend(value.to_le_bytes());
        let mut summary = Vec::new();
        bytes(&mut summary, 1, &entry);
        self.event(wall_time, step, |event| bytes(event, 5, &summary))
    }

    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().with_context(|| format!("writing {}", self.path.display()))
    }

    fn event(&mut self, wall_time: f64, step: u64, what: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let mut event = vec![1 << 3 | 1];
        event.extend(wall_time.to_le_bytes());
        event.push(2 << 3);
        varint(&mut event, step);
        what(&mut event);
        let length = (event.len() as u64).to_le_bytes();
        let record = [&length[..], &masked_crc(&length), &event, &masked_crc(&event)].concat();
        self.file.write_all(&record).with_context(|| format!("writing {}", self.path.display()))
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A length-delimited field.
fn bytes(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, content.len() as u64);
    out.extend(content);
}

/// CRC-32C (Castagnoli), rotated and offset as TFRecord wants it.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= *byte as u32;
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::process::Command;

    /// What `tests/python/events.py`, a reader written for itself, finds in the folder; its error if it refuses.
    fn read(folder: &Path) -> Result<Value, String> {
        let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/events.py");
        let output = Command::new("python3").arg(reader).arg(folder).output().expect("python3 is on the PATH");
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).expect("the reader prints JSON")),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    #[test]
    fn an_independent_reader_finds_every_point() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 0).unwrap();
        let tag = "val/".to_string() + &"x".repeat(200);
        let points =
            [("train/loss", 1, 1.5, 0.25), ("train/loss", 300, 1e9 + 0.5, -3.0), (&tag, u32::MAX as u64 + 7, 2.0, 1e-30)];
        points.iter().for_each(|&(tag, step, time, value)| writer.scalar(tag, step, time, value).unwrap());
        writer.flush().unwrap();
        // A run that is resumed before the clock of the last one, which was ahead, takes a file after it.
        let ahead = folder.path().join(format!("{PREFIX}{:010}.pretext3d.99999.0", wall_time() as u64 + 1000));
        std::fs::rename(&writer.path, &ahead).unwrap();
        writer.path = ahead;
        EventWriter::create(folder.path(), 12).unwrap().flush().unwrap();

        let files = read(folder.path()).unwrap();
        let [first, second] = &files.as_array().unwrap()[..] else { panic!("two files") };
        let expected: Vec<Value> = points
            .iter()
            .map(|&(tag, step, time, value)| json!({"tag": tag, "step": step, "wall_time": time, "value": value as f64}))
            .collect();
        assert_eq!(first["version"], "brain.Event:2");
        assert_eq!(first["scalars"], json!(expected));
        assert_eq!((&second["starts"], &second["scalars"]), (&json!([12]), &json!([])));

        // The checksums are really looked at: any changed byte is noticed.
        let mut content = std::fs::read(&writer.path).unwrap();
        for at in [3, 9, 20, content.len() - 20, content.len() - 2] {
            content[at] ^= 1;
            std::fs::write(&writer.path, &content).unwrap();
            assert!(read(folder.path()).unwrap_err().contains("checksum"), "byte {at}");
            content[at] ^= 1;
        }
    }
}
