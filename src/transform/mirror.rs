//! Mirror images: along which axes, and what they make of classes that have a side.

use crate::data::labelling::Labelling;
use crate::data::laterality::Laterality;
use crate::data::slices::Slices;
use crate::dim::Rank;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// An axis along which images are mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum MirrorAxis {
    /// Every axis that the images have
    All,
    /// Of volumes and their slices: the body's left and right change places
    #[value(alias = "lr")]
    LeftRight,
    /// Of volumes and their slices: back and front change places
    #[value(alias = "pa", alias = "ap")]
    BackFront,
    /// Of volumes and their slices: bottom and top change places
    #[value(alias = "is", alias = "si")]
    BottomTop,
    /// Of photographs: the columns are reversed
    Horizontal,
    /// Of photographs: the rows are reversed
    Vertical,
}

impl MirrorAxis {
    /// As the flag takes it.
    fn name(self) -> &'static str {
        match self {
            MirrorAxis::All => "all",
            MirrorAxis::LeftRight => "left-right",
            MirrorAxis::BackFront => "back-front",
            MirrorAxis::BottomTop => "bottom-top",
            MirrorAxis::Horizontal => "horizontal",
            MirrorAxis::Vertical => "vertical",
        }
    }

    /// What the axes of an image are, in their order; `None` where it has but one voxel. `slices`: those of the volumes that are read.
    fn of(rank: Rank, slices: Option<Slices>) -> [Option<MirrorAxis>; 3] {
        const RAS: [MirrorAxis; 3] = [MirrorAxis::LeftRight, MirrorAxis::BackFront, MirrorAxis::BottomTop];
        match (rank, slices.map(|slices| slices.orientation().source)) {
            (Rank::Three, _) => RAS.map(Some),
            (Rank::Two, Some([_, row, column])) => [None, Some(RAS[row]), Some(RAS[column])],
            (Rank::Two, None) => [None, Some(MirrorAxis::Vertical), Some(MirrorAxis::Horizontal)],
        }
    }
}

/// Mirror images that images of one kind, with these classes, may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirroring {
    /// Axes that may be reversed.
    pub axes: [bool; 3],
    /// What all axes of the images are.
    there: [Option<MirrorAxis>; 3],
    /// Where some classes have a side.
    swap: Option<Swap>,
    /// What the user is told of classes that have a side.
    pub note: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Swap {
    /// The axis from left to right.
    axis: usize,
    /// Class that each class becomes along it.
    classes: Vec<u8>,
}

impl Mirroring {
    /// `wanted`: the axes asked for, none for all; `classes`: names in order. Classes that are the left and the right one of a structure
    /// become each other where left and right change places; where one has no counterpart, they do not change places.
    ///
    /// Errors: an axis that the images do not have.
    pub fn new(wanted: &[MirrorAxis], rank: Rank, slices: Option<Slices>, classes: &[&str]) -> Result<Mirroring> {
        let there = MirrorAxis::of(rank, slices);
        let all = wanted.is_empty() || wanted.contains(&MirrorAxis::All);
        let axes = there.map(|axis| axis.is_some_and(|axis| all || wanted.contains(&axis)));
        let mut mirroring = Mirroring { axes, there, swap: None, note: None };
        let foreign = wanted.iter().find(|&&axis| axis != MirrorAxis::All && !there.contains(&Some(axis)));
        if let Some(foreign) = foreign {
            let of = slices
                .map_or(if rank == Rank::Two { "photographs" } else { "volumes" }.into(), |s| format!("{} slices", s.name()));
            bail!("no axis `{}`: those of {of} are {}", foreign.name(), mirroring.names([true; 3]));
        }
        let across = there.iter().position(|axis| matches!(axis, Some(MirrorAxis::LeftRight | MirrorAxis::Horizontal)));
        if let Some(axis) = across.filter(|&axis| axes[axis]) {
            let name = mirroring.names(std::array::from_fn(|a| a == axis));
            let laterality = Laterality::of(classes);
            if !laterality.alone.is_empty() {
                mirroring.axes[axis] = false;
                let alone = laterality.alone_text();
                mirroring.note = Some(format!("not along {name}: no class is the mirror image of {alone}"));
            } else if !laterality.pairs.is_empty() {
                mirroring.note = Some(format!("along {name} these classes change places: {}", laterality.pairs_text()));
                mirroring.swap = Some(Swap { axis, classes: laterality.partner });
            }
        }
        Ok(mirroring)
    }

    /// Class that each class becomes where these axes are reversed; `None` if each stays.
    pub fn classes(&self, flip: [bool; 3]) -> Option<&[u8]> {
        self.swap.as_ref().filter(|swap| flip[swap.axis]).map(|swap| &swap.classes[..])
    }

    /// For the classes of labels whose outputs the mirror images were made for: a class becomes one that is in the regions which its own
    /// regions become. Where there is none, left and right do not change places.
    pub fn of_classes(&mut self, labelling: &Labelling) {
        let Some(swap) = &mut self.swap else { return };
        let members: Vec<Vec<usize>> = (0..labelling.labels.len()).map(|class| labelling.members(class as u8)).collect();
        let partner = |(class, own): (usize, &Vec<usize>)| {
            let mut mirrored: Vec<usize> = own.iter().map(|&output| swap.classes[output].into()).collect();
            mirrored.sort_unstable();
            let found = if mirrored == *own { Some(class) } else { members.iter().position(|other| *other == mirrored) };
            found.map(|class| class as u8)
        };
        match members.iter().enumerate().map(partner).collect() {
            Some(classes) => swap.classes = classes,
            None => *self = self.clone().without_swap(),
        }
    }

    /// For outputs that no exchange of classes can mirror: not along the axis where classes change places.
    pub fn without_swap(mut self) -> Mirroring {
        if let Some(Swap { axis, .. }) = self.swap.take() {
            self.axes[axis] = false;
            let name = self.names(std::array::from_fn(|a| a == axis));
            self.note = Some(format!("not along {name}, where classes would change places"));
        }
        self
    }

    /// Names of some of the axes, for a message.
    pub fn names(&self, of: [bool; 3]) -> String {
        let names = (0..3).filter(|&a| of[a]).filter_map(|a| self.there[a]);
        names.map(MirrorAxis::name).collect::<Vec<_>>().join(", ")
    }

    /// Every combination of the axes, none of them first.
    pub fn combinations(&self) -> Vec<[bool; 3]> {
        let wanted = (0..8u8).map(|n| [0, 1, 2].map(|a| n >> a & 1 == 1));
        wanted.filter(|flip| (0..3).all(|a| self.axes[a] || !flip[a])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::labelling::{LabelRegion, LabelValue};

    const SIDED: [&str; 4] = ["background", "Right-Kidney", "spine", "Left-Kidney"];

    #[test]
    fn classes_change_places_along_the_axis_from_left_to_right_alone() {
        for (rank, slices, axis) in [
            (Rank::Three, None, Some(0)),
            (Rank::Two, Some(Slices::Sagittal), None),
            (Rank::Two, Some(Slices::Coronal), Some(1)),
            (Rank::Two, Some(Slices::Axial), Some(1)),
            (Rank::Two, None, Some(2)),
        ] {
            let mirroring = Mirroring::new(&[], rank, slices, &SIDED).unwrap();
            assert_eq!(mirroring.axes, [rank == Rank::Three, true, true]);
            assert_eq!(mirroring.note.is_some(), axis.is_some());
            assert_eq!(mirroring.combinations().len(), 1 << rank.n());
            for flip in mirroring.combinations() {
                let swapped = axis.is_some_and(|axis: usize| flip[axis]);
                assert_eq!(mirroring.classes(flip), swapped.then_some(&[0, 3, 2, 1][..]), "{rank:?} {slices:?} {flip:?}");
            }
            // A side without its counterpart, or outputs that cannot be exchanged: not along that axis.
            let without = Mirroring::new(&[], rank, slices, &SIDED[..3]).unwrap();
            let expected: [bool; 3] = std::array::from_fn(|a| mirroring.axes[a] && Some(a) != axis);
            assert_eq!((without.axes, without.note.is_some()), (expected, axis.is_some()));
            assert_eq!(mirroring.without_swap().axes, expected);
            assert!(without.combinations().iter().all(|&flip| without.classes(flip).is_none()));
        }
    }

    #[test]
    fn classes_go_where_their_regions_go() {
        let labelling = |regions: &[(&str, &[i64])]| Labelling {
            labels: (0..6).map(LabelValue::unnamed).collect(),
            regions: regions
                .iter()
                .map(|(name, values)| LabelRegion { name: name.to_string(), values: values.to_vec(), written: values[0] })
                .collect(),
            ignore: None,
        };
        let mirrored = |labelling: &Labelling| {
            let mut mirroring = Mirroring::new(&[], Rank::Three, None, &labelling.outputs()).unwrap();
            mirroring.of_classes(labelling);
            mirroring
        };
        // A cyst of each kidney, a part that both have, and a spine.
        let kidneys = labelling(&[("left kidney", &[1, 2]), ("cysts", &[2, 4]), ("right kidney", &[3, 4]), ("spine", &[5])]);
        let found = mirrored(&kidneys);
        assert_eq!(found.classes([true, false, false]), Some(&[0, 3, 4, 1, 2, 5][..]));
        assert_eq!(found.classes([false, true, true]), None);
        // The cyst of the left one has no counterpart.
        let one = labelling(&[("left kidney", &[1, 2]), ("cyst", &[2]), ("right kidney", &[3, 4, 5])]);
        assert_eq!((mirrored(&one).axes, mirrored(&one).classes([true; 3])), ([false, true, true], None));
    }

    #[test]
    fn axes_are_chosen_by_name() {
        let new = |wanted: &[MirrorAxis], rank, slices| Mirroring::new(wanted, rank, slices, &SIDED);
        let axes = |wanted: &[MirrorAxis], rank, slices| new(wanted, rank, slices).unwrap().axes;
        assert_eq!(axes(&[MirrorAxis::All, MirrorAxis::BackFront], Rank::Three, None), [true; 3]);
        assert_eq!(axes(&[MirrorAxis::BottomTop, MirrorAxis::LeftRight], Rank::Three, None), [true, false, true]);
        assert_eq!(axes(&[MirrorAxis::BackFront], Rank::Two, Some(Slices::Axial)), [false, false, true]);
        assert_eq!(axes(&[MirrorAxis::Horizontal], Rank::Two, None), [false, false, true]);
        // Nothing is said of an axis that nobody asked for.
        assert_eq!(new(&[MirrorAxis::BackFront], Rank::Three, None).unwrap().note, None);
        for (axis, rank, slices, says) in [
            (
                MirrorAxis::Horizontal,
                Rank::Three,
                None,
                "no axis `horizontal`: those of volumes are left-right, back-front, bottom-top",
            ),
            (
                MirrorAxis::BottomTop,
                Rank::Two,
                Some(Slices::Axial),
                "no axis `bottom-top`: those of axial slices are left-right, back-front",
            ),
            (MirrorAxis::LeftRight, Rank::Two, None, "no axis `left-right`: those of photographs are vertical, horizontal"),
        ] {
            assert_eq!(new(&[axis], rank, slices).unwrap_err().to_string(), says);
        }
    }
}
