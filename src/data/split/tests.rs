use super::*;
use proptest::prelude::*;

fn scan(id: impl Into<String>, side: Option<&str>) -> Candidate {
    Candidate { id: id.into(), side: side.map(String::from), class: None }
}

fn subjects(n: usize) -> Vec<Candidate> {
    (0..n).map(|i| scan(format!("s{i}"), None)).collect()
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
        let given = |id: &String, side: &Option<&str>, number| scan(format!("{id}/{number}"), *side);
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
        let scans = [("s/1", a), ("s/2", b), ("t", None)].map(|(id, side)| scan(id, side));
        message(Split::draw(&scans, 0.0, 0.0, 0))
    };
    assert!(sides(Some("train"), None).contains("subject `s`: the dataset puts its scans on the sides \"train\" and \"none\""));
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

/// Scans of classes 0 to 3, one to three a subject.
fn graded() -> impl Strategy<Value = Vec<Candidate>> {
    let class = prop::sample::select(vec![0, 0, 0, 0, 1, 1, 2, 3]);
    let subjects = prop::collection::vec(prop::collection::vec(class, 1..=3), 8..60);
    subjects.prop_map(|subjects| {
        let scan = |i: usize, j, class| Candidate { id: format!("s{i}/{j}"), side: None, class: Some(class) };
        let scans = |(i, classes): (usize, Vec<u8>)| classes.into_iter().enumerate().map(move |(j, class)| scan(i, j, class));
        subjects.into_iter().enumerate().flat_map(scans).collect()
    })
}

/// How many subjects of each class are among these.
fn census(classes: &BTreeMap<&str, Option<u8>>, ids: &[String]) -> [usize; 4] {
    std::array::from_fn(|class| ids.iter().filter(|id| classes[id.as_str()] == Some(class as u8)).count())
}

proptest! {
    #[test]
    fn folds_partition_the_subjects_and_balance_their_classes(scans in graded(), of in 2u64..6, val in 0.0..0.5, seed: u64) {
        let classes = subject_classes(&scans);
        let ids: Vec<&str> = classes.keys().copied().collect();
        let whole = census(&classes, &ids.iter().map(|id| id.to_string()).collect::<Vec<_>>());
        let mut reversed = scans.clone();
        reversed.reverse();
        let mut tested = Vec::new();
        for number in 0..of {
            let split = Split::kfold(&scans, Fold { number, of }, val, seed).unwrap();
            prop_assert_eq!(&split, &Split::kfold(&reversed, Fold { number, of }, val, seed).unwrap());
            prop_assert_eq!(all(&split), ids.clone());
            let within = |n: usize, share: f64| (n as f64 - share).abs() < 1.0 + 1e-9;
            prop_assert!(within(split.test.len(), ids.len() as f64 / of as f64));
            let rest = ids.len() - split.test.len();
            prop_assert_eq!(split.val.len(), ((val * rest as f64).round() as usize).max(1));
            let (test, valid) = (census(&classes, &split.test), census(&classes, &split.val));
            for class in 0..4 {
                prop_assert!(within(test[class], whole[class] as f64 / of as f64), "{test:?} of {whole:?}");
                let share = split.val.len() as f64 / rest as f64;
                prop_assert!(within(valid[class], (whole[class] - test[class]) as f64 * share), "{valid:?} of {whole:?}, {share}");
            }
            tested.extend(split.test);
        }
        tested.sort();
        prop_assert_eq!(tested, ids);
        let thin: Vec<(u8, usize)> = (0..4).zip(whole).filter(|&(_, n)| n > 0 && (n as u64) < of).collect();
        prop_assert_eq!(thin_classes(&scans, of), thin);
    }

    #[test]
    fn balanced_fractions_are_nested(scans in graded(), (a, b) in (0.05..=1.0, 0.05..=1.0), seed: u64) {
        let split = Split::draw(&scans, 0.0, 0.0, seed).unwrap();
        let classes = subject_classes(&scans);
        let known = classes.iter().map(|(id, class)| (id.to_string(), class.unwrap())).collect();
        let take = |fraction| split.balanced_fraction(fraction, &known, seed ^ 1).unwrap();
        let (less, more) = (take(f64::min(a, b)), take(f64::max(a, b)));
        prop_assert_eq!(&less[..], &more[..less.len()]);
        prop_assert_eq!(less.len(), split.fraction(f64::min(a, b)).unwrap().len());
        let (whole, share) = (census(&classes, &split.train), less.len() as f64 / split.train.len() as f64);
        for (n, all) in census(&classes, &less).into_iter().zip(whole) {
            prop_assert!((n as f64 - all as f64 * share).abs() < 1.0 + 1e-9, "{n} of {all}, {share}");
        }
        // Where no class is known, the order is that of a plain fraction.
        prop_assert_eq!(split.balanced_fraction(a, &BTreeMap::new(), split.seed).unwrap(), split.fraction(a).unwrap());
    }
}

#[test]
fn fold_errors() {
    let fold = |n, number, of| message(Split::kfold(&subjects(n), Fold { number, of }, 0.2, 0));
    assert!(fold(9, 0, 1).contains("at least 2 folds, found 1"));
    assert!(fold(9, 3, 3).contains("numbered from 0 to 2, found 3"));
    assert!(fold(4, 0, 5).contains("5 folds need as many subjects, found 4"));
    assert!(fold(2, 0, 2).contains("1 subjects beside it"));
    let mut given = subjects(9);
    given[3].side = Some("test".into());
    assert!(
        message(Split::kfold(&given, Fold { number: 0, of: 3 }, 0.2, 0))
            .contains("`s3`: the dataset puts it on the side \"test\"")
    );
}
