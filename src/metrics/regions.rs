//! Which masks are scored: classes, or regions that are unions of several.

use super::brats;
use super::case::Group;
use crate::data::labelling::Labelling;
use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Masks that are scored, where the user asks for others than the data describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Regions {
    /// Each class of the labels
    Classes,
    /// Whole tumour, tumour core and enhancing tumour, by the labels' names; without names 1 is necrosis, 2 oedema and 4, or 3 from
    /// 2023 on, enhancing tumour
    Brats,
}

/// Name and label values of each mask.
pub type Masks = Vec<(String, Vec<i64>)>;

/// Those that are learnt: the regions that the labels have, otherwise each class.
pub fn learnt(labelling: &Labelling) -> Masks {
    match &labelling.regions[..] {
        [] => classes(labelling),
        regions => regions.iter().map(|region| (region.name.clone(), region.values.clone())).collect(),
    }
}

fn classes(labelling: &Labelling) -> Masks {
    labelling.labels.iter().skip(1).map(|label| (label.name.clone(), vec![label.value])).collect()
}

/// Those that are scored: those that are learnt, unless others are wanted. Errors as [`brats::regions`], and where these would take the
/// place of the labels' own regions.
pub fn scored(wanted: Option<Regions>, labelling: &Labelling) -> Result<Masks> {
    Ok(match wanted {
        None => learnt(labelling),
        Some(Regions::Classes) => classes(labelling),
        Some(Regions::Brats) => {
            let own = &labelling.regions;
            ensure!(
                own.is_empty(),
                "the labels have regions of their own, which are scored without --regions: {}",
                own.iter().map(|region| region.name.as_str()).collect::<Vec<_>>().join(", ")
            );
            brats::regions(&labelling.labels)?
        }
    })
}

/// The masks as groups of the labels' classes.
pub fn groups(masks: &Masks, labelling: &Labelling) -> Vec<Group> {
    masks.iter().map(|(name, values)| Group::union(name, values, &labelling.labels)).collect()
}
