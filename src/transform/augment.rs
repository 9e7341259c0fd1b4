//! Augmentation of an image and its label together, for fine-tuning. The spatial part moves both by one map, the label by its
//! nearest voxel only; the intensity part changes the image, each channel by itself. Probabilities and ranges follow nnU-Net.

use super::intensity::{self, IntensityChange, Stats};
use super::mirror::{MirrorAxis, Mirroring};
use super::mr::{MrChange, MrKind};
use super::resample::{self, Interpolation, Resample};
use crate::data::labelling::{IGNORE, Labelling};
use crate::data::slices::Slices;
use crate::dim::{Rank, Shape, voxels};
use crate::rng::{Rng, normal_pair};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rand::{Rng as _, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Smallest and largest value of a range, `LO,HI` as text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval(pub [f32; 2]);

impl std::str::FromStr for Interval {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<f32>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[low, high]) => Ok(Interval([low, high])),
            _ => Err(format!("expected two numbers LO,HI, found `{text}`")),
        }
    }
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{},{}", self.0[0], self.0[1])
    }
}

// A doc comment on a configuration's type would become the command's help.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Augmentation")]
pub struct AugmentConfig {
    /// No augmentation at all
    #[arg(id = "aug-off", long = "aug-off")]
    pub off: bool,
    /// Probability of a mirror image along each of --aug-flip-axes, by itself. Where left and right change places, so do classes whose
    /// names differ in left and right alone; a class with a side and no counterpart keeps that axis from being mirrored
    #[arg(id = "aug-flip", long = "aug-flip", value_name = "P", default_value_t = Self::default().flip)]
    pub flip: f64,
    /// Axes that --aug-flip mirrors, separated by commas [default: all]
    #[arg(id = "aug-flip-axes", long = "aug-flip-axes", value_name = "AXIS,...", value_enum, value_delimiter = ',')]
    pub flip_axes: Vec<MirrorAxis>,
    /// Probability of a rotation with scaling
    #[arg(id = "aug-spatial", long = "aug-spatial", value_name = "P", default_value_t = Self::default().spatial)]
    pub spatial: f64,
    /// Largest angle of the rotation, either way, about a random axis (images: in their plane)
    #[arg(id = "aug-degrees", long = "aug-degrees", value_name = "DEGREES", default_value_t = Self::default().degrees)]
    pub degrees: f32,
    /// Magnification, drawn for each axis
    #[arg(id = "aug-scale", long = "aug-scale", value_name = "LO,HI", default_value_t = Self::default().scale)]
    pub scale: Interval,
    /// Probability of a brightness shift, for each channel
    #[arg(id = "aug-brightness-p", long = "aug-brightness-p", value_name = "P", default_value_t = Self::default().brightness_p)]
    pub brightness_p: f64,
    /// Largest brightness shift, either way, as a share of the channel's range
    #[arg(id = "aug-brightness", long = "aug-brightness", value_name = "SHARE", default_value_t = Self::default().brightness)]
    pub brightness: f32,
    /// Probability of a change of contrast, for each channel
    #[arg(id = "aug-contrast-p", long = "aug-contrast-p", value_name = "P", default_value_t = Self::default().contrast_p)]
    pub contrast_p: f64,
    /// Contrast about the channel's mean
    #[arg(id = "aug-contrast", long = "aug-contrast", value_name = "LO,HI", default_value_t = Self::default().contrast)]
    pub contrast: Interval,
    /// Probability of a gamma curve, for each channel
    #[arg(id = "aug-gamma-p", long = "aug-gamma-p", value_name = "P", default_value_t = Self::default().gamma_p)]
    pub gamma_p: f64,
    /// Exponent of the gamma curve over the channel's range
    #[arg(id = "aug-gamma", long = "aug-gamma", value_name = "LO,HI", default_value_t = Self::default().gamma)]
    pub gamma: Interval,
    /// Probability of Gaussian noise, for each channel
    #[arg(id = "aug-noise-p", long = "aug-noise-p", value_name = "P", default_value_t = Self::default().noise_p)]
    pub noise_p: f64,
    /// Largest standard deviation of the noise, as a share of the channel's range
    #[arg(id = "aug-noise", long = "aug-noise", value_name = "SHARE", default_value_t = Self::default().noise)]
    pub noise: f32,
    /// Probability of each artefact of magnetic resonance, for each channel: bias field, motion, ghosting, Gibbs ringing, low resolution,
    /// blur. For MR only: in CT and photographs they do not arise
    #[arg(id = "aug-mr", long = "aug-mr", value_name = "P", default_value_t = Self::default().mr)]
    pub mr: f64,
    /// Artefacts that --aug-mr draws, separated by commas [default: all]
    #[arg(id = "aug-mr-kinds", long = "aug-mr-kinds", value_name = "KIND,...", value_enum, value_delimiter = ',')]
    pub mr_kinds: Vec<MrKind>,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        AugmentConfig {
            off: false,
            // Anatomy has a side: mirror images cost much where labels or their surroundings have one.
            flip: 0.,
            flip_axes: vec![],
            spatial: 0.3,
            degrees: 15.,
            scale: Interval([0.85, 1.15]),
            brightness_p: 0.15,
            brightness: 0.1,
            contrast_p: 0.15,
            contrast: Interval([0.75, 1.25]),
            gamma_p: 0.3,
            gamma: Interval([0.7, 1.5]),
            noise_p: 0.1,
            noise: 0.05,
            mr: 0.,
            mr_kinds: vec![],
        }
    }
}

/// Everything that is drawn for one sample; applied again, it gives the same bits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    pub spatial: Resample,
    /// Class of what enters from outside.
    #[serde(default, skip_serializing_if = "is_background")]
    pub outside: u8,
    /// Class that each class becomes, where left and right have changed places and classes have a side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<u8>>,
    pub channels: Vec<ChannelChange>,
}

fn is_background(class: &u8) -> bool {
    *class == 0
}

/// Augmentation of images of one kind, with classes.
#[derive(Clone, Debug)]
pub struct Augmenter {
    config: AugmentConfig,
    rank: Rank,
    mirroring: Mirroring,
    /// Class of what enters from outside.
    outside: u8,
}

/// Change of one channel's intensities, in the order of the fields; `None` leaves them as they are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelChange {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mr: Vec<MrChange>,
    pub intensity: Option<IntensityChange>,
    pub gamma: Option<f32>,
    pub noise: Option<Noise>,
}

/// Additive Gaussian noise, independent in every voxel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    /// Standard deviation as a share of the channel's range.
    pub sd: f32,
    pub seed: u64,
}

impl AugmentConfig {
    /// Checks ranges that the parser cannot.
    pub fn check(&self) -> Result<()> {
        for (name, p) in [
            ("flip", self.flip),
            ("spatial", self.spatial),
            ("brightness-p", self.brightness_p),
            ("contrast-p", self.contrast_p),
            ("gamma-p", self.gamma_p),
            ("noise-p", self.noise_p),
            ("mr", self.mr),
        ] {
            ensure!((0. ..=1.).contains(&p), "--aug-{name} is a probability, 0 to 1, found {p}");
        }
        for (name, Interval([low, high]), least, most) in [
            ("scale", self.scale, 0.1, 10.),
            // At 0 the channel would be blank.
            ("contrast", self.contrast, 0.01, 100.),
            ("gamma", self.gamma, 0.01, 100.),
        ] {
            ensure!(
                least <= low && low <= high && high <= most,
                "--aug-{name} takes LO,HI with {least} <= LO <= HI <= {most}, found {low},{high}"
            );
        }
        for (name, value, most) in
            [("degrees", self.degrees, 180.), ("brightness", self.brightness, 10.), ("noise", self.noise, 10.)]
        {
            ensure!((0. ..=most).contains(&value), "--aug-{name} must lie in 0 to {most}, found {value}");
        }
        ensure!(
            self.flip_axes.is_empty() || self.flip > 0.,
            "--aug-flip-axes goes with --aug-flip, the probability of a mirror image, which is 0"
        );
        ensure!(
            self.mr_kinds.is_empty() || self.mr > 0.,
            "--aug-mr-kinds goes with --aug-mr, the probability of each of them, which is 0"
        );
        Ok(())
    }

    /// Settings of a fine-tuned run, as [`crate::settings::resolved`] gives them.
    pub fn of_settings(settings: &Map<String, Value>) -> Result<AugmentConfig> {
        let own = |(key, value): (&String, &Value)| Some((key.strip_prefix("aug-")?.replace('-', "_"), value.clone()));
        Ok(serde_json::from_value(Value::Object(settings.iter().filter_map(own).collect()))?)
    }

    /// For images of a rank, or slices of volumes, with these classes; see [`Mirroring::new`]. [`AugmentConfig::check`] has been passed.
    pub fn augmenter(&self, rank: Rank, slices: Option<Slices>, classes: &[&str]) -> Result<Augmenter> {
        let mirroring = Mirroring::new(&self.flip_axes, rank, slices, classes).context("--aug-flip-axes")?;
        Ok(Augmenter { config: self.clone(), rank, mirroring, outside: 0 })
    }

    /// Whether there are mirror images.
    pub fn mirrors(&self) -> bool {
        !self.off && self.flip > 0.
    }

    fn draw_channel(&self, rank: Rank, shape: Shape, rng: &mut Rng) -> ChannelChange {
        let ranges = intensity::IntensityRanges { contrast: self.contrast.0, shift: self.brightness };
        let mut intensity = ranges.draw(rng);
        if !rng.random_bool(self.brightness_p) {
            intensity.shift = 0.;
        }
        if !rng.random_bool(self.contrast_p) {
            intensity.contrast = 1.;
        }
        let [low, high] = self.gamma.0;
        let gamma = rng.random_bool(self.gamma_p).then(|| gamma_between(low, high, rng));
        let noise = rng.random_bool(self.noise_p).then(|| Noise { sd: self.noise * rng.random::<f32>(), seed: rng.random() });
        // Nothing is drawn where there are none, so that other draws stay what they were.
        let mut mr = vec![];
        if self.mr > 0. {
            for kind in MrKind::value_variants() {
                if (self.mr_kinds.is_empty() || self.mr_kinds.contains(kind)) && rng.random_bool(self.mr) {
                    mr.push(kind.draw(rank, shape, rng));
                }
            }
        }
        ChannelChange {
            mr,
            intensity: Some(intensity).filter(|i| i.contrast != 1. || i.shift != 0.),
            gamma: gamma.filter(|&gamma| gamma != 1.),
            noise: noise.filter(|noise| noise.sd != 0.),
        }
    }
}

impl Augmenter {
    /// What the user is told of mirror images of classes that have a side.
    pub fn note(&self) -> Option<&str> {
        self.mirroring.note.as_deref().filter(|_| self.config.mirrors())
    }

    /// For labels that mean this; mirror images were drawn by the names of its outputs. Where only some voxels are labelled, what enters
    /// from outside is not: there is so much of it that it would outweigh them.
    pub fn of_labels(mut self, labelling: &Labelling) -> Augmenter {
        self.mirroring.of_classes(labelling);
        self.outside = if labelling.ignore.is_some() { IGNORE } else { 0 };
        self
    }

    /// Draws the augmentation of a sample of this shape, with this many channels.
    pub fn draw(&self, channels: usize, shape: Shape, rng: &mut Rng) -> Augmentation {
        let config = &self.config;
        if config.off {
            let channels = vec![ChannelChange::default(); channels];
            return Augmentation { spatial: Resample::IDENTITY, outside: self.outside, classes: None, channels };
        }
        let ranges =
            resample::ResampleRanges { flip: config.flip, right_angle: 0., degrees: config.degrees, zoom: config.scale.0 };
        let mut spatial = ranges.draw(self.rank, shape, rng);
        (0..3).for_each(|a| spatial.flip[a] &= self.mirroring.axes[a]);
        if !rng.random_bool(config.spatial) {
            spatial = Resample { flip: spatial.flip, ..Resample::IDENTITY };
        }
        let classes = self.mirroring.classes(spatial.flip).map(<[u8]>::to_vec);
        let channels = (0..channels).map(|_| config.draw_channel(self.rank, shape, rng)).collect();
        Augmentation { spatial, outside: self.outside, classes, channels }
    }
}

/// Uniform in the logarithm, so that brightening by a factor is as likely as darkening by it; nnU-Net draws the two sides of 1 with
/// equal probability, to the same end.
fn gamma_between(low: f32, high: f32, rng: &mut Rng) -> f32 {
    (low.ln() + rng.random::<f32>() * (high / low).ln()).exp().clamp(low, high)
}

impl Augmentation {
    /// The part that moves voxels, and the part that changes their intensities, each without the other.
    pub fn apart(self) -> (Augmentation, Augmentation) {
        let unchanged = vec![ChannelChange::default(); self.channels.len()];
        (
            Augmentation { channels: unchanged, ..self.clone() },
            Augmentation { spatial: Resample::IDENTITY, classes: None, ..self },
        )
    }

    /// Augments `image`, `[C, D, H, W]`, and its `label`, `[D, H, W]`, both of `shape`, in place. In this order: flips, rotation and
    /// scaling in one map and one interpolation (image linear, label nearest; what enters from outside is the channel's minimum
    /// and of [`Augmentation::outside`]); classes that have a side; then for each channel artefacts of magnetic resonance, contrast and brightness, gamma, noise. Mean,
    /// minimum and range of a channel are those of all that was read, before anything was changed, but for artefacts, which set them anew.
    /// Flips alone are exact. Errors on lengths that disagree.
    ///
    /// Of a part of a scan, [`augmented`](crate::sample::turned::augmented) reads what enters from outside as well.
    pub fn apply(&self, image: &mut [f32], mut label: Option<&mut [u8]>, shape: Shape) -> Result<()> {
        let (n, channels) = (voxels(shape), self.channels.len());
        ensure!(
            image.len() == channels * n && label.as_ref().is_none_or(|label| label.len() == n),
            "augmenting {channels} channels of {shape:?}: image of {}, label of {:?} values",
            image.len(),
            label.map(|label| label.len())
        );
        if n == 0 {
            return Ok(());
        }
        let resampled = self.spatial.resamples();
        let changed = |change: &ChannelChange| *change != ChannelChange::default();
        let stats: Vec<Option<Stats>> = (image.chunks_exact(n).zip(&self.channels))
            .map(|(channel, change)| (resampled || changed(change)).then(|| Stats::of(channel)))
            .collect();
        if resampled {
            let fill: Vec<f32> = stats.iter().flatten().map(|stats| stats.min).collect();
            let input = image.to_vec();
            self.spatial.apply(&input, shape, Interpolation::Linear, &fill, image).context("augmentation")?;
            if let Some(label) = label.as_deref_mut() {
                let input = label.to_vec();
                self.spatial.apply_label(&input, shape, self.outside, label).context("augmentation")?;
            }
        } else if self.spatial.flip != [false; 3] {
            image.chunks_exact_mut(n).for_each(|channel| flip(channel, shape, self.spatial.flip));
            if let Some(label) = label.as_deref_mut() {
                flip(label, shape, self.spatial.flip);
            }
        }
        self.finish(&stats, image, label, shape);
        Ok(())
    }

    /// The part of [`Augmentation::apply`] after voxels were moved. `stats`: of each channel before that; `None`: it is left as it is.
    pub fn finish(&self, stats: &[Option<Stats>], image: &mut [f32], label: Option<&mut [u8]>, shape: Shape) {
        if let Some(label) = label {
            label.iter_mut().for_each(|class| *class = self.class(*class));
        }
        for ((channel, change), stats) in image.chunks_exact_mut(voxels(shape)).zip(&self.channels).zip(stats) {
            if let Some(stats) = stats {
                change.apply(*stats, channel, shape);
            }
        }
    }

    /// What a class becomes.
    pub fn class(&self, class: u8) -> u8 {
        self.classes.as_ref().and_then(|classes| classes.get(usize::from(class)).copied()).unwrap_or(class)
    }
}

impl ChannelChange {
    /// Changes a channel in place; `stats` are those of the channel before it was moved.
    fn apply(&self, mut stats: Stats, channel: &mut [f32], shape: Shape) {
        self.mr.iter().for_each(|change| change.apply(channel, shape));
        if !self.mr.is_empty() {
            stats = Stats::of(channel);
        }
        let mut bounds = [stats.min, stats.max];
        if let Some(intensity) = self.intensity {
            intensity.apply(stats, channel);
            intensity.apply(stats, &mut bounds);
        }
        let [low, range] = [bounds[0], bounds[1] - bounds[0]];
        if let Some(gamma) = self.gamma
            && range > 0.
        {
            // Rounding may leave a value a little outside of the bounds, where a power is not defined.
            channel.iter_mut().for_each(|x| *x = low + range * ((*x - low) / range).clamp(0., 1.).powf(gamma));
        }
        if let Some(noise) = self.noise {
            let (sd, mut rng) = (noise.sd * (stats.max - stats.min), Rng::seed_from_u64(noise.seed));
            for pair in channel.chunks_mut(2) {
                let (a, b) = normal_pair(&mut rng);
                pair.iter_mut().zip([a, b]).for_each(|(x, noise)| *x += sd * noise);
            }
        }
    }
}

/// Reverses the axes of a volume in place.
fn flip<T>(volume: &mut [T], shape: Shape, flip: [bool; 3]) {
    let width = shape[2];
    for x0 in 0..shape[0] {
        for x1 in 0..shape[1] {
            let to = |a: usize, x: usize| if flip[a] { shape[a] - 1 - x } else { x };
            let (row, partner) = (x0 * shape[1] + x1, to(0, x0) * shape[1] + to(1, x1));
            // Each pair of rows once.
            if row > partner {
                continue;
            }
            let (before, after) = volume.split_at_mut(partner * width);
            let second = &mut after[..width];
            if row < partner {
                before[row * width..][..width].swap_with_slice(second);
                if flip[2] {
                    before[row * width..][..width].reverse();
                }
            }
            if flip[2] {
                second.reverse();
            }
        }
    }
}

#[cfg(test)]
mod tests;
