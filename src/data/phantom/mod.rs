//! Phantoms: scans with anatomy, generated in place of data that may not be shipped. A subject is a template anatomy with
//! drawn proportions, smoothly deformed, with drawn tissue intensities, bias field, noise and tumour.
//!
//! Subject `k` of a seed has the same bits however many subjects are asked for and however many threads make them.

mod abdomen;
mod appearance;
mod brain;
mod eye;
mod field;
mod folder;
mod fundus;
mod geometry;
mod labels;
mod lesion;
mod retinopathy;

pub use folder::{Made, generate};
pub use labels::LabelMap;

use crate::data::volume::{Affine, Volume};
use crate::dim::{Shape, voxels};
use crate::rng::{Rng, Stream, normal, rng};
use anyhow::{Result, ensure};
use appearance::{Scanner, texture};
use field::Warp;
use ndarray::Array4;
use rand::Rng as _;

/// Smallest side of a generated volume: with fewer voxels the organs run into each other.
pub const MIN_SIZE: usize = 32;
/// Largest side: four contrasts of it fill about 8 GB.
pub const MAX_SIZE: usize = 512;
/// Largest height of a photograph.
pub const MAX_HEIGHT: usize = 4096;

/// What is generated.
pub enum Recipe {
    /// Heads on four MR contrasts with a glioma, in a cube of `size` voxels and 192 mm; the layout is that of BraTS 2018.
    Brain { size: usize },
    /// Trunks on CT with a tumour of the pancreas, in a cube of `size` voxels and 307 mm; the layout is that of Decathlon Task07.
    Abdomen { size: usize },
    /// Photographs of the eye's fundus with diabetic retinopathy, `size` pixels high; the layout is that of APTOS 2019.
    Fundus { size: usize },
    /// A user's label map on MR-like contrasts with random intensities, in folders as BraTS has them.
    Labels { map: Box<LabelMap>, contrasts: usize },
}

/// One subject: images named by contrast, and the label, all `[1, D, H, W]` on one grid; a photograph is one image of three channels.
pub struct Phantom {
    pub images: Vec<(&'static str, Volume)>,
    pub label: Volume,
}

impl Recipe {
    /// Checks what can be checked before anything is generated.
    pub fn validate(&self) -> Result<()> {
        match self {
            Recipe::Brain { size } | Recipe::Abdomen { size } => check_size(*size, MAX_SIZE),
            Recipe::Fundus { size } => check_size(*size, MAX_HEIGHT),
            Recipe::Labels { contrasts, .. } => {
                let most = brain::CONTRASTS.len();
                ensure!((1..=most).contains(contrasts), "{contrasts} contrasts asked for, expected 1 to {most}");
                Ok(())
            }
        }
    }

    /// Generates one subject.
    pub fn case(&self, seed: u64, subject: u64) -> Phantom {
        let part = |part: u64| rng(seed, Stream::Phantom, subject, part);
        match self {
            Recipe::Brain { size } => brain_case(*size, part),
            Recipe::Abdomen { size } => abdomen_case(*size, part),
            Recipe::Fundus { size } => fundus::case(*size, part),
            Recipe::Labels { map, contrasts } => labels::case(map, *contrasts, part),
        }
    }
}

fn check_size(size: usize, most: usize) -> Result<()> {
    ensure!((MIN_SIZE..=most).contains(&size), "size {size}: expected {MIN_SIZE} to {most} voxels a side");
    Ok(())
}

/// The parts of a subject that have a generator each, so that adding a draw to one leaves the others as they are.
mod part {
    pub const ANATOMY: u64 = 0;
    pub const LESION: u64 = 1;
    pub const WARP: u64 = 2;
    pub const LOOK: u64 = 3;
    pub const TEXTURE: u64 = 4;
    /// And one more for each further contrast.
    pub const SCAN: u64 = 16;
}

fn brain_case(size: usize, part: impl Fn(u64) -> Rng) -> Phantom {
    use brain::Tissue;
    let (shape, voxel) = ([size; 3], brain::FIELD_OF_VIEW / size as f32);
    let anatomy = brain::Brain::draw(&mut part(part::ANATOMY));
    let glioma = lesion::Glioma::draw(&anatomy, voxel, &mut part(part::LESION));
    let warp = Warp::draw(shape, [voxel; 3], &brain::VARIATION, &mut part(part::WARP));
    let tissues: Vec<(Tissue, Tissue)> = warp
        .points()
        .map(|p| {
            let host = anatomy.tissue(glioma.before(p));
            (host, glioma.tissue(p, host, anatomy.cerebral_depth(p)).unwrap_or(host))
        })
        .collect();
    let mut look = part(part::LOOK);
    // How far each shell of the tumour departs from healthy tissue: some are faint.
    let contrast = [Tissue::Necrosis, Tissue::Oedema, Tissue::Enhancing].map(|t| (t, look.random_range(0.5..1.05f32)));
    let texture = texture(shape, [voxel; 3], 0.05, &mut part(part::TEXTURE));
    let mut images = Vec::new();
    for (c, &name) in brain::CONTRASTS.iter().enumerate() {
        let gain = look.random_range(0.75..1.05f32);
        let mean: Vec<f32> =
            brain::SIGNAL.iter().map(|(_, s)| gain * s[c] * (1.0 + 0.06 * normal(&mut look)).max(0.5)).collect();
        let level = |(host, tissue): (Tissue, Tissue)| {
            let healthy = if tissue == Tissue::Oedema { host } else { Tissue::Grey };
            match contrast.iter().find(|(t, _)| *t == tissue) {
                Some((_, share)) => mean[healthy as usize] + share * (mean[tissue as usize] - mean[healthy as usize]),
                None => mean[tissue as usize],
            }
        };
        let mut signal: Vec<f32> = tissues.iter().zip(&texture).map(|(&t, factor)| level(t) * factor).collect();
        let mut draws = part(part::SCAN + c as u64);
        Scanner::mr(mean[Tissue::White as usize], &mut draws).acquire(&mut signal, shape, [voxel; 3], &mut draws);
        // Air around the head is set to zero, as public collections do.
        signal.iter_mut().zip(&tissues).for_each(|(v, t)| *v = if t.0 == Tissue::Outside { 0.0 } else { v.round() });
        images.push((name, volume(signal, shape, centred(shape, voxel))));
    }
    let label = tissues
        .iter()
        .map(|(_, tissue)| match tissue {
            Tissue::Necrosis => 1.0,
            Tissue::Oedema => 2.0,
            Tissue::Enhancing => 4.0,
            _ => 0.0,
        })
        .collect();
    Phantom { images, label: volume(label, shape, centred(shape, voxel)) }
}

fn abdomen_case(size: usize, part: impl Fn(u64) -> Rng) -> Phantom {
    use abdomen::Tissue;
    let (shape, voxel) = ([size; 3], abdomen::FIELD_OF_VIEW / size as f32);
    let anatomy = abdomen::Abdomen::draw(voxel, &mut part(part::ANATOMY));
    let warp = Warp::draw(shape, [voxel; 3], &abdomen::VARIATION, &mut part(part::WARP));
    let tissues: Vec<Tissue> = warp.points().map(|p| anatomy.tissue(p)).collect();
    let mut look = part(part::LOOK);
    let mut mean: Vec<f32> =
        abdomen::HOUNSFIELD.iter().map(|(_, hu, sd)| hu + sd * normal(&mut look).clamp(-2.5, 2.5)).collect();
    // Most tumours take up less contrast agent than the gland; some hardly differ.
    mean[Tissue::Tumour as usize] = mean[Tissue::Pancreas as usize] - look.random_range(12.0..50.0);
    let texture = texture(shape, [voxel; 3], 0.05, &mut part(part::TEXTURE));
    // The factor acts on the excess over water, so that water stays at 0 HU, and air at -1000 where it is outside.
    let mut signal: Vec<f32> =
        tissues.iter().zip(&texture).map(|(&t, factor)| mean[t as usize].max(-1000.0) + (factor - 1.0) * density(t)).collect();
    let mut draws = part(part::SCAN);
    Scanner::ct(&mut draws).acquire(&mut signal, shape, [voxel; 3], &mut draws);
    signal.iter_mut().for_each(|v| *v = v.round().clamp(-1024.0, 3071.0));
    let label = tissues
        .iter()
        .map(|t| match t {
            Tissue::Pancreas => 1.0,
            Tissue::Tumour => 2.0,
            _ => 0.0,
        })
        .collect();
    let affine = centred(shape, voxel);
    Phantom { images: vec![("CT", volume(signal, shape, affine))], label: volume(label, shape, affine) }
}

/// HU by which a relative change of texture moves a tissue.
fn density(tissue: abdomen::Tissue) -> f32 {
    use abdomen::Tissue;
    match tissue {
        Tissue::Outside | Tissue::Gas => 0.0,
        Tissue::Cortical | Tissue::Spongy => 1200.0,
        Tissue::Lung => 500.0,
        Tissue::Stool => 700.0,
        _ => 120.0,
    }
}

fn volume(data: Vec<f32>, shape: Shape, affine: Affine) -> Volume {
    let channels = data.len() / voxels(shape);
    let data = Array4::from_shape_vec((channels, shape[0], shape[1], shape[2]), data).expect("whole channels");
    Volume { data, affine }
}

/// RAS+ affine of a grid whose centre is the origin.
fn centred(shape: Shape, voxel: f32) -> Affine {
    let voxel = f64::from(voxel);
    let mut affine = [[0.0; 4]; 4];
    for a in 0..3 {
        affine[a][a] = voxel;
        affine[a][3] = -voxel * (shape[a] - 1) as f64 / 2.0;
    }
    affine[3][3] = 1.0;
    affine
}

#[cfg(test)]
mod tests;
