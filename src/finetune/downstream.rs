//! The downstream tasks: which labels they learn from, and how a run's is built.

use super::config::{DownstreamKind, FinetuneConfig};
use crate::data::Scans;
use crate::data::labelling::Labelling;
use crate::data::store::targets::{Targets, Values};
use crate::data::store::{Index, Store, Subset};
use crate::dim::{PerAxis, Rank, Shape};
use crate::metrics::regions;
use crate::nn::{Decoder, EncoderConfig};
use crate::predict::model::DownstreamConfig;
use crate::print::note;
use crate::run::tensors::ENCODER;
use crate::run::weights::Transfer;
use crate::sample::foreground::Foreground;
use crate::tasks::Task;
use crate::tasks::class_weights::ClassWeights;
use crate::tasks::classification::{Classification, ClassificationConfig, Outputs, Score};
use crate::tasks::regression::{Regression, RegressionConfig, Standard};
use crate::tasks::segmentation::{DECODER, Segmentation, SegmentationConfig};
use crate::tasks::whole::common_shape;
use crate::transform::augment::Augmenter;
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::sync::Arc;
use tch::nn::VarStore;
use tch::{Device, Tensor};

/// Errors if the store cannot teach the task, or if settings are given that are another task's.
pub fn check(config: &FinetuneConfig, index: &Index) -> Result<()> {
    let data = config.train.data.display();
    match config.task {
        DownstreamKind::Segmentation => {
            let whole = index.classes.is_some() || !index.columns.is_empty();
            let classes =
                if whole { "; its scans have classes or quantities: --task classification or regression" } else { "" };
            let labelling = index.labelling();
            let labelling = labelling
                .with_context(|| format!("{data}: the store has no labels; preprocess with them (not --no-labels){classes}"))?;
            ensure!(
                config.classification == ClassificationConfig::default(),
                "--outputs, --classes and --head-dropout go with --task classification"
            );
            regions::scored(config.regions, &labelling).with_context(|| format!("{data}: --regions brats"))?;
        }
        DownstreamKind::Classification | DownstreamKind::Regression => ensure!(
            config.segmentation == SegmentationConfig::default() && config.regions.is_none(),
            "--patch, --foreground-share, --loss, --deep-supervision, --overlap and --regions go with --task segmentation"
        ),
    }
    if config.task == DownstreamKind::Regression {
        let ClassificationConfig { outputs, classes, .. } = &config.classification;
        ensure!(outputs.is_none() && classes.is_empty(), "--outputs and --classes go with --task classification");
        ensure!(config.class_weights.is_none(), "--class-weights: --task regression has no classes");
    } else {
        ensure!(config.regression == RegressionConfig::default(), "--regression-loss goes with --task regression");
    }
    Ok(())
}

/// Errors if scans of this store do not fit the task on this encoder. After [`check`].
pub fn check_shapes(config: &FinetuneConfig, store: &Store, encoder: &EncoderConfig) -> Result<()> {
    encoder.check_input(input_shape(config, store, encoder.rank(), encoder.reduction())?)?;
    config.aug.augmenter(encoder.rank(), config.train.slices, &[]).map(drop)
}

/// The variables that weights are loaded into, of new values. Errors if the decoder does not fit the inputs. After [`check_shapes`].
pub fn variables(config: &FinetuneConfig, store: &Store, encoder: &EncoderConfig) -> Result<HashMap<String, Tensor>> {
    let vs = VarStore::new(Device::Cpu);
    let network = encoder.build(vs.root() / ENCODER.trim_end_matches('.'));
    if config.task == DownstreamKind::Segmentation {
        Decoder::check_input(network.as_ref(), input_shape(config, store, encoder.rank(), encoder.reduction())?)
            .context("--patch")?;
        let path = DECODER.split_terminator('.').fold(vs.root(), |path, part| path / part);
        let outputs = store.index().labelling().map_or(0, |labelling| labelling.outputs().len()) as i64;
        Decoder::new(path, network.as_ref(), outputs, config.segmentation.deep_supervision);
    }
    Ok(vs.variables())
}

/// Shape of the inputs of an encoder that pools by `reduction`. After [`check`].
pub fn input_shape(config: &FinetuneConfig, store: &Store, rank: Rank, reduction: PerAxis) -> Result<Shape> {
    match config.task {
        DownstreamKind::Segmentation => config.segmentation.patch_shape(store, rank, reduction),
        DownstreamKind::Classification | DownstreamKind::Regression => common_shape(store),
    }
}

/// Augmentation of samples with outputs of these names, and with voxels' labels where there are some; what it does with names that have
/// a side is said.
fn augmenter(config: &FinetuneConfig, rank: Rank, outputs: &[&str], labelling: Option<&Labelling>) -> Result<Augmenter> {
    let mut augmenter = config.aug.augmenter(rank, config.train.slices, outputs)?;
    if let Some(labelling) = labelling {
        augmenter = augmenter.of_labels(labelling);
    }
    if let Some(text) = augmenter.note() {
        note!("--aug-flip: {text}");
    }
    Ok(augmenter)
}

/// The shape of scans that are taken whole.
fn whole_shape(store: &Store, rank: Rank) -> Result<Shape> {
    let shape = common_shape(store)?;
    ensure!(rank == Rank::of(shape), "--slices goes with --task segmentation; classification and regression take scans whole");
    Ok(shape)
}

/// Builds the task for the scans that are trained on. After [`check`].
pub fn build(
    config: &FinetuneConfig,
    store: &Store,
    train: &Arc<Subset>,
    encoder: &EncoderConfig,
) -> Result<(Arc<dyn Task>, DownstreamConfig)> {
    let (rank, index) = (encoder.rank(), store.index());
    let weights = |counts: &[u64]| ClassWeights::resolve(config.class_weights.as_ref(), counts);
    Ok(match config.task {
        DownstreamKind::Segmentation => {
            let labelling = index.labelling().unwrap_or_default();
            labelling.check().with_context(|| store.folder().display().to_string())?;
            let patch = config.segmentation.patch_shape(store, rank, encoder.reduction())?;
            let foreground = Arc::new(Foreground::of(train, &labelling)?);
            let weights = weights(&labelling.counts(&foreground.per_class_counts()))?;
            let segmentation = config.segmentation.clone();
            let groups = regions::groups(&regions::scored(config.regions, &labelling)?, &labelling);
            let augmenter = augmenter(config, rank, &labelling.outputs(), Some(&labelling))?;
            let task = Segmentation::new(&segmentation, augmenter, patch, labelling.clone(), weights, foreground)?
                .judged_by(groups)
                .with_given_decoder(config.transfer == Transfer::All);
            (Arc::new(task), DownstreamConfig::segmentation(labelling, patch, segmentation))
        }
        DownstreamKind::Classification => {
            let (column, classes, ordered) = match store.targets() {
                Some(Targets { column, values: Values::Classes { names, ordered, .. } }) => {
                    (column.clone(), names.clone(), *ordered)
                }
                _ => bail!("{}: no scan of the store has a class", store.folder().display()),
            };
            let shape = whole_shape(store, rank)?;
            let mut counts = vec![0; classes.len()];
            (0..train.len()).filter_map(|scan| train.class(scan)).for_each(|class| counts[usize::from(class)] += 1);
            let mut classification = config.classification.clone();
            let usual = if ordered { Outputs::Ordinal } else { Outputs::Softmax };
            let outputs = *classification.outputs.get_or_insert(usual);
            ensure!(
                ordered || outputs == Outputs::Softmax,
                "--outputs ordinal: the classes {} have no order; --classes gives them one",
                classes.join(", ")
            );
            let names: Vec<&str> = classes.iter().map(String::as_str).collect();
            let augmenter = augmenter(config, rank, &names, None)?;
            let score = Score::new(ordered);
            let task = Classification::new(&classification, augmenter, shape, classes.clone(), weights(&counts)?, score);
            let column = Some(column);
            (Arc::new(task), DownstreamConfig::Classification { classes, ordered, shape, classification, column })
        }
        DownstreamKind::Regression => {
            let column = store.targets().map(|targets| targets.column.clone());
            let column =
                column.with_context(|| format!("{}: no scan of the store has a quantity", store.folder().display()))?;
            let shape = whole_shape(store, rank)?;
            let quantities: Vec<f64> = (0..train.len()).filter_map(|scan| train.quantity(scan)).collect();
            let standard = Standard::of(&quantities).with_context(|| format!("column `{}`", column.name))?;
            let augmenter = augmenter(config, rank, &[], None)?;
            let (regression, dropout) = (config.regression.clone(), config.classification.head_dropout);
            let task = Regression::new(&regression, dropout, augmenter, shape, standard);
            (Arc::new(task), DownstreamConfig::Regression { column, standard, shape, regression, dropout })
        }
    })
}
