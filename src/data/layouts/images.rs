//! Photographs with a CSV of grades, as the two public sets of diabetic retinopathy have them. APTOS 2019: `train.csv` with
//! `id_code,diagnosis`, `train_images/ID.png`, and `test_images` without grades. Kaggle 2015: `trainLabels.csv` with `image,level`, images
//! `10_left.jpeg` and `10_right.jpeg` of the eyes of person 10.
//!
//! The images may lie in any folder and have any of the known extensions. An image without a grade is an unlabelled subject.

use super::columns::{Columns, WantedColumns};
use super::files::Files;
use super::{Dataset, Labels, Layout, Problem, Source, Subject};
use crate::data::formats::image;
use anyhow::{Context, Result};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Grades of the international scale, as both sets number them.
const GRADES: [&str; 5] = ["no retinopathy", "mild", "moderate", "severe", "proliferative"];
/// Columns of the name and of the grade.
const COLUMNS: [[&str; 2]; 2] = [["id_code", "diagnosis"], ["image", "level"]];
/// The competitions' examples of an answer, without case and `_`: the right columns with made-up grades.
const EXAMPLE: &str = "samplesubmission.csv";
/// What stands where there is no grade.
const MISSING: [&str; 6] = ["", "nan", "na", "n/a", "null", "none"];
/// Images whose headers are looked at for colour.
const LOOKED_AT: usize = 64;

/// Whether there are photographs and no scans.
pub fn recognise(files: &Files) -> bool {
    files.scans.is_empty() && files.zips.is_empty() && files.others.iter().any(|path| image::stem(path).is_some())
}

/// What the tables say.
#[derive(Default)]
struct Grades {
    /// By the image's name: the grade, and where it stands.
    known: BTreeMap<String, (u8, String)>,
    /// Images whose grade cannot be used.
    unusable: BTreeSet<String>,
    problems: Vec<Problem>,
    ignored: Vec<Problem>,
}

impl Grades {
    /// Errors where the file is no CSV.
    fn read(&mut self, path: &Path) -> Result<()> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path)?;
        let header = reader.headers()?.clone();
        // Spreadsheets put a byte order mark first.
        let column =
            |name: &str| header.iter().position(|found| found.trim_start_matches('\u{feff}').eq_ignore_ascii_case(name));
        let found = COLUMNS.iter().find_map(|names| Some((column(names[0])?, column(names[1])?)));
        let example = path.file_name().is_some_and(|name| name.to_string_lossy().to_lowercase().replace('_', "") == EXAMPLE);
        let Some((name, grade)) = found.filter(|_| !example) else {
            let reason = match example {
                true => "the example of an answer, whose grades are made up".into(),
                false => format!("no columns {}", COLUMNS.map(|names| names.join(",")).join(" or ")),
            };
            self.ignored.push(Problem::new(path, reason));
            return Ok(());
        };
        for record in reader.records() {
            let record = record?;
            let place = format!("row {}", record.position().map_or(0, csv::Position::line));
            let (cell, grade) = (&record[name], &record[grade]);
            let name = image::stem(Path::new(cell)).unwrap_or_else(|| cell.into());
            // Where one grade is missing, tables hold the others as 1.0.
            if MISSING.iter().any(|missing| grade.eq_ignore_ascii_case(missing)) {
                continue;
            }
            let whole = grade.parse().ok().filter(|grade: &f64| grade.fract() == 0. && *grade >= 0.);
            let Some(grade) = whole.map(|grade| grade as u8).filter(|&grade| usize::from(grade) < GRADES.len()) else {
                let reason = format!("{place}: grade `{grade}` of `{name}`, expected 0 to {}", GRADES.len() - 1);
                self.problems.push(Problem::of_labels(path, reason));
                self.unusable.insert(name);
                continue;
            };
            match self.known.get(&name) {
                None => drop(self.known.insert(name, (grade, format!("{}, {place}", path.display())))),
                Some((earlier, first)) if *earlier == grade => {
                    self.ignored.push(Problem::new(path, format!("{place}: `{name}` again, as in {first}")));
                }
                Some((earlier, first)) => {
                    let reason = format!("{place}: `{name}` has grade {grade}, but grade {earlier} in {first}");
                    self.problems.push(Problem::of_labels(path, reason));
                    self.unusable.insert(name);
                }
            }
        }
        Ok(())
    }
}

/// Where columns are asked for by name, these hold the grades.
pub fn open(files: Files, wanted: Labels, columns: WantedColumns) -> Result<Dataset> {
    let Files { root, scans, zips, others, mut problems, .. } = files;
    let (photographs, others): (Vec<PathBuf>, Vec<PathBuf>) = others.into_iter().partition(|path| image::stem(path).is_some());
    let (tables, others): (Vec<PathBuf>, Vec<PathBuf>) =
        others.into_iter().partition(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv")));
    let mut grades = Grades::default();
    for table in tables.iter().filter(|_| columns.names.is_empty() || columns.optional) {
        grades.read(table).with_context(|| format!("{}: not a table of grades", table.display()))?;
    }
    let Grades { known, unusable, problems: of_tables, mut ignored } = grades;
    problems.extend(of_tables);
    let strangers = scans.into_iter().map(|scan| scan.path).chain(zips).chain(others);
    ignored.extend(strangers.map(|path| Problem::new(path, "not a photograph (.png, .jpg, .jpeg, .tif or .tiff)")));

    let mut images: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in photographs {
        let name = image::stem(&path).context("a photograph by its name")?;
        match images.get(&name) {
            Some(first) => {
                problems.push(Problem::new(path, format!("a second image `{name}`; {} is used", first.display())));
            }
            None => drop(images.insert(name, path)),
        }
    }
    for (name, (_, place)) in known.iter().filter(|(name, _)| !images.contains_key(*name)) {
        problems.push(Problem::of_labels(&root, format!("no image `{name}`, which has a grade in {place}")));
    }
    // Without grades asked for, an image is one whatever its grade.
    images.retain(|name, _| wanted == Labels::Unwanted || !unusable.contains(name));

    // One colour image makes all of them colour; a grey one among them is read as equal red, green and blue.
    let headers: Vec<&PathBuf> = images.values().take(LOOKED_AT).collect();
    let colour = headers.into_par_iter().any(|path| image::channels(path).is_ok_and(|n| n == 3));
    let channels: &[&str] = if colour { &["red", "green", "blue"] } else { &["grey"] };
    let subject = |(name, path): (&String, &PathBuf)| Subject {
        id: name.clone(),
        channels: vec![Source::File(path.clone())],
        class: known.get(name).filter(|_| !unusable.contains(name)).map(|(grade, _)| *grade),
        ..Subject::default()
    };
    Ok(Dataset {
        layout: Layout::Images,
        channels: channels.iter().map(|c| c.to_string()).collect(),
        labels: None,
        classes: (!known.is_empty()).then(|| GRADES.map(String::from).to_vec()),
        columns: Columns::default(),
        subjects: images.iter().map(subject).collect(),
        problems,
        ignored,
    })
}
