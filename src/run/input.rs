//! What a network expects of its scans.

use crate::data::preprocess::{Intensity, Settings, Threshold};
use crate::data::slices::Slices;
use crate::data::store::Store;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::env;

/// The variable by which a sweep tells a run's process the fingerprints of the stores that it was planned with, separated by commas.
pub const PLANNED_STORES: &str = "PRETEXT3D_PLANNED_STORES";

/// Errors in a run of a sweep that was planned with another store than this one is now: it may have been made anew since the sweep looked.
pub fn check_planned(store: &Store) -> Result<()> {
    let Some(planned) = env::var_os(PLANNED_STORES) else { return Ok(()) };
    ensure!(
        planned.to_string_lossy().split(',').any(|fingerprint| fingerprint == store.index().fingerprint),
        "{}: the store was made anew or changed while the sweep runs; take the store as it was and run the same command to go on, or give \
         another --out",
        store.folder().display()
    );
    Ok(())
}

/// What an encoder expects of its input: how the scans it was trained on were prepared.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Input {
    /// Channel names, in order.
    pub channels: Vec<String>,
    /// Contrasts of the scans, where channels were taken for scans of their own, so that the only channel is any of them; otherwise none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contrasts: Vec<String>,
    pub preprocessing: Settings,
    /// Millimetres along the RAS+ axes of the stored grid, averaged over the scans (a cube's spacing differs from scan to scan).
    pub mean_spacing: [f64; 3],
    /// Of the store.
    pub fingerprint: String,
    /// How volumes are sliced for a network of images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slices: Option<Slices>,
}

impl Input {
    pub fn of(store: &Store) -> Self {
        let index = store.index();
        let n = index.subjects.len().max(1) as f64;
        Input {
            channels: index.channels.clone(),
            contrasts: index.contrasts(),
            preprocessing: index.settings.clone(),
            mean_spacing: std::array::from_fn(|a| index.subjects.iter().map(|s| s.spacing[a]).sum::<f64>() / n),
            fingerprint: index.fingerprint.clone(),
            slices: store.slices(),
        }
    }

    /// The channels in words.
    pub fn trained_on(&self) -> String {
        match self.contrasts[..] {
            [] => format!("the channels {}", self.channels.join(", ")),
            _ => format!("one channel of any of the contrasts {}", self.contrasts.join(", ")),
        }
    }

    /// What the description of a run (`input` as it is kept) or of an export says of the input; `None`: nothing.
    pub fn described(description: &Value) -> Result<Option<Input>> {
        let Some(input) = description.get("input") else { return Ok(None) };
        let mut input = input.clone();
        let map = input.as_object_mut().context("not a table")?;
        // An export's has the unit in the name, and the store's fingerprint stands beside it.
        if let Some(spacing) = map.remove("mean_spacing_mm") {
            map.insert("mean_spacing".into(), spacing);
            map.insert("fingerprint".into(), description.get("data_fingerprint").cloned().unwrap_or_default());
        }
        Ok(Some(serde_json::from_value(input)?))
    }

    /// How a network that was trained on this input takes the scans of another one.
    pub fn fit(&self, now: &Input) -> Fit {
        let order = positions(&now.channels, &self.channels).filter(|_| now.channels.len() == self.channels.len());
        let mut warnings = Vec::new();
        // An encoder of any contrast takes every channel alike.
        if order.is_none() && self.contrasts.is_empty() {
            warnings.push(format!("trained on {}, these scans have {}", self.trained_on(), now.channels.join(", ")));
        }
        let [trained, found] = [self, now].map(|input| intensities(&input.preprocessing));
        if trained != found {
            warnings.push(format!("trained on intensities normalised by {trained}, those of these scans are by {found}"));
        }
        Fit { order: order.filter(|order| !order.is_sorted()), warnings }
    }
}

/// Of weights that say nothing of it.
pub const UNKNOWN_SCANS: &str = "it does not say what scans it was trained on";

/// How weights meet scans, see [`Input::fit`].
#[derive(Debug, PartialEq)]
pub struct Fit {
    /// For each channel of the scans its place among those trained on, if these are the same in another order.
    pub order: Option<Vec<usize>>,
    /// What does not fit, each naming both.
    pub warnings: Vec<String>,
}

/// The place of each wanted channel among those found, none taken twice: of equal names the first wanted is the first found. `None`: one is
/// not there.
pub fn positions(wanted: &[String], found: &[String]) -> Option<Vec<usize>> {
    let mut taken = vec![false; found.len()];
    let mut place = |name: &String| {
        let place = (0..found.len()).find(|&i| !taken[i] && found[i] == *name)?;
        taken[place] = true;
        Some(place)
    };
    wanted.iter().map(&mut place).collect()
}

/// How intensities are normalised, in words.
pub fn intensities(settings: &Settings) -> String {
    match (settings.intensity, settings.foreground) {
        (Intensity::MinMax, _) => "minimum and maximum to 0 and 1".into(),
        (Intensity::Window { lo, hi }, _) => format!("the window {lo} to {hi} to 0 and 1"),
        (Intensity::ZScoreForeground, Threshold::Auto) => "mean and standard deviation over the foreground".into(),
        (Intensity::ZScoreForeground, Threshold::Above { value }) => {
            format!("mean and standard deviation over the foreground above {value}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::layouts::Volumes;
    use crate::data::preprocess::{Dtype, Grid};

    fn input(channels: &[&str], intensity: Intensity) -> Input {
        let grid = Grid::Cube { side: 8 };
        Input {
            channels: channels.iter().map(|c| c.to_string()).collect(),
            contrasts: vec![],
            preprocessing: Settings {
                grid,
                foreground: Threshold::Auto,
                intensity,
                dtype: Dtype::F32,
                volumes: Volumes::Channels,
            },
            mean_spacing: [1.; 3],
            fingerprint: String::new(),
            slices: None,
        }
    }

    #[test]
    fn equal_channels_are_put_in_order_and_others_are_named() {
        let fit = |trained: &[&str], now: &[&str]| input(trained, Intensity::MinMax).fit(&input(now, Intensity::MinMax));
        assert_eq!(fit(&["t1", "flair"], &["t1", "flair"]), Fit { order: None, warnings: vec![] });
        assert_eq!(fit(&["t1", "t2", "flair"], &["flair", "t1", "t2"]), Fit { order: Some(vec![2, 0, 1]), warnings: vec![] });
        // Names that repeat are matched by position.
        assert_eq!(fit(&["CT", "CT"], &["CT", "CT"]), Fit { order: None, warnings: vec![] });
        assert_eq!(fit(&["a", "T2", "a"], &["T2", "a", "a"]).order, Some(vec![1, 0, 2]));
        for (trained, now) in
            [(&["t1", "flair"][..], &["t1", "t2"][..]), (&["t1"], &["t1", "t2"]), (&["CT", "CT"], &["CT", "PET"])]
        {
            let Fit { order, warnings } = fit(trained, now);
            assert!(order.is_none() && warnings.len() == 1, "{warnings:?}");
            assert!(warnings[0].contains(&trained.join(", ")) && warnings[0].contains(&now.join(", ")), "{warnings:?}");
        }
    }

    #[test]
    fn an_encoder_of_any_contrast_takes_any_channels() {
        let mut any = input(&["image"], Intensity::MinMax);
        any.contrasts = vec!["flair".into(), "t1".into()];
        for now in [&["t1", "t2", "flair"][..], &["CT"], &["image"]] {
            assert_eq!(any.fit(&input(now, Intensity::MinMax)), Fit { order: None, warnings: vec![] });
        }
        assert_eq!(any.fit(&input(&["t1", "t2"], Intensity::ZScoreForeground)).warnings.len(), 1);
        assert_eq!(input(&["t1", "t2"], Intensity::MinMax).fit(&any).warnings.len(), 1);
    }

    #[test]
    fn another_normalisation_is_named() {
        let minmax = input(&["CT"], Intensity::MinMax);
        for other in [Intensity::ZScoreForeground, Intensity::Window { lo: -100., hi: 240. }] {
            let warnings = minmax.fit(&input(&["CT"], other)).warnings;
            assert!(warnings.len() == 1 && warnings[0].contains("minimum and maximum"), "{warnings:?}");
        }
        let mut above = input(&["CT"], Intensity::ZScoreForeground);
        above.preprocessing.foreground = Threshold::Above { value: 3. };
        assert_eq!(above.fit(&input(&["CT"], Intensity::ZScoreForeground)).warnings.len(), 1);
        // What does not change the intensities is no matter.
        let mut half = input(&["CT"], Intensity::MinMax);
        (half.preprocessing.dtype, half.preprocessing.foreground) = (Dtype::F16, Threshold::Above { value: 3. });
        assert_eq!(minmax.fit(&half).warnings, [""; 0]);
    }
}
