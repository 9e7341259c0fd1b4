"""Several networks that predict as one: the mean of what each says, exports among them, and networks that do not go together."""
import csv
import json
import shutil
from itertools import product

import nibabel
import numpy as np
import pytest
from helpers import pretext3d, read_json, refused

SIDE = 16
NET = ["--filters", 2, "--levels", 2, "--batch-size", 2, "--epochs", 1, "--steps", 2, "--lr", 0.01]
CPU = ["--device", "cpu", "--precision", "fp32"]
TASKS = {
    "segmentation": ["--patch", SIDE],
    "softmax": ["--task", "classification", "--column", "diagnosis", "--outputs", "softmax"],
    "ordinal": ["--task", "classification", "--column", "stage", "--outputs", "ordinal"],
    "regression": ["--task", "regression", "--column", "age"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two folds of each task on scans with labels, classes and an age: `runs[task][n]`, and in `runs["data"]` their manifest."""
    folder = tmp_path_factory.mktemp("runs")
    table = ["subject,t1,label,age,diagnosis,stage"]
    for n in range(12):
        rng = np.random.default_rng(n)
        label = np.zeros((SIDE,) * 3, np.uint8)
        label[2:7, 3 : 6 + n // 2, 4:12], label[9:14, 2:12, 5:10] = 1, 2
        image = rng.normal(100, 10, label.shape).astype(np.float32) + 50 * label
        for name, voxels in [("image", image), ("label", label)]:
            nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(folder / f"{name}{n}.nii.gz")
        table.append(f"s{n:02},{folder}/image{n}.nii.gz,{folder}/label{n}.nii.gz,{40.5 + 3 * n},{'ab'[n % 2]},{n % 3}")
    (folder / "scans.csv").write_text("\n".join(table))
    pretext3d("preprocess", "--data", folder / "scans.csv", "--out", folder / "store", "--size", SIDE, "--labels", "0,1,2", "--column", "age,diagnosis,stage")
    runs = {"data": folder / "scans.csv"}
    for (task, flags), fold in product(TASKS.items(), range(2)):
        out = folder / f"{task}{fold}"
        folds = ["--folds", 3, "--fold", fold, "--seed", fold]
        pretext3d("finetune", "--data", folder / "store", "--weights", "none", *NET, *CPU, *folds, *flags, "--out", out)
        runs.setdefault(task, []).append(out)
    return runs


def predict(weights, source, out, *flags):
    return pretext3d("predict", "--weights", *weights, "--input", source, "--output", out, *CPU, *flags)


def probabilities(folder, name="image3"):
    return nibabel.load(folder / f"{name}.probabilities.nii.gz").get_fdata(dtype=np.float32)


def test_segmentations_are_of_the_mean_probabilities_and_exports_predict_as_their_runs(runs, tmp_path):
    scan = runs["data"].parent / "image3.nii.gz"
    for n, run in enumerate(runs["segmentation"]):
        predict([run], scan, tmp_path / f"{n}", "--probabilities")
        pretext3d("export", "--run", run, "--out", tmp_path / f"exported{n}")
        for kind in ["pt", "safetensors"]:
            predict([tmp_path / f"exported{n}.{kind}"], scan, tmp_path / f"{n}{kind}", "--probabilities")
            np.testing.assert_array_equal(probabilities(tmp_path / f"{n}{kind}"), probabilities(tmp_path / f"{n}"))
    first, second = (probabilities(tmp_path / f"{n}") for n in range(2))
    assert np.abs(first - second).max() > 0.01, "two networks that say the same show nothing"
    predict([runs["segmentation"][0], tmp_path / "exported1.pt"], scan, tmp_path / "both", "--probabilities")
    both = probabilities(tmp_path / "both")
    np.testing.assert_allclose(both, (first + second) / 2, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "both/image3.nii.gz").get_fdata(), both.argmax(3))


def test_mirror_images_along_named_axes_are_averaged(runs, tmp_path):
    """The scan is one window, so that a mirrored scan is a mirrored window."""
    scan = nibabel.load(runs["data"].parent / "image3.nii.gz")
    weights = runs["segmentation"]
    mean = 0
    for flipped in [(), (0,), (2,), (0, 2)]:
        name = "".join(map(str, ("f", *flipped)))
        nibabel.Nifti1Image(np.flip(scan.get_fdata(dtype=np.float32), flipped), scan.affine).to_filename(tmp_path / f"{name}.nii.gz")
        predict(weights, tmp_path / f"{name}.nii.gz", tmp_path / "each", "--probabilities")
        mean = mean + np.flip(probabilities(tmp_path / "each", name), flipped) / 4
    done = predict(weights, tmp_path / "f.nii.gz", tmp_path / "out", "--flips", "left-right,bottom-top", "--probabilities")
    np.testing.assert_allclose(probabilities(tmp_path / "out", "f"), mean, rtol=0, atol=1e-6)
    assert "trained without mirror images along left-right, bottom-top (" in done.stderr, done.stderr
    flags = ["--input", tmp_path / "f.nii.gz", "--output", tmp_path / "none", *CPU]
    refused("predict", "--weights", weights[0], *flags, "--flips", "horizontal", says=["no axis `horizontal`", "left-right"])


def test_classes_and_quantities_are_means_too(runs, tmp_path):
    def table(*weights):
        out = tmp_path / "-".join(path.name for path in weights)
        predict(weights, runs["data"], out)
        with open(out / "predictions.csv", newline="") as file:
            return list(csv.DictReader(file))

    def column(rows, name):
        return np.array([float(row[name]) for row in rows])

    for task, names in {"softmax": ["p0", "p1"], "ordinal": ["p0", "p1", "p2"], "regression": ["predicted age"]}.items():
        both, (first, second) = table(*runs[task]), (table(run) for run in runs[task])
        for name in names:
            mean = (column(first, name) + column(second, name)) / 2
            np.testing.assert_allclose(column(both, name), mean, rtol=1e-4, atol=1e-6, err_msg=f"{task} {name}")
        assert any(a != b for a, b in zip(first, second)), f"{task}: two networks that say the same show nothing"
        if task != "regression":
            at_least = np.cumsum([column(both, name) for name in names[::-1]], 0)[-2::-1]
            expected = (at_least > 0.5).sum(0)
            np.testing.assert_array_equal(column(both, "class"), expected, err_msg=task)


def test_networks_that_do_not_go_together_are_named(runs, tmp_path):
    first, second = runs["segmentation"]
    flags = ["--input", runs["data"], "--output", tmp_path / "out", *CPU]

    def bad(*weights, says):
        refused("predict", "--weights", *weights, *flags, says=says)

    def changed(name, change):
        copy = tmp_path / name
        shutil.copytree(second, copy)
        description = read_json(copy / "config.json")
        change(description)
        (copy / "config.json").write_text(json.dumps(description))
        return copy

    bad(first, second, first, says=[first, "is there twice"])
    bad(first, runs["softmax"][0], says=[first, runs["softmax"][0], "do not predict together", "task"])
    bad(runs["softmax"][0], runs["ordinal"][0], says=["differ in", "classes", "column"])
    labels = changed("labels", lambda d: d["downstream"]["labels"][1].update(name="other"))
    bad(first, labels, says=[first, labels, "differ in labels", "other"])
    channels = changed("channels", lambda d: d["input"].update(channels=["flair"]))
    bad(first, channels, says=[channels, "differ in channels", "flair", "t1"])
    grid = changed("grid", lambda d: d["input"]["preprocessing"].update(grid={"kind": "spacing", "mm": [1.0, 1.0, 2.5]}))
    bad(first, grid, says=[grid, "differ in grid", "2.5"])
    bad(first, tmp_path / "nowhere", says=["nowhere"])
    pretrained = tmp_path / "encoder"
    pretext3d("pretrain", "--data", runs["data"].parent / "store", "--task", "mae", *NET, "--window", SIDE, "--val-fraction", 0.2, *CPU, "--out", pretrained)
    bad(first, pretrained, says=[pretrained, "a pretrained encoder cannot predict"])
    assert not (tmp_path / "out").exists()
