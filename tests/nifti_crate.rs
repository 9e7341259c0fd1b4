//! What we write, read by the `nifti` crate; and the other way round what both read.

use ndarray::Array4;
use nifti::{IntoNdArray, NiftiObject, ReaderOptions};
use pretext3d::data::formats::nifti::{DataType, write};
use pretext3d::data::formats::open;
use pretext3d::data::volume::Volume;

#[test]
fn the_nifti_crate_reads_what_we_write() {
    let folder = tempfile::tempdir().unwrap();
    let affine = [[-1.5, 0., 0., 90.], [0., 2., 0., -126.], [0., 0., 2.5, -72.], [0., 0., 0., 1.]];
    let data = Array4::from_shape_fn((1, 5, 6, 7), |(_, i, j, k)| (i * 42 + j * 7 + k) as f32 - 100.);
    for (name, kind) in [("a.nii", DataType::Int16), ("b.nii.gz", DataType::Float32)] {
        let path = folder.path().join(name);
        write(&path, &Volume { data: data.clone(), affine }, kind).unwrap();
        let theirs = ReaderOptions::new().read_file(&path).unwrap();
        let header = theirs.header();
        assert_eq!(header.pixdim[1..4], [1.5, 2., 2.5]);
        assert_eq!(header.srow_x.map(f64::from), affine[0]);
        let voxels = theirs.into_volume().into_ndarray::<f32>().unwrap();
        assert_eq!(voxels.shape(), [5, 6, 7]);
        let ours = open(&path).unwrap().read().unwrap();
        for (index, &value) in ours.data.indexed_iter() {
            assert_eq!(value, data[index]);
            assert_eq!(value, voxels[[index.1, index.2, index.3]]);
        }
    }
}
