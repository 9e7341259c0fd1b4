"""Channels of a fine-tuned network meet those of the scans that it predicts, whatever these are called."""
import json

import nibabel as nib
import numpy as np
import pytest
from helpers import pretext3d, refused

SMALL = ["--epochs", 1, "--steps", 1, "--batch-size", 2, "--levels", 2, "--filters", 2, "--patch", 8, "--device", "cpu"]


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.int16), np.eye(4)), path)


def scan(seed):
    return np.random.default_rng(seed).normal(100, 20, (12, 12, 12))


def tuned(root, channels, names=("background", "x")):
    """A run on five scans of one file a channel."""
    for n in range(5):
        label = np.zeros((12, 12, 12))
        label[3:9, 3:9, 3:9] = 1
        for c in range(len(channels)):
            save(scan(9 * n + c) + 40 * c * label, root / "data/imagesTr" / f"c{n}_{c:04}.nii.gz")
        save(label, root / "data/labelsTr" / f"c{n}.nii.gz")
    labels = {name: value for value, name in enumerate(names)}
    description = {"channel_names": dict(enumerate(channels)), "labels": labels, "file_ending": ".nii.gz"}
    (root / "data/dataset.json").write_text(json.dumps(description))
    pretext3d("preprocess", "--data", root / "data", "--out", root / "store", "--size", 12)
    pretext3d("finetune", "--data", root / "store", "--weights", "none", *SMALL, "--out", root / "run")
    return root / "run"


def probabilities(run, source, out, name):
    done = pretext3d("predict", "--weights", run, "--input", source, "--output", out, "--probabilities", "--device", "cpu")
    return np.asarray(nib.load(out / f"{name}.probabilities.nii.gz").dataobj), done.stderr


@pytest.mark.parametrize("channels", [["CT", "CT"], ["noNorm", "T2", "noNorm"]])
def test_channels_of_one_name_are_told_by_their_place(tmp_path, channels):
    run = tuned(tmp_path, channels)
    files = [tmp_path / f"data/imagesTr/c0_{c:04}.nii.gz" for c in range(len(channels))]
    expected, _ = probabilities(run, ",".join(map(str, files)), tmp_path / "files", "c0_0000")
    for source in ["data", "store"]:
        found, _ = probabilities(run, tmp_path / source, tmp_path / f"of_{source}", "c0")
        np.testing.assert_array_equal(found, expected)
    # Numbered files without a description.
    (tmp_path / "data/dataset.json").unlink()
    found, said = probabilities(run, tmp_path / "data", tmp_path / "of_numbers", "c0")
    np.testing.assert_array_equal(found, expected)
    assert f"channels are taken in their order: 0000, 0001" in said and ", ".join(channels) in said


def test_one_channel_needs_no_name(tmp_path):
    run = tuned(tmp_path, ["CT"])
    expected = None
    for suffix in ["", "_CT", "_ct", "_0000"]:
        folder = tmp_path / f"new{suffix}"
        for n in range(2):
            save(scan(50 + n), folder / f"pat{n}{suffix}.nii.gz")
        found, _ = probabilities(run, folder, tmp_path / f"out{suffix}", "pat1")
        expected = found if expected is None else expected
        np.testing.assert_array_equal(found, expected, err_msg=suffix)
    # A name that says something else is no match.
    for n in range(2):
        save(scan(n), tmp_path / "t1" / f"pat{n}_t1.nii.gz")
    refused("predict", "--weights", run, "--input", tmp_path / "t1", "--output", tmp_path / "x", says=["no channel `CT`", "found t1"])


def test_regions_that_labels_do_not_have_are_refused_before_training(tmp_path):
    tuned(tmp_path, ["T1"], ["background", "edema"])
    out = tmp_path / "regions"
    says = ["--regions brats", "no necrosis or non-enhancing tumour", "edema", "--labels of preprocess"]
    refused("finetune", "--data", tmp_path / "store", "--weights", "none", *SMALL, "--regions", "brats", "--out", out, says=says)
    assert not out.exists()
