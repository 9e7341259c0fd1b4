//! `--labels` of `preprocess`: values with names, or a description.

use crate::data::labelling::{LabelValue, Labelling};
use crate::data::layouts::{self};
use crate::data::names::strip_ending;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// A part of --labels between commas.
#[derive(Clone)]
pub enum LabelArg {
    Value(LabelValue),
    Description(PathBuf),
}

/// Reads a part.
pub fn label(text: &str) -> Result<LabelArg, String> {
    if strip_ending(text, ".json").is_some() {
        return Ok(LabelArg::Description(text.into()));
    }
    let (value, name) = text.split_once('=').unwrap_or((text, ""));
    let value = value.trim().parse().map_err(|_| format!("`{value}` is neither a whole number nor a .json file"))?;
    let unnamed = LabelValue::unnamed(value);
    Ok(LabelArg::Value(if name.is_empty() { unnamed } else { LabelValue { name: name.to_string(), ..unnamed } }))
}

/// What --labels says.
pub fn labelling(given: &[LabelArg]) -> Result<Labelling> {
    if let [LabelArg::Description(file)] = given {
        return layouts::described_labels(file);
    }
    let values = given.iter().map(|part| match part {
        LabelArg::Value(value) => Ok(value.clone()),
        LabelArg::Description(file) => {
            bail!("--labels: expected either values or one description, found {} among others", file.display())
        }
    });
    Labelling::listed(values.collect::<Result<_>>()?).context("--labels")
}
