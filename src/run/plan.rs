//! What checkpoints of nnU-Net and nnssl say of the network and its scans.

use crate::data::preprocess::Intensity;
use crate::dim::{PerAxis, Rank, Shape};
use crate::run::input::{Fit, Input, intensities, positions};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Spacings that differ by less than this share are the same.
const SAME_SPACING: f64 = 0.1;

/// nnU-Net's class of z-scores.
const Z_SCORE: &str = "ZScoreNormalization";

/// Places among the axes of nnU-Net's arrays of ours, where a plan says nothing else.
pub const REVERSED: [usize; 3] = [2, 1, 0];

/// A plan, in our axes: theirs are those of a file from the last to the first, inferior to superior first, and in an order of the plan's.
pub struct Plan {
    /// For each of our axes its place among theirs.
    pub axes: [usize; 3],
    /// Class of the network.
    pub class: Option<String>,
    /// Settings of the network, in their axes.
    network: Value,
    /// Voxels in millimetres.
    spacing: Option<[f64; 3]>,
    patch: Option<PerAxis>,
    /// Classes that normalise each channel, with whether their mean and deviation are those of the foreground alone; `None`: it does not say.
    normalisations: Vec<(String, Option<bool>)>,
    channels: Vec<String>,
}

impl Plan {
    /// Of nnssl's `nnssl_adaptation_plan`.
    pub fn of_nnssl(plan: &Value) -> Result<Plan> {
        let (trained, network) = (&plan["pretrain_plan"], &plan["architecture_plans"]);
        let configuration = trained["configurations"].as_object().and_then(|all| all.values().next());
        let null = Value::Null;
        Plan::of(trained, configuration.unwrap_or(&null), &network["arch_class_name"], &network["arch_kwargs"], &null)
            .context("nnssl_adaptation_plan")
    }

    /// Of nnU-Net's `init_args`.
    pub fn of_nnunet(arguments: &Value) -> Result<Plan> {
        let (plans, mut name) = (&arguments["plans"], arguments["configuration"].as_str());
        // A configuration has what it does not say from the one that it inherits from.
        let mut configuration = serde_json::Map::new();
        let all = &plans["configurations"];
        for _ in 0..all.as_object().map_or(0, serde_json::Map::len) {
            let Some(own) = name.and_then(|name| all[name].as_object()) else { break };
            own.iter().for_each(|(key, value)| _ = configuration.entry(key.clone()).or_insert_with(|| value.clone()));
            name = own.get("inherits_from").and_then(Value::as_str);
        }
        let configuration = Value::Object(configuration);
        let (class, settings) = match &configuration["architecture"] {
            // Before 2.5 the settings were those of the configuration.
            Value::Null => (&configuration["UNet_class_name"], &configuration),
            network => (&network["network_class_name"], &network["arch_kwargs"]),
        };
        Plan::of(plans, &configuration, class, settings, &arguments["dataset_json"]).context("init_args")
    }

    fn of(plans: &Value, configuration: &Value, class: &Value, network: &Value, dataset: &Value) -> Result<Plan> {
        check_layers(network)?;
        let axes = match &plans["transpose_forward"] {
            Value::Null => REVERSED,
            // Ours from the first is theirs from the last, where the plan has put it.
            order => {
                let place = |axis: usize| order.as_array()?.iter().position(|from| from.as_u64() == Some(axis as u64));
                let places = REVERSED.map(place);
                let [Some(x), Some(y), Some(z)] = places else {
                    bail!("transpose_forward: {order}, expected an order of 0, 1, 2")
                };
                [x, y, z]
            }
        };
        let numbers = |value: &Value| -> Option<Vec<f64>> { value.as_array()?.iter().map(Value::as_f64).collect() };
        let spacing = numbers(&configuration["spacing"]).filter(|mm| mm.len() == axes.len());
        let texts = |value: &Value| -> Vec<String> {
            let all = value.as_array().map(|all| all.iter().collect::<Vec<_>>());
            let all = all.or_else(|| Some(value.as_object()?.values().collect()));
            all.unwrap_or_default().into_iter().filter_map(|text| text.as_str().map(str::to_owned)).collect()
        };
        let masked = |channel: usize| {
            let all = &configuration["use_mask_for_norm"];
            all.get(channel).or_else(|| all.get(channel.to_string())).and_then(Value::as_bool)
        };
        let normalisations = texts(&configuration["normalization_schemes"]).into_iter().enumerate();
        let names = if dataset["channel_names"].is_null() { &dataset["modality"] } else { &dataset["channel_names"] };
        let mut plan = Plan {
            axes,
            class: class.as_str().map(str::to_owned),
            network: network.clone(),
            spacing: spacing.map(|mm| axes.map(|place| mm[place])),
            patch: None,
            normalisations: normalisations.map(|(channel, class)| (class, masked(channel))).collect(),
            channels: texts(names),
        };
        plan.patch =
            Some(&configuration["patch_size"]).filter(|size| !size.is_null()).map(|size| plan.turned(size)).transpose()?;
        Ok(plan)
    }

    /// Numbers along their axes as along ours.
    fn turned(&self, sides: &Value) -> Result<PerAxis> {
        let found = || format!("{sides}, expected whole numbers along 2 or 3 axes");
        let sides: Vec<i64> = serde_json::from_value(sides.clone()).with_context(found)?;
        let turned = if sides.len() == self.axes.len() { self.axes.map(|place| sides[place]).to_vec() } else { sides };
        PerAxis::try_from(turned).map_err(anyhow::Error::msg).with_context(found)
    }

    /// Strides of a network of so many stages; `None`: it does not say. Errors if it is of another number.
    pub fn strides(&self, rank: Rank, stages: usize) -> Result<Option<Vec<PerAxis>>> {
        self.sides("strides", &["strides", "pool_op_kernel_sizes"], rank, stages)
    }

    /// Kernels, as [`Plan::strides`].
    pub fn kernels(&self, rank: Rank, stages: usize) -> Result<Option<Vec<PerAxis>>> {
        self.sides("kernels", &["kernel_sizes", "conv_kernel_sizes"], rank, stages)
    }

    fn sides(&self, what: &str, keys: &[&str], rank: Rank, stages: usize) -> Result<Option<Vec<PerAxis>>> {
        let Some(sides) = keys.iter().find_map(|key| self.network[*key].as_array()) else { return Ok(None) };
        ensure!(sides.len() == stages, "its plan has {what} of {} stages, its weights are of {stages}", sides.len());
        let each = |side: &Value| match side.as_i64() {
            Some(n) if n > 0 => Ok(PerAxis::all(rank, n)),
            _ => self.turned(side),
        };
        let sides = sides.iter().map(each).collect::<Result<Vec<_>>>().with_context(|| format!("{what} in its plan"))?;
        ensure!(sides.iter().all(|side| side.rank() == rank), "its plan is not of {}D data, as its weights are", rank.n());
        Ok(Some(sides))
    }

    /// How its network takes scans of another input.
    pub fn fit(&self, now: &Input) -> Fit {
        let mut warnings = Vec::new();
        let order = positions(&now.channels, &self.channels).filter(|_| now.channels.len() == self.channels.len());
        if order.is_none() {
            let [trained, found] = [&self.channels, &now.channels].map(|names| names.join(", "));
            let trained = if trained.is_empty() {
                "channels that it does not name".to_owned()
            } else {
                format!("the channels {trained}")
            };
            warnings.push(format!("trained on {trained}, these scans have {found}"));
        }
        let differs = |trained: &[f64; 3]| trained.iter().zip(now.mean_spacing).any(|(a, b)| (a / b - 1.).abs() > SAME_SPACING);
        if let Some(trained) = self.spacing.as_ref().filter(|trained| now.slices.is_none() && differs(trained)) {
            let [trained, found] = [trained, &now.mean_spacing].map(|mm| crate::dim::millimetres(mm));
            warnings.push(format!("trained on voxels of {trained} mm, those of these scans are of {found} mm on average"));
        }
        let same = |(class, masked): &(String, Option<bool>)| match now.preprocessing.intensity {
            Intensity::ZScoreForeground => class == Z_SCORE && *masked != Some(false),
            Intensity::MinMax => class == "RescaleTo01Normalization",
            Intensity::Window { .. } => false,
        };
        let shown = |(class, masked): &(String, Option<bool>)| match masked {
            Some(masked) if class == Z_SCORE => {
                format!("{class} over the {}", if *masked { "foreground" } else { "whole scan" })
            }
            _ => class.clone(),
        };
        if !self.normalisations.iter().all(same) {
            let found = intensities(&now.preprocessing);
            let trained = self.normalisations.iter().map(shown).collect::<Vec<_>>().join(", ");
            warnings.push(format!("trained on intensities normalised by {trained}, those of these scans are by {found}"));
        }
        Fit { order: order.filter(|order| !order.is_sorted()), warnings }
    }

    /// What a person must know who trains on patches of this shape. `slices`: whether these are of volumes, where rows and columns lie
    /// the other way about.
    pub fn patch_warning(&self, now: Shape, slices: bool) -> Option<String> {
        let trained = self.patch.as_ref()?;
        let mut sides: Vec<i64> = now[trained.rank().axes()].iter().map(|&n| n as i64).collect();
        if slices {
            sides.reverse();
        }
        let now = PerAxis::try_from(sides).ok()?;
        (*trained != now).then(|| format!("trained on patches of {trained} voxels, these are of {now}"))
    }
}

/// Errors if the network has other layers than ours, which weights do not show.
fn check_layers(network: &Value) -> Result<()> {
    for (key, expected) in [("norm_op", "InstanceNorm"), ("nonlin", "LeakyReLU")] {
        if let Some(found) = network[key].as_str() {
            ensure!(found.contains(expected), "{key} is {found}: no such network here, whose encoders have {expected}");
        }
    }
    ensure!(network["nonlin_first"] != true, "nonlin_first: no such network here, whose encoders normalise first");
    Ok(())
}
