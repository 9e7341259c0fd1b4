"""`--slices`: volumes as 2D data, from pretraining to predictions that are volumes again, against numpy and PyTorch."""
import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import pretext3d, read_json, refused, rows, tensors
from monai.inferers import sliding_window_inference

CPU = ["--device", "cpu", "--precision", "fp32"]
SMALL = ["--filters", 4, "--levels", 3, "--norm", "batch", "--threads", 2, *CPU]
PATCH = [16, 12]
# Slice, row and column among the stored axes.
AXES = {"sagittal": [0, 1, 2], "coronal": [1, 0, 2], "axial": [2, 0, 1]}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sliced(store, tmp_path_factory):
    """An encoder pretrained on axial slices, and a run that was fine-tuned from it."""
    folder = tmp_path_factory.mktemp("sliced")
    weights, run = folder / "rot", folder / "run"
    pretext3d(
        "pretrain", "--data", store, "--task", "rot", "--slices", "axial", "--epochs", 1, "--draws", 8, "--batch-size", 8, *SMALL,
        "--out", folder / "pretrain", "--weights", weights,
    )
    pretext3d(
        "finetune", "--data", store, "--weights", f"{weights}.pt", "--slices", "axial", "--arm", "full", "--epochs", 2, "--steps", 30,
        "--batch-size", 16, "--patch", "16,24", "--lr", 0.01, *SMALL, "--out", run,
    )
    return SimpleNamespace(folder=folder, weights=weights, run=run)


@pytest.fixture(scope="module")
def native(brains, tmp_path_factory):
    """The brains as a store whose grid is that of the scans."""
    folder = tmp_path_factory.mktemp("native") / "store"
    scan = nib.load(next(brains.glob("*/*_t1.nii.gz")))
    spacing = listed(float(mm) for mm in nib.as_closest_canonical(scan).header.get_zooms())
    pretext3d("preprocess", "--data", brains, "--out", folder, "--protocol", "modern", "--spacing", spacing)
    return folder


def listed(values):
    return ",".join(map(str, values))


def predict(run, source, out, *flags):
    pretext3d("predict", "--weights", run, "--input", source, "--output", out, *CPU, *flags)


def dice(truth, prediction, classes):
    """The mean over the classes that either has."""
    both = [(truth == k, prediction == k) for k in classes]
    return np.mean([2 * (t & p).sum() / (t.sum() + p.sum()) for t, p in both if t.any() or p.any()])


def test_predictions_are_volumes_that_lie_on_their_scans(sliced, brains, tmp_path):
    predict(sliced.run, brains, tmp_path)
    scores = tmp_path / "scores"
    pretext3d("evaluate", "--predictions", tmp_path, "--labels", brains, "--out", scores)
    scored = {}
    for row in rows(scores / "scores.csv"):
        if row["dice"]:
            scored.setdefault(row["case"], []).append(float(row["dice"]))
    found = sorted(path.name for path in brains.iterdir() if path.is_dir())
    assert found and set(scored) == set(found)
    values = set()
    for subject in found:
        label = nib.load(brains / subject / f"{subject}_seg.nii.gz")
        prediction = nib.load(tmp_path / f"{subject}.nii.gz")
        assert prediction.shape == label.shape
        np.testing.assert_allclose(prediction.affine, label.affine)
        classes = np.asarray(prediction.dataobj)
        values |= set(np.unique(classes))
        assert np.mean(scored[subject]) == pytest.approx(dice(np.asarray(label.dataobj), classes, (1, 2, 4)), abs=1e-6)
    assert len(values) > 1 and values <= {0, 1, 2, 4}


def windows(module, volume, plane):
    """Classes of a volume [C, D, H, W], predicted slice by slice with MONAI's windows."""
    probabilities = lambda x: module(x).softmax(1)
    slices = volume.permute(1 + AXES[plane][0], 0, *(1 + a for a in AXES[plane][1:]))
    options = dict(roi_size=PATCH, sw_batch_size=1, overlap=0.5, mode="gaussian", sigma_scale=0.125)
    with torch.no_grad():
        classes = [sliding_window_inference(s[None], predictor=probabilities, **options)[0].argmax(0) for s in slices]
    return torch.stack(classes).permute(*np.argsort(AXES[plane])).numpy()


@pytest.mark.parametrize("plane", AXES)
def test_slices_of_the_exported_network_make_the_scores_and_predictions(plane, sliced, native, tmp_path):
    """An encoder may be moved between planes."""
    run = tmp_path / "run"
    pretext3d(
        "finetune", "--data", native, "--weights", f"{sliced.weights}.safetensors", "--slices", plane, "--arm", "full", "--epochs", 1,
        "--steps", 30, "--batch-size", 12, "--patch", listed(PATCH), "--lr", 0.01, *SMALL, "--out", run,
    )
    assert (run / "test/cases.png").exists() and read_json(run / "config.json")["input"]["slices"] == plane
    pretext3d("export", "--run", run, "--out", tmp_path / "net")
    extra = {"pretext3d.json": ""}
    module = torch.jit.load(tmp_path / "net.pt", _extra_files=extra).eval()
    described = json.loads(extra["pretext3d.json"])["input"]
    names = ["left to right", "posterior to anterior", "inferior to superior"]
    across, height, width = (names[a] for a in AXES[plane])
    assert described["slices"] == plane
    assert f"H ({height}), W ({width})" in described["axes"] and f"a slice for each voxel {across}" in described["axes"]

    result = read_json(run / "result.json")
    assert result["rank"] == 2 and result["cases"]
    predict(run, native, tmp_path / "predictions")
    entries = {entry["id"]: entry for entry in read_json(native / "index.json")["subjects"]}
    seen = set()
    for case in result["cases"]:
        arrays, metadata = tensors(native / entries[case["id"]]["file"])
        classes = windows(module, arrays["image"].float(), plane)
        assert case["score"] == pytest.approx(dice(arrays["label"].numpy(), classes, (1, 2, 3)), abs=2e-3)
        # The stored grid is the box of the scan.
        crop = json.loads(metadata["crop"])
        box = tuple(slice(a, a + n) for a, n in zip(crop["start"], crop["size"]))
        path = tmp_path / "predictions" / f"{case['id']}.nii.gz"
        prediction = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj).copy()
        assert (prediction[box] == np.array([0, 1, 2, 4])[classes]).mean() > 0.9999
        seen |= set(np.unique(classes))
        prediction[box] = 0
        assert not prediction.any()
    assert len(seen) > 1, "predictions without foreground show nothing"


def test_what_cannot_be_is_refused(sliced, store, trained, tmp_path):
    pretrain = ["pretrain", "--task", "rot", "--epochs", 1, *SMALL, "--out", tmp_path / "out"]
    finetune = ["finetune", "--epochs", 1, *CPU, "--out", tmp_path / "out"]
    volumes = f"{trained.weights}.pt"
    refused(*finetune, "--data", store, "--weights", volumes, "--slices", "axial",
            says=[volumes, "encoder of 3D data", "on 2D data", f"axial slices of {store}"])
    refused(*finetune, "--data", store, "--weights", f"{sliced.weights}.pt", says=["encoder of 2D data", "on 3D data", store])
    refused(*pretrain, "--data", store, "--slices", "oblique", says=["--slices", "sagittal", "coronal", "axial"], code=2)
    refused("pretrain", "--data", store, "--task", "rot", "--resume", sliced.folder / "pretrain", "--slices", "coronal",
            says=["--slices", "axial", "coronal"])
    images = tmp_path / "images"
    pretext3d("phantom", "--kind", "fundus", "--subjects", 3, "--size", 64, "--out", images)
    pretext3d("preprocess", "--data", images, "--out", tmp_path / "fundus", "--size", 64)
    refused(*pretrain, "--data", tmp_path / "fundus", "--slices", "axial", says=["--slices axial", tmp_path / "fundus", "images"])
    assert not (tmp_path / "out").exists()
