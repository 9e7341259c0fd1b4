//! The sheet: a sample's views, what the network makes of them, and what was wanted.

use super::Sample;
use crate::data::Scans;
use crate::data::store::Store;
use crate::dim::voxels;
use crate::report::sheet::{Panel, window, write_sheet};
use crate::tasks::Task;
use anyhow::{Context, Result};
use ndarray::ArrayView3;
use std::path::Path;

/// Most pictures of one sample; a sample with more views than fit shows its first channel only.
const MAX_PANELS: usize = 16;

/// Samples on the sheet at most; the batch holds all.
const MAX_DRAWN: usize = 16;

/// Writes the sheet. Where voxels are restored, each channel has a row of its own; otherwise each sample.
pub fn draw(path: &Path, task: &dyn Task, store: &Store, views: &[f32], samples: &[Sample]) -> Result<()> {
    let names = &store.index().channels;
    let (n, channels, restores) = (voxels(task.view_shape()), names.len(), task.clean_views() > 0);
    let image = |values| ArrayView3::from_shape(task.view_shape(), values).context("a picture of another shape");
    let most = if restores { (MAX_DRAWN / channels).max(1) } else { MAX_DRAWN };
    let drawn = &samples[..samples.len().min(most)];
    let classes: Vec<Vec<f32>> = drawn.iter().map(|s| s.drawn.targets.iter().map(|&class| class as f32).collect()).collect();
    let hidden: Vec<Option<Vec<bool>>> = drawn.iter().map(|s| task.hidden(&s.drawn)).collect();
    // Groups of channels that share a row.
    let groups: Vec<Vec<usize>> = match (restores, task.views() * channels <= MAX_PANELS) {
        (true, _) => (0..channels).map(|channel| vec![channel]).collect(),
        (false, true) => vec![(0..channels).collect()],
        (false, false) => vec![vec![0]],
    };
    let mut rows = Vec::new();
    for (i, sample) in drawn.iter().enumerate() {
        let of_sample = views.chunks_exact(views.len() / samples.len()).nth(i).context("views of every sample")?;
        let view = |view: usize, channel: usize| image(&of_sample[(view * channels + channel) * n..][..n]);
        for group in &groups {
            let mut row = Vec::new();
            for v in 0..task.views() {
                for &channel in group {
                    let caption = match row.len() {
                        0 => format!("{}, {}: {}", store.id(sample.scan), names[channel], task.caption(&sample.drawn)),
                        _ => format!("view {v}, {}", names[channel]),
                    };
                    let hidden =
                        hidden[i].as_ref().map(|hidden| ArrayView3::from_shape(task.view_shape(), hidden)).transpose()?;
                    row.push(Panel { hidden, ..Panel::new(view(v, channel)?, caption) });
                }
            }
            for picture in &sample.pictures {
                let channel = if picture.image.len() > n { group[0] } else { 0 };
                let values = image(&picture.image[channel * n..][..n])?;
                let caption = picture.captions.get(channel).or(picture.captions.first()).context("a caption")?;
                row.push(Panel { window: picture.window, ..Panel::new(values, caption.clone()) });
            }
            for v in task.views()..task.views() + task.clean_views() {
                for &channel in group {
                    row.push(Panel::new(view(v, channel)?, format!("target, {}", names[channel])));
                }
            }
            if let Some(n) = task.voxel_classes() {
                let caption = format!("target, classes 0 (black) to {} (white)", n - 1);
                row.push(Panel { window: Some([0., (n - 1) as f32]), ..Panel::new(image(&classes[i])?, caption) });
            }
            if restores {
                // As the target needs it: neither noise nor what a network gives moves the greys.
                let grey = row.last().map(|target| window(std::slice::from_ref(target)));
                row.iter_mut().for_each(|panel| panel.window = grey);
            }
            rows.push(row);
        }
    }
    let part = if samples.len() > most { format!(", first {most} of {} samples", samples.len()) } else { String::new() };
    let what = if samples[0].pictures.is_empty() { "" } else { " and makes of it" };
    write_sheet(path, &format!("{}: what the network sees{what}{part}", task.name()), &rows)
}
