//! Whether an encoder leaves anything of a task's views, and what to change if not.

use super::Task;
use crate::dim::{Shape, Sides, voxels};
use crate::nn::{EncoderConfig, NormKind};
use anyhow::{Context, Result, bail};

/// A task whose views are the patches of a grid in its window.
pub struct Grid {
    pub window: Shape,
    /// The smallest window with patches of at least this shape.
    pub window_for: Box<dyn Fn(Shape) -> Shape>,
}

/// Errors if the encoder leaves nothing of a task's views, or too little to normalise. Says of patches of a grid what window they need.
pub fn check(task: &dyn Task, encoder: &EncoderConfig) -> Result<()> {
    let (name, view, rank, reduction) = (task.name(), task.view_shape(), encoder.rank(), encoder.reduction());
    let Some(grid) = task.grid() else {
        return encoder.check_input(view).with_context(|| format!("task {name}"));
    };
    let checked = || {
        encoder.check_input(view)?;
        if encoder.norm() == NormKind::Batch && voxels(reduction.whole(view)) == 0 {
            bail!(
                "a patch of {view:?} voxels is too small: the encoder pools by {}; --levels with fewer levels pool less",
                reduction.words()
            );
        }
        Ok(())
    };
    checked().with_context(|| {
        let twice = if encoder.norm() == NormKind::Instance { 2 } else { 1 };
        let needed: Shape = std::array::from_fn(|a| twice * reduction.along(a));
        let text = |shape: Shape| Sides::of(rank, shape);
        format!(
            "task {name}: its patches have {} voxels in a window of {}, and need about {}: give --window {} (smaller scans are padded), fewer \
             cells by --{name}-grid, or fewer --levels",
            text(view),
            text(grid.window),
            text(needed),
            text((grid.window_for)(needed))
        )
    })
}
