use super::*;

/// A photograph, grey or colour.
fn photograph(folder: &TempDir, name: &str, grey: bool) {
    let path = folder.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let done = match grey {
        true => image::ImageBuffer::from_pixel(8, 6, image::Luma([77u8])).save(path),
        false => image::ImageBuffer::from_pixel(8, 6, image::Rgb([77u8, 6, 5])).save(path),
    };
    done.unwrap();
}

/// `id=class`.
fn graded(dataset: &Dataset) -> Vec<String> {
    let class = |s: &Subject| s.class.map_or("-".into(), |c| c.to_string());
    dataset.subjects.iter().map(|s| format!("{}={}", s.id, class(s))).collect()
}

#[test]
fn images_with_grades_of_both_public_sets() {
    let aptos = tree(&["readme.txt"]);
    text(&aptos, "train.csv", "\u{feff}id_code,diagnosis\nb,4\na,0\n");
    text(&aptos, "test.csv", "id_code\nc\n");
    text(&aptos, "sample_submission.csv", "id_code,diagnosis\nc,3\n");
    ["train_images/a.png", "train_images/b.png"].iter().for_each(|name| photograph(&aptos, name, true));
    photograph(&aptos, "test_images/c.png", false);
    let found = opened(&aptos);
    assert_eq!((found.layout, found.channels.join(",")), (Layout::Images, "red,green,blue".into()));
    assert_eq!(graded(&found), ["a=0", "b=4", "c=-"]);
    assert_eq!(found.classes.as_ref().unwrap().len(), 5);
    assert!(found.problems.is_empty());
    let ignored: Vec<String> = found.ignored.iter().map(Problem::to_string).collect();
    says(&ignored.join("\n"), &["readme.txt", "sample_submission.csv: the example", "test.csv: no columns"]);

    let kaggle = tree(&[]);
    text(&kaggle, "trainLabels.csv", "image,level\n10_left,2\n10_right.jpeg,0\n");
    ["train/10_left.png", "train/10_right.png", "train/x_left_y.png"].iter().for_each(|name| photograph(&kaggle, name, true));
    let found = opened(&kaggle);
    assert_eq!(graded(&found), ["10/left=2", "10/right=0", "x_left_y=-"]);
    assert_eq!(found.channels, ["grey"]);
}

#[test]
fn grades_as_tables_hold_them_where_one_is_missing() {
    let folder = tree(&[]);
    text(&folder, "train.csv", "id_code,diagnosis\na,1.0\nb,4.0\nc,\nd,NaN\ne,1.5\n");
    ["a", "b", "c", "d", "e"].iter().for_each(|name| photograph(&folder, &format!("{name}.png"), true));
    let found = opened(&folder);
    assert_eq!(graded(&found), ["a=1", "b=4", "c=-", "d=-"]);
    faults(&found.problems, &[("train.csv", "row 6: grade `1.5` of `e`")]);
    // Without labels no grade keeps an image away.
    let found = open_as(folder.path(), Reading { labels: Labels::Unwanted, ..Reading::default() }).unwrap();
    assert_eq!(graded(&found), ["a=1", "b=4", "c=-", "d=-", "e=-"]);
    faults(&found.problems, &[]);
}

#[test]
fn images_and_grades_that_do_not_fit_are_named() {
    let folder = tree(&[]);
    text(&folder, "a.csv", "id_code,diagnosis\nok,1\nlost,2\nbad,5\nworse,x\ntwice,1\ntwice,1\nunclear,1\nunclear,2\n");
    ["ok", "bad", "worse", "twice", "unclear"].iter().for_each(|name| photograph(&folder, &format!("i/{name}.png"), true));
    photograph(&folder, "j/ok.png", true);
    let found = opened(&folder);
    assert_eq!(graded(&found), ["ok=1", "twice=1"]);
    assert_eq!(found.problems.len(), 5);
    let problems: Vec<String> = found.problems.iter().map(Problem::to_string).collect();
    let parts = [
        "no image `lost`",
        "row 3",
        "row 4: grade `5` of `bad`",
        "grade `x` of `worse`",
        "j/ok.png: a second image",
        "i/ok.png is used",
    ];
    says(&problems.join("\n"), &parts);
    says(&problems.join("\n"), &["row 9: `unclear` has grade 2, but grade 1 in", "row 8"]);
    says(&found.ignored[0].to_string(), &["row 7: `twice` again, as in", "row 6"]);
    // A scan among them: the folder is one of scans.
    text(&folder, "x.nii", "");
    says(&refused(folder.path(), Some(Layout::Ukb)), &["no scans found"]);
    assert_ne!(open(folder.path(), None).map(|d| d.layout).unwrap_or(Layout::Folder), Layout::Images);
}
