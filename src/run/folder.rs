//! A run's folder: its settings, its checkpoints, and where it stands.

use crate::data::split::Split;
use crate::dim::Shape;
use crate::fs::{Lock, check_folder, lock_folder, make_numbered, remove_temporaries, write_atomic, write_atomic_path};
use crate::group::work::of_first;
use crate::nn::EncoderConfig;
use crate::print::note;
use crate::run::history::History;
use crate::run::input::Input;
use crate::run::means::Means;
use crate::run::record::{RESULT, read_json};
use crate::run::seen::Seen;
use crate::run::tensors::{self, Tensors, VERSION, split_checkpoint};
use crate::settings::{self, CONFIG};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SEEN: &str = "seen.json";

/// Where the scores of a fine-tuned run's test are.
pub const TEST: &str = "test";

/// Where runs are that have no folder of their own.
const RUNS: &str = "runs";

/// Where a run stands, beside its tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Epoch under way, from 0.
    pub epoch: u64,
    /// Steps of it that are done.
    pub step: u64,
    /// Means over those steps.
    pub means: Means,
    /// Epoch (from 0) of the best checkpoint, and what it was chosen by.
    pub best: Option<(u64, f64)>,
}

/// Key of [`Progress`] in a checkpoint's metadata, which other weights do not have.
const PROGRESS: &str = "progress";

impl Progress {
    /// Of a checkpoint, whose tensors are not read.
    pub fn read(path: &Path) -> Result<Progress> {
        Progress::of(&tensors::read_metadata(path)?, path)
    }

    fn of(metadata: &HashMap<String, String>, path: &Path) -> Result<Progress> {
        let progress = metadata.get(PROGRESS).with_context(|| format!("{}: not a run's checkpoint", path.display()))?;
        serde_json::from_str(progress).with_context(|| path.display().to_string())
    }
}

/// Whether a safetensors file is a run's checkpoint, by its metadata.
pub fn is_checkpoint(path: &Path) -> Result<bool> {
    Ok(tensors::read_metadata(path)?.contains_key(PROGRESS))
}

/// The folder of one run.
#[derive(Clone, Debug)]
pub struct Run {
    pub dir: PathBuf,
    /// Of a run under way: keeps other processes from training in its folder.
    _taken: Option<Arc<Lock>>,
}

impl Run {
    /// A run to read from, whether or not it is under way.
    pub fn at(dir: &Path) -> Run {
        Run { dir: dir.to_owned(), _taken: None }
    }

    /// Takes the folder for as long as any copy of the value lives; errors if another process trains there.
    fn take(dir: PathBuf) -> Result<Run> {
        let taken = lock_folder(&dir)?;
        [&dir, &dir.join(TEST)].into_iter().try_for_each(|folder| remove_temporaries(folder))?;
        Ok(Run { dir, _taken: Some(Arc::new(taken)) })
    }

    /// The run that the first rank makes or opens, on all ranks; the first alone may write there.
    pub fn of_first(open: impl FnOnce() -> Result<Run>) -> Result<Run> {
        let mut own = None;
        let dir: PathBuf = of_first(|| {
            let run = own.insert(open()?);
            Ok(run.dir.clone())
        })?;
        Ok(own.unwrap_or_else(|| Run::at(&dir)))
    }

    /// Makes the folder (by default `runs/<name>-<number>`), takes it, and writes `config.json`: settings, command line, versions, and
    /// what `parts` holds: at least the network and what its input must be.
    pub fn create(
        out: Option<&Path>,
        name: &str,
        settings: Map<String, Value>,
        split: &Split,
        seen: &Seen,
        parts: Map<String, Value>,
    ) -> Result<Run> {
        let dir = match out {
            Some(dir) => {
                std::fs::create_dir_all(dir).with_context(|| format!("making the run's folder {}", dir.display()))?;
                dir.to_owned()
            }
            None => make_numbered(Path::new(RUNS), name)?,
        };
        let run = Run::take(dir)?;
        // Only now: no other process can begin one here any more.
        refuse_taken(&run.dir)?;
        // Before `config.json`, which makes the folder a run that can be resumed.
        split.save(&run.split_file())?;
        run.write(SEEN, seen)?;
        let mut description = Map::new();
        description.insert("version".into(), VERSION.into());
        description.insert("settings".into(), Value::Object(settings));
        description.insert("command_line".into(), std::env::args().collect());
        description.insert("versions".into(), versions());
        description.extend(parts);
        run.write(CONFIG, &description)?;
        Ok(run)
    }

    /// Keeps what [`crate::run::weights::load_encoder`] reported.
    pub fn keep_load_report(&self, report: &str) -> Result<()> {
        if report.is_empty() {
            return Ok(());
        }
        write_atomic(&self.dir.join("load.txt"), |f| Ok(std::io::Write::write_all(f, report.as_bytes())?))
    }

    /// Writes a JSON file into the folder.
    pub fn write(&self, name: &str, content: &impl Serialize) -> Result<()> {
        write_atomic(&self.dir.join(name), |file| Ok(serde_json::to_writer_pretty(file, content)?))
    }

    /// Opens an earlier run to continue it with the settings `now`. Only the `resumable` ones may differ from the run's.
    pub fn reopen(dir: &Path, now: Map<String, Value>, resumable: &[&str], input: &Input) -> Result<Run> {
        let run = Run::take(dir.to_owned())?;
        let before = run.settings()?;
        let arguments: Vec<OsString> = std::env::args_os().collect();
        for key in before.keys().chain(now.keys()) {
            // A run from before there was this setting has its default, unless the user asks for something else.
            let newer = !before.contains_key(key) && !settings::is_given(&arguments, key);
            let may_change = newer || resumable.contains(&key.as_str());
            if before.get(key) != now.get(key) && !may_change {
                bail!(
                    "--resume {}: --{key} was {} and cannot change to {}",
                    dir.display(),
                    before.get(key).unwrap_or(&Value::Null),
                    now.get(key).unwrap_or(&Value::Null)
                );
            }
        }
        let mut description = run.description()?;
        ensure!(
            description.get("input") == Some(&serde_json::to_value(input)?),
            "--resume {}: the store {} is not the one that the run was started with",
            dir.display(),
            now.get("data").unwrap_or(&Value::Null)
        );
        if before != now {
            // The next resume continues with what changed now.
            description.insert("settings".into(), Value::Object(now));
            run.write(CONFIG, &description)?;
        }
        Ok(run)
    }

    pub fn split_file(&self) -> PathBuf {
        self.dir.join("split.json")
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.join(CONFIG)
    }

    /// Everything in `config.json`.
    pub fn description(&self) -> Result<Map<String, Value>> {
        let path = self.config_file();
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}: not a run's folder", path.display()))?;
        let description: Map<String, Value> = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let version = description.get("version").and_then(Value::as_u64).unwrap_or(0);
        ensure!(version <= VERSION, "{}: written by a newer version ({version}, this one knows {VERSION})", path.display());
        Ok(description)
    }

    /// Shape of the run's encoder.
    pub fn network(&self) -> Result<EncoderConfig> {
        let network =
            self.description()?.remove("network").with_context(|| format!("{}: no network", self.config_file().display()))?;
        serde_json::from_value(network).with_context(|| self.config_file().display().to_string())
    }

    /// Sides of the patches of a segmentation.
    pub fn patch(&self) -> Result<Vec<usize>> {
        let rank = self.network()?.rank();
        let patch: Option<Shape> =
            self.description()?.get("downstream").and_then(|of| serde_json::from_value(of.get("patch")?.clone()).ok());
        let patch = patch.with_context(|| format!("{}: no patch", self.config_file().display()))?;
        Ok(patch[rank.axes()].to_vec())
    }

    /// The resolved settings the run was started with.
    pub fn settings(&self) -> Result<Map<String, Value>> {
        match self.description()?.remove("settings") {
            Some(Value::Object(settings)) => Ok(settings),
            _ => bail!("{}: no settings in it", self.config_file().display()),
        }
    }

    /// Whom the run has seen; of one from before this was kept the subjects of its split.
    pub fn seen(&self) -> Result<Seen> {
        let file = self.dir.join(SEEN);
        if file.exists() {
            return serde_json::from_slice(&std::fs::read(&file)?).with_context(|| file.display().to_string());
        }
        let (split, settings) = (Split::load(&self.split_file())?, self.settings()?);
        let given = ["init", "weights"].iter().filter_map(|key| settings.get(*key)?.as_str());
        let seen = Seen::of_ids(&split.train, &split.val);
        Ok(if given.filter(|weights| *weights != "none").count() == 0 { seen } else { seen.after(None) })
    }

    /// What loading the weights that a pretraining started from warned of.
    pub fn warnings(&self) -> Result<Vec<String>> {
        let warnings = self.description()?.remove("warnings");
        Ok(warnings.map(serde_json::from_value).transpose()?.unwrap_or_default())
    }

    pub fn checkpoint(&self, which: &str) -> PathBuf {
        self.dir.join(format!("{which}.safetensors"))
    }

    /// Whether there is a checkpoint to continue from.
    pub fn has_checkpoint(&self) -> bool {
        self.checkpoint("last").exists()
    }

    /// Whether it was trained for so many epochs and what follows was done, too: the result is there, and is of as many.
    pub fn is_complete(&self, epochs: u64) -> Result<bool> {
        let (result, last) = (self.dir.join(RESULT), self.checkpoint("last"));
        if !result.exists() || !last.exists() || Progress::read(&last)?.epoch < epochs {
            return Ok(false);
        }
        let result: Value = read_json(&result)?;
        Ok(result["epochs"].as_u64() >= Some(epochs))
    }

    /// Says of a complete run how to go on from it.
    pub fn note_complete(&self, epochs: u64, done: &str) {
        note!("{}: finished before, {epochs} epochs; {done}, and --epochs with a larger number trains on", self.dir.display());
    }

    /// Writes `<which>.safetensors`, atomically: weights, optimizer state and progress.
    pub fn save(&self, which: &str, model: &Tensors, optimizer: &Tensors, progress: &Progress) -> Result<()> {
        let metadata = HashMap::from([
            ("version".to_owned(), VERSION.to_string()),
            (PROGRESS.to_owned(), serde_json::to_string(progress)?),
        ]);
        tensors::save_safetensors(&self.checkpoint(which), &tensors::join_checkpoint(model, optimizer), metadata)
    }

    /// Makes the checkpoint `best` the last one too, without writing it again where the file system can give a file two names.
    pub fn best_is_last(&self) -> Result<()> {
        let best = self.checkpoint("best");
        write_atomic_path(&self.checkpoint("last"), |file| {
            Ok(std::fs::hard_link(&best, file).or_else(|_| std::fs::copy(&best, file).map(drop))?)
        })
    }

    /// The last checkpoint. `None`: the run was stopped before its first one and starts anew.
    pub fn last(&self) -> Result<Option<Checkpoint>> {
        let (path, best) = (self.checkpoint("last"), self.checkpoint("best"));
        let where_it_is = |progress: Progress| (progress.epoch, progress.step);
        let last = path.exists().then(|| Progress::read(&path).map(where_it_is)).transpose()?;
        if last.is_none() {
            // Killed before its first checkpoint, a run has at most the row that stands before it.
            ensure!(History::read(&self.dir)?.len() < 2, "{}: missing, so that the run cannot be continued", path.display());
        }
        // Killed between the two, it would otherwise do the epoch again, on a GPU with other bits, and find another one best.
        if best.exists() && Some(where_it_is(Progress::read(&best)?)) > last {
            self.best_is_last()?;
        }
        if path.exists() { Checkpoint::read(&path).map(Some) } else { Ok(None) }
    }
}

/// Errors if a folder for a new run holds one.
fn refuse_taken(dir: &Path) -> Result<()> {
    ensure!(
        !dir.join(CONFIG).exists(),
        "{}: already holds a run; continue it with --resume {0}, or name another folder",
        dir.display()
    );
    Ok(())
}

/// Errors if a run could not be made in `out` or continued in `resume`, before the data is looked at.
pub fn check_folders(out: Option<&Path>, resume: Option<&Path>) -> Result<()> {
    match (resume, out) {
        (Some(dir), _) => check_folder(dir).context("--resume"),
        (None, Some(dir)) => {
            check_folder(dir).context("--out")?;
            refuse_taken(dir)
        }
        (None, None) => check_folder(Path::new(RUNS)),
    }
}

/// The run and checkpoint that a path means.
pub fn locate(path: &Path) -> Result<(Run, String)> {
    if path.is_dir() {
        return Ok((Run::at(path), "best".to_owned()));
    }
    let file =
        if path.extension().is_some_and(|e| e == "safetensors") { path.to_owned() } else { path.with_extension("safetensors") };
    let (dir, which) = (file.parent().map(PathBuf::from), file.file_stem().map(|s| s.to_string_lossy().into_owned()));
    let run = dir.filter(|dir| dir.join(CONFIG).is_file()).map(|dir| Run::at(&dir));
    ensure!(run.is_some() || file.exists(), "{}: no such file or folder", path.display());
    run.zip(which)
        .with_context(|| format!("{}: expected a run's folder, a checkpoint in one, or exported weights", path.display()))
}

/// What a checkpoint holds.
pub struct Checkpoint {
    pub model: Tensors,
    pub optimizer: Tensors,
    pub progress: Progress,
}

impl Checkpoint {
    /// Errors if the file is damaged, or not a run's checkpoint.
    pub fn read(path: &Path) -> Result<Checkpoint> {
        let (tensors, metadata) = tensors::load_safetensors(path)?;
        let progress = Progress::of(&metadata, path)?;
        let (model, optimizer) = split_checkpoint(tensors);
        Ok(Checkpoint { model, optimizer, progress })
    }
}

/// Versions that a result depends on.
pub fn versions() -> Value {
    json!({ "pretext3d": env!("CARGO_PKG_VERSION"), "libtorch": crate::ffi::compiled_version() })
}

/// A JSON object as the map it is.
pub fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => unreachable!("{other} is not an object"),
    }
}
