//! A run's folder: its settings, its checkpoints, and where it stands.

use crate::train::config::{RESUMABLE, TrainConfig};
use crate::run::means::Means;
use crate::train::network::Network;
use crate::run::tensors::{self, MODEL, OPTIMIZER, Tensors, split_checkpoint};
use crate::config;
use crate::data::split::{Candidate, Fold, Split, subject, subject_classes, thin_classes};
use crate::data::store::{Entry, Store};
use crate::predict::export::Input;
use crate::nn::EncoderConfig;
use crate::optim::Optimizer;
use crate::run::history::History;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Layout of checkpoints and of `config.json`; a reader refuses newer ones.
pub const VERSION: u64 = 1;

const CONFIG: &str = "config.json";

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
    /// Epoch (from 0) and validation metric of the best checkpoint.
    pub best: Option<(u64, f64)>,
}

/// The folder of one run.
#[derive(Clone, Debug)]
pub struct Run {
    pub dir: PathBuf,
}

impl Run {
    /// Makes the folder (by default `runs/<name>-<number>`) and writes `config.json`: settings, command line, versions, and
    /// what `parts` holds: at least the network and what its input must be.
    pub fn create(
        out: Option<&Path>,
        name: &str,
        settings: Map<String, Value>,
        split: &Split,
        parts: Map<String, Value>,
    ) -> Result<Run> {
        let dir = match out {
            Some(dir) => {
                ensure!(
                    !dir.join(CONFIG).exists(),
                    "{}: already holds a run; continue it with --resume {0}, or name another folder",
                    dir.display()
                );
                dir.to_owned()
            }
            None => {
                (1..).map(|n| PathBuf::from(format!("runs/{name}-{n}"))).find(|dir| !dir.exists()).expect("some number is free")
            }
        };
        std::fs::create_dir_all(&dir).with_context(|| format!("making the run's folder {}", dir.display()))?;
        let run = Run { dir };
        // Before `config.json`, which makes the folder a run that can be resumed.
        split.save(&run.split_file())?;
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
        crate::fs::write_atomic(&self.dir.join("load.txt"), |f| Ok(std::io::Write::write_all(f, report.as_bytes())?))
    }

    /// Writes a JSON file into the folder.
    pub fn write(&self, name: &str, content: &impl Serialize) -> Result<()> {
        crate::fs::write_atomic(&self.dir.join(name), |file| Ok(serde_json::to_writer_pretty(file, content)?))
    }

    /// Opens an earlier run to continue it with the settings `now`; those that change results must be the run's. `resumable`
    /// names settings that may change beside [`RESUMABLE`].
    pub fn reopen(dir: &Path, now: Map<String, Value>, resumable: &[&str], input: &Input) -> Result<Run> {
        let run = Run { dir: dir.to_owned() };
        let before = run.settings()?;
        let arguments: Vec<OsString> = std::env::args_os().collect();
        for key in before.keys().chain(now.keys()) {
            // A run from before there was this setting has its default, unless the user asks for something else.
            let newer = !before.contains_key(key) && !config::is_given(&arguments, key);
            let may_change = newer || RESUMABLE.iter().chain(resumable).any(|k| k == key);
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

    /// The resolved settings the run was started with.
    pub fn settings(&self) -> Result<Map<String, Value>> {
        match self.description()?.remove("settings") {
            Some(Value::Object(settings)) => Ok(settings),
            _ => bail!("{}: no settings in it", self.config_file().display()),
        }
    }

    pub fn checkpoint(&self, which: &str) -> PathBuf {
        self.dir.join(format!("{which}.safetensors"))
    }

    /// Whether there is a checkpoint to continue from.
    pub fn has_checkpoint(&self) -> bool {
        self.checkpoint("last").exists()
    }

    /// Writes `<which>.safetensors`, atomically: weights, optimizer state and progress.
    pub fn save(&self, which: &str, network: &Network, optimizer: &Optimizer, progress: &Progress) -> Result<()> {
        network.mix_statistics();
        let mut tensors = Tensors::new();
        tensors.extend(network.vs.variables().into_iter().map(|(n, t)| (format!("{MODEL}{n}"), t)));
        tensors.extend(optimizer.state().into_iter().map(|(n, t)| (format!("{OPTIMIZER}{n}"), t)));
        let metadata = HashMap::from([
            ("version".to_owned(), VERSION.to_string()),
            ("progress".to_owned(), serde_json::to_string(progress)?),
        ]);
        tensors::save_safetensors(&self.checkpoint(which), &tensors, metadata)
    }

    /// Restores weights, optimizer and progress from `last.safetensors`; a run that was stopped before its first checkpoint
    /// starts anew.
    pub fn restore(&self, network: &Network, optimizer: &mut Optimizer) -> Result<Progress> {
        let path = self.checkpoint("last");
        if !path.exists() {
            // Killed before its first checkpoint, a run has at most the row that stands before it.
            ensure!(History::read(&self.dir)?.len() < 2, "{}: missing, so that the run cannot be continued", path.display());
            return Ok(Progress::default());
        }
        let (tensors, metadata) = tensors::load_safetensors(&path)?;
        let progress = metadata.get("progress").with_context(|| format!("{}: not a run's checkpoint", path.display()))?;
        let mut split = split_checkpoint(tensors);
        tensors::restore(&network.vs.variables(), &split.0).with_context(|| path.display().to_string())?;
        optimizer.restore(std::mem::take(&mut split.1)).with_context(|| path.display().to_string())?;
        serde_json::from_str(progress).with_context(|| path.display().to_string())
    }
}

/// Which scans of a store a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usable {
    All,
    /// Those with labelled voxels.
    Segmented,
    /// Those with a class of their own, whose shares a cross-validation and a fraction keep.
    Classified,
}

impl Usable {
    pub fn has(self, scan: &Entry) -> bool {
        match self {
            Usable::All => true,
            Usable::Segmented => scan.label,
            Usable::Classified => scan.class.is_some(),
        }
    }

    /// The usable scans of a store.
    pub fn candidates(self, store: &Store) -> Vec<Candidate> {
        let scans = store.index().subjects.iter().filter(|scan| self.has(scan));
        let class = |scan: &Entry| scan.class.filter(|_| self == Usable::Classified);
        scans.map(|scan| Candidate { id: scan.id.clone(), side: scan.split.clone(), class: class(scan) }).collect()
    }

    /// The subjects' classes, which [`Split::balanced_fraction`] balances: the highest of a subject's scans.
    pub fn classes(self, store: &Store) -> BTreeMap<String, u8> {
        let scans = self.candidates(store);
        subject_classes(&scans).into_iter().filter_map(|(id, class)| Some((id.to_owned(), class?))).collect()
    }
}

/// How a new split's test side is drawn.
#[derive(Clone, Copy, Debug)]
pub enum TestSide {
    /// This share of the subjects that the dataset gives no side, 0 for none.
    Share(f64),
    Fold(Fold),
}

impl TestSide {
    /// The fold's number.
    pub fn fold(self) -> Option<u64> {
        match self {
            TestSide::Share(_) => None,
            TestSide::Fold(fold) => Some(fold.number),
        }
    }
}

/// The run's own split, the one named, or a new one of the usable scans.
pub fn choose_split(config: &TrainConfig, test: TestSide, usable: Usable, store: &Store, run: Option<&Run>) -> Result<Split> {
    let own = run.map(Run::split_file);
    let split = match own.as_ref().or(config.split.as_ref()) {
        Some(file) => Split::load(file)?,
        None => {
            if let TestSide::Fold(fold) = test {
                warn_of_thin_classes(store, usable, fold.of);
            }
            draw_split(store, usable, config.val_fraction, test, config.seed)?
        }
    };
    let unused = split.check(store.ids())?;
    if !unused.is_empty() {
        eprintln!("{} subjects of the store are on no side of the split and are not used", unused.len());
    }
    Ok(split)
}

/// Versions that a result depends on.
pub fn versions() -> Value {
    json!({ "pretext3d": env!("CARGO_PKG_VERSION"), "libtorch": crate::ffi::compiled_version() })
}

/// A new split of a store's usable scans.
pub fn draw_split(store: &Store, usable: Usable, val_fraction: f64, test: TestSide, seed: u64) -> Result<Split> {
    let scans = usable.candidates(store);
    let split = match test {
        TestSide::Share(share) => Split::draw(&scans, val_fraction, share, seed),
        TestSide::Fold(fold) => Split::kfold(&scans, fold, val_fraction, seed),
    };
    let mut split = split.with_context(|| store.folder().display().to_string())?;
    leave_copies_out(&mut split, store)?;
    Ok(split)
}

/// Takes subjects off the training side that share a scan, voxel by voxel, with the validation or test side, and off the validation
/// side those that share one with the test side; says which. Public sets of photographs hold such copies.
fn leave_copies_out(split: &mut Split, store: &Store) -> Result<()> {
    let mut scans: HashMap<&str, Vec<&str>> = HashMap::new();
    store.index().subjects.iter().for_each(|s| scans.entry(subject(&s.id)).or_default().push(&s.fingerprint));
    let of = |id: &String| scans[id.as_str()].iter().copied();
    let mut held_out: HashSet<&str> = split.test.iter().flat_map(of).collect();
    let mut copies = Vec::new();
    for side in [&mut split.val, &mut split.train] {
        let (out, kept): (Vec<_>, Vec<_>) =
            std::mem::take(side).into_iter().partition(|id| of(id).any(|scan| held_out.contains(scan)));
        held_out.extend(kept.iter().flat_map(of));
        copies.extend(out);
        *side = kept;
    }
    if !copies.is_empty() {
        eprintln!("{} subjects are copies of held-out ones and on no side of the split: {}", copies.len(), copies.join(", "));
        ensure!(!split.train.is_empty(), "{}: only copies of held-out scans are left to train on", store.folder().display());
    }
    Ok(())
}

/// Names on standard error the classes that have too few subjects for every fold to test one.
pub fn warn_of_thin_classes(store: &Store, usable: Usable, folds: u64) {
    for (class, n) in thin_classes(&usable.candidates(store), folds) {
        let name = store.index().classes.as_ref().and_then(|names| names.get(class as usize));
        let name = name.map_or_else(|| class.to_string(), |name| format!("{class} ({name})"));
        eprintln!("warning: class {name} has {n} subjects, fewer than the {folds} folds: some folds test none of it");
    }
}

/// A JSON object as the map it is.
pub fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => unreachable!("{other} is not an object"),
    }
}
