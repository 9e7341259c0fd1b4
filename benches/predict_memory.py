"""Peak memory of `pretext3d predict` on a scan as large as a CT of the whole body.

A network of two levels and four classes, trained for one step on small scans, segments one generated scan of 512 x 512 x 1200 int16 voxels
(.nii.gz) on its own grid, alone and with `--probabilities`, on the CPU. The bound that is checked counts everything: reading,
preprocessing, windows, and writing.
"""
import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

import numpy as np
import nibabel

SPACING = [0.8, 0.8, 1.0]
CLASSES = 4


def flags():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 1200])
    parser.add_argument("--patch", type=int, default=64, help="side of the windows in voxels")
    parser.add_argument("--bound", type=float, default=4.0, help="GiB that the peak must stay below")
    parser.add_argument("--folder", type=Path, help="where the scan is written and kept [default: a temporary one]")
    parser.add_argument("--no-record", action="store_true", help="print the figures, write no file")
    return parser.parse_args()


def body(shape, random):
    """HU of one slice: a body with two organs in air."""
    x, y = (np.linspace(-1, 1, n)[:, None] if a == 0 else np.linspace(-1, 1, n)[None] for a, n in enumerate(shape))
    hu = np.where(x**2 + y**2 < 0.98, 40, -1000) + 30 * (np.hypot(x - 0.4, y) < 0.2) + 400 * (np.hypot(x + 0.3, y) < 0.1)
    return (hu + random.integers(-8, 9, shape)).astype(np.int16)


def write_scan(path, shape):
    """Slice by slice, as the peak of this process must not hide that of its children."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.diag([*SPACING, 1]), code=1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    random = np.random.default_rng(0)
    noise = [body(shape[:2], random) for _ in range(8)]
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        for k in range(shape[2]):
            file.write(noise[k % len(noise)].tobytes(order="F"))


def pretext3d(*arguments):
    subprocess.run([common.BINARY, *map(str, arguments)], check=True, stdout=sys.stderr)


def network(folder, patch):
    """A run on four small scans."""
    side = max(96, patch)
    (folder / "train").mkdir()
    random = np.random.default_rng(1)
    for n in range(4):
        label = random.integers(0, CLASSES, (side // 8,) * 3).repeat(8, 0).repeat(8, 1).repeat(8, 2).astype(np.uint8)
        image = (label * 100 - 200 + random.integers(-8, 9, label.shape)).astype(np.int16)
        for name, voxels in [(f"s{n}", image), (f"s{n}_seg", label)]:
            nibabel.Nifti1Image(voxels, np.diag([*SPACING, 1])).to_filename(folder / f"train/{name}.nii.gz")
    grid = ["--protocol", "modern", "--spacing", ",".join(map(str, SPACING)), "--labels", ",".join(map(str, range(CLASSES)))]
    pretext3d("preprocess", "--data", folder / "train", "--out", folder / "store", *grid)
    tiny = ["--levels", 2, "--filters", 2, "--patch", patch, "--batch-size", 1, "--epochs", 1, "--steps", 1]
    pretext3d("finetune", "--data", folder / "store", "--weights", "none", *tiny, "--device", "cpu", "--out", folder / "run")
    return folder / "run"


def main():
    args = flags()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        scan = folder / "scan.nii.gz"
        if not scan.exists():
            write_scan(scan, args.shape)
        run = network(Path(temporary), args.patch)
        figures = {"shape": args.shape, "classes": CLASSES, "patch": args.patch, "file_mib": scan.stat().st_size / 2**20}
        for name, more in {"labels": [], "probabilities": ["--probabilities"]}.items():
            out = Path(temporary) / name
            started = time.perf_counter()
            command = [common.BINARY, "predict", "--weights", run, "--input", scan, "--output", out, "--device", "cpu", *more]
            _, peak = common.child(command)
            figures[name] = {"peak_mib": round(peak), "seconds": round(time.perf_counter() - started, 1)}
            found = nibabel.load(out / "scan.nii.gz")
            assert found.shape == tuple(args.shape) and np.asarray(found.dataobj[..., -1]).max() < CLASSES
            print(json.dumps({name: figures[name]}), flush=True)
        if not args.no_record:
            common.save("predict_memory", figures)
        over = [name for name in ("labels", "probabilities") if figures[name]["peak_mib"] > args.bound * 1024]
        sys.exit(f"error: above {args.bound} GiB: {', '.join(over)}" if over else 0)


if __name__ == "__main__":
    main()
