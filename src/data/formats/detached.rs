//! Voxels in other files than the header's: one, a list, or a numbered series.

use super::text::{numbers, shown};
use super::voxels::Voxels;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A file as it is decoded.
pub type File = BufReader<fs::File>;

/// More files than this are not meant.
const MOST: usize = 1 << 16;

/// Places a file where its last `bytes` begin.
pub fn seek_last(file: &mut File, bytes: u64) -> Result<()> {
    file.seek(SeekFrom::End(-i64::try_from(bytes)?)).context("looking for the voxels at its end")?;
    Ok(())
}

/// The names that a header gives, in the order of the voxels: `text` is one name, or a pattern as of `printf` with its first and last
/// number and a step.
fn names(text: &str) -> Result<Vec<String>> {
    let Some((pattern, rest)) = text.split_once(char::is_whitespace).filter(|(pattern, _)| pattern.contains('%')) else {
        return Ok(vec![text.to_string()]);
    };
    let count = rest.split_whitespace().count();
    let range: Vec<i64> = numbers(rest, count).with_context(|| format!("files \"{}\"", shown(text.as_bytes())))?;
    let (first, last, step) = match range[..] {
        [first, last] => (first, last, 1),
        // What follows is the rank of each file.
        [first, last, step] | [first, last, step, _] => (first, last, step),
        _ => bail!("files \"{}\": expected first number, last number and step after the pattern", shown(text.as_bytes())),
    };
    ensure!(step != 0, "files \"{}\": a step of 0", shown(text.as_bytes()));
    let [first, last, step] = [first, last, step].map(i128::from);
    let files = (last - first) / step + 1;
    ensure!((1..=MOST as i128).contains(&files), "files \"{}\": {files} of them, expected 1 to {MOST}", shown(text.as_bytes()));
    (0..files).map(|n| numbered(pattern, first + n * step)).collect()
}

/// A pattern such as `slice%03d.raw` with its number in place.
fn numbered(pattern: &str, number: i128) -> Result<String> {
    let parts = pattern.split_once('%').and_then(|(before, rest)| {
        let at = rest.find(['d', 'i', 'u'])?;
        let width = rest[..at].strip_prefix('0').unwrap_or(&rest[..at]);
        let width: usize = if width.is_empty() { 0 } else { width.parse().ok().filter(|&width| width <= 20)? };
        Some((before, width, rest[..at].starts_with('0'), &rest[at + 1..]))
    });
    let (before, width, zeros, after) = parts
        .with_context(|| format!("file name \"{}\", expected a number's place as %d or %03d", shown(pattern.as_bytes())))?;
    let number = if zeros { format!("{number:0width$}") } else { format!("{number:width$}") };
    Ok(format!("{before}{number}{after}"))
}

/// Voxels in other files than the header's, an equal share of the `bytes` in each: those of the list that follows the header, or, if that
/// is empty, those that its field `text` names. `decode`: from a file, and the bytes of voxels in it, to the voxels.
pub fn voxels<'a>(
    header: Option<&Path>,
    text: &str,
    list: &[String],
    bytes: usize,
    decode: impl Fn(File, u64) -> Result<Box<dyn Read>> + 'a,
) -> Result<Voxels<'a>> {
    let names = if list.is_empty() { names(text)? } else { list.to_vec() };
    let header = header.context("its voxels are in other files, which are not looked for in an archive")?;
    ensure!(!names.is_empty(), "its voxels are in other files, but it names none");
    ensure!(
        bytes.is_multiple_of(names.len()),
        "{bytes} bytes of voxels in {} files, which is no whole number for each",
        names.len()
    );
    let folder = header.parent().unwrap_or(Path::new(""));
    // Other systems write their own separator.
    let path = |name: &String| [name.clone(), name.replace('\\', "/")].map(|name| folder.join(name));
    let paths: Vec<PathBuf> =
        names.iter().map(path).map(|[plain, other]| if !plain.is_file() && other.is_file() { other } else { plain }).collect();
    let beside = paths.iter().filter(|path| path.is_file()).cloned().collect();
    let each = (bytes / paths.len()) as u64;
    let open = move || {
        let files = paths.into_iter();
        Ok(Box::new(Files { files, decode, each, current: None }) as Box<dyn Read>)
    };
    Ok(Voxels { beside, ..Voxels::from_stream(open) })
}

/// One file after the other, opened as they are needed.
struct Files<D> {
    files: std::vec::IntoIter<PathBuf>,
    decode: D,
    /// Bytes of voxels in each.
    each: u64,
    /// The file that is read, and the bytes that are still to come of it.
    current: Option<(PathBuf, Box<dyn Read>, u64)>,
}

impl<D: Fn(File, u64) -> Result<Box<dyn Read>>> Read for Files<D> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let named = |path: &Path, error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
        loop {
            if let Some((path, stream, left)) = &mut self.current {
                let most = usize::try_from(*left).unwrap_or(usize::MAX).min(out.len());
                let n = stream.read(&mut out[..most]).map_err(|error| named(path, &error))?;
                *left -= n as u64;
                if n > 0 || out.is_empty() {
                    return Ok(n);
                }
                if *left > 0 {
                    let reason = format!("{} bytes of voxels, expected {}", self.each - *left, self.each);
                    return Err(named(path, &reason));
                }
                // Reading on to the end checks the checksums.
                io::copy(stream, &mut io::sink()).map_err(|error| named(path, &error))?;
                self.current = None;
            }
            let Some(path) = self.files.next() else { return Ok(0) };
            let stream = fs::File::open(&path).map_err(|error| named(&path, &error))?;
            // A device or a pipe has no end.
            if !stream.metadata()?.is_file() {
                return Err(named(&path, &"expected a file"));
            }
            let stream =
                (self.decode)(BufReader::new(stream), self.each).map_err(|error| named(&path, &format!("{error:#}")))?;
            self.current = Some((path, stream, self.each));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_counts_its_files() {
        for (text, expected) in [
            ("one file.raw", vec!["one file.raw"]),
            ("s%03d.raw 8 12 2", vec!["s008.raw", "s010.raw", "s012.raw"]),
            ("%d.raw 2 1 -1", vec!["2.raw", "1.raw"]),
            ("a/%4d.raw -1 0 1 2", vec!["a/  -1.raw", "a/   0.raw"]),
            ("%i 9223372036854775806 9223372036854775807", vec!["9223372036854775806", "9223372036854775807"]),
        ] {
            assert_eq!(names(text).unwrap(), expected);
        }
        let widest = names("%d -9223372036854775808 9223372036854775807 4611686018427387904").unwrap();
        assert_eq!(widest.len(), 4);
        for (text, says) in [
            ("x%d 1 9 0", "a step of 0"),
            ("x%d 1 9 -1", "expected 1 to"),
            ("x%d 1 1000000", "1000000 of them"),
            ("x%d 1", "expected first number"),
            ("x%d a b", "expected 2 numbers"),
            ("x%s 1 2", "as %d or %03d"),
            ("x%99999999d 1 2", "as %d or %03d"),
        ] {
            let error = format!("{:#}", names(text).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
