use super::*;
use crate::data::layouts::tests::tree;
use crate::data::layouts::{Reading, open, open_as};

/// Ids of a folder that holds these files, `.nii` left out.
fn ids(names: &[&str]) -> Vec<String> {
    let names: Vec<String> = names.iter().map(|name| format!("{name}.nii")).collect();
    let folder = tree(&names.iter().map(String::as_str).collect::<Vec<_>>());
    open(folder.path(), None).unwrap().subjects.into_iter().map(|s| s.id).collect()
}

fn reading(person: Option<&Regex>) -> Reading<'_> {
    Reading { person, ..Reading::default() }
}

#[test]
fn people_are_told_by_folders_and_names() {
    let cases: [(&[&str], &[&str]); 33] = [
        // Visits in folders, or in the names of their files.
        (
            &["p03/visit1/T1", "p03/visit2/T1", "p04/visit1/T1", "p04/visit2/T1"],
            &["p03/visit1", "p03/visit2", "p04/visit1", "p04/visit2"],
        ),
        (
            &["patient00/visit1_t1", "patient00/visit2_t1", "patient01/visit1_t1"],
            &["patient00/visit1", "patient00/visit2", "patient01/visit1"],
        ),
        (&["anna/visit1/T1", "anna/visit2/T1", "bob/visit1/T1"], &["anna/visit1", "anna/visit2", "bob/visit1"]),
        (&["visit1/anna/T1", "visit2/anna/T1", "visit1/bob/T1"], &["anna/visit1", "anna/visit2", "bob/visit1"]),
        (&["baseline/0001", "followup/0001", "baseline/0002"], &["0001/baseline", "0001/followup", "0002/baseline"]),
        (
            &["data/x9/2019-03-04/ct", "data/x9/2020-03-04/ct", "data/y9/2020-03-04/ct"],
            &["x9/data_2019-03-04", "x9/data_2020-03-04", "y9/data_2020-03-04"],
        ),
        // Codes of public data.
        (
            &["patient001/patient001_frame01", "patient001/patient001_frame12", "patient002/patient002_frame01"],
            &["patient001/frame01", "patient001/frame12", "patient002/frame01"],
        ),
        (
            &["ADNI/002_S_0295/MPR/2006-04-18/a_1", "ADNI/002_S_0295/MPR/2007-04-18/a_2", "ADNI/003_S_0001/MPR/2006-04-18/a_3"],
            &["002_S_0295/a_1", "002_S_0295/a_2", "003_S_0001/a_3"],
        ),
        (
            &["ADNI_002_S_0295_MR_2006", "ADNI_002_S_0295_MR_2007", "ADNI_003_S_0295_MR_2007"],
            &["002_S_0295/ADNI_002_S_0295_MR_2006", "002_S_0295/ADNI_002_S_0295_MR_2007", "003_S_0295/ADNI_003_S_0295_MR_2007"],
        ),
        (
            &["OAS1_0001_MR1", "OAS1_0001_MR2", "OAS30001_MR_d0129", "OAS30001_MR_d0757"],
            &["OAS1_0001/MR1", "OAS1_0001/MR2", "OAS30001/MR_d0129", "OAS30001/MR_d0757"],
        ),
        (
            &["LIDC-IDRI-0001/a/17", "LIDC-IDRI-0001/b/18", "UPENN-GBM-00001_11"],
            &["LIDC-IDRI-0001/17", "LIDC-IDRI-0001/18", "UPENN-GBM-00001/11"],
        ),
        (&["IXI012-HH-1211-T1", "IXI013-HH-1212-T1"], &["IXI012/HH-1211", "IXI013/HH-1212"]),
        // Marks in names.
        (&["P01_V1_t1", "P01_V2_t1", "P02_V1_t1"], &["P01/V1", "P01/V2", "P02/V1"]),
        (&["pat3_tp1", "pat3_tp2", "s1_baseline", "s1_followup"], &["pat3/tp1", "pat3/tp2", "s1/baseline", "s1/followup"]),
        (&["k7_20190304", "k7_20200101", "smith_20190304"], &["k7/20190304", "k7/20200101", "smith/20190304"]),
        (&["A0S9V9_sa_ED", "A0S9V9_sa_ES", "B1_sa_ED"], &["A0S9V9_sa/ED", "A0S9V9_sa/ES", "B1_sa/ED"]),
        (&["M001-V01", "M001-V02", "100307_3T", "100307_7T"], &["100307/3T", "100307/7T", "M001/V01", "M001/V02"]),
        (&["P01V1", "P01V2", "P011V1"], &["P01/V1", "P01/V2", "P011/V1"]),
        (&["kim/v1/T1", "kim/v2/T1", "lee/v1/T1"], &["kim/v1", "kim/v2", "lee/v1"]),
        (&["miriad_188_AD_M_01_MR_1", "miriad_188_AD_M_02_MR_1"], &["miriad_188/AD_M_01_MR_1", "miriad_188/AD_M_02_MR_1"]),
        // People of the same number in two hospitals.
        (
            &["siteA/p01/visit1/T1", "siteA/p01/visit2/T1", "siteB/p01/visit1/T1"],
            &["siteA_p01/visit1", "siteA_p01/visit2", "siteB_p01/visit1"],
        ),
        // No word and no code: folders, numbers.
        (&["A/1_ct", "A/2_ct", "B/1_ct", "B/2_ct"], &["A/1", "A/2", "B/1", "B/2"]),
        (&["x/17", "x/18", "y/19", "y/20", "z/21"], &["x/17", "x/18", "y/19", "y/20", "z/21"]),
        (&["t01_01", "t01_02", "t02_01", "t03_01"], &["t01/01", "t01/02", "t02/01", "t03/01"]),
        (&["001A", "001B", "002A", "003A"], &["001/A", "001/B", "002/A", "003/A"]),
        // With a contrast and more behind, numbers of studies, years, and what joins words without a separator.
        (
            &["training01_01_flair_pp", "training01_02_flair_pp", "training02_01_flair_pp", "training03_01_flair_pp"],
            &["training01/01_flair_pp", "training01/02_flair_pp", "training02/01_flair_pp", "training03/01_flair_pp"],
        ),
        (
            &["10000_1000000_t2w", "10000_1000001_t2w", "10001_1000002_t2w", "10002_1000003_t2w"],
            &["10000/1000000", "10000/1000001", "10001/1000002", "10002/1000003"],
        ),
        (
            &["10001/1999/ct", "10001/2000/ct", "10002/1999/ct", "10003/1999/ct"],
            &["10001/1999", "10001/2000", "10002/1999", "10003/1999"],
        ),
        (&["Subj1Sess1", "Subj1Sess2", "Subj2Sess1"], &["Subj1/Sess1", "Subj1/Sess2", "Subj2/Sess1"]),
        // Words that are not known to be marks.
        (&["ReMIND-001-preop", "ReMIND-001-sometime", "x-2"], &["ReMIND-001/preop", "ReMIND-001/sometime", "x-2"]),
        (
            &["kim_avant", "kim_apres", "lee_avant", "lee_apres", "wu_avant"],
            &["kim/apres", "kim/avant", "lee/apres", "lee/avant", "wu/avant"],
        ),
        // Names of the data, not of people.
        (&["study2_scan_001", "study2_scan_002"], &["study2_scan_001", "study2_scan_002"]),
        (
            &["train/brain_01", "train/brain_02", "val/brain_03", "BRATS_001"],
            &["BRATS_001", "brain_01", "brain_02", "brain_03"],
        ),
    ];
    for (names, expected) in cases {
        assert_eq!(ids(names), expected);
    }
    // One person of many scans among many people, as in ChestX-ray14.
    let xrays: Vec<String> =
        (0..20).map(|scan| format!("00000001_{scan:03}")).chain((2..30).map(|person| format!("{person:08}_000"))).collect();
    let found = ids(&xrays.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(found[19..21], ["00000001/019", "00000002/000"]);
    // Many scans in each of few folders: sites.
    let sites: Vec<String> = (0..60).map(|n| format!("{}/{:03}", ["Utrecht", "Singapore"][n % 2], n / 2)).collect();
    let found = ids(&sites.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((found[0].as_str(), found.len()), ("Singapore_000", 60));
}

#[test]
fn a_pattern_says_it_otherwise() {
    let folder = tree(&["x/a1-7.nii", "x/a2-7.nii", "y/a3-8.nii"]);
    let with = |pattern: &str| open_as(folder.path(), reading(Some(&Regex::new(pattern).unwrap())));
    let ids = |data: &Dataset| data.subjects.iter().map(|s| s.id.clone()).collect::<Vec<_>>();
    let data = with(r"-(\d)\.nii").unwrap();
    assert_eq!(ids(&data), ["7/a1-7", "7/a2-7", "8/a3-8"]);
    let line = describe(&data, folder.path());
    assert!(line.starts_with("people: 3 scans of 2, e.g. `7` of x/a1-7.nii and x/a2-7.nii; "), "{line}");
    assert_eq!(ids(&with("^([^.]*)/").unwrap()), ["x/a1-7", "x/a2-7", "y/a3-8"]);
    // Nobody on two sides by one name: what would be equal keeps its whole name.
    assert_eq!(ids(&with("(a)").unwrap()), ["a/a1-7", "a/a2-7", "a/a3-8"]);
    let refused = |pattern: &str| format!("{:#}", with(pattern).unwrap_err());
    assert!(
        refused("^x/(a)")
            .contains("--subject-pattern ^x/(a): its first group finds no person in 1 of 3 names, the first y/a3-8.nii")
    );
    assert!(refused("a(z)?").contains("in 3 of 3 names"));
}

#[test]
fn a_manifest_states_its_people() {
    let folder = tree(&["1.nii", "2.nii"]);
    let table = folder.path().join("list.csv");
    let read = |ids: [&str; 2], pattern: Option<&Regex>| {
        std::fs::write(&table, format!("subject,t1\n{},1.nii\n{},2.nii\n", ids[0], ids[1])).unwrap();
        open_as(&table, reading(pattern)).unwrap()
    };
    let data = read(["P01_V1", "P01_V2"], None);
    assert_eq!(data.subjects[0].id, "P01_V1");
    let line = describe(&data, &table);
    assert!(line.starts_with("warning: ") && line.contains("`P01_V1` and `P01_V2` look like one person"), "{line}");
    let data = read(["P01_V1", "P01_V2"], Some(&Regex::new("^(...)").unwrap()));
    assert_eq!(data.subjects[1].id, "P01/V2");
    assert!(describe(&read(["P01/V1", "P01/V2"], None), &table).starts_with("people: 2 scans of 1, e.g. `P01`"));
}

#[test]
fn every_layout_knows_its_people() {
    let folder =
        tree(&["imagesTr/patient001_frame01_0000.nii", "imagesTr/patient001_frame12_0000.nii", "imagesTr/P2_V1_0000.nii"]);
    let json = r#"{"channel_names": {"0": "MR"}, "labels": {}, "file_ending": ".nii"}"#;
    std::fs::write(folder.path().join("dataset.json"), json).unwrap();
    let ids = |data: Dataset| data.subjects.into_iter().map(|s| s.id).collect::<Vec<_>>();
    assert_eq!(ids(open(folder.path(), None).unwrap()), ["P2/V1", "patient001/frame01", "patient001/frame12"]);
    let list = r#"{"training": ["imagesTr/patient001_frame01_0000.nii", "imagesTr/patient001_frame12_0000.nii"]}"#;
    std::fs::write(folder.path().join("dataset.json"), list).unwrap();
    let found = ids(open(folder.path(), Some(Layout::Decathlon)).unwrap());
    assert_eq!(found, ["patient001/frame01_0000", "patient001/frame12_0000"]);
}
