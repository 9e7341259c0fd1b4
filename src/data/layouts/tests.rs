use super::*;
use crate::data::formats::nifti::{DataType, write};
use crate::data::volume::Volume;
use ndarray::Array4;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};
use tempfile::TempDir;

mod described;
mod images;

/// A folder of empty files, which is enough where names decide.
pub(super) fn tree(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    names.iter().for_each(|name| text(&folder, name, ""));
    folder
}

fn text(folder: &TempDir, name: &str, content: &str) {
    let path = folder.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A scan of `[channels, 4, 4, 4]` filled with `value`, written over whatever was there.
fn scan(path: &Path, channels: usize, value: f32) {
    let affine = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]];
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    write(path, &Volume { data: Array4::from_elem((channels, 4, 4, 4), value), affine }, DataType::Int16).unwrap();
}

fn archive(folder: &TempDir, name: &str, members: &[&str]) -> PathBuf {
    let path = folder.path().join(name);
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    let image = folder.path().join(".image.nii.gz");
    for (i, member) in members.iter().enumerate() {
        scan(&image, 1, i as f32 + 1.0);
        zip.start_file(*member, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&fs::read(&image).unwrap()).unwrap();
    }
    zip.finish().unwrap();
    path
}

fn opened(folder: &TempDir) -> Dataset {
    open(folder.path(), None).unwrap()
}

fn refused(path: &Path, layout: Option<Layout>) -> String {
    format!("{:#}", open(path, layout).expect_err("this must be refused"))
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(text.contains(part), "no {part:?} in: {text}"));
}

/// `id: channel, channel | label @split`, paths from the folder on.
fn listed(dataset: &Dataset, folder: &TempDir) -> Vec<String> {
    let root = format!("{}/", folder.path().display());
    let name = |s: &Source| s.display().replace(&root, "");
    let line = |s: &Subject| {
        let channels: Vec<_> = s.channels.iter().map(name).collect();
        let label = s.label.as_ref().map(|l| format!(" | {}", name(l))).unwrap_or_default();
        let split = s.split.as_ref().map(|s| format!(" @{s}")).unwrap_or_default();
        format!("{}: {}{label}{split}", s.id, channels.join(", "))
    };
    dataset.subjects.iter().map(line).collect()
}

#[track_caller]
fn faults(list: &[Problem], expected: &[(&str, &str)]) {
    let found: Vec<String> = list.iter().map(Problem::to_string).collect();
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, (path, reason)) in list.iter().zip(expected) {
        assert!(found.path.ends_with(path) && found.reason.contains(reason), "expected {path}: {reason}; found {found}");
    }
}

fn values(dataset: &Dataset) -> Vec<i64> {
    dataset.labels.iter().flat_map(|labelling| &labelling.labels).map(|l| l.value).collect()
}

#[test]
fn folder_of_scans() {
    let folder = tree(&["b.NII", "a.nii.gz", "deep/er/c.hdr", "deep/er/c.img", "._a.nii.gz", ".git/x.nii", "labels/b.nii.gz"]);
    ["read me.txt", "lone.hdr", "lost.img", "labels/z.nii"].iter().for_each(|name| text(&folder, name, ""));
    let data = opened(&folder);
    assert_eq!((data.layout, data.channels.as_slice()), (Layout::Folder, &["image".to_string()][..]));
    assert_eq!(listed(&data, &folder), ["a: a.nii.gz", "b: b.NII | labels/b.nii.gz", "c: deep/er/c.hdr"]);
    faults(
        &data.problems,
        &[("labels/z.nii", "label without"), ("lone.hdr", "without its .img"), ("lost.img", "without its .hdr")],
    );
    faults(&data.ignored, &[("read me.txt", "not a scan")]);
}

#[test]
fn folder_of_contrasts() {
    // Two of three subjects have an ADC map, one a PET; `s3` lacks the T2 and is left out.
    let folder = tree(&["s1_t1.nii", "s1_t2.nii", "s1_adc.nii", "s1_seg.nii", "x/s2_T1.nii", "x/s2_T2.nii", "x/s2_ADC.nii"]);
    ["x/s2_pet.nii", "s3_t1.nii", "s3_adc.nii", "s4.nii"].iter().for_each(|name| text(&folder, name, ""));
    let data = opened(&folder);
    assert_eq!(data.channels, ["t1", "t2", "adc"]);
    assert_eq!(
        listed(&data, &folder),
        ["s1: s1_t1.nii, s1_t2.nii, s1_adc.nii | s1_seg.nii", "s2: x/s2_T1.nii, x/s2_T2.nii, x/s2_ADC.nii"]
    );
    faults(&data.problems, &[("s3_adc.nii", "subject s3: no t2"), ("s4.nii", "no contrast in its name")]);
    faults(&data.ignored, &[("x/s2_pet.nii", "contrast pet, which 1 of 3")]);
}

#[test]
fn folder_ids_and_pairing() {
    let cases: [(&[&str], &[&str]); 9] = [
        // Names that repeat from folder to folder.
        (&["s1/brain.nii", "s2/brain.nii"], &["s1/brain: s1/brain.nii", "s2/brain: s2/brain.nii"]),
        // The file name is the contrast, the folder the subject.
        (
            &["s1/T1.nii", "s1/T2_FLAIR.nii", "s1/mask.nii", "s2/T1.nii", "s2/T2_FLAIR.nii"],
            &["s1: s1/T1.nii, s1/T2_FLAIR.nii | s1/mask.nii", "s2: s2/T1.nii, s2/T2_FLAIR.nii"],
        ),
        // A folder a contrast.
        (&["T1/p.nii", "T2/p.nii", "T1/q.nii", "T2/q.nii"], &["p: T1/p.nii, T2/p.nii", "q: T1/q.nii, T2/q.nii"]),
        // One contrast only; BIDS sessions of one person stay one subject for the split.
        (
            &["sub-1/ses-1/anat/sub-1_ses-1_T1w.nii", "sub-1/ses-2/anat/sub-1_ses-2_T1w.nii", "sub-2/anat/sub-2_T1w.nii"],
            &[
                "sub-1/ses-1: sub-1/ses-1/anat/sub-1_ses-1_T1w.nii",
                "sub-1/ses-2: sub-1/ses-2/anat/sub-1_ses-2_T1w.nii",
                "sub-2: sub-2/anat/sub-2_T1w.nii",
            ],
        ),
        // Numbered channels, labels in a folder beside.
        (
            &["imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "imagesTr/b_0000.nii", "imagesTr/b_0001.nii", "labelsTr/b.nii"],
            &["a: imagesTr/a_0000.nii, imagesTr/a_0001.nii", "b: imagesTr/b_0000.nii, imagesTr/b_0001.nii | labelsTr/b.nii"],
        ),
        // Numbered scans.
        (&["scan_0001.nii", "scan_0002.nii"], &["scan_0001: scan_0001.nii", "scan_0002: scan_0002.nii"]),
        // Contrasts that no two files share a subject with.
        (&["a_t1.nii", "b_t2.nii"], &["a_t1: a_t1.nii", "b_t2: b_t2.nii"]),
        // The label names the contrast that it was drawn on; same names in two sites.
        (
            &["A/1_ct.nii", "A/1_ct_label.nii", "B/1_ct.nii", "B/1_ct-seg.nii"],
            &["A_1: A/1_ct.nii | A/1_ct_label.nii", "B_1: B/1_ct.nii | B/1_ct-seg.nii"],
        ),
        // A bare label beside the only scan of the folder.
        (&["s1/ct7.nii", "s1/label.nii", "s2/ct8.nii"], &["s1/ct7: s1/ct7.nii | s1/label.nii", "s2/ct8: s2/ct8.nii"]),
    ];
    for (names, expected) in cases {
        let folder = tree(names);
        let data = opened(&folder);
        assert_eq!(listed(&data, &folder), expected);
        faults(&data.problems, &[]);
    }
}

#[test]
fn labels_by_their_usual_names() {
    let cases: [(&[&str], &[&str]); 9] = [
        (
            &["b1/volume-7.nii", "b1/segmentation-7.nii", "volume-8.nii"],
            &["volume-7: b1/volume-7.nii | b1/segmentation-7.nii", "volume-8: volume-8.nii"],
        ),
        (
            &["patient1/patient1_frame01.nii", "patient1/patient1_frame01_gt.nii"],
            &["patient1/frame01: patient1/patient1_frame01.nii | patient1/patient1_frame01_gt.nii"],
        ),
        (&["image/x.nii", "mask/x.nii"], &["x: image/x.nii | mask/x.nii"]),
        (&["img/img0001.nii", "label/label0001.nii"], &["img0001: img/img0001.nii | label/label0001.nii"]),
        (&["imagesTr/x.nii", "labelsTr/x.nii"], &["x: imagesTr/x.nii | labelsTr/x.nii"]),
        (
            &["x.nii", "x-seg.nii", "y.nii", "y_roi.nii", "z.nii", "z_lesion.nii"],
            &["x: x.nii | x-seg.nii", "y: y.nii | y_roi.nii", "z: z.nii | z_lesion.nii"],
        ),
        (&["x_ct.nii", "x_lesion_mask.nii", "y_ct.nii", "Y_labels.nii"], &["x: x_ct.nii | x_lesion_mask.nii", "y: y_ct.nii"]),
        (&["case1/imaging.nii", "case1/segmentation.nii"], &["case1/imaging: case1/imaging.nii | case1/segmentation.nii"]),
        (&["x_0.nii", "mask_x_0.nii", "ct_1.nii", "seg_1.nii"], &["ct_1: ct_1.nii | seg_1.nii", "x_0: x_0.nii | mask_x_0.nii"]),
    ];
    for (names, expected) in cases {
        let folder = tree(names);
        assert_eq!(listed(&opened(&folder), &folder), expected);
    }
}

#[cfg(unix)]
#[test]
fn links_to_nothing() {
    let folder = tree(&["a.nii", "dir/b.nii"]);
    for name in ["participants.tsv", "dir/b.json", "c.nii.gz", "a_seg.nii", "more.zip"] {
        std::os::unix::fs::symlink(".git/annex/x", folder.path().join(name)).unwrap();
    }
    let data = opened(&folder);
    assert_eq!(listed(&data, &folder), ["a: a.nii", "b: dir/b.nii"]);
    faults(&data.problems, &[("a_seg.nii", "a link to .git/annex/x, which is not there"), ("c.nii.gz", "a link to")]);
    let data = open_as(folder.path(), Reading { labels: Labels::Unwanted, ..Reading::default() }).unwrap();
    faults(&data.problems, &[("c.nii.gz", "a link to")]);
}

#[test]
fn folder_with_a_second_label_or_4d_files() {
    let folder = tree(&["s_mask.nii", "s_seg.nii", "s.nii"]);
    scan(&folder.path().join("s.nii"), 3, 1.0);
    let data = opened(&folder);
    assert_eq!(listed(&data, &folder), ["s: s.nii | s_seg.nii"]);
    assert_eq!(data.channels, ["image_0", "image_1", "image_2"]);
    faults(&data.problems, &[("s_mask.nii", "second label of s")]);

    // A film among its frames.
    let folder = tree(&[]);
    scan(&folder.path().join("patient001/patient001_4d.nii"), 30, 1.0);
    ["frame01", "frame12"].iter().for_each(|f| scan(&folder.path().join(format!("patient001/patient001_{f}.nii")), 1, 1.0));
    let data = opened(&folder);
    assert_eq!((data.channels.as_slice(), data.subjects.len()), (&["image".to_string()][..], 3));
}

#[test]
fn brats() {
    let files = |subject: &str, suffixes: &[&str]| -> Vec<String> {
        suffixes.iter().map(|suffix| format!("{subject}/{}{suffix}.nii.gz", subject.rsplit('/').next().unwrap())).collect()
    };
    let old = ["_flair", "_t1", "_t1ce", "_t2", "_seg"];
    let mut names = [files("HGG/B18_2", &old), files("LGG/B18_1", &old[..4]), files("LGG/B18_3", &old[1..])].concat();
    names.push("survival.csv".into());
    names.push("HGG/odd.nii.gz".into());
    let folder = tree(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let data = opened(&folder);
    assert_eq!((data.layout, values(&data)), (Layout::Brats, vec![0, 1, 2, 4]));
    assert_eq!(data.channels, ["t1", "t1ce", "t2", "flair"]);
    let expected = ["_t1", "_t1ce", "_t2", "_flair"].map(|s| format!("LGG/B18_1/B18_1{s}.nii.gz")).join(", ");
    assert_eq!(listed(&data, &folder)[0], format!("B18_1: {expected}"));
    assert!(listed(&data, &folder)[1].ends_with("HGG/B18_2/B18_2_flair.nii.gz | HGG/B18_2/B18_2_seg.nii.gz"));
    faults(&data.problems, &[("HGG/odd.nii.gz", "not named"), ("B18_3_t1.nii.gz", "subject B18_3: no _flair")]);
    faults(&data.ignored, &[("survival.csv", "not a scan")]);

    let new = ["-seg", "-t1c", "-t1n", "-t2f", "-t2w"];
    let names = [files("BraTS-GLI-00003-000", &new), files("BraTS-GLI-00003-001", &new)].concat();
    let folder = tree(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let data = opened(&folder);
    assert_eq!((data.layout, values(&data)), (Layout::Brats, vec![0, 1, 2, 3]));
    // Two time points of one patient.
    assert_eq!(data.subjects.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["BraTS-GLI-00003/000", "BraTS-GLI-00003/001"]);
    let expected = ["-t1n", "-t1c", "-t2w", "-t2f"].map(|s| format!("{0}/{0}{s}.nii.gz", "BraTS-GLI-00003-000")).join(", ");
    assert!(listed(&data, &folder)[0].contains(&expected));

    files("B18_9", &old).iter().for_each(|name| text(&folder, name, ""));
    says(&refused(folder.path(), None), &["2018", "2023", "B18_9_flair", "differ"]);
    let twice = tree(&["a/x/x_t1.nii", "a/x/x_t1.nii.gz", "a/x/x_t1ce.nii"]);
    says(&refused(twice.path(), None), &["duplicate subject `x`", "x_t1.nii.gz"]);
}

#[test]
fn uk_biobank() {
    let folder = tree(&["notes.txt"]);
    let (t1, mask, flair) = ("T1/T1.nii.gz", "T1/T1_brain_mask.nii.gz", "T2_FLAIR/T2_FLAIR.nii.gz");
    let both = archive(&folder, "b.zip", &[t1, mask, flair]);
    archive(&folder, "1000_20252_2_0.zip", &[mask, t1]);
    archive(&folder, "1000_20253_2_0.zip", &[flair]);
    archive(&folder, "empty.zip", &["readme"]);
    text(&folder, "corrupt.zip", "PK not really");
    let data = opened(&folder);
    assert_eq!((data.layout, data.channels.as_slice()), (Layout::Ukb, &["T1".to_string(), "T2_FLAIR".to_string()][..]));
    assert_eq!(
        listed(&data, &folder),
        [format!("1000/2: 1000_20252_2_0.zip:{t1}, 1000_20253_2_0.zip:{flair}"), format!("b: b.zip:{t1}, b.zip:{flair}"),]
    );
    faults(&data.problems, &[("corrupt.zip", "not a whole zip"), ("empty.zip", "no T1/T1.nii.gz")]);

    let voxels = |s: &Source| s.read().unwrap().data;
    assert_eq!(voxels(&data.subjects[1].channels[1]), Array4::from_elem((1, 4, 4, 4), 3.0));
    assert_eq!(data.subjects[0].channels[0].read_ras().unwrap().0.data, Array4::from_elem((1, 4, 4, 4), 2.0));
    let print = data.subjects[1].channels[0].fingerprint().unwrap();
    assert_ne!(print, data.subjects[1].channels[1].fingerprint().unwrap());
    let gone = format!("{:#}", Source::Zip { archive: both, member: "T3".into() }.read().unwrap_err());
    says(&gone, &["b.zip:T3"]);

    // One subject without FLAIR: T1 alone for all, with a note.
    archive(&folder, "c.zip", &[t1]);
    archive(&folder, "d.zip", &[flair]);
    let data = opened(&folder);
    assert_eq!((data.channels.len(), data.subjects.len(), data.subjects[0].channels.len()), (1, 3, 1));
    faults(&data.problems[1..2], &[("d.zip", "subject d: no T1")]);
    says(&data.ignored[0].reason, &["T2_FLAIR", "1 of 3", "c"]);
    archive(&folder, "1000_20252_2_1.zip", &[t1]);
    says(&refused(folder.path(), None), &["duplicate subject `1000/2`", "1000_20252_2_0.zip", "1000_20252_2_1.zip"]);
}

#[test]
fn manifest() {
    let folder = tree(&["x/a1.nii", "x/a2.nii.gz", "b2.hdr", "x/seg.nii"]);
    archive(&folder, "b.zip", &["T1/T1.nii.gz"]);
    scan(&folder.path().join("b1.nii"), 1, 5.0);
    let absolute = folder.path().join("b1.nii");
    let rows = format!(
        "\u{feff}t2,subject,split,label,t1\nx/a1.nii, p/2 ,test,x/seg.nii,x/a2.nii.gz\nb.zip:T1/T1.nii.gz,p/1,,,{}\n",
        absolute.display()
    );
    text(&folder, "list.CSV", &rows);
    let data = open(&folder.path().join("list.CSV"), None).unwrap();
    assert_eq!((data.layout, data.channels.as_slice()), (Layout::Manifest, &["t2".to_string(), "t1".to_string()][..]));
    assert_eq!(listed(&data, &folder), ["p/1: b.zip:T1/T1.nii.gz, b1.nii", "p/2: x/a1.nii, x/a2.nii.gz | x/seg.nii @test"]);
    assert_eq!(data.subjects[0].channels[1].read().unwrap().data[[0, 1, 2, 3]], 5.0);

    let cases: [(&str, &[&str]); 13] = [
        ("subject,t1\na,b1.nii\na,b1.nii\n", &["row 3, column `subject`", "duplicate subject `a`", "row 2"]),
        ("subject,t1\r\na,b1.nii\r\nb,gone.nii\r\n", &["row 3, column `t1`", "gone.nii: no such file"]),
        ("subject,t1,t2\n\na,b1.nii,\n", &["row 3, column `t2`", "empty"]),
        ("subject,t1\n,b1.nii\n", &["row 2, column `subject`", "empty"]),
        ("subject,t1,split\na,b1.nii,dev\n", &["row 2, column `split`", "train, val, test", "dev"]),
        ("subject,t1,age\na,b1.nii,63\n", &["row 2, column `age`", "63"]),
        ("subject,t1,label\na,b1.nii,no.nii\n", &["row 2, column `label`", "no.nii"]),
        ("subject,t1\na\n", &["line: 2", "1 field"]),
        ("subject,t1,t1\na,b1.nii,b1.nii\n", &["row 1", "`t1` occurs twice"]),
        ("id;t1\na;b1.nii\n", &["no column `subject`", "id, t1"]),
        ("subject,label\na,b1.nii\n", &["no column of scans"]),
        ("subject,t1\n", &["no row"]),
        ("subject,t1\n../a,b1.nii\n", &["\"../a\"", "file name"]),
    ];
    for (rows, expected) in cases {
        text(&folder, "bad.csv", rows);
        let message = refused(&folder.path().join("bad.csv"), None);
        says(&message, expected);
        says(&message, &["bad.csv"]);
    }
}

#[test]
fn nothing_to_read() {
    let folder = tree(&[]);
    says(&refused(folder.path(), None), &["the folder is empty"]);
    says(&refused(&folder.path().join("gone"), None), &["gone: cannot be opened", "No such file"]);
    text(&folder, "a.txt", "");
    says(
        &refused(folder.path(), None),
        &[
            "no scans found",
            ".nii, .hdr, .nrrd, .nhdr, .mha, .mhd, .mgh, .mgz, also with .gz",
            "left out 1",
            "a.txt",
            "layout folder (recognised",
        ],
    );
    says(&refused(folder.path(), Some(Layout::Brats)), &["_t1ce", "layout brats (as asked for)"]);
    says(&refused(folder.path(), Some(Layout::Ukb)), &["T1/T1.nii.gz"]);
    says(&refused(folder.path(), Some(Layout::Decathlon)), &["dataset.json: cannot be read"]);
    says(&refused(folder.path(), Some(Layout::Manifest)), &["expected a CSV manifest, found a folder"]);
    says(&refused(&folder.path().join("a.txt"), None), &["a.txt: expected a folder or a CSV manifest"]);
    text(&folder, "a_seg.nii", "");
    says(&refused(folder.path(), None), &["no scans found", "a_seg.nii: label without"]);
    let twice = tree(&["a.nii", "a.nii.gz"]);
    says(&refused(twice.path(), None), &["duplicate subject", "a.nii and", "a.nii.gz"]);
}

#[test]
fn fingerprints_follow_content() {
    let folder = tree(&["a.HDR", "a.IMG", "b.nii"]);
    let print = |name: &str| Source::File(folder.path().join(name)).fingerprint();
    for (touched, of) in [("a.IMG", "a.HDR"), ("b.nii", "b.nii")] {
        let before = print(of).unwrap();
        assert_eq!(before, print(of).unwrap());
        text(&folder, touched, "more");
        assert_ne!(before, print(of).unwrap());
    }
    // Of the same length, changed by a machine whose clock was not set: before 1970 one time differs from the other, too.
    let changed_at = |seconds| {
        let file = fs::File::options().append(true).open(folder.path().join("b.nii")).unwrap();
        file.set_modified(UNIX_EPOCH - Duration::from_secs(seconds)).unwrap();
        print("b.nii").unwrap()
    };
    let times = [0, 1, 2, 3600].map(changed_at);
    assert_eq!(BTreeSet::from(times.clone()).len(), times.len(), "{times:?}");
    says(&format!("{:#}", print("gone.nii").unwrap_err()), &["gone.nii"]);
}
