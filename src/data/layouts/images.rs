//! Photographs with a CSV of grades, as public sets of diabetic retinopathy have them. APTOS 2019: `train.csv` with
//! `id_code,diagnosis`, `train_images/ID.png`, and `test_images` without grades. Kaggle 2015: `trainLabels.csv` with `image,level`, images
//! `10_left.jpeg` and `10_right.jpeg` of the eyes of person 10. IDRiD: the same names in `a. Training Set` and `b. Testing Set`, with a table
//! for each.
//!
//! The images may lie in any folder and have any of the known extensions. An image without a grade is an unlabelled subject.

use super::columns::{self, Columns, WantedColumns};
use super::files::Files;
use super::table::{Row, Table};
use super::{Dataset, Labels, Layout, Problem, Source, Subject, sides};
use crate::data::formats::image;
use anyhow::{Context, Result};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Grades of the international scale, as these sets number them.
const GRADES: [&str; 5] = ["no retinopathy", "mild", "moderate", "severe", "proliferative"];
/// Columns of the name and of the grade.
const COLUMNS: [[&str; 2]; 4] =
    [["id_code", "diagnosis"], ["image", "level"], ["Image name", "Retinopathy grade"], ["image_id", "adjudicated_dr_grade"]];
/// A column of the first Messidor, whose `Retinopathy grade` is on a scale of its own.
const OWN_SCALE: &str = "Ophthalmologic department";
/// The competitions' examples of an answer, without case and `_`: the right columns with made-up grades.
const EXAMPLE: &str = "samplesubmission.csv";
/// Images whose headers are looked at for colour.
const LOOKED_AT: usize = 64;

/// Whether there are photographs and no scans.
pub fn recognise(files: &Files) -> bool {
    files.scans.is_empty() && files.zips.is_empty() && files.others.iter().any(|path| image::stem(path).is_some())
}

/// An image by its name; where names are there twice, also by the side of the dataset that it is on.
type Key = (Option<&'static str>, String);

/// What the tables say.
#[derive(Default)]
struct Grades {
    /// The grade, and where it stands.
    known: BTreeMap<Key, (u8, String)>,
    /// Images whose grade cannot be used.
    unusable: BTreeSet<Key>,
    problems: Vec<Problem>,
    ignored: Vec<Problem>,
}

impl Grades {
    /// `side`: of the images that the table is of, where names do not tell them. Errors where the file is no CSV.
    fn read(&mut self, path: &Path, side: Option<&'static str>) -> Result<()> {
        let table = Table::read(path)?;
        let pair = |names: &[&str; 2]| Some((table.position(names[0])?, table.position(names[1])?));
        let own_scale = table.position(OWN_SCALE).is_some();
        let found = COLUMNS.iter().find_map(pair).filter(|_| !own_scale);
        let example = path.file_name().is_some_and(|name| name.to_string_lossy().to_lowercase().replace('_', "") == EXAMPLE);
        let Some((name, grade)) = found.filter(|_| !example) else {
            let reason = match example {
                true => "the example of an answer, whose grades are made up".into(),
                false if own_scale => {
                    "grades on Messidor's own scale, 0 to 3; --column \"Retinopathy grade\" takes them".into()
                }
                false => format!("no columns {}; --column names another", COLUMNS.map(|names| names.join(",")).join(" or ")),
            };
            self.ignored.push(Problem::new(path, reason));
            return Ok(());
        };
        for Row { line, cells } in table.rows {
            let place = format!("row {line}");
            let (cell, grade) = (&cells[name], &cells[grade]);
            let name = image::stem(Path::new(cell)).unwrap_or_else(|| cell.into());
            let key = (side, name.clone());
            if columns::cell(grade, false).is_none() {
                continue;
            }
            // Where one grade is missing, tables hold the others as 1.0.
            let whole = grade.parse().ok().filter(|grade: &f64| grade.fract() == 0. && *grade >= 0.);
            let Some(grade) = whole.map(|grade| grade as u8).filter(|&grade| usize::from(grade) < GRADES.len()) else {
                let reason = format!("{place}: grade `{grade}` of `{name}`, expected 0 to {}", GRADES.len() - 1);
                self.problems.push(Problem::of_labels(path, reason));
                self.unusable.insert(key);
                continue;
            };
            match self.known.get(&key) {
                None => drop(self.known.insert(key, (grade, format!("{}, {place}", path.display())))),
                Some((earlier, first)) if *earlier == grade => {
                    self.ignored.push(Problem::new(path, format!("{place}: `{name}` again, as in {first}")));
                }
                Some((earlier, first)) => {
                    let reason = format!("{place}: `{name}` has grade {grade}, but grade {earlier} in {first}");
                    self.problems.push(Problem::of_labels(path, reason));
                    self.unusable.insert(key);
                }
            }
        }
        Ok(())
    }
}

/// Name of a photograph's file without its ending.
fn stem(path: &Path) -> String {
    image::stem(path).unwrap_or_else(|| path.to_string_lossy().into_owned())
}

/// Names of the channels. One colour image makes all of them colour; a grey one among them is read as equal red, green and blue.
pub fn channels<'a>(images: impl Iterator<Item = &'a PathBuf>) -> Vec<String> {
    let headers: Vec<&PathBuf> = images.take(LOOKED_AT).collect();
    let colour = headers.into_par_iter().any(|path| image::channels(path).is_ok_and(|n| n == 3));
    let names: &[&str] = if colour { &["red", "green", "blue"] } else { &["grey"] };
    names.iter().map(|name| name.to_string()).collect()
}

/// Where columns are asked for by name, these hold the grades.
pub fn open(files: Files, wanted: Labels, columns: WantedColumns) -> Result<Dataset> {
    let Files { root, scans, zips, others, mut problems, .. } = files;
    let (photographs, others): (Vec<PathBuf>, Vec<PathBuf>) = others.into_iter().partition(|path| image::stem(path).is_some());
    let (tables, others): (Vec<PathBuf>, Vec<PathBuf>) =
        others.into_iter().partition(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv")));
    // IDRiD has other eyes of the same names on its test side.
    let side = |path: &Path| sides::of(path.strip_prefix(&root).unwrap_or(path).parent()?);
    let mut by_name: BTreeMap<String, BTreeSet<Option<&str>>> = BTreeMap::new();
    photographs.iter().for_each(|path| by_name.entry(stem(path)).or_default().extend([side(path)]));
    let sided = by_name.values().any(|sides| sides.len() > 1 && !sides.contains(&None));
    let key = |path: &Path| (side(path).filter(|_| sided), stem(path));
    let mut grades = Grades::default();
    for table in tables.iter().filter(|_| columns.names.is_empty() || columns.optional) {
        let side = sides::of(table.strip_prefix(&root).unwrap_or(table)).filter(|_| sided);
        grades.read(table, side).with_context(|| format!("{}: not a table of grades", table.display()))?;
    }
    let Grades { known, unusable, problems: of_tables, mut ignored } = grades;
    problems.extend(of_tables);
    let strangers = scans.into_iter().map(|scan| scan.path).chain(zips).chain(others);
    ignored.extend(strangers.map(|path| Problem::new(path, "not a photograph (.png, .jpg, .jpeg, .tif or .tiff)")));

    let mut images: BTreeMap<Key, PathBuf> = BTreeMap::new();
    for path in photographs {
        let key = key(&path);
        match images.get(&key) {
            Some(first) => {
                problems.push(Problem::new(path, format!("a second image `{}`; {} is used", key.1, first.display())));
            }
            None => drop(images.insert(key, path)),
        }
    }
    for ((_, name), (_, place)) in known.iter().filter(|(key, _)| !images.contains_key(*key)) {
        problems.push(Problem::of_labels(&root, format!("no image `{name}`, which has a grade in {place}")));
    }
    // Without grades asked for, an image is one whatever its grade.
    images.retain(|key, _| wanted == Labels::Unwanted || !unusable.contains(key));

    let subject = |(key, path): (&Key, &PathBuf)| Subject {
        id: key.0.map_or_else(|| key.1.clone(), |side| format!("{side}_{}", key.1)),
        channels: vec![Source::File(path.clone())],
        class: known.get(key).filter(|_| !unusable.contains(key)).map(|(grade, _)| *grade),
        ..Subject::default()
    };
    Ok(Dataset {
        layout: Layout::Images,
        channels: channels(images.values()),
        labels: None,
        classes: (!known.is_empty()).then(|| GRADES.map(String::from).to_vec()),
        columns: Columns::default(),
        subjects: images.iter().map(subject).collect(),
        problems,
        ignored,
    })
}
