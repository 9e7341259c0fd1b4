"""`pretext3d phantom`: nibabel reads what it writes, in the layouts of BraTS 2018 and Decathlon Task07."""

import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import BINARY

ROOT = Path(__file__).resolve().parents[2]


def phantom(*args):
    return subprocess.run([BINARY, "phantom", *map(str, args)], capture_output=True, text=True)


def test_brats_layout(tmp_path):
    done = phantom("--subjects", 2, "--size", 32, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["brain_0000", "brain_0001", "phantom.json"]
    for subject in ("brain_0000", "brain_0001"):
        assert len(list((tmp_path / subject).iterdir())) == 5
        for name in ("t1", "t1ce", "t2", "flair", "seg"):
            image = nib.load(tmp_path / subject / f"{subject}_{name}.nii.gz")
            assert image.shape == (32, 32, 32)
            assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
            assert np.allclose(image.header.get_zooms(), 6.0)
            assert np.allclose(image.affine @ [15.5, 15.5, 15.5, 1], [0, 0, 0, 1])
            voxels = np.asarray(image.dataobj)
            if name == "seg":
                assert voxels.dtype == np.uint8
                assert set(np.unique(voxels)) == {0, 1, 2, 4}
            else:
                assert image.get_data_dtype() == np.int16
                assert voxels.min() == 0 and 300 < voxels.max() < 4000
                assert (voxels == 0).mean() > 0.2, "air around the head is zero"


def test_decathlon_layout(tmp_path):
    done = phantom("--kind", "abdomen", "--subjects", 2, "--size", 32, "--seed", 3, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "dataset.json").read_text())
    assert described["numTraining"] == len(described["training"]) == 2
    assert list(described["labels"]) == ["0", "1", "2"]
    for pair in described["training"]:
        image, label = nib.load(tmp_path / pair["image"]), nib.load(tmp_path / pair["label"])
        assert np.array_equal(image.affine, label.affine)
        assert np.allclose(image.header.get_zooms(), 9.6)
        hounsfield, classes = np.asarray(image.dataobj), np.asarray(label.dataobj)
        assert image.get_data_dtype() == np.int16 and hounsfield.min() >= -1024
        assert set(np.unique(classes)) == {0, 1, 2}
        # Air is most of the corner, soft tissue most of the pancreas, and the liver lies on the right.
        assert hounsfield[0, 0].mean() < -900
        assert 40 < np.median(hounsfield[classes == 1]) < 150
        upper = hounsfield[:, 10:22, 18:24]
        liver = ((upper > 70) & (upper < 160)).mean(axis=(1, 2))
        assert liver[19:27].mean() > 1.5 * liver[5:13].mean()


def test_label_map(tmp_path):
    labels = np.zeros((36, 30, 33), np.int16)
    labels[8:28, 6:24, 8:25] = 41
    labels[14:20, 10:20, 12:20] = 1001
    affine = np.array([[0, 0, 2.0, -30], [-2.0, 0, 0, 40], [0, 2.5, 0, 5], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "map.nii.gz")
    out = tmp_path / "out"
    done = phantom("--from-labels", tmp_path / "map.nii.gz", "--subjects", 2, "--contrasts", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    maps = []
    for k in range(2):
        name = f"labels_{k:04}"
        image, seg = nib.load(out / name / f"{name}_t1.nii.gz"), nib.load(out / name / f"{name}_seg.nii.gz")
        assert image.shape == seg.shape == labels.shape
        assert np.allclose(seg.affine, affine, atol=1e-4)
        maps.append(np.asarray(seg.dataobj))
        assert set(np.unique(maps[-1])) == {0, 41, 1001}
        overlap = 2 * ((maps[-1] > 0) & (labels > 0)).sum() / ((maps[-1] > 0).sum() + (labels > 0).sum())
        assert 0.7 < overlap < 0.99
    assert not np.array_equal(*maps)


@pytest.mark.parametrize(
    "args, words",
    [
        (["--size", 16], ["16", "32"]),
        (["--subjects", 0], ["0 subjects"]),
        (["--threads", 0], ["--threads 0"]),
        (["--from-labels", "missing.nii.gz"], ["missing.nii.gz"]),
    ],
)
def test_errors(tmp_path, args, words):
    done = phantom(*args, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert all(word in done.stderr for word in words), done.stderr


def test_unwritable_output(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = phantom("--subjects", 1, "--size", 32, "--out", tmp_path / "file")
    assert done.returncode == 1 and str(tmp_path / "file") in done.stderr
