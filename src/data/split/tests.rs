use super::*;
use proptest::prelude::*;

fn subjects(n: usize) -> Vec<(String, Option<String>)> {
    (0..n).map(|i| (format!("s{i}"), None)).collect()
}

fn message(result: Result<impl std::fmt::Debug>) -> String {
    format!("{:#}", result.unwrap_err())
}

fn all(split: &Split) -> Vec<&str> {
    let mut ids: Vec<&str> = split.sides().map(|(_, id)| id).collect();
    ids.sort();
    ids
}

proptest! {
    #[test]
    fn sides_are_disjoint_cover_and_do_not_depend_on_order(
        sides in prop::collection::btree_map("[a-c]{1,3}", prop::option::of(prop::sample::select(vec!["train", "val", "test"])), 6..30),
        (val, test) in (0.0..0.4, 0.0..0.4),
        seed: u64,
        order in prop::collection::vec(any::<u32>(), 60),
    ) {
        // Two scans a subject, in any order.
        let given = |id: &String, side: &Option<&str>, scan| (format!("{id}/{scan}"), side.map(String::from));
        let mut scans: Vec<_> = sides.iter().flat_map(|(id, side)| [given(id, side, 1), given(id, side, 2)]).collect();
        let Ok(split) = Split::draw(&scans, val, test, seed) else {
            // Refused only when the subjects without a side are too few.
            prop_assert!(sides.values().filter(|s| s.is_none()).count() < 3);
            return Ok(());
        };
        let mut key = order.iter().cycle();
        scans.sort_by_cached_key(|_| *key.next().unwrap());
        prop_assert_eq!(&split, &Split::draw(&scans, val, test, seed).unwrap());
        prop_assert_eq!(all(&split), sides.keys().map(String::as_str).collect::<Vec<_>>());
        prop_assert!(!split.train.is_empty());
        for (name, ids, fraction) in [("val", &split.val, val), ("test", &split.test, test)] {
            let kept: Vec<&String> = sides.iter().filter(|(_, s)| **s == Some(name)).map(|(id, _)| id).collect();
            if kept.is_empty() {
                let free = sides.values().filter(|s| s.is_none()).count() as f64;
                prop_assert!(ids.len() == ((fraction * free).round() as usize).max(usize::from(fraction > 0.0)));
            } else {
                prop_assert_eq!(ids.iter().collect::<Vec<_>>(), kept);
            }
        }
    }

    #[test]
    fn fractions_are_nested(n in 1usize..200, (a, b) in (0.001..=1.0, 0.001..=1.0), seed: u64) {
        let split = Split::draw(&subjects(n), 0.0, 0.0, seed).unwrap();
        let (less, more) = (split.fraction(f64::min(a, b)).unwrap(), split.fraction(f64::max(a, b)).unwrap());
        prop_assert_eq!(&less[..], &more[..less.len()]);
        prop_assert_eq!(less.len(), ((f64::min(a, b) * n as f64).round() as usize).max(1));
        let whole: BTreeSet<String> = split.fraction(1.0).unwrap().into_iter().collect();
        prop_assert_eq!(whole, split.train.iter().cloned().collect::<BTreeSet<_>>());
    }
}

#[test]
fn seeds_give_other_splits_and_new_subjects_disturb_little() {
    let before = Split::draw(&subjects(100), 0.2, 0.1, 7).unwrap();
    assert_eq!((before.train.len(), before.val.len(), before.test.len()), (70, 20, 10));
    assert_ne!(before.val, Split::draw(&subjects(100), 0.2, 0.1, 8).unwrap().val);
    let after = Split::draw(&subjects(101), 0.2, 0.1, 7).unwrap();
    let moved = before.sides().filter(|side| !after.sides().any(|other| other == *side)).count();
    assert!(moved <= 2, "{moved} subjects changed sides");
    let (few, more) = (before.fraction(0.3).unwrap(), after.fraction(0.3).unwrap());
    assert!(few.iter().filter(|id| !more.contains(id)).count() <= 2);
}

#[test]
fn drawing_errors() {
    let draw = |n, val, test| message(Split::draw(&subjects(n), val, test, 0));
    assert!(draw(1, 0.1, 0.0).contains("one subject only"));
    assert!(draw(2, 0.1, 0.1).contains("1 for validation, 1 for testing and at least 1 for training, found 2"));
    assert!(draw(0, 0.0, 0.0).contains("found 0"));
    assert!(draw(9, 1.0, 0.0).contains("validation fraction") && draw(9, 0.1, f64::NAN).contains("test fraction"));
    assert_eq!(Split::draw(&subjects(1), 0.0, 0.0, 0).unwrap().train, ["s0"]);
    let sides = |a: Option<&str>, b: Option<&str>| {
        let scans = [("s/1", a), ("s/2", b), ("t", None)].map(|(id, side)| (id.to_string(), side.map(String::from)));
        message(Split::draw(&scans, 0.0, 0.0, 0))
    };
    assert!(sides(Some("train"), None).contains("subject `s`: its scans are on the sides \"train\" and \"none\""));
    assert!(sides(Some("dev"), Some("dev")).contains("found \"dev\""));
    let split = Split::draw(&subjects(3), 0.0, 0.0, 0).unwrap();
    assert!([0.0, -1.0, 1.1, f64::NAN].iter().all(|f| message(split.fraction(*f)).contains("label fraction")));
}

#[test]
fn saved_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("split.json");
    let split = Split::draw(&subjects(10), 0.2, 0.2, 3).unwrap();
    split.save(&path).unwrap();
    assert_eq!(Split::load(&path).unwrap(), split);

    let ids: Vec<String> = (0..12).map(|i| format!("s{i}/slice")).collect();
    assert_eq!(split.check(&ids).unwrap(), ["s10", "s11"]);
    assert!(message(split.check(&ids[1..])).contains("1 of the split's 10 subjects are not in the store, the first `s0`"));

    for (json, expected) in [
        (r#"{"seed": 1, "train": ["a"], "val": ["b", "a"], "test": []}"#, "`a` is in `train` and in `val`"),
        (r#"{"seed": 1, "train": ["a", "a"], "val": [], "test": []}"#, "`a` is in `train` and in `train`"),
        (r#"{"seed": 1, "train": ["a/1"], "val": [], "test": []}"#, "`a/1`: expected a subject"),
        (r#"{"seed": 1, "train": ["a"], "val": []}"#, "missing field `test`"),
        (r#"{"seed": 1, "train": ["a"], "val": [], "test": [], "dev": []}"#, "unknown field `dev`"),
    ] {
        std::fs::write(&path, json).unwrap();
        let found = message(Split::load(&path));
        assert!(found.contains(expected) && found.contains("split.json"), "{found}");
    }
    assert!(message(Split::load(&folder.path().join("gone.json"))).contains("gone.json: cannot be read"));
}
