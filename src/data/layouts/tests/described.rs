//! What `dataset.json` describes.

use super::*;
use crate::data::labelling::{Decoding, IGNORE, LabelRegion, Labelling};

const DECATHLON: &str = r#"{"modality": {"1": "T2", "0": "FLAIR"}, "labels": {"2": "tumour", "0": "background", "1": "pancreas"},
    "training": [{"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"},
                 {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"},
                 {"image": "./imagesTr/gone.nii.gz", "label": "./labelsTr/b.nii.gz"}],
    "test": ["./imagesTs/t.nii.gz"]}"#;

#[test]
fn decathlon() {
    let folder =
        tree(&["imagesTr/._a.nii.gz", "imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/b.nii.gz", "imagesTs/t.nii.gz"]);
    ["imagesTr/extra.nii.gz", "predicted/a.nii.gz"].iter().for_each(|name| text(&folder, name, ""));
    text(&folder, "dataset.json", DECATHLON);
    let data = opened(&folder);
    assert_eq!(data.layout, Layout::Decathlon);
    assert_eq!(data.channels, ["FLAIR", "T2"]);
    assert_eq!(values(&data), [0, 1, 2]);
    let expected = ["a: imagesTr/a.nii.gz", "b: imagesTr/b.nii.gz | labelsTr/b.nii.gz", "t: imagesTs/t.nii.gz @test"];
    assert_eq!(listed(&data, &folder), expected);
    faults(&data.problems, &[("imagesTr/gone.nii.gz", "not there"), ("labelsTr/a.nii.gz", "not there")]);
    // What is not listed is not asked for, and neither are labels without --labels.
    faults(&data.ignored, &[("extra.nii.gz", "not listed"), ("predicted/a.nii.gz", "not listed")]);
    let data = without_labels(&folder);
    faults(&data.problems, &[("imagesTr/gone.nii.gz", "not there")]);
    assert!(data.labels.is_none());
}

fn without_labels(folder: &TempDir) -> Dataset {
    open_as(folder.path(), Reading { labels: Labels::Unwanted, ..Reading::default() }).unwrap()
}

#[test]
fn lists_of_other_tools() {
    let folder =
        tree(&["imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "imagesTr/b_2.nii.gz", "imagesTr/c.nii", "labelsTr/a.nii.gz"]);
    text(&folder, "imagesTs/d.nii.gz", "");
    // A byte order mark, other paths and endings, lists that nobody asks for, a channel a file, classes for labels, a scan in two lists.
    let json = r#"{"numTraining": 99, "numTest": "?", "tensorImageSize": {"x": 1}, "labels": {}, "folds": [[1, 2], ["z"]], "test": null,
        "training": [{"image": "/home/me/Task01/imagesTr/a.nii.gz", "label": ".\\labelsTr\\a.nii.gz", "fold": 0},
                     {"image": ["imagesTr/b.nii.gz", "./imagesTr/b_2.nii.gz"], "label": 3}],
        "validation": [{"image": "imagesTr/c.nii.gz"}, {"image": "imagesTr/a.nii.gz"}]}"#;
    text(&folder, "dataset.json", &format!("\u{feff}{json}"));
    let data = opened(&folder);
    assert_eq!((data.layout, data.channels.join(",")), (Layout::Decathlon, "image_0,image_1".into()));
    assert!(data.labels.is_none());
    let expected =
        ["a: imagesTr/a.nii.gz | labelsTr/a.nii.gz", "b: imagesTr/b.nii.gz, imagesTr/b_2.nii.gz", "c: imagesTr/c.nii @val"];
    assert_eq!(listed(&data, &folder), expected);
    faults(&data.problems, &[]);
    faults(
        &data.ignored,
        &[("a.nii.gz", "listed under `validation` too; that under `training` counts"), ("d.nii.gz", "not listed")],
    );
}

#[test]
fn nnunet_version_1() {
    let folder =
        tree(&["imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "imagesTr/b_0000.nii", "imagesTr/b_0001.nii", "labelsTr/b.nii"]);
    text(&folder, "dataset.json", &DECATHLON.replace(".nii.gz", ".nii"));
    let data = opened(&folder);
    assert_eq!((data.layout, data.channels.as_slice()), (Layout::Nnunet, &["FLAIR".to_string(), "T2".to_string()][..]));
    assert_eq!(values(&data), [0, 1, 2]);
    let expected =
        ["a: imagesTr/a_0000.nii, imagesTr/a_0001.nii", "b: imagesTr/b_0000.nii, imagesTr/b_0001.nii | labelsTr/b.nii"];
    assert_eq!(listed(&data, &folder), expected);
    faults(
        &data.problems,
        &[("imagesTr/a_0000.nii", "no label in labelsTr"), ("imagesTr/gone", "listed in dataset.json, but not there")],
    );
    faults(&without_labels(&folder).problems, &[("imagesTr/gone", "not there")]);
    assert_eq!(listed(&open(folder.path(), Some(Layout::Nnunet)).unwrap(), &folder), expected);
}

#[test]
fn labels_that_are_not_asked_for_are_not_read() {
    let folder = tree(&["imagesTr/a_0000.nii", "labelsTr/a.nii", "labelsTr/z.nii"]);
    for labels in [r#""background": 0, "whole": [1, 2]"#, r#""background": 0, "a": 1, "ignore": 1"#, r#""a": "b""#] {
        text(&folder, "dataset.json", &format!(r#"{{"channel_names": {{"0": "T1"}}, "labels": {{{labels}}}}}"#));
        says(&refused(folder.path(), None), &["preprocess does without this description with --labels", "--no-labels"]);
        faults(&without_labels(&folder).problems, &[]);
        let given = open_as(folder.path(), Reading { labels: Labels::Given, ..Reading::default() }).unwrap();
        assert_eq!(listed(&given, &folder), ["a: imagesTr/a_0000.nii | labelsTr/a.nii"]);
        faults(&given.problems, &[("labelsTr/z.nii", "label without a scan")]);
    }
    text(&folder, "dataset.json", r#"{"channel_names": {"0": "T1"}, "labels": {}}"#);
    assert!(opened(&folder).labels.is_none());
}

/// Labels of an nnU-Net dataset, read from this.
fn labelling(labels: &str, order: &str) -> anyhow::Result<Labelling> {
    let folder = tree(&["imagesTr/a_0000.nii", "labelsTr/a.nii"]);
    let order = if order.is_empty() { String::new() } else { format!(r#", "regions_class_order": [{order}]"#) };
    text(&folder, "dataset.json", &format!(r#"{{"channel_names": {{"0": "T1"}}, "labels": {{{labels}}}{order}}}"#));
    let found = open(folder.path(), None)?.labels.expect("described");
    assert_eq!(described_labels(&folder.path().join("dataset.json"))?, found);
    Ok(found)
}

#[test]
fn regions_and_what_is_ignored_are_nnunets() {
    // BraTS with what nobody labelled, in an order that is neither that of the names nor that of the values.
    let labels = r#""background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [2, 3, 3], "enhancing": 3, "ignore": 4"#;
    let found = labelling(labels, "1, 2, 3").unwrap();
    let named: Vec<(i64, &str)> = found.labels.iter().map(|l| (l.value, l.name.as_str())).collect();
    assert_eq!(named, [(0, "background"), (1, "label 1"), (2, "label 2"), (3, "enhancing")]);
    let region = |name: &str, values: &[i64], written| LabelRegion { name: name.into(), values: values.into(), written };
    let expected = [region("whole_tumor", &[1, 2, 3], 1), region("tumor_core", &[2, 3], 2), region("enhancing", &[3], 3)];
    assert_eq!((found.regions.as_slice(), found.ignore), (&expected[..], Some(4)));
    assert_eq!((found.class_of(3), found.class_of(4), found.class_of(5)), (Some(3), Some(IGNORE), None));
    assert_eq!(found.outputs(), ["whole_tumor", "tumor_core", "enhancing"]);
    assert_eq!(found.counts(&[90, 5, 2, 1]), [8, 3, 1]);
    // KiTS: the values of the regions are not in order. Lists of one value alone are plain labels, and need no order.
    let kits = labelling(r#""background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2"#, "1, 3, 2").unwrap();
    assert_eq!(kits.decoding(), Decoding::Regions(vec![1, 3, 2]));
    let plain = labelling(r#""background": 0, "a": [7], "ignore": -1"#, "").unwrap();
    assert_eq!((plain.outputs(), plain.regions.len(), plain.ignore), (vec!["background", "a"], 0, Some(-1)));
    assert_eq!(plain.decoding(), Decoding::Classes);

    // Descriptions in the Decathlon's manner may have them too.
    let folder = tree(&["imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/b.nii.gz", "imagesTs/t.nii.gz"]);
    let labels = r#"{"2": "tumour", "0": "background", "1": "pancreas"}"#;
    let overlapping = r#"{"background": 0, "organ": [1, 2], "tumour": 2}, "regions_class_order": [1, 2]"#;
    text(&folder, "dataset.json", &DECATHLON.replace(labels, overlapping));
    let data = opened(&folder);
    assert_eq!((data.layout, data.labels.unwrap().outputs()), (Layout::Decathlon, vec!["organ", "tumour"]));
    text(&folder, "dataset.json", &DECATHLON.replace("tumour", "ignore"));
    assert_eq!(opened(&folder).labels.unwrap().ignore, Some(2));

    let two = r#""background": 0, "a": [1, 2], "b": 2"#;
    for (labels, order, says_) in [
        (two, "", "no `regions_class_order`"),
        (two, "1", "1 values, expected one for each of 2: a, b"),
        (two, "1, 1", "writes the region `b` as 1, expected one of its values [2]"),
        (two, "9, 2", "writes the region `a` as 9, expected one of its values [1, 2]"),
        (r#""background": 0, "a": [0, 1]"#, "1", "the region `a` holds 0, the background"),
        (r#""background": 0, "a": [1, 2], "ignore": 2"#, "1", "`ignore` and `label 2` share the value 2"),
    ] {
        says(&format!("{:#}", labelling(labels, order).unwrap_err()), &["dataset.json", says_]);
    }
}

#[test]
fn broken_descriptions() {
    let decathlon = |from: &str, to: &str| DECATHLON.replacen(from, to, 1);
    let nnunet = |labels: &str, ending: &str| {
        format!(r#"{{"channel_names": {{"0": "CT"}}, "file_ending": "{ending}", "labels": {{{labels}}}}}"#)
    };
    let cases: Vec<(String, &[&str])> = vec![
        (DECATHLON[..80].into(), &["expected a JSON object", "line 1"]),
        ("[]".into(), &["expected a JSON object"]),
        (r#"{"name": "x"}"#.into(), &["channel_names", "modality", "found name"]),
        (decathlon(r#""1": "T2""#, r#""7": "T2""#), &["`modality`", "0 to 1", "\"7\""]),
        (decathlon(r#"{"1": "T2", "0": "FLAIR"}"#, "{}"), &["names no channel"]),
        (decathlon(r#""0": "background""#, r#""5": "background""#), &["expected 0 (background)", "Some(1)"]),
        (decathlon(r#""0": "background""#, r#""o": "background""#), &["whole number", "\"o\""]),
        (decathlon(r#"[{"image""#, r#"[{"picture""#), &["`training`", "`image` and `label`"]),
        (decathlon("imagesTr/a.nii.gz", "dataset.json"), &["dataset.json is not a scan (.nii"]),
        (decathlon("imagesTr/b.nii.gz", "imagesTr/a.nii.gz"), &["duplicate subject `a`"]),
        (nnunet(r#""background": 0, "whole": [1, 2]"#, ".nii"), &["no `regions_class_order`", "each of whole"]),
        (nnunet(r#""background": 0, "whole": []"#, ".nii"), &["of a region a list", "whole"]),
        (nnunet(r#""background": 0, "whole": [1, 0.5]"#, ".nii"), &["of a region a list", "whole"]),
        (nnunet(r#""background": 0, "a": 1, "b": 1"#, ".nii"), &["`a` and `b` share the value 1"]),
        (nnunet(r#""background": 0, "ignore": 0"#, ".nii"), &["`ignore` and `background` share the value 0"]),
        (nnunet(r#""background": 0, "a": 1, "ignore": [2]"#, ".nii"), &["`ignore`: expected one whole number, found [2]"]),
        (nnunet(r#""background": 0"#, ".png"), &["file_ending", ".png"]),
    ];
    for (json, expected) in cases {
        let folder = tree(&["imagesTr/a.nii.gz"]);
        text(&folder, "dataset.json", &json);
        let message = refused(folder.path(), None);
        says(&message, expected);
        says(&message, &[folder.path().to_str().unwrap()]);
    }
}

#[test]
fn nnunet() {
    let folder =
        tree(&["imagesTr/c_1_0000.nii.gz", "imagesTr/c_1_0001.nii.gz", "labelsTr/c_1.nii.gz", "imagesTr/d_0001.nii.gz"]);
    for name in ["imagesTr/e_0000.nii.gz", "imagesTr/e_0001.nii.gz", "imagesTr/e_0002.nii.gz", "imagesTr/f.nii.gz"] {
        text(&folder, name, "");
    }
    for name in ["imagesTs/c_1_0000.NII.GZ", "labelsTr/x.nii.gz", "imagesTr/g_0000.nii", "imagesTs/h_0000.nii.gz"] {
        text(&folder, name, "");
    }
    ["imagesTs/h_0001.nii.gz", "labelsTs/h.nii.gz", "notes/h.nii.gz"].iter().for_each(|name| text(&folder, name, ""));
    let json = r#"{"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"tumour": 2, "background": 0, "gland": 1},
        "numTraining": 2, "file_ending": ".nii.gz"}"#;
    text(&folder, "dataset.json", json);
    let data = opened(&folder);
    assert_eq!(data.layout, Layout::Nnunet);
    assert_eq!(data.channels, ["T2", "ADC"]);
    assert_eq!(
        data.labels.as_ref().unwrap().labels.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(),
        ["background", "gland", "tumour"]
    );
    assert_eq!(
        listed(&data, &folder),
        [
            "c_1: imagesTr/c_1_0000.nii.gz, imagesTr/c_1_0001.nii.gz | labelsTr/c_1.nii.gz",
            "e: imagesTr/e_0000.nii.gz, imagesTr/e_0001.nii.gz",
            "h: imagesTs/h_0000.nii.gz, imagesTs/h_0001.nii.gz | labelsTs/h.nii.gz @test",
        ]
    );
    faults(
        &data.problems,
        &[
            ("imagesTr/d_0001.nii.gz", "subject d: no T2 (_0000)"),
            ("imagesTr/e_0000.nii.gz", "no label in labelsTr"),
            ("imagesTr/e_0002.nii.gz", "_0000 to _0001"),
            ("imagesTr/f.nii.gz", "_0000 to _0001"),
            ("imagesTr/g_0000.nii", "file_ending .nii.gz"),
            ("imagesTs/c_1_0000.NII.GZ", "subject c_1: no ADC (_0001)"),
            ("labelsTr/x.nii.gz", "label without"),
        ],
    );
    faults(&data.ignored, &[("notes/h.nii.gz", "not in a folder")]);
}
