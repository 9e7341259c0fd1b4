//! A look at the encoder during pretraining: how well labels or values of a few scans are read out of its features, linearly. Nothing of the
//! training depends on it, but for the checkpoint that `--best probe` chooses.

use crate::data::Scans;
use crate::data::labelling::is_foreground;
use crate::data::split::{Candidate, Split, subject};
use crate::data::store::targets::{Targets, Values};
use crate::data::store::{Store, Subset};
use crate::device::memory_format;
use crate::dim::{PerAxis, Rank, Region, Shape, voxels};
use crate::ffi;
use crate::metrics::summary::mean;
use crate::nn::calibrate::calibrate;
use crate::nn::{Encoder, EncoderConfig, Mode};
use crate::predict::embed::{default_window, pooled};
use crate::predict::window::default_batch;
use crate::readout::cross::{CrossValidation, Readout, Scan};
use crate::readout::truth::Truth;
use crate::readout::voxels::{Maps, VoxelReadout};
use crate::rng::{Stream, rng};
use crate::run::input::{Input, check_planned, positions};
use crate::run::split::Needs;
use crate::run::tensors::ENCODER;
use crate::train::network::Network;
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor, no_grad};

/// Scans that are probed on, unless the user says otherwise: with labelled voxels, and with a class or a quantity each.
const SCANS_WITH_VOXELS: usize = 8;
const WHOLE_SCANS: usize = 64;
/// Voxels that a readout is fitted on: half of them background, the others equally of each class.
const FITTED: usize = 4096;
/// Sides of the part of a scan whose voxels are read out, so that a look takes seconds; larger where the deepest level would be left with
/// less than 2 voxels. Of a volume that is read as slices up to 16 planes.
fn max_patch(rank: Rank, reduction: PerAxis) -> Shape {
    match rank {
        Rank::Two => [16, 256, 256],
        Rank::Three => std::array::from_fn(|a| 48.max(2 * reduction.along(a))),
    }
}

/// Keys which scans and voxels are taken: the same ones for every seed of the training.
const SEED: u64 = 0;

#[derive(Clone, Debug, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Probe")]
pub struct ProbeConfig {
    /// Store with labels of voxels or with classes of scans: how well these are read out of the features of a few of its scans is reported
    /// as val/probe.dice or val/probe.kappa. Subjects that the split holds out are left out
    #[arg(long, value_name = "STORE")]
    pub probe: Option<PathBuf>,
    /// Column of that store with a class or a quantity of each whole scan, e.g. age, which is read out instead. Names, grades and up to 10
    /// whole numbers are classes; of a quantity val/probe.r_squared is reported
    #[arg(long, value_name = "NAME")]
    pub probe_column: Option<String>,
    /// Epochs between two looks; the last epoch always has one
    #[arg(long, value_name = "EPOCHS", default_value_t = 5)]
    pub probe_every: u64,
    /// Scans that are probed on, each of another subject [default: 8, with classes or quantities of scans 64]
    #[arg(long, value_name = "N")]
    pub probe_scans: Option<usize>,
}

impl ProbeConfig {
    /// Checks ranges that the parser cannot.
    pub fn check(&self) -> Result<()> {
        ensure!(self.probe_every > 0, "--probe-every must be at least 1");
        ensure!(self.probe_scans.is_none_or(|n| n > 1), "--probe-scans must be at least 2");
        ensure!(self.probe.is_some() || self.probe_scans.is_none(), "--probe-scans goes with --probe");
        ensure!(self.probe.is_some() || self.probe_column.is_none(), "--probe-column goes with --probe");
        Ok(())
    }
}

/// Which scans are probed on: `probe` in a run's `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probed {
    /// Of their store.
    pub fingerprint: String,
    pub scans: Vec<String>,
}

struct ProbeScan {
    /// `[C, D, H, W]`, the patch whose voxels are read out, or the whole scan.
    image: Tensor,
    /// Class of each voxel of the patch, row-major, and the places that a readout is fitted on; none of whole scans.
    label: Vec<u8>,
    fitted: Vec<i64>,
}

pub struct Probe {
    every: u64,
    scans: Vec<ProbeScan>,
    subset: Subset,
    /// Classes of voxels, with the background.
    classes: usize,
    /// Of whole scans.
    cross: Option<CrossValidation>,
    /// The trained encoder's weights are copied to this one, whose statistics are its own.
    encoder: Box<dyn Encoder>,
    vs: VarStore,
    device: Device,
    bf16: bool,
}

impl Probe {
    /// `None` if none is asked for. `store`: what is pretrained on, of which `split` holds out some subjects; `network`: what is trained.
    pub fn open(
        config: &ProbeConfig,
        store: &Store,
        split: &Split,
        network: &EncoderConfig,
        device: Device,
        bf16: bool,
    ) -> Result<Option<Probe>> {
        let Some(folder) = &config.probe else { return Ok(None) };
        let own = Store::open(folder)?.sliced(store.slices())?;
        check_planned(&own)?;
        let probe = Probe::new(config, own, store, split, network, device, bf16);
        probe.map(Some).with_context(|| format!("--probe {}", folder.display()))
    }

    fn new(
        config: &ProbeConfig,
        own: Store,
        store: &Store,
        split: &Split,
        network: &EncoderConfig,
        device: Device,
        bf16: bool,
    ) -> Result<Probe> {
        let (rank, index) = (network.rank(), own.index().clone());
        ensure!(own.rank()? == rank, "holds {}D data, the encoder takes {}D data", own.rank()?.n(), rank.n());
        let (trained, found) = (Input::of(store), Input::of(&own));
        let Some(channels) = positions(&trained.channels, &found.channels) else {
            bail!("channels {}, expected {} as in training", found.channels.join(", "), trained.channels.join(", "))
        };
        if let Some(warning) = trained.fit(&Input { channels: trained.channels.clone(), ..found }).warnings.first() {
            bail!("{warning}");
        }
        let own = match &config.probe_column {
            Some(column) => own.learning(Targets::recognised(&index, Some(column))?),
            None => own,
        };
        let labels = index.labels.as_ref().filter(|_| config.probe_column.is_none());
        let (needs, default) = match (labels, own.targets().map(|targets| &targets.values)) {
            (Some(_), _) => (Needs::VoxelLabels, SCANS_WITH_VOXELS),
            (None, Some(Values::Classes { .. })) => (Needs::ScanClass, WHOLE_SCANS),
            (None, Some(Values::Numbers(_))) => (Needs::ScanQuantity, WHOLE_SCANS),
            (None, None) => {
                let columns: Vec<&str> = index.columns.iter().map(|column| column.name.as_str()).collect();
                let hint = format!("; --probe-column takes one of its columns: {}", columns.join(", "));
                bail!("no labels of voxels and no classes of scans in it{}", if columns.is_empty() { "" } else { &hint })
            }
        };
        let classes = labels.map_or(0, Vec::len);
        let ids = choose(&own, needs, store, split, config.probe_scans.unwrap_or(default))?;
        let subset = own.subset(&ids)?;
        let mut vs = VarStore::new(Device::Cpu);
        let encoder = network.clone().without_dropout().build(&vs.root() / ENCODER.trim_end_matches('.'));
        vs.set_device(device);
        vs.variables().values().try_for_each(|v| ffi::set_memory_format(v, memory_format(device, bf16)))?;
        let half = subset.len().div_ceil(2);
        let scan = |scan: usize| match needs {
            Needs::VoxelLabels => patch(&subset, scan, &channels, max_patch(rank, network.reduction()), classes, FITTED / half),
            _ => Ok(ProbeScan {
                image: read(&subset, scan, Region::whole(subset.shape(scan)), &channels)?,
                label: vec![],
                fitted: vec![],
            }),
        };
        let scans: Vec<ProbeScan> =
            (0..subset.len()).map(|s| scan(s).with_context(|| subset.id(s).to_owned())).collect::<Result<_>>()?;
        for (scan, ProbeScan { image, .. }) in scans.iter().enumerate() {
            let (id, size) = (subset.id(scan), image.size());
            let shape = [1, 2, 3].map(|a| size[a] as usize);
            ensure!(
                voxels(encoder.deepest_shape(shape)) > 0,
                "{id}: {shape:?} voxels are too few, the encoder pools every side by {}",
                encoder.deepest().reduction.words()
            );
            network.check_input(shape).with_context(|| id.to_owned())?;
        }
        let targets = own.targets().filter(|_| needs != Needs::VoxelLabels);
        let cross = targets.map(|targets| {
            let entry = |s: usize| &index.subjects[subset.scan(s)];
            let marks = |s: usize| entry(s).marks().map(str::to_owned).collect();
            let scans: Vec<Scan> = (0..subset.len()).map(|s| Scan { id: subset.id(s).to_owned(), marks: marks(s) }).collect();
            CrossValidation::new(&scans, Truth::of(targets, (0..subset.len()).map(|s| subset.scan(s))))
        });
        let cross = cross.transpose()?;
        Ok(Probe { every: config.probe_every, scans, classes, cross, encoder, vs, device, bf16, subset })
    }

    /// The scans that are probed on, whose labels are known from then on.
    pub fn subset(&self) -> &Subset {
        &self.subset
    }

    pub fn probed(&self) -> Probed {
        let scans = (0..self.subset.len()).map(|s| self.subset.id(s).to_owned()).collect();
        Probed { fingerprint: self.subset.store().index().fingerprint.clone(), scans }
    }

    /// Whether there is a look after this epoch, counted from 0.
    pub fn is_due(&self, epoch: u64, epochs: u64) -> bool {
        (epoch + 1).is_multiple_of(self.every) || epoch + 1 == epochs
    }

    /// Name of the score.
    pub fn name(&self) -> &'static str {
        match self.cross.as_ref().map(CrossValidation::truth) {
            Some(Truth::Classes { .. }) => "probe.kappa",
            Some(Truth::Quantity(_)) => "probe.r_squared",
            None => "probe.dice",
        }
    }

    /// Of labelled voxels the mean Dice over scans and classes, where each half of the scans is predicted from the other, at the
    /// threshold that is best there; of classes of scans the quadratic weighted kappa of a cross-validation, of a
    /// quantity the share of its variance that is explained.
    pub fn score(&self, network: &Network) -> Result<f64> {
        no_grad(|| {
            self.take(network)?;
            match &self.cross {
                Some(cross) => self.of_whole_scans(cross),
                None => self.dice(),
            }
        })
    }

    /// Copies the weights, and estimates the statistics on the scans that are probed on: those of the training are of patches and views.
    fn take(&self, network: &Network) -> Result<()> {
        let (trained, own) = (network.vs.variables(), self.vs.variables());
        own.iter().for_each(|(name, own)| own.shallow_clone().copy_(&trained[name]));
        calibrate(&own, self.batches().map(|x| self.features(&x, Mode::Train).map(drop)))
    }

    /// All scans as inputs of the encoder; images of one shape several at a time.
    fn batches(&self) -> impl Iterator<Item = Tensor> {
        let together = |a: &ProbeScan, b: &ProbeScan| self.encoder.rank() == Rank::Two && a.image.size() == b.image.size();
        let batch = |scans: &[ProbeScan]| Tensor::cat(&scans.iter().map(|scan| self.input(scan)).collect::<Vec<_>>(), 0);
        self.scans.chunk_by(together).flat_map(|scans| scans.chunks(default_batch(self.encoder.rank()))).map(batch)
    }

    /// `[1, C, D, H, W]`; of images and slices a plane is a sample, `[D, C, H, W]`.
    fn input(&self, scan: &ProbeScan) -> Tensor {
        let x = match self.encoder.rank() {
            Rank::Three => scan.image.unsqueeze(0),
            Rank::Two => scan.image.transpose(0, 1).contiguous(),
        };
        x.to_device(self.device)
    }

    fn features(&self, x: &Tensor, mode: Mode) -> Result<Vec<Tensor>> {
        ffi::set_memory_format(x, memory_format(self.device, self.bf16))?;
        Ok(ffi::with_autocast(self.device, self.bf16, || self.encoder.forward(x, mode)))
    }

    fn of_whole_scans(&self, cross: &CrossValidation) -> Result<f64> {
        let window = default_window(self.encoder.rank());
        let rows = self
            .scans
            .iter()
            .map(|scan| Ok(Tensor::cat(&pooled(&*self.encoder, &scan.image, window, self.device, self.bf16)?, 0)));
        let x = Tensor::stack(&rows.collect::<Result<Vec<_>>>()?, 0);
        cross.score(Readout::Linear, &x).single().with_context(|| format!("{} is undefined", self.name()))
    }

    fn dice(&self) -> Result<f64> {
        let maps = |scan: &ProbeScan| -> Result<Maps> {
            let size = scan.image.size();
            let patch = [1, 2, 3].map(|a| size[a] as usize);
            let pyramid = self.features(&self.input(scan), Mode::Eval)?;
            let volume = |map: &Tensor| match self.encoder.rank() {
                Rank::Three => map.squeeze_dim(0),
                Rank::Two => map.transpose(0, 1),
            };
            let maps = pyramid.iter().map(|map| volume(map).to_kind(Kind::Float).contiguous()).collect();
            Ok(Maps::new(maps, self.encoder.levels(), patch))
        };
        let maps: Vec<Maps> = self.scans.iter().map(maps).collect::<Result<_>>()?;
        let mut scores = Vec::new();
        for half in 0..2 {
            let of_half = |half: usize| self.scans.iter().zip(&maps).skip(half).step_by(2);
            let (mut x, mut y) = (Vec::new(), Vec::new());
            for (scan, maps) in of_half(half) {
                x.push(maps.features(&Tensor::from_slice(&scan.fitted)));
                y.extend(scan.fitted.iter().map(|&at| i64::from(scan.label[at as usize])));
            }
            let readout = VoxelReadout::fit(&Tensor::cat(&x, 0), &Tensor::from_slice(&y), self.classes);
            let dice = |half: usize| {
                let each = of_half(half).map(|(scan, maps)| readout.dice(maps, &scan.label, self.classes));
                each.reduce(|all, more| all.into_iter().zip(more).map(|(all, more)| [all, more].concat()).collect())
            };
            // For each threshold over all scans and classes where it is defined.
            let average = |dice: &[Option<f64>]| mean(&dice.iter().flatten().copied().collect::<Vec<_>>());
            let fitted: Vec<Option<f64>> = dice(half).unwrap_or_default().iter().map(|dice| average(dice)).collect();
            let best = (0..fitted.len()).rev().max_by(|&a, &b| fitted[a].unwrap_or(0.).total_cmp(&fitted[b].unwrap_or(0.)));
            let best = best.context("a half of the scans without any")?;
            scores.extend(dice(1 - half).unwrap_or_default()[best].iter().flatten().copied());
        }
        mean(&scores).context("no foreground in any scan")
    }
}

/// Channels `[C, ..region.size]` of a scan, in this order.
fn read(scans: &Subset, scan: usize, region: Region, channels: &[usize]) -> Result<Tensor> {
    let mut values = vec![0.; scans.channels() * voxels(region.size)];
    scans.read(scan, region, Orientation::IDENTITY, &mut values)?;
    let size = region.size.map(|n| n as i64);
    let image = Tensor::from_slice(&values).view([scans.channels() as i64, size[0], size[1], size[2]]);
    Ok(image.index_select(0, &Tensor::from_slice(&channels.iter().map(|&c| c as i64).collect::<Vec<_>>())))
}

/// The part of a scan around the middle of its foreground, up to `side` voxels along each axis, and up to `n` voxels of it to fit on.
fn patch(scans: &Subset, scan: usize, channels: &[usize], side: Shape, classes: usize, n: usize) -> Result<ProbeScan> {
    let (shape, label) = (scans.shape(scan), scans.whole_label(scan)?);
    let mut marked = shape.map(|n| vec![false; n]);
    for (at, _) in label.iter().enumerate().filter(|(_, class)| is_foreground(**class)) {
        let place = [at / (shape[1] * shape[2]), at / shape[2] % shape[1], at % shape[2]];
        place.iter().zip(&mut marked).for_each(|(&x, axis)| axis[x] = true);
    }
    let foreground = Region::around(&marked).context("no foreground")?;
    let size: Shape = std::array::from_fn(|a| shape[a].min(side[a]));
    let middle = |a: usize| foreground.start[a] + foreground.size[a] / 2;
    let start = std::array::from_fn(|a| middle(a).saturating_sub(size[a] / 2).min(shape[a] - size[a]));
    let region = Region { start, size };
    let mut inside = vec![0; voxels(size)];
    scans.label(scan, region, Orientation::IDENTITY, &mut inside)?;
    let mut fitted = Vec::new();
    for class in 0..classes {
        let of_class: Vec<i64> = (0..inside.len()).filter(|&at| usize::from(inside[at]) == class).map(|at| at as i64).collect();
        let share = if class == 0 { n / 2 } else { n / 2 / (classes - 1) };
        let mut rng = rng(SEED, Stream::Probe, scan as u64, class as u64);
        let chosen = rand::seq::index::sample(&mut rng, of_class.len(), of_class.len().min(share.max(1)));
        fitted.extend(chosen.into_iter().map(|i| of_class[i]));
    }
    Ok(ProbeScan { image: read(scans, scan, region, channels)?, label: inside, fitted })
}

/// The first scans, each of another person, that have what is needed and are of nobody that the split of `trained` holds out.
fn choose(own: &Store, needs: Needs, trained: &Store, split: &Split, n: usize) -> Result<Vec<String>> {
    let held_out: HashSet<&str> = split.val.iter().chain(&split.test).map(String::as_str).collect();
    let known = trained.index().subjects.iter().filter(|scan| held_out.contains(subject(&scan.id)));
    let mut taken: HashSet<&str> = known.flat_map(|scan| scan.marks()).collect();
    let mut people: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for Candidate { id, .. } in needs.candidates(own) {
        let scan = own.find(&id).expect("a candidate is in the store");
        let id = subject(own.id(scan));
        if !held_out.contains(id) {
            people.entry(id).or_default().push(scan);
        }
    }
    let left_out = |found: usize| {
        format!(
            "{found} subjects with labels are not held out by the split, at least 2 are needed; give another store or split"
        )
    };
    ensure!(people.len() > 1, "{}", left_out(people.len()));
    let all = Split { train: people.keys().map(|id| id.to_string()).collect(), ..Split::default() };
    let mut chosen = Vec::new();
    for person in all.balanced_fraction(1., &needs.classes(own), SEED)? {
        for &scan in &people[person.as_str()] {
            let marks = || own.index().subjects[scan].marks();
            let usable = needs != Needs::VoxelLabels || own.whole_label(scan)?.iter().any(|&class| is_foreground(class));
            if usable && !marks().any(|mark| taken.contains(mark)) {
                taken.extend(marks());
                chosen.push(own.id(scan).to_owned());
                break;
            }
        }
        if chosen.len() == n {
            break;
        }
    }
    ensure!(chosen.len() > 1, "{}", left_out(chosen.len()));
    Ok(chosen)
}
