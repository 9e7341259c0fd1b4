"""Generated head-sized scans for the benchmarks of reading and sampling."""
import nibabel
import numpy as np

SHAPE = (181, 217, 181)


def smooth(rng, shape, cells):
    """Random field that varies over `1 / cells` of each side: a coarse grid, interpolated linearly."""
    field = rng.random([cells + 1] * 3, dtype=np.float32)
    for axis, n in enumerate(shape):
        at = np.linspace(0, cells, n, dtype=np.float32)
        low = np.minimum(at.astype(int), cells - 1)
        weight = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        field = field.take(low, axis) * (1 - weight) + field.take(low + 1, axis) * weight
    return field


def write(folder, count):
    """Writes `count` uint8 `.nii.gz` heads at 1 mm, stored from right to left so that readers have to reorient them."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij", sparse=True)
    inside = sum((x / 0.8) ** 2 for x in grid) < 1
    affine = np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = [90, -126, -72]
    paths = []
    for i in range(count):
        rng = np.random.default_rng(i)
        tissue = 90 + 90 * smooth(rng, SHAPE, 12) + 40 * smooth(rng, SHAPE, 40)
        image = np.where(inside, tissue + rng.normal(0, 6, SHAPE).astype(np.float32), 0)
        paths.append(folder / f"scan{i:02}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(np.clip(image, 0, 255).astype(np.uint8), affine), paths[-1])
    return paths
