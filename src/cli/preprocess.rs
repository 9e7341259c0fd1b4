//! `preprocess`: a dataset to a store.

mod finish;

use crate::cli::labels::{LabelArg, label, labelling};
use crate::cli::scans::{DicomFlags, TableFlags};
use crate::data::labelling::Labelling;
use crate::data::layouts::columns;
use crate::data::layouts::{self, Dataset, Labels, Layout, Missing, Problem, Reading, Volumes};
use crate::data::names::some;
use crate::data::preprocess::{Dtype, Grid, Intensity, Plan, Settings, Threshold};
use crate::data::store::build::{Options, fill};
use crate::data::store::shards::{fill_shard, join, share};
use crate::fs::check_folder;
use crate::machine;
use crate::print::{self, note};
use crate::report::progress::Counter;
use crate::run::input::positions;
use crate::shard::Shard;
use crate::train::stop::Stop;
use anyhow::{Context, Result, ensure};
use finish::{finish, finish_shard};
use regex::Regex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// Turn a folder of scans into a store that training reads
///
/// Every scan is brought to RAS+ orientation, cropped to the box of its foreground, resampled (image linearly, label to the
/// nearest voxel) and normalised, channel by channel. Each subject becomes one safetensors file. Run it again to go on after an
/// interruption or to add subjects: what is done with the same settings from unchanged files is kept.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of scans, or CSV manifest
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Folder of the store, made if it is not there
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// How the data is arranged [default: recognised by itself]
    #[arg(long, value_enum)]
    layout: Option<Layout>,
    /// Regular expression whose first group is the person in a scan's path below the folder (in a manifest's `subject`), e.g.
    /// '^([^/]+)/' for the first folder; all scans of a person are on one side of a split [default: by the names, as it says]
    #[arg(long, value_name = "REGEX", value_parser = subject_pattern)]
    subject_pattern: Option<Regex>,
    #[command(flatten)]
    dicom: DicomFlags,
    /// What is done to the scans
    #[arg(long, value_enum, default_value = "paper")]
    protocol: Protocol,
    /// Side of the cube in voxels, of photographs of the square in pixels, 1 to 1024 (protocol paper) [default: 128, photographs
    /// 224]
    #[arg(long, value_name = "VOXELS")]
    size: Option<usize>,
    /// Spacing in millimetres, 0.01 to 1000, one number or X,Y,Z along the RAS+ axes (protocol modern) [default: 1.5]
    #[arg(long, value_name = "MM", value_parser = spacing)]
    spacing: Option<[f64; 3]>,
    /// Normalisation of each channel of each scan, for scans without a common unit, such as MR [default: the protocol's]
    #[arg(long, value_enum, conflicts_with = "window")]
    intensity: Option<Scaling>,
    /// Intensities LO to HI become 0 to 1, clipped, instead of the protocol's normalisation; HU for CT, e.g. -100,240
    #[arg(long, value_name = "LO,HI", value_parser = window, allow_hyphen_values = true)]
    window: Option<[f32; 2]>,
    /// Intensity above which a voxel is foreground, in the scan's unit [default: per channel, -500 where the minimum is below
    /// that and one voxel in 200 above (CT), otherwise half-way between minimum and mean]
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    foreground: Option<f32>,
    /// Channels to keep, in this order, e.g. t1,flair [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    channels: Vec<String>,
    /// Make every channel of every scan a scan of its own, of one channel: encoders for any contrast are pretrained on these, also from
    /// scans that do not have the same channels. The person stays the person
    #[arg(long)]
    channels_as_scans: bool,
    /// What becomes of the volumes of a 4D file, such as a series over time
    #[arg(long, value_enum, default_value = "channels", conflicts_with = "channels_as_scans")]
    volumes: Volumes,
    /// Label values, background first, each with an optional name, e.g. 0,1=oedema,4; the n-th becomes class n; what is called `ignore`
    /// nobody labelled. Or a .json file that describes them as nnU-Net's dataset.json does, with regions [default: as the dataset
    /// describes them]
    #[arg(long, value_name = "VALUES|FILE", value_delimiter = ',', value_parser = label, conflicts_with = "no_labels", allow_hyphen_values = true)]
    labels: Vec<LabelArg>,
    /// Leave labels out
    #[arg(long)]
    no_labels: bool,
    /// What becomes of scans without one of the channels
    #[arg(long, value_enum, default_value = "refuse", conflicts_with = "channels_as_scans")]
    missing: Missing,
    /// Columns of a table with a value for each whole scan, such as age,sex: classes or quantities, as `finetune --task` then takes them
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    column: Vec<String>,
    #[command(flatten)]
    table: TableFlags,
    /// Type of the stored images
    #[arg(long, value_enum, default_value = "f16")]
    dtype: Dtype,
    /// Threads, 1 to 1024; each holds one subject in memory at a time [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Make the store without the scans that cannot be used; they are listed, and recorded in its index
    #[arg(long)]
    skip_bad: bool,
    /// Make the store without copies: of scans that share an image the first stays, none where their classes or labels differ; they are
    /// listed, and recorded in its index
    #[arg(long)]
    skip_duplicates: bool,
    /// Store the I-th of N parts of the people, while other processes, also on other machines, store the others into the same folder; whichever
    /// ends last makes the store whole, the same as one process would. All need the same data and the same flags
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    shard: Shard,
    /// Replace a store of other settings or of other subjects
    #[arg(long)]
    overwrite: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Protocol {
    /// Resize the foreground box to a cube, minimum to 0 and maximum to 1. Photographs: the fundus to a square, values as they are
    Paper,
    /// Resample to a spacing, mean 0 and standard deviation 1 over the foreground
    Modern,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Scaling {
    /// Minimum to 0, maximum to 1
    MinMax,
    /// Mean 0 and standard deviation 1 over the foreground
    ZScore,
}

fn numbers<T: std::str::FromStr>(text: &str) -> Result<Vec<T>, String> {
    text.split(',').map(|part| part.trim().parse().map_err(|_| format!("`{part}` is not a number"))).collect()
}

fn spacing(text: &str) -> Result<[f64; 3], String> {
    match numbers(text)?[..] {
        [mm] => Ok([mm; 3]),
        [x, y, z] => Ok([x, y, z]),
        _ => Err("expected one number or X,Y,Z".into()),
    }
}

fn window(text: &str) -> Result<[f32; 2], String> {
    numbers(text)?.try_into().map_err(|_| "expected LO,HI".into())
}

fn subject_pattern(text: &str) -> Result<Regex, String> {
    let pattern = Regex::new(text).map_err(|error| error.to_string())?;
    match pattern.captures_len() {
        1 => Err("no group in it: the person is what stands in its first parentheses, e.g. '^([^/]+)/'".into()),
        _ => Ok(pattern),
    }
}

impl Args {
    fn settings(&self, photographs: bool) -> Result<Settings> {
        ensure!(
            !photographs || self.protocol == Protocol::Paper,
            "--protocol modern: photographs have no spacing in millimetres; they take --protocol paper and --size"
        );
        let grid = match self.protocol {
            Protocol::Paper => {
                ensure!(self.spacing.is_none(), "--spacing goes with --protocol modern; protocol paper takes --size");
                Grid::Cube { side: self.size.unwrap_or(if photographs { 224 } else { 128 }) }
            }
            Protocol::Modern => {
                ensure!(self.size.is_none(), "--size goes with --protocol paper; protocol modern takes --spacing");
                Grid::Spacing { mm: self.spacing.unwrap_or([1.5; 3]) }
            }
        };
        let scaling = match self.protocol {
            Protocol::Paper => Scaling::MinMax,
            Protocol::Modern => Scaling::ZScore,
        };
        let intensity = match (self.window, self.intensity.unwrap_or(scaling)) {
            (Some([lo, hi]), _) => Intensity::Window { lo, hi },
            // A photograph's exposure and colour are alike for all channels; darkest and brightest possible are 0 and 1.
            (None, _) if photographs && self.intensity.is_none() => Intensity::Window { lo: 0., hi: 1. },
            (None, Scaling::MinMax) => Intensity::MinMax,
            (None, Scaling::ZScore) => Intensity::ZScoreForeground,
        };
        let foreground = self.foreground.map_or(Threshold::Auto, |value| Threshold::Above { value });
        // Where each is a scan, a scan has but one.
        let volumes = if self.volumes == Volumes::Each { Volumes::Channels } else { self.volumes };
        let settings = Settings { grid, foreground, intensity, dtype: self.dtype, volumes };
        settings.check()?;
        Ok(settings)
    }

    fn reading(&self) -> Reading<'_> {
        let labels = match (self.no_labels, self.labels.is_empty()) {
            (true, _) => Labels::Unwanted,
            (_, false) => Labels::Given,
            (_, true) => Labels::Described,
        };
        let columns = self.table.wanted(&self.column);
        Reading {
            layout: self.layout,
            labels,
            person: self.subject_pattern.as_ref(),
            separate: self.each_a_scan(),
            missing: self.missing,
            channels: &self.channels,
            volumes: self.volumes,
            dicom: self.dicom.wanted(),
            columns,
        }
    }

    fn each_a_scan(&self) -> bool {
        self.channels_as_scans || self.volumes == Volumes::Each
    }

    /// Keeps the wanted ones of scans that are channels, and says how many there are of each. Errors if there is none of one.
    fn pick(&self, dataset: &mut Dataset) -> Result<()> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        dataset.subjects.iter().flat_map(|s| &s.contrasts).for_each(|name| *counts.entry(name.clone()).or_default() += 1);
        let there = counts.keys().cloned().collect::<Vec<_>>().join(", ");
        for name in &self.channels {
            ensure!(counts.contains_key(name), "--channels: no channel `{name}`, the data has {there}");
        }
        if !self.channels.is_empty() {
            counts.retain(|name, _| self.channels.contains(name));
            dataset.subjects.retain(|s| s.contrasts.iter().all(|name| self.channels.contains(name)));
        }
        let counts: Vec<String> = counts.into_iter().map(|(name, n)| format!("{name} {n}")).collect();
        note!("every channel is a scan: {}", counts.join(", "));
        Ok(())
    }

    fn plan(&self, dataset: &Dataset) -> Result<Plan> {
        let channels: Vec<usize> = match self.channels.is_empty() || self.each_a_scan() {
            true => (0..dataset.channels.len()).collect(),
            false => {
                for name in &self.channels {
                    let count = |names: &[String]| names.iter().filter(|found| *found == name).count();
                    let (there, asked) = (count(&dataset.channels), count(&self.channels));
                    ensure!(there > 0, "--channels: no channel `{name}`, the data has {}", dataset.channels.join(", "));
                    ensure!(asked <= there, "--channels: `{name}` is named {asked} times, the data has {there}");
                    ensure!(
                        asked == there,
                        "--channels: `{name}` is the name of {there} channels; give all {there}, or give them names of their own"
                    );
                }
                positions(&self.channels, &dataset.channels).context("--channels")?
            }
        };
        let labels = match (self.no_labels, self.labels.is_empty()) {
            (true, _) => None,
            (_, false) => Some(labelling(&self.labels)?),
            (_, true) => dataset.labels.clone(),
        };
        if let Some(labels) = &labels {
            labels.check().with_context(|| self.data.display().to_string())?;
        }
        Ok(Plan { settings: self.settings(dataset.is_photographs())?, available: dataset.channels.clone(), channels, labels })
    }
}

pub fn run(args: Args) -> Result<()> {
    super::refuse_ranks("preprocess", args.shard)?;
    let start = Instant::now();
    // Before the data is looked at, which may take long.
    args.settings(args.layout == Some(Layout::Images))?;
    for (i, name) in args.column.iter().enumerate() {
        let plain = !name.trim().is_empty() && !["subject", "label", "split"].contains(&name.as_str());
        ensure!(plain, "--column {name:?}: expected the name of a column of values");
        let twice = args.column[..i].iter().any(|other| other.eq_ignore_ascii_case(name));
        ensure!(!twice, "--column: `{name}` is named twice");
    }
    check_folder(&args.out).context("--out")?;
    let mut dataset = layouts::open_as(&args.data, args.reading())?;
    if args.each_a_scan() {
        args.pick(&mut dataset)?;
    }
    let plan = args.plan(&dataset)?;
    if args.no_labels {
        dataset.subjects.iter_mut().for_each(|s| s.label = None);
    }
    let with_label = match dataset.classes {
        Some(_) => format!("{} with a class", dataset.subjects.iter().filter(|s| s.class.is_some()).count()),
        None => format!("{} with labels", dataset.subjects.iter().filter(|s| s.label.is_some()).count()),
    };
    note!(
        "{}: layout {}, {} scans ({with_label}), channels {}",
        args.data.display(),
        dataset.layout,
        dataset.subjects.len(),
        plan.names().join(", ")
    );
    if let Some(special) = plan.labels.as_ref().and_then(Labelling::special) {
        note!("labels: {special}");
    }
    let without: Vec<&str> = dataset.subjects.iter().filter(|s| s.class.is_none()).map(|s| s.id.as_str()).collect();
    if dataset.classes.is_some() && !without.is_empty() {
        note!("{} without a class: {}", without.len(), some(&without));
    }
    if dataset.is_photographs() && dataset.classes.is_none() && args.column.is_empty() {
        note!(
            "no photograph has a grade, which only --task classification needs: from a CSV id_code,diagnosis or image,level, or from the \
             one that --column names"
        );
    }
    columns::describe(&dataset).iter().for_each(|line| note!("{line}"));
    let named_by_number = matches!(dataset.layout, Layout::Folder | Layout::Manifest);
    if named_by_number && dataset.channels.len() > 1 && dataset.subjects.iter().all(|s| s.channels.len() == 1) {
        note!("every volume of a 4D file is a channel; of a series, --volumes takes each for a scan, their mean, or the first");
    }
    note!("{}", layouts::people::describe(&dataset, &args.data));
    for ignored in &dataset.ignored {
        note!("ignored: {ignored}");
    }
    for problem in &dataset.problems {
        note!("bad: {problem}");
    }
    let lacking: Vec<&Problem> = dataset.problems.iter().filter(|problem| !problem.lacks.is_empty()).collect();
    if !lacking.is_empty() {
        let all = dataset.subjects.len() + lacking.len();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        lacking.iter().flat_map(|problem| &problem.lacks).for_each(|name| *counts.entry(name).or_default() += 1);
        let counts: Vec<String> = counts.iter().map(|(name, n)| format!("{name} in {n}")).collect();
        note!(
            "of {all} scans {} lack a channel ({}): --missing drop leaves them out, --missing zero fills it with zeros, --channels takes \
             others, and --channels-as-scans each for a scan",
            lacking.len(),
            counts.join(", ")
        );
    }

    let stop = Stop::on_signals()?;
    let threads = match args.threads {
        Some(threads) => threads.into(),
        None => machine::cores(),
    };
    // Calls what fills the store, with progress over so many subjects.
    fn counted<T>(
        what: &str,
        subjects: usize,
        args: &Args,
        threads: usize,
        stop: &Stop,
        work: impl FnOnce(&Options) -> T,
    ) -> T {
        let counter = Counter::new(what, subjects, print::attended());
        let progress = |id: &str, bad: Option<&str>| {
            if let Some(reason) = bad {
                counter.note(&format!("bad: {id}: {reason}"));
            }
            counter.inc(id);
        };
        work(&Options {
            threads,
            skip_bad: args.skip_bad,
            skip_duplicates: args.skip_duplicates,
            no_labels: args.no_labels,
            overwrite: args.overwrite,
            stop: &|| stop.asked(),
            progress: &progress,
            note: &|line| counter.note(line),
        })
    }
    let (all, out) = (dataset.subjects.len(), &args.out);
    let filled = if args.shard.is_whole() {
        counted("preprocess", all, &args, threads, &stop, |options| fill(&dataset, &plan, out, options))?
    } else {
        let own = share(&dataset, args.shard).len();
        let store = |options: &Options| fill_shard(args.shard, &dataset, &plan, out, options);
        let part = counted(&format!("shard {}", args.shard), own, &args, threads, &stop, store)?;
        let left = finish_shard(&args, all, &part, start.elapsed())?;
        let join = |options: &Options| join(args.shard.count, &dataset, &plan, out, options);
        match if left { None } else { counted("join", all, &args, threads, &stop, join)? } {
            Some(filled) => filled,
            None => return Ok(()),
        }
    };
    finish(&args, &dataset, &filled, start.elapsed())
}
