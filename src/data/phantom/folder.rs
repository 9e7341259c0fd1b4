//! Writing phantoms into a folder in a public dataset's layout; restartable, a subject counting once all its files are there.

use super::{Phantom, Recipe, brain, fundus, part, retinopathy};
use crate::data::formats::nifti::{self, DataType};
use crate::fs::write_atomic;
use crate::rng::{Stream, rng};
use anyhow::{Context, Result, bail, ensure};
use image::codecs::png::PngEncoder;
use image::{Rgb, RgbImage};
use ndarray::Array4;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Raised whenever the same settings would give other voxels, so that two generators never mix in one folder.
const GENERATOR: u32 = 1;
/// The settings of a folder, in the folder.
const RECORD: &str = "phantom.json";

/// What every subject of a folder has in common, and how many subjects it is to hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    generator: u32,
    kind: String,
    /// Voxels along each axis.
    shape: [usize; 3],
    contrasts: Vec<String>,
    seed: u64,
    /// Of the label map's voxels, grid and values; none for built-in anatomies.
    labels_sha256: Option<String>,
    subjects: usize,
}

/// What [`generate`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Subjects written now.
    pub new: usize,
    /// Subjects that were complete already.
    pub kept: usize,
}

/// Writes subjects 0 to `subjects` - 1 of a seed into `folder`, `threads` at a time (`None`: one a core); subjects that are
/// complete are kept. `progress` hears of each finished subject. A folder may grow: asking for more subjects with the same
/// settings adds to it.
///
/// Errors: settings out of range, a folder that holds anything else or more subjects than asked for, output that cannot be
/// written.
pub fn generate(
    model: &Recipe,
    subjects: usize,
    seed: u64,
    folder: &Path,
    threads: Option<usize>,
    progress: impl Fn() + Sync,
) -> Result<Made> {
    model.validate()?;
    ensure!(subjects > 0, "0 subjects asked for, expected at least 1");
    fs::create_dir_all(folder).with_context(|| format!("making folder {}", folder.display()))?;
    let record = Record {
        generator: GENERATOR,
        kind: model.name().to_string(),
        shape: model.shape(),
        contrasts: model.contrasts().iter().map(|c| c.to_string()).collect(),
        seed,
        labels_sha256: model.fingerprint(),
        subjects,
    };
    claim(folder, &record)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build().context("starting threads")?;
    let new = AtomicUsize::new(0);
    pool.install(|| {
        (0..subjects).into_par_iter().try_for_each(|subject| -> Result<()> {
            let files = files(model, folder, subject);
            if !files.iter().all(|file| file.is_file()) {
                write_case(&model.case(seed, subject as u64), &files)?;
                new.fetch_add(1, Ordering::Relaxed);
            }
            progress();
            Ok(())
        })
    })?;
    match model {
        Recipe::Abdomen { .. } => write_json(&folder.join("dataset.json"), &decathlon(subjects))?,
        Recipe::Fundus { .. } => write_grades(&folder.join("train.csv"), subjects, seed)?,
        Recipe::Brain { .. } | Recipe::Labels { .. } => {}
    }
    let new = new.into_inner();
    Ok(Made { new, kept: subjects - new })
}

impl Recipe {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Recipe::Brain { .. } => "brain",
            Recipe::Abdomen { .. } => "abdomen",
            Recipe::Fundus { .. } => "fundus",
            Recipe::Labels { .. } => "labels",
        }
    }

    fn shape(&self) -> [usize; 3] {
        match self {
            Recipe::Brain { size } | Recipe::Abdomen { size } => [*size; 3],
            Recipe::Fundus { size } => fundus::shape(*size),
            Recipe::Labels { map, .. } => map.grid(),
        }
    }

    pub(super) fn contrasts(&self) -> &'static [&'static str] {
        match self {
            Recipe::Brain { .. } => &brain::CONTRASTS,
            Recipe::Abdomen { .. } => &["CT"],
            Recipe::Fundus { .. } => &fundus::CHANNELS,
            Recipe::Labels { contrasts, .. } => &brain::CONTRASTS[..*contrasts],
        }
    }

    fn fingerprint(&self) -> Option<String> {
        match self {
            Recipe::Labels { map, .. } => Some(map.sha256()),
            _ => None,
        }
    }
}

/// Takes the folder for these settings, or says why it cannot be.
fn claim(folder: &Path, record: &Record) -> Result<()> {
    let path = folder.join(RECORD);
    if path.is_file() {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let found: Record = serde_json::from_str(&text).with_context(|| format!("{}: not a phantom record", path.display()))?;
        let alike = Record { subjects: record.subjects, ..found.clone() };
        if alike != *record {
            bail!(
                "{} holds phantoms of other settings; use another folder\n  found:    {}\n  expected: {}",
                folder.display(),
                serde_json::to_string(&found)?,
                serde_json::to_string(record)?
            );
        }
        ensure!(
            found.subjects <= record.subjects,
            "{} is for {} subjects, {} asked for; use another folder for fewer",
            folder.display(),
            found.subjects,
            record.subjects
        );
        if found == *record {
            return Ok(());
        }
    } else {
        for entry in fs::read_dir(folder).with_context(|| format!("reading folder {}", folder.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            // A killed run may leave a temporary record.
            let left_over = name.starts_with(&format!(".{RECORD}.")) && name.ends_with(".tmp");
            ensure!(left_over, "{} is not empty and has no {RECORD} (found {name}); use another folder", folder.display());
        }
    }
    write_json(&path, &serde_json::to_value(record)?)
}

/// A subject's files in writing order: the contrasts, then the label.
fn files(model: &Recipe, folder: &Path, subject: usize) -> Vec<PathBuf> {
    match model {
        Recipe::Abdomen { .. } => {
            let name = format!("{}.nii.gz", decathlon_id(subject));
            ["imagesTr", "labelsTr"].map(|part| folder.join(part).join(&name)).to_vec()
        }
        Recipe::Fundus { .. } => vec![folder.join("train_images").join(format!("{}.png", fundus_id(subject)))],
        Recipe::Brain { .. } | Recipe::Labels { .. } => {
            let id = format!("{}_{subject:04}", model.name());
            let names = model.contrasts().iter().chain(&["seg"]);
            names.map(|contrast| folder.join(&id).join(format!("{id}_{contrast}.nii.gz"))).collect()
        }
    }
}

fn write_case(case: &Phantom, files: &[PathBuf]) -> Result<()> {
    if let ([file], [(_, photograph)]) = (files, case.images.as_slice()) {
        return write_photograph(&photograph.data, file);
    }
    let (label, images) = files.split_last().expect("a label file");
    for (path, (_, image)) in images.iter().zip(&case.images) {
        nifti::write(path, image, DataType::Int16)?;
    }
    let small = case.label.data.iter().all(|&v| (0.0..=255.0).contains(&v));
    let wide = case.label.data.iter().any(|&v| !(-32768.0..=32767.0).contains(&v));
    let kind = if small {
        DataType::Uint8
    } else if wide {
        DataType::Float32
    } else {
        DataType::Int16
    };
    nifti::write(label, &case.label, kind)
}

/// Channels red, green, blue of whole values 0 to 255, as PNG.
fn write_photograph(data: &Array4<f32>, path: &Path) -> Result<()> {
    let (_, _, height, width) = data.dim();
    let pixels = RgbImage::from_fn(width as u32, height as u32, |x, y| {
        Rgb(std::array::from_fn(|c| data[[c, 0, y as usize, x as usize]] as u8))
    });
    write_atomic(path, |file| Ok(pixels.write_with_encoder(PngEncoder::new(file))?))
}

fn fundus_id(subject: usize) -> String {
    format!("fundus_{subject:04}")
}

/// The table of APTOS: a grade for each photograph.
fn write_grades(path: &Path, subjects: usize, seed: u64) -> Result<()> {
    write_atomic(path, |file| {
        writeln!(file, "id_code,diagnosis")?;
        for subject in 0..subjects {
            let (_, grade) = retinopathy::grades(&mut rng(seed, Stream::Phantom, subject as u64, part::LESION));
            writeln!(file, "{},{grade}", fundus_id(subject))?;
        }
        Ok(())
    })
}

fn decathlon_id(subject: usize) -> String {
    format!("pancreas_{subject:04}")
}

/// Contents of a Decathlon `dataset.json`.
fn decathlon(subjects: usize) -> serde_json::Value {
    let pair = |subject| {
        let name = format!("{}.nii.gz", decathlon_id(subject));
        json!({ "image": format!("./imagesTr/{name}"), "label": format!("./labelsTr/{name}") })
    };
    json!({
        "name": "Pancreas phantom",
        "description": "Generated abdominal CT with pancreas and tumour, in the layout of Medical Segmentation Decathlon Task07",
        "reference": "pretext3d phantom",
        "licence": "CC0",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": { "0": "CT" },
        "labels": { "0": "background", "1": "pancreas", "2": "cancer" },
        "numTraining": subjects,
        "numTest": 0,
        "training": (0..subjects).map(pair).collect::<Vec<_>>(),
        "test": [],
    })
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    write_atomic(path, |file| {
        serde_json::to_writer_pretty(&mut *file, value)?;
        Ok(writeln!(file)?)
    })
}
