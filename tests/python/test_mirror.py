"""Mirror images: off unless asked for, and labels named left and right change places with the image."""
import nibabel
import numpy as np
import pytest
from helpers import pretext3d, read_json, refused

NET = ["--filters", 2, "--levels", 2, "--batch-size", 2, "--epochs", 1, "--steps", 1, "--val-fraction", 0.2, "--test-fraction", 0.2]
CPU = ["--device", "cpu", "--precision", "fp32"]
SIDED = "0,1=Kidney_L,2=spine,3=Kidney_R"


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Five scans with two organs beside a middle one."""
    folder = tmp_path_factory.mktemp("scans")
    for n in range(5):
        image = np.random.default_rng(n).normal(100, 10, (16, 16, 16)).astype(np.float32)
        label = np.zeros(image.shape, np.uint8)
        for value, start in [(1, 2), (2, 7), (3, 11)]:
            label[start : start + 3, 5:11, 5:11] = value
        nibabel.Nifti1Image(image + 50 * label, np.eye(4)).to_filename(folder / f"s{n}.nii.gz")
        nibabel.Nifti1Image(label, np.eye(4)).to_filename(folder / f"s{n}_seg.nii.gz")
    return folder


def store(scans, folder, labels):
    pretext3d("preprocess", "--data", scans, "--out", folder, "--size", 16, "--labels", labels)
    return folder


def test_classes_with_a_side_change_places_and_that_is_said(scans, tmp_path):
    data = store(scans, tmp_path / "store", SIDED)
    tune = ["finetune", "--data", data, "--weights", "none", *NET, *CPU]
    swapped = "Kidney_L and Kidney_R"
    done = pretext3d(*tune, "--patch", 16, "--aug-flip", 0.5, "--out", tmp_path / "run")
    assert done.stderr.count(f"--aug-flip: along left-right these classes change places: {swapped}") == 1, done.stderr
    predict = ["predict", "--weights", tmp_path / "run", "--input", scans / "s0.nii.gz", "--flips", *CPU]
    done = pretext3d(*predict, "--output", tmp_path / "predicted")
    assert f"--flips: along left-right these classes change places: {swapped}" in done.stderr and "trained without" not in done.stderr
    # What a mirrored scan is given, mirrored back, is what the scan is given, with left and right exchanged.
    image = nibabel.load(scans / "s0.nii.gz")
    mirrored = tmp_path / "mirrored.nii.gz"
    nibabel.Nifti1Image(image.get_fdata(dtype=np.float32)[::-1], image.affine).to_filename(mirrored)
    predict[predict.index("--input") + 1] = mirrored
    for path in (scans / "s0.nii.gz", mirrored):
        predict[predict.index("--input") + 1] = path
        pretext3d(*predict, "--output", tmp_path / "both", "--probabilities")
    straight, back = (
        nibabel.load(tmp_path / f"both/{name}.probabilities.nii.gz").get_fdata(dtype=np.float32) for name in ("s0", "mirrored")
    )
    np.testing.assert_allclose(back[::-1][..., [0, 3, 2, 1]], straight, rtol=0, atol=1e-5)
    assert np.abs(back[::-1] - straight).max() > 1e-3, "left and right look alike to this network, which shows nothing"

    # Nothing is mirrored by default, nor said; averaging over mirror images then is.
    done = pretext3d(*tune, "--patch", 16, "--out", tmp_path / "plain")
    settings = read_json(tmp_path / "plain/config.json")["settings"]
    assert settings["aug-flip"] == 0 and "--aug-flip" not in done.stderr
    predict[predict.index("--weights") + 1] = tmp_path / "plain"
    done = pretext3d(*predict, "--output", tmp_path / "unseen")
    assert "trained without mirror images along left-right, back-front, bottom-top" in done.stderr


def test_a_side_without_a_counterpart_keeps_left_and_right_in_place(scans, tmp_path):
    data = store(scans, tmp_path / "store", "0,1=upper lobe left,2=spine,3=middle lobe right")
    tune = ["finetune", "--data", data, "--weights", "none", *NET, *CPU]
    done = pretext3d(*tune, "--patch", 16, "--aug-flip", 0.5, "--out", tmp_path / "run")
    says = "not along left-right: no class is the mirror image of upper lobe left, middle lobe right"
    assert f"--aug-flip: {says}" in done.stderr
    predict = ["predict", "--weights", tmp_path / "run", "--input", scans / "s0.nii.gz", "--flips", *CPU]
    assert f"--flips: {says}" in pretext3d(*predict, "--output", tmp_path / "predicted").stderr
    # Slices across that axis have no left and right that could change places.
    slices = ["--slices", "sagittal", "--patch", 16, "--aug-flip", 0.5]
    assert "--aug-flip" not in pretext3d(*tune, *slices, "--out", tmp_path / "sagittal").stderr
    wrong = [*slices, "--aug-flip-axes", "left-right"]
    refused(*tune, *wrong, says=["--aug-flip-axes", "no axis `left-right`", "sagittal slices are back-front, bottom-top"])
    refused(*tune, "--aug-flip-axes", "all", says=["--aug-flip-axes goes with --aug-flip"])
