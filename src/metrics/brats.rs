//! The regions that BraTS scores: whole tumour (WT), tumour core (TC) and enhancing tumour (ET).

use crate::data::labelling::LabelValue;
use anyhow::{Result, bail, ensure};

/// The regions by the label values of the challenges, where enhancing tumour is 4 up to 2021 and 3 from 2023 on.
pub const REGIONS: [(&str, &[i64]); 3] = [("WT", &[1, 2, 3, 4]), ("TC", &[1, 3, 4]), ("ET", &[3, 4])];

/// What a label is of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Oedema,
    /// Necrosis, or tumour that does not enhance.
    Core,
    Enhancing,
    /// No tumour: the cavity of a resection.
    Outside,
}

impl Part {
    const TUMOUR: [(Part, &str); 3] =
        [(Part::Oedema, "oedema"), (Part::Core, "necrosis or non-enhancing tumour"), (Part::Enhancing, "enhancing tumour")];

    /// By a label's name, in words or as the challenges abbreviate it; `None`: the name does not say.
    fn of(name: &str) -> Option<Part> {
        let name = name.to_lowercase();
        let words: Vec<&str> = name.split(|c: char| !c.is_alphanumeric()).collect();
        let joined = words.concat();
        let has = |parts: &[&str], short: &[&str]| {
            parts.iter().any(|part| joined.contains(part)) || short.iter().any(|short| words.contains(short))
        };
        // `surrounding non-enhancing FLAIR hyperintensity` is oedema.
        let oedema = has(&["edema", "flair", "peritumo"], &["ed", "snfh"]);
        let core = has(&["necro", "nonenhanc"], &["ncr", "net", "netc"]);
        let enhancing = joined.replace("nonenhanc", "").contains("enhanc") || has(&[], &["et"]);
        match (has(&["resection", "cavity"], &["rc"]), oedema, core, enhancing) {
            (true, false, false, false) => Some(Part::Outside),
            (false, true, _, false) => Some(Part::Oedema),
            (false, false, true, false) => Some(Part::Core),
            (false, false, false, true) => Some(Part::Enhancing),
            _ => None,
        }
    }
}

/// What [`regions`] takes the values for where no label's name says what it is of; `None`: names do.
pub fn assumption(labels: &[LabelValue]) -> Option<&'static str> {
    let named = labels.iter().skip(1).any(|label| Part::of(&label.name).is_some());
    (!named).then_some(
        "no label's name says what it is of, so 1 is taken for necrosis, 2 for oedema and 3 or 4 for enhancing tumour; in the \
         Decathlon's copy of BraTS 1 is oedema and 2 necrosis",
    )
}

/// Label values of each region, in the order of [`REGIONS`]: by the labels' names, in whatever order datasets number them; where no
/// name says anything, by the values, which then must be 1, 2 and either 3 or 4. Errors: names that say some parts only, other values.
pub fn regions(labels: &[LabelValue]) -> Result<Vec<(String, Vec<i64>)>> {
    let labels = &labels[labels.len().min(1)..];
    let parts: Vec<Option<Part>> = labels.iter().map(|label| Part::of(&label.name)).collect();
    if parts.iter().all(Option::is_none) {
        let mut values: Vec<i64> = labels.iter().map(|l| l.value).collect();
        values.sort_unstable();
        ensure!(
            matches!(values[..], [1, 2, 3 | 4]),
            "BraTS regions: expected labels named oedema, necrosis or non-enhancing, and enhancing, or the values 1, 2 and either 3 or \
             4; found {}",
            list(labels)
        );
        let held = |of: &[i64]| values.iter().copied().filter(|value| of.contains(value)).collect();
        return Ok(REGIONS.iter().map(|(region, of)| (region.to_string(), held(of))).collect());
    }
    let unknown = parts.iter().position(Option::is_none).map(|n| format!("{:?} is of none of these", labels[n].name));
    let missing = Part::TUMOUR.iter().find(|(part, _)| !parts.contains(&Some(*part))).map(|(_, name)| format!("no {name}"));
    if let Some(fault) = unknown.or(missing) {
        bail!(
            "BraTS regions: expected labels named oedema, necrosis or non-enhancing, and enhancing; {fault} in {}; --labels of \
             preprocess names them, e.g. 0,1=necrosis,2=oedema,4=enhancing",
            list(labels)
        );
    }
    let values = |of: &[Part]| {
        let held = labels.iter().zip(&parts).filter(|(_, part)| part.is_some_and(|part| of.contains(&part)));
        held.map(|(label, _)| label.value).collect()
    };
    let of = [&[Part::Oedema, Part::Core, Part::Enhancing][..], &[Part::Core, Part::Enhancing], &[Part::Enhancing]];
    Ok(REGIONS.iter().zip(of).map(|((region, _), of)| (region.to_string(), values(of))).collect())
}

fn list(labels: &[LabelValue]) -> String {
    labels.iter().map(|l| format!("{} ({:?})", l.value, l.name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[(i64, &str)]) -> Vec<LabelValue> {
        let label = |&(value, name): &(i64, &str)| LabelValue { value, name: name.into() };
        [(0, "background")].iter().chain(names).map(label).collect()
    }

    fn found(names: &[(i64, &str)]) -> Vec<Vec<i64>> {
        let regions = regions(&labels(names)).unwrap();
        assert!(regions.iter().map(|(name, _)| name.as_str()).eq(["WT", "TC", "ET"]));
        regions.into_iter().map(|(_, values)| values).collect()
    }

    #[test]
    fn names_decide_whatever_the_order() {
        for names in [
            [(1, "edema"), (2, "non-enhancing tumor"), (3, "enhancing tumour")],
            [(1, "Peritumoral Oedema"), (2, "NCR/NET"), (3, "ET")],
            [(1, "SNFH"), (2, "NETC"), (3, "enhancing_tumor")],
            [(1, "surrounding non-enhancing FLAIR hyperintensity"), (2, "Necrotic core"), (3, "Enhancing")],
        ] {
            assert_eq!(found(&names), [vec![1, 2, 3], vec![2, 3], vec![3]], "{names:?}");
        }
        assert_eq!(found(&[(4, "enhancing"), (1, "necrosis"), (2, "oedema")]), [vec![4, 1, 2], vec![4, 1], vec![4]]);
        // Five classes of 2013, and the cavities of 2024.
        let old = [(1, "necrosis"), (2, "edema"), (3, "non-enhancing"), (4, "enhancing")];
        assert_eq!(found(&old), [vec![1, 2, 3, 4], vec![1, 3, 4], vec![4]]);
        let treated = [(1, "NETC"), (2, "SNFH"), (3, "ET"), (4, "RC")];
        assert_eq!(found(&treated), [vec![1, 2, 3], vec![1, 3], vec![3]]);
    }

    #[test]
    fn values_decide_where_no_name_says_anything() {
        assert_eq!(found(&[(1, "label 1"), (2, "label 2"), (4, "label 4")]), [vec![1, 2, 4], vec![1, 4], vec![4]]);
        assert_eq!(found(&[(1, "a"), (3, "b"), (2, "c")]), [vec![1, 2, 3], vec![1, 3], vec![3]]);
        assert!(
            assumption(&labels(&[(1, "a"), (3, "b"), (2, "c")])).is_some() && assumption(&labels(&[(1, "edema")])).is_none()
        );
        let refused = |names: &[(i64, &str)]| regions(&labels(names)).unwrap_err().to_string();
        for names in [&[(1, ""), (2, ""), (3, ""), (4, "")][..], &[(1, ""), (2, "")], &[(5, "x"), (9, "y")], &[]] {
            assert!(refused(names).contains("the values 1, 2 and either 3 or 4"), "{names:?}");
        }
        assert!(refused(&[(1, "edema"), (2, "tumour"), (3, "enhancing")]).contains("\"tumour\" is of none of these"));
        assert!(refused(&[(1, "edema"), (2, "enhancing")]).contains("no necrosis or non-enhancing tumour in 1 (\"edema\")"));
    }
}
