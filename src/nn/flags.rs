//! The flags that name an encoder.

use super::{Architecture, DenseNetConfig, EncoderConfig, NormKind, UNetConfig};
use crate::dim::{Rank, Shape};
use crate::print::note;
use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;

// A doc comment on a configuration's type would become the command's help.
#[derive(Clone, Debug, Default, PartialEq, Serialize, clap::Args)]
#[command(next_help_heading = "Network")]
pub struct EncoderFlags {
    /// The encoder [default: that of the weights, without weights unet]
    #[arg(long, value_enum)]
    pub encoder: Option<Architecture>,
    /// Filters of the U-Net's first level, doubled at each further level [default: those of the weights, without weights 16]
    #[arg(long)]
    pub filters: Option<i64>,
    /// Levels of the U-Net; it halves the resolution between them [default: those of the weights, without weights 5, with --norm
    /// instance as many of them as the inputs are large enough for]
    #[arg(long)]
    pub levels: Option<usize>,
    /// Normalisation of the U-Net and of a decoder on it [default: that of the weights, without weights batch]
    #[arg(long, value_enum)]
    pub norm: Option<NormKind>,
}

impl EncoderFlags {
    /// Checks ranges that the parser cannot.
    pub fn check(&self) -> Result<()> {
        let (filters, levels) = (self.filters.unwrap_or(1), self.levels.unwrap_or(1));
        ensure!(filters >= 1, "--filters must be at least 1, found {filters}");
        ensure!((1..=8).contains(&levels), "--levels must be 1 to 8, found {levels}");
        Ok(())
    }

    /// The encoder that is asked for, a U-Net unless said otherwise. Errors if flags contradict each other or the data.
    pub fn config(&self, rank: Rank, in_channels: i64, dropout: f64) -> Result<EncoderConfig> {
        Ok(match self.encoder.unwrap_or(Architecture::UNet) {
            Architecture::UNet => {
                let paper = UNetConfig::paper(rank, in_channels);
                let (filters, levels) = (self.filters.unwrap_or(paper.filters), self.levels.unwrap_or(paper.levels));
                let norm = self.norm.unwrap_or(NormKind::DEFAULT);
                EncoderConfig::UNet(UNetConfig { filters, levels, dropout, norm, ..paper })
            }
            Architecture::DenseNet121 => {
                ensure!(rank == Rank::Two, "--encoder densenet121 takes images, the store holds {}D data", rank.n());
                let unet = self.filters.is_some() || self.levels.is_some();
                ensure!(!unet, "--filters and --levels go with --encoder unet only");
                ensure!(
                    self.norm != Some(NormKind::Instance),
                    "--norm instance goes with --encoder unet only: densenet121 is torchvision's, whose weights need BatchNorm"
                );
                EncoderConfig::DenseNet121(DenseNetConfig { in_channels, dropout })
            }
        })
    }

    /// With fewer levels than the default, where nobody names a number, if inputs of these shapes are too small for instance
    /// normalisation at the deepest one.
    pub fn fitted(&self, rank: Rank, inputs: &[Shape]) -> Result<Self> {
        let fits = |flags: &EncoderFlags| -> Result<bool> {
            let config = flags.config(rank, 1, 0.)?;
            Ok(inputs.iter().all(|&input| config.check_input(input).is_ok()))
        };
        if self.levels.is_some() || fits(self)? {
            return Ok(self.clone());
        }
        for levels in (1..UNetConfig::paper(rank, 1).levels).rev() {
            let fewer = EncoderFlags { levels: Some(levels), ..self.clone() };
            if fits(&fewer)? {
                note!("--levels {levels}: with more, --norm instance has a single voxel to normalise at the deepest one");
                return Ok(fewer);
            }
        }
        Ok(self.clone())
    }

    /// With what weights say of their encoder; `file`: of the weights. Errors if it is of data of another rank, or a flag asks for
    /// something else.
    pub fn of_weights(&self, found: &EncoderConfig, rank: Rank, file: &Path) -> Result<Self> {
        let (file, architecture) = (file.display(), found.architecture());
        let own = found.rank();
        ensure!(own == rank, "{file}: the encoder of {}D data, the run is on {}D data", own.n(), rank.n());
        ensure!(
            self.encoder.is_none_or(|asked| asked == architecture),
            "--encoder: {file} holds another one, {}",
            json!(architecture)
        );
        let mut flags = EncoderFlags { encoder: Some(architecture), ..self.clone() };
        if let EncoderConfig::UNet(has) = found {
            let asked = [
                ("filters", json!(self.filters), json!(has.filters)),
                ("levels", json!(self.levels), json!(has.levels)),
                ("norm", json!(self.norm), json!(has.norm)),
            ];
            for (flag, asked, has) in asked {
                let word = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
                ensure!(asked.is_null() || asked == has, "--{flag} {}: {file} has {}", word(&asked), word(&has));
            }
            (flags.filters, flags.levels, flags.norm) = (Some(has.filters), Some(has.levels), Some(has.norm));
        }
        Ok(flags)
    }
}
