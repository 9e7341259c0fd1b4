"""DICOM series against dcm2niix, which many data sets are converted with: the same voxels in the same places."""

import subprocess

import nibabel as nib
import numpy as np
import pytest
from helpers import pretext3d
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless
from test_dicom import CORONAL, LINEAR, SAGITTAL, agree, hashed, oblique, series, stored


def test_series_as_dcm2niix_converts_them(tmp_path):
    # Its package, which brings the program, has no wheels for some machines.
    dcm2niix = pytest.importorskip("dcm2niix").bin
    rng, data, out = np.random.default_rng(11), tmp_path / "data", tmp_path / "out"
    # All that it reads as it is meant: not signed bytes, deflated files and MONOCHROME1.
    kinds = {
        "axial": {}, "sagittal": dict(orientation=SAGITTAL), "coronal": dict(orientation=CORONAL), "oblique": dict(orientation=oblique(17)),
        "flipped": dict(orientation=(-1, 0, 0, 0, 1, 0)), "tilted": dict(orientation=oblique(-40), n=9), "unsigned": dict(dtype="u2", slopes=(1, -1024)),
        "bytes": dict(dtype="u1"), "twelve": dict(dtype="u2", bits=12, slopes=(2.5, -7)), "slopes": dict(dtype="u2", bits=12, slopes=lambda k: (1 + k / 8, -3 * k)),
        "implicit": dict(syntax=ImplicitVRLittleEndian), "big": dict(syntax=ExplicitVRBigEndian), "plain": dict(slopes=None), "many": dict(n=31, shape=(9, 4)),
        "rounded": dict(moved={2: 0.05, 4: -0.05}), "rle": dict(syntax=RLELossless), "rle8": dict(syntax=RLELossless, dtype="u1", shape=(7, 9)),
    }
    for name, how in kinds.items():
        series(data, rng, name, **how)
    out.mkdir()
    subprocess.run([dcm2niix, "-b", "n", "-z", "n", "-f", "%i", "-o", out, data], check=True, capture_output=True)
    pretext3d("preprocess", "--data", data, "--out", tmp_path / "store", *LINEAR)
    found = stored(tmp_path / "store")
    assert sorted(path.stem for path in out.glob("*.nii")) == sorted(kinds) and len(found) == len(kinds)
    for name in kinds:
        image = nib.load(out / f"{name}.nii")
        [scan] = found[hashed(name, 16)]
        agree(scan, image.get_fdata(), image.affine)
