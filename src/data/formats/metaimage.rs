//! MetaImage: a header of text, then the voxels in the same file (`.mha`) or in others (`.mhd`).
//!
//! No well-kept crate reads it; the tests compare with SimpleITK, whose rules these are. `AnatomicalOrientation` only says in words what
//! `TransformMatrix` says in numbers, and ITK does not read it.

use super::compression::gunzip;
use super::content::Content;
use super::text::{Decimal, line, numbers, shown};
use super::voxels::{Voxels, skip_bytes};
use super::write::Made;
use super::{Format, Header, Stored, detached};
use crate::data::volume::Affine;
use crate::dim::Shape;
use anyhow::{Context, Result, bail, ensure};
use flate2::bufread::ZlibDecoder;
use flate2::{Compression, write::ZlibEncoder};
use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};

pub static FORMAT: Format = Format {
    name: "MetaImage",
    endings: &[".mha", ".mhd"],
    headers: &[".mha", ".mhd"],
    is,
    open,
    written: ".mha",
    interleaves: true,
    write,
};

/// Types of voxels; of equal ones the first is written.
const TYPES: [(&str, Stored); 12] = [
    ("MET_UCHAR", Stored::Uint8),
    ("MET_CHAR", Stored::Int8),
    ("MET_USHORT", Stored::Uint16),
    ("MET_SHORT", Stored::Int16),
    ("MET_UINT", Stored::Uint32),
    ("MET_INT", Stored::Int32),
    // Four bytes, wherever the file was written.
    ("MET_ULONG", Stored::Uint32),
    ("MET_LONG", Stored::Int32),
    ("MET_ULONG_LONG", Stored::Uint64),
    ("MET_LONG_LONG", Stored::Int64),
    ("MET_FLOAT", Stored::Float32),
    ("MET_DOUBLE", Stored::Float64),
];

/// Whether one of the first lines is one that every header begins with.
fn is(start: &[u8]) -> bool {
    let line = |line: &[u8]| {
        let name = line.split(|&byte| byte == b'=').next().filter(|name| name.len() < line.len()).unwrap_or_default();
        let name = name.trim_ascii();
        name.eq_ignore_ascii_case(b"ObjectType") || name.eq_ignore_ascii_case(b"NDims")
    };
    start.split(|&byte| byte == b'\n').any(line)
}

/// What a header says, by names in lower case.
struct Fields {
    fields: BTreeMap<String, String>,
    /// Names of files after `ElementDataFile = LIST`.
    list: Vec<String>,
}

/// The last field, after which the voxels come.
const LAST: &str = "elementdatafile";

impl Fields {
    /// The lines are kept in `raw`.
    fn read(stream: &mut impl BufRead, raw: &mut Vec<u8>) -> Result<Fields> {
        let mut found = Fields { fields: BTreeMap::new(), list: vec![] };
        while !found.fields.contains_key(LAST) {
            let text = line(stream, raw)?.with_context(|| format!("file ends in its header, after {} bytes", raw.len()))?;
            if text.trim().is_empty() {
                continue;
            }
            let Some((name, value)) = text.split_once('=') else {
                bail!("header line \"{}\", expected a field's name, = and its value", shown(text.as_bytes()))
            };
            found.fields.insert(name.trim().to_lowercase(), value.trim().to_string());
        }
        if found.need(LAST)?.split_whitespace().next() == Some("LIST") {
            while let Some(file) = line(stream, raw)? {
                found.list.extend(Some(file.trim()).filter(|file| !file.is_empty()).map(String::from));
            }
        }
        Ok(found)
    }

    /// Under the first of these names, in any case, that is there.
    fn get(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.fields.get(&name.to_lowercase())).map(String::as_str)
    }

    fn need(&self, name: &str) -> Result<&str> {
        self.get(&[name]).with_context(|| format!("no field `{name}`"))
    }

    fn numbers<T: std::str::FromStr>(&self, names: &[&str], n: usize) -> Result<Option<Vec<T>>> {
        self.get(names).map(|text| numbers(text, n).with_context(|| format!("field `{}`", names[0]))).transpose()
    }

    /// Whether a field is there and true.
    fn is_true(&self, names: &[&str]) -> bool {
        self.get(names).is_some_and(|value| value.starts_with(['T', 't', '1']))
    }
}

/// Extents and place of the voxels.
struct Grid {
    /// Axes of space: 3, or 2 of a slice.
    rank: usize,
    shape: Shape,
    channels: usize,
    /// Values that lie side by side, where a voxel has several.
    interleaved: Option<usize>,
    /// Directions of the axes, then the origin, towards the left, the back and the top.
    axes: [[f64; 3]; 3],
    origin: [f64; 3],
    spacing: [f64; 3],
}

impl Grid {
    fn of(fields: &Fields) -> Result<Grid> {
        let dims: usize = fields.numbers(&["NDims"], 1)?.context("no field `NDims`")?[0];
        ensure!((2..=4).contains(&dims), "NDims is {dims}, expected 2 to 4");
        let sizes: Vec<usize> = fields.numbers(&["DimSize"], dims)?.context("no field `DimSize`")?;
        ensure!(!sizes.contains(&0), "DimSize {sizes:?} holds 0, expected positive ones");
        let values = fields.numbers(&["ElementNumberOfChannels"], 1)?.map_or(1, |n: Vec<usize>| n[0]);
        let last = sizes.get(3).copied().unwrap_or(1);
        ensure!(values > 0, "ElementNumberOfChannels is 0, expected a positive one");
        ensure!(
            values == 1 || last == 1,
            "DimSize {sizes:?} and ElementNumberOfChannels {values}: expected channels or a series, found both"
        );
        let rank = dims.min(3);
        let mut grid = Grid {
            rank,
            shape: [1; 3],
            channels: values.max(last),
            interleaved: (values > 1).then_some(values),
            axes: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            origin: [0.0; 3],
            spacing: [1.0; 3],
        };
        grid.shape[..rank].copy_from_slice(&sizes[..rank]);
        if let Some(matrix) = fields.numbers::<f64>(&["TransformMatrix", "Rotation", "Orientation"], dims * dims)? {
            // Axis by axis.
            let rows = matrix.chunks_exact(dims);
            grid.axes.iter_mut().zip(rows).take(rank).for_each(|(axis, row)| axis[..rank].copy_from_slice(&row[..rank]));
        }
        if let Some(origin) = fields.numbers::<f64>(&["Offset", "Position", "Origin"], dims)? {
            grid.origin[..rank].copy_from_slice(&origin[..rank]);
        }
        if let Some(spacing) = fields.numbers::<f64>(&["ElementSpacing", "ElementSize"], dims)? {
            grid.spacing[..rank].copy_from_slice(&spacing[..rank]);
        }
        Ok(grid)
    }

    fn affine(&self) -> Affine {
        const TO_RAS: [f64; 3] = [-1.0, -1.0, 1.0];
        let row = |r: usize| {
            let [x, y, z] = [0, 1, 2].map(|a| self.axes[a][r] * self.spacing[a]);
            [x, y, z, self.origin[r]].map(|v| TO_RAS[r] * v)
        };
        [row(0), row(1), row(2), [0.0, 0.0, 0.0, 1.0]]
    }
}

/// How the voxels are written.
#[derive(Clone, Copy)]
struct Data {
    stored: Stored,
    text: bool,
    compressed: bool,
    /// Bytes of a file before them; -1: they are its end.
    skip: i64,
}

impl Data {
    fn of(fields: &Fields) -> Result<Data> {
        let kind = fields.need("ElementType")?;
        let known = TYPES.iter().find(|(name, _)| kind.strip_suffix("_ARRAY").unwrap_or(kind).eq_ignore_ascii_case(name));
        let (_, stored) =
            known.with_context(|| format!("ElementType {kind}, expected MET_UCHAR, MET_SHORT, MET_FLOAT or the like"))?;
        let skip = fields.numbers(&["HeaderSize"], 1)?.map_or(0, |n: Vec<i64>| n[0]);
        let text = fields.get(&["BinaryData"]).is_some() && !fields.is_true(&["BinaryData"]);
        let compressed = fields.is_true(&["CompressedData"]);
        ensure!(skip >= -1, "HeaderSize is {skip}, expected 0 or more, or -1");
        ensure!(!(text && compressed), "BinaryData is False and CompressedData True, expected one of them");
        ensure!(skip >= 0 || !(text || compressed), "HeaderSize is -1, which is for binary voxels that are not compressed");
        Ok(Data { stored: *stored, text, compressed, skip })
    }

    /// From where the voxels begin to them.
    fn voxels<'a>(self, mut stream: Box<dyn BufRead + 'a>) -> Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Data { text: true, .. } => Box::new(Decimal::new(stream, self.stored)),
            Data { compressed: true, .. } if stream.fill_buf()?.first() == Some(&0x1f) => Box::new(gunzip(stream)),
            Data { compressed: true, .. } => Box::new(ZlibDecoder::new(stream)),
            _ => Box::new(stream),
        })
    }
}

fn open(content: Content) -> Result<(Header, Voxels)> {
    let Content { mut stream, path } = content;
    let mut raw = vec![];
    let fields = Fields::read(&mut stream, &mut raw)?;
    if let Some(kind) = fields.get(&["ObjectType"]).filter(|kind| !kind.eq_ignore_ascii_case("Image")) {
        bail!("ObjectType is {}, expected Image", shown(kind.as_bytes()));
    }
    let data = Data::of(&fields)?;
    let grid = Grid::of(&fields)?;
    let header = Header {
        format: &FORMAT,
        shape: grid.shape,
        channels: grid.channels,
        interleaved: grid.interleaved,
        stored: data.stored,
        affine: grid.affine(),
        scale: None,
        // Text is read into little-endian bytes.
        big_endian: !data.text && fields.is_true(&["BinaryDataByteOrderMSB", "ElementByteOrderMSB"]),
        raw,
    };
    let file = fields.need(LAST)?;
    let voxels = if file.eq_ignore_ascii_case("LOCAL") {
        // Counted from the file's beginning.
        let skip = data.skip.saturating_sub(header.raw.len() as i64).max(0) as u64;
        let open = move || {
            skip_bytes(&mut stream, skip)?;
            data.voxels(stream)
        };
        Voxels::from_stream(open)
    } else {
        let decode = move |mut file: detached::File, bytes: u64| {
            match u64::try_from(data.skip) {
                Ok(skip) => skip_bytes(&mut file, skip)?,
                Err(_) => detached::seek_last(&mut file, bytes)?,
            }
            data.voxels(Box::new(file))
        };
        detached::voxels(path.as_deref(), file, &fields.list, header.bytes()?, decode)?
    };
    Ok((header, voxels))
}

/// A file with the place of `like`, compressed inside.
fn write(like: &Header, made: &mut Made, out: &mut dyn Write) -> Result<()> {
    let fields = Fields::read(&mut &like.raw[..], &mut vec![])?;
    let grid = Grid::of(&fields)?;
    let rank = grid.rank;
    let kind = TYPES.iter().find(|(_, stored)| *stored == made.stored).expect("every type has a name").0;
    // The header says how many bytes follow: compressed twice, as memory may not hold them.
    let mut compress = |out: &mut dyn Write| {
        let mut stream = ZlibEncoder::new(out, Compression::fast());
        (made.voxels)(like.big_endian, &mut stream)?;
        stream.try_finish()?;
        Ok::<_, anyhow::Error>(stream.total_out())
    };
    let bytes = compress(&mut std::io::sink())?;
    let words = |numbers: &[f64]| numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(" ");
    let matrix: Vec<f64> = grid.axes[..rank].iter().flat_map(|axis| &axis[..rank]).copied().collect();
    let sizes: Vec<String> = grid.shape[..rank].iter().map(usize::to_string).collect();
    let channels = made.channels.map_or(String::new(), |n| format!("ElementNumberOfChannels = {n}\n"));
    let orientation = fields.get(&["AnatomicalOrientation"]).filter(|_| fields.need("NDims").is_ok_and(|n| n != "4"));
    let orientation = orientation.map_or(String::new(), |name| format!("AnatomicalOrientation = {name}\n"));
    write!(
        out,
        "ObjectType = Image\nNDims = {rank}\nBinaryData = True\nBinaryDataByteOrderMSB = {}\nCompressedData = True\n\
         CompressedDataSize = {}\nTransformMatrix = {}\nOffset = {}\n{orientation}ElementSpacing = {}\nDimSize = {}\n{channels}\
         ElementType = {kind}\nElementDataFile = LOCAL\n",
        if like.big_endian { "True" } else { "False" },
        bytes,
        words(&matrix),
        words(&grid.origin[..rank]),
        words(&grid.spacing[..rank]),
        sizes.join(" "),
    )?;
    compress(out).map(drop)
}
