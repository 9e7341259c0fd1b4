//! NRRD: a header of text, then the voxels in one of several encodings, in the same file (`.nrrd`) or in others (`.nhdr`).
//!
//! The crates that read it leave out encodings or directions, so the parser is our own; the tests compare with SimpleITK.

mod fields;
mod grid;

use super::compression::{bunzip2, gunzip};
use super::content::Content;
use super::text::{Decimal, Hexadecimal};
use super::voxels::{Voxels, skip_bytes};
use super::write::Made;
use super::{Format, Header, Stored, detached};
use anyhow::{Context, Result, bail, ensure};
use fields::{Fields, MAGIC};
use flate2::{Compression, write::GzEncoder};
use grid::Grid;
use std::io::{BufRead, Read, Write};

pub static FORMAT: Format = Format {
    name: "NRRD",
    endings: &[".nrrd", ".nhdr"],
    headers: &[".nrrd", ".nhdr"],
    is: |start| start.starts_with(MAGIC),
    open,
    written: ".nrrd",
    interleaves: true,
    write,
};

/// How the format spells the types; the first is written.
const TYPES: [(&[&str], Stored); 10] = [
    (&["uint8", "uchar", "unsigned char", "uint8_t"], Stored::Uint8),
    (&["int8", "signed char", "int8_t"], Stored::Int8),
    (&["uint16", "ushort", "unsigned short", "unsigned short int", "uint16_t"], Stored::Uint16),
    (&["int16", "short", "short int", "signed short", "signed short int", "int16_t"], Stored::Int16),
    (&["uint32", "uint", "unsigned int", "uint32_t"], Stored::Uint32),
    (&["int32", "int", "signed int", "int32_t"], Stored::Int32),
    (&["uint64", "ulonglong", "unsigned long long", "unsigned long long int", "uint64_t"], Stored::Uint64),
    (
        &["int64", "longlong", "long long", "long long int", "signed long long", "signed long long int", "int64_t"],
        Stored::Int64,
    ),
    (&["float"], Stored::Float32),
    (&["double"], Stored::Float64),
];

/// How the voxels are written, and where.
#[derive(Clone, Copy)]
struct Data {
    encoding: Encoding,
    stored: Stored,
    /// Of the file, before the voxels.
    lines: i64,
    /// Bytes before the voxels, after the lines, or inside what is compressed; -1: the voxels are the file's end.
    skip: i64,
}

#[derive(Clone, Copy, PartialEq)]
enum Encoding {
    Raw,
    Text,
    Hexadecimal,
    Gzip,
    Bzip2,
}

impl Data {
    fn of(fields: &Fields) -> Result<Data> {
        let kind = fields.need("type")?.to_lowercase();
        let stored = TYPES.iter().find(|(names, _)| names.contains(&kind.as_str())).map(|(_, stored)| *stored);
        let stored = stored.with_context(|| format!("type \"{kind}\", expected integers of 8 to 64 bits, float or double"))?;
        let encoding = match fields.need("encoding")?.to_lowercase().as_str() {
            "raw" => Encoding::Raw,
            "txt" | "text" | "ascii" => Encoding::Text,
            "hex" => Encoding::Hexadecimal,
            "gz" | "gzip" => Encoding::Gzip,
            "bz2" | "bzip2" => Encoding::Bzip2,
            other => bail!("encoding \"{other}\", expected raw, gzip, bzip2, ascii or hex"),
        };
        let [lines, skip] = [fields.whole("line skip")?, fields.whole("byte skip")?];
        ensure!(lines >= 0, "field `line skip` is {lines}, expected 0 or more");
        let from_end = skip == -1 && encoding == Encoding::Raw && fields.get("data file").is_some();
        ensure!(
            skip >= 0 || from_end,
            "field `byte skip` is {skip}, expected 0 or more, or -1 for raw voxels at the end of another file"
        );
        Ok(Data { encoding, stored, lines, skip })
    }

    /// From a stream's beginning to the voxels.
    fn voxels<'a>(self, mut stream: Box<dyn BufRead + 'a>) -> Result<Box<dyn Read + 'a>> {
        for _ in 0..self.lines {
            skip_line(&mut stream)?;
        }
        let skip = self.skip.max(0) as u64;
        let mut inside: Box<dyn Read> = match self.encoding {
            Encoding::Gzip => Box::new(gunzip(stream)),
            Encoding::Bzip2 => Box::new(bunzip2(stream)),
            Encoding::Raw | Encoding::Text | Encoding::Hexadecimal => {
                skip_bytes(&mut stream, skip)?;
                return Ok(match self.encoding {
                    Encoding::Text => Box::new(Decimal::new(stream, self.stored)),
                    Encoding::Hexadecimal => Box::new(Hexadecimal(stream)),
                    _ => Box::new(stream),
                });
            }
        };
        skip_bytes(&mut inside, skip)?;
        Ok(inside)
    }
}

fn skip_line(stream: &mut dyn BufRead) -> Result<()> {
    loop {
        let buffer = stream.fill_buf()?;
        ensure!(!buffer.is_empty(), "file ends before its voxels begin");
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let n = end.map_or(buffer.len(), |at| at + 1);
        stream.consume(n);
        if end.is_some() {
            return Ok(());
        }
    }
}

fn open(content: Content) -> Result<(Header, Voxels)> {
    let Content { mut stream, path } = content;
    let mut raw = vec![];
    let fields = Fields::read(&mut stream, &mut raw)?;
    let data = Data::of(&fields)?;
    let big_endian = match fields.get("endian").map(str::to_lowercase).as_deref() {
        // Text is read into little-endian bytes.
        _ if data.encoding == Encoding::Text => false,
        Some("little") => false,
        Some("big") => true,
        None if data.stored.size() == 1 => false,
        found => bail!("field `endian`: expected little or big, found {}", found.unwrap_or("none")),
    };
    let Grid { shape, channels, interleaved, affine, .. } = Grid::of(&fields)?;
    let header = Header {
        format: &FORMAT,
        shape,
        channels,
        interleaved: interleaved.then_some(channels),
        stored: data.stored,
        affine,
        scale: None,
        big_endian,
        raw,
    };
    let voxels = match fields.get("data file") {
        None => Voxels::from_stream(move || data.voxels(stream)),
        Some(text) => {
            let decode = move |mut file: detached::File, bytes: u64| {
                if data.skip < 0 {
                    detached::seek_last(&mut file, bytes)?;
                }
                data.voxels(Box::new(file))
            };
            detached::voxels(path.as_deref(), text, &fields.list, header.bytes()?, decode)?
        }
    };
    Ok((header, voxels))
}

/// A file with the space of `like`, compressed inside.
fn write(like: &Header, made: &mut Made, out: &mut dyn Write) -> Result<()> {
    let fields = Fields::read(&mut &like.raw[..], &mut vec![])?;
    let grid = Grid::of(&fields)?;
    let kind = TYPES.iter().find(|(_, stored)| *stored == made.stored).expect("every type has a name").0[0];
    let vector = |v: &[f64; 3]| {
        let numbers: Vec<String> = v[..grid.width].iter().map(f64::to_string).collect();
        format!("({})", numbers.join(","))
    };
    let mut sizes: Vec<String> = grid.shape[..grid.rank].iter().map(usize::to_string).collect();
    let mut directions: Vec<String> = grid.vectors[..grid.rank].iter().map(vector).collect();
    let mut kinds = vec!["domain"; grid.rank];
    if let Some(channels) = made.channels {
        sizes.insert(0, channels.to_string());
        directions.insert(0, "none".to_string());
        kinds.insert(0, "vector");
    }
    let units = fields.get("space units").map_or(String::new(), |units| format!("space units: {units}\n"));
    write!(
        out,
        "NRRD0005\ntype: {kind}\ndimension: {}\n{}\n{units}sizes: {}\nspace directions: {}\nkinds: {}\nendian: {}\nencoding: gzip\n\
         space origin: {}\n\n",
        sizes.len(),
        grid.space,
        sizes.join(" "),
        directions.join(" "),
        kinds.join(" "),
        if like.big_endian { "big" } else { "little" },
        vector(&grid.vectors[3])
    )?;
    let mut stream = GzEncoder::new(out, Compression::fast());
    (made.voxels)(like.big_endian, &mut stream)?;
    stream.finish()?;
    Ok(())
}
