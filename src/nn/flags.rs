//! The flags that name an encoder.

use super::stages::{STAGES, all_kernels, all_strides, planned};
use super::{Architecture, DenseNetConfig, EncoderConfig, NormKind, UNetConfig, limits};
use crate::dim::{PerAxis, Rank, Shape};
use crate::print::note;
use anyhow::{Result, ensure};
use clap::{Args, Command};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use std::fmt;
use std::path::Path;

// A doc comment on a configuration's type would become the command's help.
#[derive(Clone, Debug, Default, PartialEq, Serialize, clap::Args)]
#[command(next_help_heading = "Network")]
pub struct EncoderFlags {
    /// The encoder [default: that of the weights, without weights unet]
    #[arg(long, value_enum)]
    pub encoder: Option<Architecture>,
    /// Filters of the first level, doubled at each further level, in nnU-Net's encoders up to 10 times as many (images: 16 times)
    /// [default: those of the weights, without weights unet and resenc-s 16, plainconv, resenc-m and resenc-l 32]
    #[arg(long)]
    pub filters: Option<i64>,
    /// Levels; the resolution is halved between them [default: those of the weights, without weights unet 5, nnU-Net's encoders 6, with
    /// instance normalisation as many of them as the inputs are large enough for]
    #[arg(long)]
    pub levels: Option<usize>,
    /// Normalisation of the U-Net and of a decoder on it; nnU-Net's encoders have instance, densenet121 has batch [default: that of the
    /// weights, without weights instance]
    #[arg(long, value_enum)]
    pub norm: Option<NormKind>,
    /// Filters of each level of one of nnU-Net's encoders, such as 32,64,128,256,320,320, instead of --filters
    #[arg(long, value_delimiter = ',', value_name = "N,...", conflicts_with = "filters")]
    pub features: Vec<i64>,
    /// Convolutions of each level of plainconv, residual blocks of each level of resenc [default: those of the weights, without weights
    /// plainconv 2,2,..., resenc-s and resenc-m 1,2,2,..., resenc-l 1,3,4,6,6,...]
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    pub blocks: Vec<usize>,
    /// Kernels of the first levels of one of nnU-Net's encoders, for scans whose voxels are longer along an axis: left to right, back to
    /// front, bottom to top, such as 3x3x1,3x3x1 for thick axial slices; further levels have 3x3x3
    #[arg(long, value_delimiter = ',', value_name = "AxBxC,...")]
    #[serde(serialize_with = "as_text")]
    pub kernels: Vec<PerAxis>,
    /// Strides into the first levels, the finest 1x1x1, such as 1x1x1,2x2x1,2x2x1; further levels have 2 along each axis that the kernels of
    /// the level before are longer than 1
    #[arg(long, value_delimiter = ',', value_name = "AxBxC,...")]
    #[serde(serialize_with = "as_text")]
    pub strides: Vec<PerAxis>,
}

/// As the flags are written.
fn as_text<S: Serializer>(sides: &[PerAxis], to: S) -> std::result::Result<S::Ok, S::Error> {
    text(sides).serialize(to)
}

impl EncoderFlags {
    /// Names of the flags.
    pub fn names() -> Vec<String> {
        let command = EncoderFlags::augment_args(Command::new(""));
        command.get_arguments().filter_map(|argument| argument.get_long()).map(str::to_owned).collect()
    }

    /// Checks ranges that the parser cannot.
    pub fn check(&self) -> Result<()> {
        limits::within("--filters", &limits::CHANNELS, self.filters)?;
        limits::within("--levels", &limits::LEVELS, self.levels)?;
        let named = |n: usize| (n > 0).then_some(n);
        limits::within("levels named by --features", &limits::LEVELS, named(self.features.len()))?;
        limits::within("levels named by --blocks", &limits::LEVELS, named(self.blocks.len()))
    }

    /// Levels of one of nnU-Net's encoders.
    pub fn stages(&self) -> usize {
        let named = [self.features.len(), self.blocks.len()].into_iter().find(|n| *n > 0);
        self.levels.or(named).unwrap_or(STAGES)
    }

    /// The encoder that is asked for, a U-Net unless said otherwise. Errors if flags contradict each other or the data.
    pub fn config(&self, rank: Rank, in_channels: i64, dropout: f64) -> Result<EncoderConfig> {
        self.check()?;
        let config = self.unchecked(rank, in_channels, dropout)?;
        config.check()?;
        Ok(config)
    }

    fn unchecked(&self, rank: Rank, in_channels: i64, dropout: f64) -> Result<EncoderConfig> {
        let architecture = self.encoder.unwrap_or(Architecture::UNet);
        let Some(preset) = architecture.preset() else {
            for (flag, given) in [
                ("features", !self.features.is_empty()),
                ("blocks", !self.blocks.is_empty()),
                ("kernels", !self.kernels.is_empty()),
                ("strides", !self.strides.is_empty()),
            ] {
                ensure!(!given, "--{flag} goes with --encoder plainconv, resenc-s, resenc-m or resenc-l only");
            }
            return self.of_the_paper(architecture, rank, in_channels, dropout);
        };
        ensure!(
            self.norm != Some(NormKind::Batch),
            "--norm batch goes with --encoder unet only: nnU-Net's have instance normalisation"
        );
        Ok(EncoderConfig::NnUNet { architecture, stages: preset.config(self, rank, in_channels, dropout)? })
    }

    fn of_the_paper(&self, architecture: Architecture, rank: Rank, in_channels: i64, dropout: f64) -> Result<EncoderConfig> {
        if architecture == Architecture::UNet {
            let paper = UNetConfig::paper(rank, in_channels);
            let (filters, levels) = (self.filters.unwrap_or(paper.filters), self.levels.unwrap_or(paper.levels));
            let norm = self.norm.unwrap_or(NormKind::DEFAULT);
            return Ok(EncoderConfig::UNet(UNetConfig { filters, levels, dropout, norm, ..paper }));
        }
        ensure!(rank == Rank::Two, "--encoder densenet121 takes images, the store holds {}D data", rank.n());
        ensure!(self.filters.is_none() && self.levels.is_none(), "--filters and --levels are not for --encoder densenet121");
        ensure!(
            self.norm != Some(NormKind::Instance),
            "--norm instance is not for --encoder densenet121: it is torchvision's, whose weights need BatchNorm"
        );
        Ok(EncoderConfig::DenseNet121(DenseNetConfig { in_channels, dropout }))
    }

    /// These flags, then, where nobody names a number of levels and it is a choice, with fewer and fewer.
    fn candidates(&self, rank: Rank) -> impl Iterator<Item = Self> {
        let named = self.levels.is_some() || !self.features.is_empty() || !self.blocks.is_empty();
        let fixed = named || self.encoder == Some(Architecture::DenseNet121);
        let most = if fixed { 0 } else { self.config(rank, 1, 0.).map_or(0, |config| config.levels().len()) };
        // No fewer than are named by their kernels and strides.
        let least = self.kernels.len().max(self.strides.len()).max(1);
        let fewer = (least..most).rev().map(|levels| EncoderFlags { levels: Some(levels), ..self.clone() });
        std::iter::once(self.clone()).chain(fewer)
    }

    /// The networks that [`EncoderFlags::fitted`] chooses from, of one channel; the first is what was asked for.
    pub fn networks(&self, rank: Rank) -> impl Iterator<Item = Result<EncoderConfig>> {
        self.candidates(rank).map(move |flags| flags.config(rank, 1, 0.))
    }

    /// With fewer levels than the default, where nobody names a number, if inputs of these shapes are too small for instance
    /// normalisation at the deepest one.
    pub fn fitted(&self, rank: Rank, inputs: &[Shape]) -> Result<Self> {
        for flags in self.candidates(rank) {
            let config = flags.config(rank, 1, 0.)?;
            if !inputs.iter().all(|&input| config.fits(input)) {
                continue;
            }
            if let (None, Some(levels)) = (self.levels, flags.levels) {
                note!(
                    "--levels {levels}: with more, instance normalisation has a single voxel to normalise at the deepest one"
                );
            }
            return Ok(flags);
        }
        Ok(self.clone())
    }

    /// Says what nnU-Net would take for voxels of this mean size in mm, where that is not the same along every axis and nobody names it.
    /// `network`: the one that these flags led to.
    pub fn note_spacing(&self, network: &EncoderConfig, spacing: [f64; 3]) {
        let named = !self.kernels.is_empty() || !self.strides.is_empty();
        if network.rank() == Rank::Two || named || network.stages().is_none() {
            return;
        }
        let [kernels, strides] = planned(spacing, network.levels().len()).map(|sides| text(&sides).join(","));
        if !kernels.is_empty() {
            let size = crate::dim::millimetres(&spacing);
            note!(
                "voxels of {size} mm on average: for these nnU-Net takes --kernels {kernels} --strides {strides}, this run takes the same along every axis"
            );
        }
    }

    /// With what weights say of their encoder; `file`: of the weights. Errors if it is of data of another rank, or a flag asks for
    /// something else.
    pub fn of_weights(&self, found: &EncoderConfig, rank: Rank, file: &Path) -> Result<Self> {
        let (name, architecture) = (file.display(), found.architecture());
        let own = found.rank();
        ensure!(own == rank, "{name}: the encoder of {}D data, the run is on {}D data", own.n(), rank.n());
        ensure!(
            self.encoder.is_none_or(|asked| asked == architecture),
            "--encoder: {name} holds another one, {}",
            json!(architecture)
        );
        let flags = EncoderFlags { encoder: Some(architecture), ..self.clone() };
        match found {
            EncoderConfig::DenseNet121(_) => Ok(flags),
            EncoderConfig::UNet(has) => {
                agree(
                    file,
                    [
                        ("filters", json!(self.filters), json!(has.filters)),
                        ("levels", json!(self.levels), json!(has.levels)),
                        ("norm", json!(self.norm), json!(has.norm)),
                    ],
                )?;
                let (filters, levels, norm) = (Some(has.filters), Some(has.levels), Some(has.norm));
                Ok(EncoderFlags { filters, levels, norm, ..flags })
            }
            EncoderConfig::NnUNet { stages: has, .. } => {
                let levels = has.features.len();
                for (flag, given) in [("kernels", self.kernels.len()), ("strides", self.strides.len())] {
                    ensure!(given <= levels, "--{flag} names {given} levels, {name} has {levels}");
                }
                let list = |given: bool, value: Value| if given { value } else { Value::Null };
                let sides = |given: &[PerAxis], all: Vec<PerAxis>| list(!given.is_empty(), json!(text(&all)));
                agree(
                    file,
                    [
                        ("levels", json!(self.levels), json!(levels)),
                        ("filters", json!(self.filters), json!(has.features[0])),
                        ("features", list(!self.features.is_empty(), json!(self.features)), json!(has.features)),
                        ("blocks", list(!self.blocks.is_empty(), json!(self.blocks)), json!(has.blocks)),
                        ("kernels", sides(&self.kernels, all_kernels(&self.kernels, rank, levels)), json!(text(&has.kernels))),
                        ("strides", sides(&self.strides, all_strides(&self.strides, &has.kernels)), json!(text(&has.strides))),
                        ("norm", json!(self.norm), json!(NormKind::Instance)),
                    ],
                )?;
                let (features, blocks) = (has.features.clone(), has.blocks.clone());
                let (kernels, strides) = (has.kernels.clone(), has.strides.clone());
                Ok(EncoderFlags {
                    filters: None,
                    levels: Some(levels),
                    norm: None,
                    features,
                    blocks,
                    kernels,
                    strides,
                    ..flags
                })
            }
        }
    }
}

/// As its flags say it, but for what is no flag: the input channels.
impl fmt::Display for EncoderConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", word(&json!(self.architecture())))?;
        match self {
            EncoderConfig::DenseNet121(_) => Ok(()),
            EncoderConfig::UNet(UNetConfig { filters, levels, norm, .. }) => {
                write!(f, ", filters {filters}, levels {levels}, norm {}", word(&json!(norm)))
            }
            EncoderConfig::NnUNet { stages, .. } => [
                ("features", json!(stages.features)),
                ("blocks", json!(stages.blocks)),
                ("kernels", json!(text(&stages.kernels))),
                ("strides", json!(text(&stages.strides))),
            ]
            .iter()
            .try_for_each(|(flag, value)| write!(f, ", {flag} {}", word(value))),
        }
    }
}

fn text(sides: &[PerAxis]) -> Vec<String> {
    sides.iter().map(PerAxis::to_string).collect()
}

/// A value as on a command line.
fn word(value: &Value) -> String {
    match value {
        Value::Array(items) => items.iter().map(word).collect::<Vec<_>>().join(","),
        value => value.as_str().map_or(value.to_string(), str::to_owned),
    }
}

/// Errors if a flag asks for something else than the weights in `file` have; `null`: it does not ask.
fn agree<const N: usize>(file: &Path, asked: [(&str, Value, Value); N]) -> Result<()> {
    for (flag, asked, has) in asked {
        ensure!(asked.is_null() || asked == has, "--{flag} {}: {} has {}", word(&asked), file.display(), word(&has));
    }
    Ok(())
}
