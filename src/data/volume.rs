//! A volume with its place in the world.

use ndarray::Array4;

/// Voxel index (of the last three axes) to millimetres in RAS+ world space; row-major, as nibabel's `img.affine`.
pub type Affine = [[f64; 4]; 4];

/// Voxels `[C, i, j, k]` and the affine of `(i, j, k)`.
#[derive(Clone, Debug)]
pub struct Volume {
    pub data: Array4<f32>,
    pub affine: Affine,
}
