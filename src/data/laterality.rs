//! Laterality: which classes are the left and the right one of a structure, as far as their names say so.

use super::names::some;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// Spelled out: it is a side whatever the other names are.
const WORDS: [(&str, Side); 2] = [("left", Side::Left), ("right", Side::Right)];
/// May mean anything else, as the L of a lumbar vertebra: a side only if there is the same name with the other one.
const ABBREVIATIONS: [(&str, Side); 6] =
    [("l", Side::Left), ("r", Side::Right), ("lh", Side::Left), ("rh", Side::Right), ("lt", Side::Left), ("rt", Side::Right)];
/// Of the heart: its left and right chambers are different organs, and a mirror image shows no heart that there is.
const UNLIKE: [&str; 6] = ["heart", "cardiac", "atrium", "atrial", "ventricle", "ventricular"];
/// Ventricles of the brain, which are alike.
const ALIKE: [&str; 2] = ["lateral", "lat"];

/// Classes whose names have a side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Laterality {
    /// Class that each class becomes in an image whose left and right have changed places.
    pub partner: Vec<u8>,
    /// Names of two that become each other, the left one first.
    pub pairs: Vec<[String; 2]>,
    /// Names that have a side and no counterpart that a mirror image could make of them.
    pub alone: Vec<String>,
}

impl Laterality {
    /// Of at most 256 classes. Names are compared without regard to case and to what stands between their words: `Left-Hippocampus` and
    /// `hippocampus_right` are a pair, so are `ctx-lh-insula` and `ctx-rh-insula`, `Kidney_L` and `Kidney_R`.
    pub fn of(names: &[&str]) -> Laterality {
        let sided: Vec<Option<Sided>> = names.iter().map(|name| Sided::parse(name)).collect();
        let mut laterality = Laterality { partner: (0..names.len()).map(|k| k as u8).collect(), pairs: vec![], alone: vec![] };
        for (k, name) in names.iter().enumerate() {
            let Some(own) = &sided[k] else { continue };
            // Both sides of one structure; the same name twice is no pair.
            let (mut lefts, mut rights) = (vec![], vec![]);
            for (other, found) in sided.iter().enumerate() {
                match found.as_ref().filter(|found| found.structure == own.structure).map(|found| found.side) {
                    Some(Side::Left) => lefts.push(other),
                    Some(Side::Right) => rights.push(other),
                    None => {}
                }
            }
            match (&lefts[..], &rights[..]) {
                (&[left], &[right]) if own.mirrors() => {
                    laterality.partner[k] = if k == left { right } else { left } as u8;
                    if k == left {
                        laterality.pairs.push([left, right].map(|k| names[k].to_owned()));
                    }
                }
                _ if own.spelled || !lefts.is_empty() && !rights.is_empty() => laterality.alone.push((*name).to_owned()),
                _ => {}
            }
        }
        laterality
    }

    /// The pairs, for a message.
    pub fn pairs_text(&self) -> String {
        let pairs: Vec<String> = self.pairs.iter().map(|[left, right]| format!("{left} and {right}")).collect();
        some(&pairs.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The names without a counterpart, for a message.
    pub fn alone_text(&self) -> String {
        some(&self.alone.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// A name with a side.
struct Sided {
    side: Side,
    /// The name's words but for the side.
    structure: Vec<String>,
    /// The side is a word of its own, not an abbreviation or the beginning of a longer word.
    spelled: bool,
}

impl Sided {
    fn parse(name: &str) -> Option<Sided> {
        let words = words(name);
        Self::spelled(&words).or_else(|| Self::abbreviated(&words))
    }

    /// `None` if there is no such word, or those of both sides.
    fn spelled(words: &[String]) -> Option<Sided> {
        Self::without(words, |word| WORDS.iter().find(|(w, _)| word == *w).map(|&(_, side)| (side, None)), true)
    }

    fn abbreviated(words: &[String]) -> Option<Sided> {
        // `leftkidney`.
        let begins = |word: &str| WORDS.iter().find_map(|&(w, side)| Some((side, Some(word.strip_prefix(w)?.to_owned()))));
        let short = |word: &str| ABBREVIATIONS.iter().find(|(w, _)| word == *w).map(|&(_, side)| (side, None));
        if words.iter().any(|word| WORDS.iter().any(|(w, _)| word == w)) {
            return None;
        }
        Self::without(words, |word| short(word).or_else(|| begins(word)), false)
    }

    /// Takes out the words that `side_of` knows, but for what it leaves of them.
    fn without(words: &[String], side_of: impl Fn(&str) -> Option<(Side, Option<String>)>, spelled: bool) -> Option<Sided> {
        let (mut sides, mut structure) = (vec![], vec![]);
        for word in words {
            match side_of(word) {
                Some((side, rest)) => {
                    sides.push(side);
                    structure.extend(rest);
                }
                None => structure.push(word.clone()),
            }
        }
        let &side = sides.first()?;
        sides.iter().all(|&s| s == side).then_some(Sided { side, structure, spelled })
    }

    /// Whether a mirror image of the one looks like the other.
    fn mirrors(&self) -> bool {
        let has = |list: &[&str]| self.structure.iter().any(|word| list.contains(&word.as_str()));
        !has(&UNLIKE) || has(&ALIKE)
    }
}

/// Words of a name in lower case. Anything but letters and digits parts them, and so do capitals within: `LeftKidney`, `KidneyL`,
/// `LKidney`.
fn words(name: &str) -> Vec<String> {
    let letters: Vec<char> = name.chars().collect();
    let (mut words, mut word) = (vec![], String::new());
    for (i, &c) in letters.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| letters[i]);
        let begins = c.is_uppercase()
            && (before.is_some_and(char::is_lowercase)
                || before.is_some_and(char::is_uppercase) && letters.get(i + 1).is_some_and(|c| c.is_lowercase()));
        if (begins || !c.is_alphanumeric()) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partners(names: &[&str]) -> (Vec<u8>, Vec<String>) {
        let laterality = Laterality::of(names);
        for [left, right] in &laterality.pairs {
            let class = |name: &String| names.iter().position(|n| n == name).unwrap();
            assert_eq!(usize::from(laterality.partner[class(left)]), class(right));
        }
        (laterality.partner, laterality.alone)
    }

    #[test]
    fn pairs_are_found_in_every_usual_spelling() {
        for [left, right] in [
            ["Left", "Right"],
            ["L", "R"],
            ["Left-Hippocampus", "Right-Hippocampus"],
            ["LEFT HIPPOCAMPUS", "hippocampus right"],
            ["hippocampus (left)", "hippocampus (right)"],
            ["kidney_left", "kidney_right"],
            ["ctx-lh-superiorfrontal", "ctx-rh-superiorfrontal"],
            ["lh_G_front_sup", "rh_G_front_sup"],
            ["Kidney_L", "Kidney_R"],
            ["kidney.l", "kidney.r"],
            ["Lt Lung", "Rt Lung"],
            ["lung lt", "lung rt"],
            ["LeftKidney", "RightKidney"],
            ["KidneyLeft", "KidneyRight"],
            ["LKidney", "RKidney"],
            ["KidneyL", "KidneyR"],
            ["leftkidney", "rightkidney"],
            ["left1", "right1"],
            ["Left-Lateral-Ventricle", "Right-Lateral-Ventricle"],
            ["rib_left_1", "rib_right_1"],
            ["left L1 nerve", "right L1 nerve"],
        ] {
            // Whatever the order, and beside others.
            assert_eq!(partners(&["background", left, "brain stem", right]), (vec![0, 3, 2, 1], vec![]), "{left}, {right}");
            assert_eq!(partners(&["background", right, left]), (vec![0, 2, 1], vec![]), "{left}, {right}");
        }
    }

    #[test]
    fn a_side_without_its_counterpart_stands_alone() {
        let lobes = ["background", "lung_upper_lobe_left", "lung_upper_lobe_right", "lung_middle_lobe_right"];
        assert_eq!(partners(&lobes), (vec![0, 2, 1, 3], vec!["lung_middle_lobe_right".to_owned()]));
        assert_eq!(partners(&["background", "Left kidney", "Right lung"]).1, ["Left kidney", "Right lung"]);
        // Which of two is the counterpart is not known.
        assert_eq!(partners(&["left eye", "eye, left", "right eye"]).1.len(), 3);
        // Chambers of the heart.
        assert_eq!(
            partners(&["background", "left ventricle", "right ventricle"]),
            (vec![0, 1, 2], vec!["left ventricle".to_owned(), "right ventricle".to_owned()])
        );
    }

    #[test]
    fn other_words_are_no_sides() {
        for names in [
            &["background", "bright", "blight", "copyright", "copyleft"][..],
            &["background", "upright", "cleft", "leftover", "rightful"],
            &["background", "vertebra L", "vertebrae_L1", "rib_R2", "RV", "LV", "MYO"],
            &["background", "left and right kidney", "left-right shunt", "lobe", "robe"],
            &["0", "1", "2", "3", "4"],
        ] {
            let unchanged = (0..names.len() as u8).collect();
            assert_eq!(partners(names), (unchanged, vec![]), "{names:?}");
        }
    }
}
