//! One configuration value: a settings file gives the same settings as flags, flags win, and what was resolved is written
//! into the run's folder in the form in which it can be read back.
//!
//! A file is turned into flags that stand before the user's own, so there is one parser and one check of names and ranges.

use crate::print;
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::path::Path;

/// What a run's settings, command line and network are kept in, in its folder.
pub const CONFIG: &str = "config.json";

/// Reads a JSON or TOML file of settings, flat (`rpl-jitter = 3`) or nested (`[rpl] jitter = 3`). A run's `config.json`, which
/// holds them under `settings`, is read as well.
pub fn read(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let value: Value = match path.extension().and_then(|e| e.to_str()) {
        Some("json") => serde_json::from_str(&text).with_context(|| format!("{}: not valid JSON", path.display()))?,
        Some("toml") => toml::from_str(&text).with_context(|| format!("{}: not valid TOML", path.display()))?,
        _ => bail!("{}: a configuration ends in .toml or .json", path.display()),
    };
    let Value::Object(mut map) = value else { bail!("{}: expected a table of settings, found {value}", path.display()) };
    let settings = match map.remove("settings") {
        Some(Value::Object(settings)) => settings,
        Some(other) => bail!("{}: `settings` must be a table, found {other}", path.display()),
        None => map,
    };
    let mut flat = Map::new();
    flatten("", settings, &mut flat);
    Ok(flat)
}

/// Joins nested keys with `-`.
pub fn flatten(prefix: &str, map: Map<String, Value>, out: &mut Map<String, Value>) {
    for (key, value) in map {
        let key = format!("{prefix}{}", key.replace('_', "-"));
        match value {
            Value::Object(inner) => flatten(&format!("{key}-"), inner, out),
            value => {
                out.insert(key, value);
            }
        }
    }
}

/// Settings as a flat map of flag names; absent ones left out.
pub fn resolved(config: &impl Serialize) -> Map<String, Value> {
    let Value::Object(nested) = serde_json::to_value(config).expect("settings are plain values") else {
        unreachable!("a structure serialises to a map")
    };
    let mut flat = Map::new();
    flatten("", nested, &mut flat);
    flat.retain(|_, v| !v.is_null() && v.as_array().is_none_or(|a| !a.is_empty()));
    flat
}

/// Settings as flags. `known` are the long flags of the command; any other key is an error.
pub fn to_flags(settings: &Map<String, Value>, known: &[String], from: &Path) -> Result<Vec<OsString>> {
    let mut flags = Vec::new();
    for (key, value) in settings {
        ensure!(known.contains(key), "{}: unknown setting `{key}`", from.display());
        flags.extend(to_flag(key, value).with_context(|| from.display().to_string())?.map(OsString::from));
    }
    Ok(flags)
}

/// One setting as a flag; none for what is off or not set. Errors on a table.
pub fn to_flag(key: &str, value: &Value) -> Result<Option<String>> {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    Ok(Some(match value {
        Value::Null | Value::Bool(false) => return Ok(None),
        Value::Bool(true) => format!("--{key}"),
        Value::Array(items) => format!("--{key}={}", items.iter().map(text).collect::<Vec<_>>().join(",")),
        Value::Object(_) => bail!("`{key}` is a table"),
        value => format!("--{key}={}", text(value)),
    }))
}

/// Replaces `--config FILE` (and `--resume RUN`, which implies the run's own file) by the settings in it.
///
/// `args` are the process's arguments after the subcommand `command`, whose long flags are `known`. Errors on a run of another
/// command.
pub fn expand(command: &str, args: &[OsString], known: &[String]) -> Result<Vec<OsString>> {
    let mut out = Vec::new();
    for (flag, file) in [("--resume", Some(CONFIG)), ("--config", None)] {
        let Some(value) = find(args, flag)? else { continue };
        let path = file.map_or(value.clone(), |f| value.join(f));
        check_run(command, flag, &value, &path)?;
        let settings = read(&path)?;
        // The parser would append to a list that is given twice.
        let kept: Map<String, Value> = settings.into_iter().filter(|(key, _)| !is_given(args, key)).collect();
        out.extend(to_flags(&kept, known, &path)?);
    }
    out.extend_from_slice(args);
    Ok(out)
}

/// Errors if the file of a flag's value says that it is of a run of another command, and for `--resume` if there is none.
fn check_run(command: &str, flag: &str, value: &Path, file: &Path) -> Result<()> {
    let resumed = flag == "--resume";
    ensure!(!resumed || file.is_file(), "--resume {}: not a run's folder, it has no {CONFIG}", value.display());
    // What cannot be read, or is no JSON, is refused when the settings are read.
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let found: Value = serde_json::from_str(&text).unwrap_or_default();
    let Some(made_by) = found["command_line"][1].as_str().filter(|&name| name != command) else { return Ok(()) };
    let run = value.to_string_lossy();
    let hint = match resumed {
        true => format!("continue it with: {}", print::command_line([made_by, "--resume", &run])),
        false => "their settings differ".to_owned(),
    };
    bail!("{flag} {run}: it is a run of `{made_by}`, not of `{command}`; {hint}")
}

/// Whether a long flag stands on the command line.
pub fn is_given(args: &[OsString], key: &str) -> bool {
    let flag = format!("--{key}");
    args.iter().filter_map(|a| a.to_str()).any(|a| a == flag || a.strip_prefix(&flag).is_some_and(|rest| rest.starts_with('=')))
}

/// Value of a long flag, in either of its spellings.
fn find(args: &[OsString], flag: &str) -> Result<Option<std::path::PathBuf>> {
    for (i, arg) in args.iter().enumerate() {
        let Some(text) = arg.to_str() else { continue };
        if text == flag {
            let value = args.get(i + 1).with_context(|| format!("{flag} needs a value"))?;
            return Ok(Some(value.into()));
        }
        if let Some(value) = text.strip_prefix(flag).and_then(|t| t.strip_prefix('=')) {
            return Ok(Some(value.into()));
        }
    }
    Ok(None)
}
