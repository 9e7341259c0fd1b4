//! Weights of other programs, in files of `torch.save`: nnU-Net's and nnssl's checkpoints, and state dicts, torchvision's DenseNet-121
//! among them.

use crate::dim::{PerAxis, Shape};
use crate::nn::EncoderConfig;
use crate::pth::{Checkpoint, Value, View};
use crate::run::input::{Fit, Input, UNKNOWN_SCANS};
use crate::run::plan::{Plan, REVERSED};
use crate::run::tensors::{ENCODER, Tensors};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

/// Where checkpoints have their state dict, in the order in which it is looked for; in other files it is all there is.
const STATE_DICTS: [&str; 5] = ["network_weights", "state_dict", "model_state_dict", "model", "network"];
/// What wrappers put before every name.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];
/// Ends of names by which an encoder is known: nnU-Net's residual and plain one, torchvision's DenseNet-121, whose downloaded file has
/// `conv.1` where the network has `conv1`, and our U-Net.
const MARKS: [&str; 5] = [
    "stem.convs.0.conv.weight",
    "stages.0.0.convs.0.conv.weight",
    "denseblock1.denselayer1.conv1.weight",
    "denseblock1.denselayer1.conv.1.weight",
    "level0.conv0.weight",
];
/// A network of nnssl's whose settings are known by its name, with strides of 2.
const PRESET: &str = "ResEncL";
/// Under which nnU-Net keeps the parameters of a convolution and its normalisation a second time.
const COPIES: &str = ".all_modules.";
/// Before the names of its decoder, which holds the encoder again.
const DECODER: &str = "decoder.";

/// Weights of another program, by our names and in our axes.
pub struct Published {
    /// The encoder under [`ENCODER`], the decoder beside it under [`DECODER`], the rest by its own names.
    pub tensors: Tensors,
    pub config: EncoderConfig,
    pub origin: Origin,
}

/// What else is known of them.
pub struct Origin {
    /// What the file says of the training, if anything.
    plan: Option<Plan>,
    /// Further names of its tensors.
    pub copies: usize,
    warnings: Vec<String>,
    /// Of a network of nnU-Net's, whose kernels of slices lie the other way about.
    of_nnunet: bool,
}

impl Published {
    /// Errors, which name the file, if there is no encoder in it that is known here.
    pub fn open(path: &Path) -> Result<Published> {
        let file = Checkpoint::open(path)?;
        Self::found(&file).with_context(|| path.display().to_string())
    }

    fn found(file: &Checkpoint) -> Result<Published> {
        let root = &file.value;
        ensure!(
            matches!(root, Value::Dict(_)),
            "it holds {}, expected a dict of weights; of a whole network save the weights: torch.save(network.state_dict(), FILE)",
            root.kind()
        );
        let plan = match (root.get("nnssl_adaptation_plan"), root.get("init_args")) {
            (Some(plan), _) => Some(Plan::of_nnssl(&plan.json())?),
            (None, Some(arguments)) if arguments.get("plans").is_some() => Some(Plan::of_nnunet(&arguments.json())?),
            _ => None,
        };
        let state =
            STATE_DICTS.iter().find_map(|key| root.get(key).filter(|value| matches!(value, Value::Dict(_)))).unwrap_or(root);
        let mut views: BTreeMap<String, &View> = BTreeMap::new();
        for (name, view) in file.tensors(state)? {
            let other = views.insert(unwrapped(&name).to_owned(), view);
            ensure!(
                other.is_none_or(|other| other == view),
                "{} is in it twice, with and without {} before its name: save the state dict of one",
                unwrapped(&name),
                WRAPPERS.join(" or ")
            );
        }
        let base = base(&views, plan.as_ref())?;
        // Only nnU-Net's networks have copies; ours of the same names keep our axes.
        let theirs = plan.is_some() || views.keys().any(|name| name.contains(COPIES));
        let axes = plan.as_ref().map_or(REVERSED, |plan| plan.axes);
        let same = |name: &str, view: &View| original(name, &base).is_some_and(|first| views.get(&first) == Some(&view));
        file.check_elements(views.iter().filter(|(name, view)| !same(name, view)).map(|(_, view)| *view))?;
        let (mut tensors, mut copies) = (Tensors::new(), 0);
        for (name, view) in &views {
            if let Some(original) = original(name, &base) {
                let first =
                    views.get(&original).with_context(|| format!("{original} is missing, of which {name} is a copy"))?;
                ensure!(
                    first == view || file.tensor(first)? == file.tensor(view)?,
                    "{name} and {original} differ, though they are the same parameter in nnU-Net"
                );
                copies += 1;
                continue;
            }
            // How many batches a normalisation has seen is not kept here.
            if name.ends_with("num_batches_tracked") {
                continue;
            }
            let tensor = file.tensor(view).with_context(|| name.clone())?;
            let tensor = if theirs { in_our_axes(&tensor, axes) } else { tensor };
            match name.strip_prefix(&base) {
                Some(rest) => {
                    ensure!(tensor.is_floating_point(), "{name} is of type {:?}, expected floating point", tensor.kind());
                    tensors.insert(format!("{ENCODER}{}", undotted(rest)), tensor.to_kind(Kind::Float));
                }
                // Of several decoders the one beside the encoder counts, whatever stands before both.
                None => {
                    let beside = base.strip_suffix(ENCODER).and_then(|before| name.strip_prefix(before));
                    let beside = beside.filter(|rest| rest.starts_with(DECODER));
                    tensors.insert(beside.unwrap_or(name).to_owned(), tensor);
                }
            }
        }
        let mut config = EncoderConfig::of(&tensors, ENCODER)?;
        let mut warnings = Vec::new();
        if let EncoderConfig::NnUNet { stages, .. } = &mut config {
            match plan.as_ref().map(|plan| plan.strides(stages.rank, stages.features.len())).transpose()?.flatten() {
                Some(strides) => stages.strides = strides,
                None if plan.as_ref().and_then(|plan| plan.class.as_deref()) == Some(PRESET) => {}
                None => {
                    let strides = stages.strides.iter().map(PerAxis::to_string).collect::<Vec<_>>().join(", ");
                    warnings.push(match theirs {
                        true => format!("it does not say its strides; these are taken: {strides}"),
                        false => format!(
                            "it says neither its axes, taken for ours (x, y, z, where nnU-Net's are z, y, x), nor its strides, \
                             taken for {strides}; of nnU-Net's networks give the whole checkpoint"
                        ),
                    })
                }
            }
        }
        config.check()?;
        Ok(Published { tensors, config, origin: Origin { plan, copies, warnings, of_nnunet: theirs } })
    }
}

impl Origin {
    /// How a network takes the scans of another input.
    pub fn fit(&self, now: &Input) -> Fit {
        let mut fit = match &self.plan {
            Some(plan) => plan.fit(now),
            None => Fit { order: None, warnings: vec![UNKNOWN_SCANS.to_owned()] },
        };
        fit.warnings.splice(0..0, self.warnings.iter().cloned());
        fit
    }

    /// As [`Plan::patch_warning`].
    pub fn patch_warning(&self, now: Shape, slices: bool) -> Option<String> {
        self.plan.as_ref()?.patch_warning(now, slices)
    }

    /// The tensors for slices of volumes. Ours have rows and columns in the order of a volume's axes, nnU-Net's the other way about.
    pub fn for_slices(&self, tensors: &Tensors, config: &EncoderConfig) -> Result<Option<Tensors>> {
        let Some(stages) = config.stages().filter(|_| self.of_nnunet) else { return Ok(None) };
        let oblong = stages.kernels.iter().chain(&stages.strides).find(|sides| sides.common().is_none());
        ensure!(oblong.is_none(), "a network of slices with kernels or strides that are no squares cannot be turned to ours");
        let turn = |(name, tensor): (&String, &Tensor)| {
            (name.clone(), if tensor.dim() == 4 { tensor.transpose(2, 3) } else { tensor.shallow_clone() })
        };
        Ok(Some(tensors.iter().map(turn).collect()))
    }
}

fn unwrapped(mut name: &str) -> &str {
    while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        name = rest;
    }
    name
}

/// What stands before the encoder's names.
fn base(views: &BTreeMap<String, &View>, plan: Option<&Plan>) -> Result<String> {
    let mut bases: Vec<&str> = views.keys().filter_map(|name| MARKS.iter().find_map(|mark| name.strip_suffix(mark))).collect();
    bases.sort();
    bases.dedup();
    let copies: Vec<&str> = bases
        .iter()
        .copied()
        .filter(|base| base.starts_with(DECODER) || bases.iter().any(|other| encoders(base, other).as_deref() == Some(other)))
        .collect();
    bases.retain(|base| !copies.contains(base));
    match bases[..] {
        [base] => Ok(base.to_owned()),
        [] => {
            ensure!(!views.is_empty(), "no tensors in it");
            let has = |name: &str| views.keys().any(|found| found.ends_with(name));
            let what = match plan.and_then(|plan| plan.class.clone()) {
                Some(class) => format!("the network {class}"),
                None if has("layer1.0.conv1.weight") => "a ResNet, as MedicalNet's".to_owned(),
                None => format!("another architecture, with tensors such as {}", views.keys().next().expect("not empty")),
            };
            bail!(
                "{what}: there is no such encoder here. Known are those of nnU-Net's PlainConvUNet and ResidualEncoderUNet (nnssl's \
                 ResEncL), torchvision's densenet121, and ours"
            )
        }
        _ => bail!("several encoders in it, {}: save the state dict of one", bases.join(", ")),
    }
}

/// Name of the tensor of which this is a copy in nnU-Net's networks, whose decoder holds the encoder again.
fn original(name: &str, base: &str) -> Option<String> {
    let own = encoders(name, base).unwrap_or_else(|| name.to_owned());
    let first = match own.split_once(COPIES) {
        Some((unit, rest)) => {
            let (place, parameter) = rest.split_once('.')?;
            format!("{unit}.{}.{parameter}", if place == "0" { "conv" } else { "norm" })
        }
        None => own,
    };
    (first != name).then_some(first)
}

/// What the encoder calls a tensor of its own that the decoder holds: `model.encoder.x` for `model.decoder.encoder.x`.
fn encoders(name: &str, base: &str) -> Option<String> {
    name.match_indices(DECODER).find_map(|(at, found)| {
        let (before, rest) = (&name[..at], &name[at + found.len()..]);
        let own = base.strip_prefix(before).filter(|own| !own.is_empty())?;
        ((before.is_empty() || before.ends_with('.')) && rest.starts_with(own)).then(|| format!("{before}{rest}"))
    })
}

/// The files that torchvision downloads have `norm.1` where its network has `norm1`.
pub fn undotted(name: &str) -> String {
    ["norm.1", "norm.2", "conv.1", "conv.2"]
        .iter()
        .fold(name.to_owned(), |name, part| name.replace(part, &part.replace('.', "")))
}

/// A kernel `[outputs, inputs, ...]` along our axes; `axes`: for each of ours its place among theirs. Of images the axes are the same.
fn in_our_axes(tensor: &Tensor, axes: [usize; 3]) -> Tensor {
    match tensor.dim() {
        5 => {
            let [x, y, z] = axes.map(|place| place as i64 + 2);
            tensor.permute([0, 1, x, y, z])
        }
        _ => tensor.shallow_clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoders_within_decoders_are_copies_whatever_stands_before_their_names() {
        let view = View { storage: "0".into(), dtype: "float32".into(), offset: 0, size: vec![1], stride: vec![1] };
        let of = |bases: &[&str]| {
            let names = bases.iter().map(|base| format!("{base}stem.convs.0.conv.weight"));
            base(&names.map(|name| (name, &view)).collect(), None)
        };
        for prefix in ["", "model.", "net.decoder.model.", "student.network."] {
            let [encoder, copy] = [format!("{prefix}encoder."), format!("{prefix}decoder.encoder.")];
            assert_eq!(of(&[&encoder, &copy]).unwrap(), encoder);
            let name = |rest: &str| original(&format!("{prefix}{rest}"), &encoder);
            let first = Some(format!("{encoder}stem.convs.0.norm.bias"));
            assert_eq!(name("decoder.encoder.stem.convs.0.norm.bias"), first);
            assert_eq!(name("decoder.encoder.stem.convs.0.all_modules.1.bias"), first);
            assert_eq!(name("encoder.stem.convs.0.all_modules.1.bias"), first);
            assert_eq!(name("encoder.stem.convs.0.norm.bias"), None);
            assert_eq!(name("decoder.stages.0.convs.0.norm.bias"), None);
            assert_eq!(name("encoder.decoder.encoder.stem.bias"), None);
        }
        let message = of(&["student.encoder.", "teacher.encoder.", "teacher.decoder.encoder."]).unwrap_err().to_string();
        assert!(message.contains("student.encoder., teacher.encoder.:"), "{message}");
    }
}
