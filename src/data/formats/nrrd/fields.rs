//! A header's lines.

use crate::data::formats::text::{line, numbers, shown};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::io::BufRead;

/// The first bytes of every file, before the version.
pub const MAGIC: &[u8] = b"NRRD000";

/// What a header says, field by field.
pub struct Fields {
    /// Values by names in lower case without blanks.
    fields: BTreeMap<String, String>,
    /// Names of files after `data file: LIST`.
    pub list: Vec<String>,
}

impl Fields {
    /// Reads up to the empty line after the header, or to the end of a header whose voxels are in other files. The lines are kept in `raw`.
    pub fn read(stream: &mut impl BufRead, raw: &mut Vec<u8>) -> Result<Fields> {
        let magic = line(stream, raw)?.unwrap_or_default();
        ensure!(
            magic.as_bytes().starts_with(MAGIC),
            "not an NRRD file: it begins with \"{}\", expected NRRD0001 to NRRD0005",
            shown(magic.as_bytes())
        );
        let mut found = Fields { fields: BTreeMap::new(), list: vec![] };
        while let Some(text) = line(stream, raw)?.filter(|text| !text.is_empty()) {
            // Comments, and pairs of a key and a value that mean nothing to the format.
            if text.starts_with('#') {
                continue;
            }
            let Some((name, value)) = text.split_once(':') else {
                bail!("header line \"{}\", expected a field's name, a colon and its value", shown(text.as_bytes()))
            };
            if value.starts_with('=') {
                continue;
            }
            let name: String = name.split_whitespace().collect::<String>().to_lowercase();
            let value = value.trim();
            let is_list = name == "datafile" && value.split_whitespace().next() == Some("LIST");
            let earlier = found.fields.insert(name, value.to_string());
            ensure!(earlier.is_none(), "header line \"{}\": the field is there twice", shown(text.as_bytes()));
            if is_list {
                while let Some(file) = line(stream, raw)? {
                    found.list.extend(Some(file.trim()).filter(|file| !file.is_empty()).map(String::from));
                }
            }
        }
        Ok(found)
    }

    /// A field by its name in lower case; some writers leave out the blanks.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(&name.replace(' ', "")).map(String::as_str)
    }

    /// A field that must be there.
    pub fn need(&self, name: &str) -> Result<&str> {
        self.get(name).with_context(|| format!("no field `{name}`"))
    }

    /// A field of `n` numbers, if it is there.
    pub fn numbers<T: std::str::FromStr>(&self, name: &str, n: usize) -> Result<Option<Vec<T>>> {
        self.get(name).map(|text| numbers(text, n).with_context(|| format!("field `{name}`"))).transpose()
    }

    /// A field of one whole number, 0 if it is not there.
    pub fn whole(&self, name: &str) -> Result<i64> {
        Ok(self.numbers(name, 1)?.map_or(0, |numbers| numbers[0]))
    }

    /// A field of vectors, each `(x,y,z)` or `none`, if it is there.
    pub fn vectors(&self, name: &str) -> Result<Option<Vec<Option<Vec<f64>>>>> {
        self.get(name).map(|text| vectors(text).with_context(|| format!("field `{name}`"))).transpose()
    }
}

fn vectors(text: &str) -> Result<Vec<Option<Vec<f64>>>> {
    let (mut found, mut rest) = (vec![], text.trim());
    while !rest.is_empty() {
        let (vector, after) = match rest.strip_prefix('(') {
            Some(inside) => {
                let split = inside.split_once(')');
                let (inside, after) = split.with_context(|| format!("no closing bracket in \"{}\"", shown(text.as_bytes())))?;
                let parts = inside.split(',').count();
                let vector: Vec<f64> = numbers(&inside.replace(',', " "), parts)?;
                // Some writers' way to say `none`.
                (Some(vector).filter(|vector| !vector.iter().all(|v| v.is_nan())), after)
            }
            None => {
                let after = rest.strip_prefix("none");
                let after = after.with_context(|| format!("expected (x,y,z) or none, found \"{}\"", shown(rest.as_bytes())))?;
                (None, after)
            }
        };
        found.push(vector);
        rest = after.trim_start();
    }
    Ok(found)
}

/// Words in quotation marks, as of `units`.
pub fn quoted(text: &str) -> Vec<&str> {
    text.split('"').skip(1).step_by(2).collect()
}
