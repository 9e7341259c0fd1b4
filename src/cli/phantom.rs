use crate::data::formats;
use crate::data::phantom::{LabelMap, Recipe, generate};
use crate::print::say;
use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::time::Instant;

/// Write generated scans, with labels, in the layout of a public dataset
///
/// Proportions, smooth deformation, tissue intensities, bias field, noise and tumour are drawn for each subject; the same
/// seed gives the same files. Run again with the same settings it makes only what is missing, and adds subjects when more
/// are asked for.
#[derive(clap::Args)]
pub struct Args {
    /// Anatomy to generate [default: brain]
    #[arg(long, value_enum, conflicts_with = "from_labels")]
    kind: Option<Kind>,
    /// Number of subjects, at least 1
    #[arg(long, default_value_t = 64, value_name = "N")]
    subjects: usize,
    /// Voxels along each side of the cubic volume, 32 to 512 [default: 96; with --from-labels the map's own grid]; of fundus the
    /// photograph's height in pixels, 32 to 4096 [default: 512]
    #[arg(long, value_name = "VOXELS")]
    size: Option<usize>,
    /// Seed of every random draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder to write into: new, empty, or holding subjects of the same settings
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Draw appearance on this label map (3D NIfTI of whole numbers, 0 = background) instead of a built-in anatomy; written as
    /// labels_0000/labels_0000_t1.nii.gz and so on, with the deformed map as _seg
    #[arg(long, value_name = "FILE")]
    from_labels: Option<PathBuf>,
    /// Contrasts a subject with --from-labels, 1 to 4: t1, t1ce, t2, flair in name only, as intensities are random [default: 4]
    #[arg(long, value_name = "N", requires = "from_labels")]
    contrasts: Option<usize>,
    /// Threads; never changes the result [default: one a core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// Heads, skull and face included, 192 mm: four MR contrasts, int16, and a glioma (1 necrosis, 2 oedema, 4 enhancing); BraTS
    /// 2018 layout
    Brain,
    /// Trunks, 307 mm: CT in HU, int16, with pancreas (1) and its tumour (2); Medical Segmentation Decathlon Task07 layout
    Abdomen,
    /// Photographs of the eye's fundus with diabetic retinopathy of grade 0 to 4, PNG and a CSV; APTOS 2019 layout
    Fundus,
}

pub fn run(args: Args) -> Result<()> {
    ensure!(args.threads != Some(0), "--threads 0: expected at least 1");
    let size = args.size.unwrap_or(96);
    let model = match (&args.from_labels, args.kind.unwrap_or(Kind::Brain)) {
        (Some(path), _) => {
            let map = formats::open(path)?.read()?;
            let map = LabelMap::new(&map, args.size).with_context(|| path.display().to_string())?;
            Recipe::Labels { map: Box::new(map), contrasts: args.contrasts.unwrap_or(4) }
        }
        (None, Kind::Brain) => Recipe::Brain { size },
        (None, Kind::Abdomen) => Recipe::Abdomen { size },
        (None, Kind::Fundus) => Recipe::Fundus { size: args.size.unwrap_or(512) },
    };
    let start = Instant::now();
    let style = ProgressStyle::with_template("phantom {bar:40} {pos}/{len} subjects, {eta} left")?;
    let bar = ProgressBar::new(args.subjects as u64).with_style(style);
    let made = generate(&model, args.subjects, args.seed, &args.out, args.threads, || bar.inc(1));
    bar.finish_and_clear();
    let made = made?;
    say!(
        "{}: {} subjects written in {:.1} s, {} there already",
        args.out.display(),
        made.new,
        start.elapsed().as_secs_f64(),
        made.kept
    );
    Ok(())
}
