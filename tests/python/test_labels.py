"""Labels are neither lost nor invented: what lies outside of the foreground, values that are nearly whole, names, and large values."""
import json

import nibabel
import numpy as np
import pytest
from helpers import pretext3d, read_json, refused, rows, tensors

SMALL = ["--filters", 2, "--levels", 2, "--patch", 16, "--batch-size", 2, "--epochs", 1, "--steps", 1, "--lr", 0]
FAST = ["--device", "cpu", "--precision", "fp32", "--threads", 1]


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array, np.diag([-1.0, 1.0, 1.0, 1.0])).to_filename(path)


def organs(folder, label, subjects=5):
    """A bright organ that ends at i = 16 of 28 voxels, and `label` on every scan."""
    for n in range(subjects):
        rng = np.random.default_rng(n)
        image = rng.normal(20, 1, (28, 24, 26))
        image[3:16, 2:22, 4:24] = rng.normal(200, 20, (13, 20, 20))
        save(image.astype(np.float32), folder / f"s{n}.nii.gz")
        save(label, folder / f"s{n}_seg.nii.gz")
    return folder


def test_what_lies_outside_of_the_foreground_is_learnt_from_and_counts_as_missed(tmp_path):
    label = np.zeros((28, 24, 26), np.uint8)
    label[12:21, 8:15, 9:19] = 1
    data, store, run = organs(tmp_path / "data", label), tmp_path / "store", tmp_path / "run"
    beyond = int(label[16:].sum())
    done = pretext3d("preprocess", "--data", data, "--out", store, "--labels", "0,1", "--protocol", "modern", "--spacing", 1)
    assert f"warning: {5 * beyond} labelled voxels of 5 scans lie outside of the foreground's box: s0, s1" in done.stderr
    for entry in read_json(store / "index.json")["subjects"]:
        assert entry["outside"]["voxels"] == beyond and entry["shape"] == [18, 20, 20]
        stored, _ = tensors(store / entry["file"])
        assert int(stored["label"].sum()) == int(label.sum())
    # A network of random weights labels voxels everywhere; those that `predict` does not reach are background to the test too.
    shares = ["--test-fraction", 0.4, "--val-fraction", 0.2, "--seed", 1]
    done = pretext3d("finetune", "--data", store, "--weights", "none", *SMALL, *FAST, *shares, "--out", run)
    assert f"{2 * beyond} labelled voxels of 2 test scans lie outside" in done.stderr
    tested = {case["id"]: case["score"] for case in read_json(run / "result.json")["cases"]}
    for name, source in [("from-store", store), ("from-files", data)]:
        out = tmp_path / name
        pretext3d("predict", "--weights", run, "--input", source, "--output", out, *FAST)
        predicted = np.asanyarray(nibabel.load(out / "s0.nii.gz").dataobj)
        assert predicted[3:16, 2:22, 4:24].any() and predicted.sum() == predicted[3:16, 2:22, 4:24].sum()
    pretext3d("evaluate", "--predictions", tmp_path / "from-store", "--labels", data, "--out", tmp_path / "scores", "--classes", "1")
    scores = {case["case"]: case["dice"] for case in rows(tmp_path / "scores/scores.csv")}
    assert len(tested) == 2 and all(float(scores[name]) == pytest.approx(score, abs=1e-6) for name, score in tested.items())
    assert all(0 < score < 1 for score in tested.values())
    # A spacing in another unit would blow the grid up to billions of voxels.
    (tmp_path / "blown").mkdir()
    image = nibabel.load(data / "s0.nii.gz")
    nibabel.Nifti1Image(image.get_fdata(dtype=np.float32), np.diag([70, 70, 70, 1])).to_filename(tmp_path / "blown/s0.nii.gz")
    says = ["s0.nii.gz: ", "would become [910, 1400, 1400], 6.64 GiB a channel", "is the file's spacing right?"]
    refused("predict", "--weights", run, "--input", tmp_path / "blown/s0.nii.gz", "--output", tmp_path / "c", *FAST, says=says)
    refused("preprocess", "--data", tmp_path / "blown", "--out", tmp_path / "d", "--protocol", "modern", "--spacing", 1, says=says)


def test_values_are_whole_numbers_but_for_rounding(tmp_path):
    label = np.zeros((28, 24, 26), np.float32)
    label[6:10, 6:10, 6:10] = 1.0000001
    label[10:12, 6:10, 6:10] = 1.9999
    data = organs(tmp_path / "data", label, 2)
    small = ["--size", 8, "--dtype", "f32"]
    says = ["the 2 labels, the first ", "s0_seg.nii.gz, hold 0,1,2:", "--labels 0,1,2"]
    refused("preprocess", "--data", data, "--out", tmp_path / "a", *small, says=says)
    # Of all files, not of the first.
    more = np.where(label > 1.5, 7, label).astype(np.float32)
    save(more, data / "s1_seg.nii.gz")
    refused("preprocess", "--data", data, "--out", tmp_path / "a", *small, says=["hold 0,1,2,7:", "--labels 0,1,2,7"])
    save(label, data / "s1_seg.nii.gz")
    pretext3d("preprocess", "--data", data, "--out", tmp_path / "a", *small, "--labels", "0,1,2")
    stored, _ = tensors(tmp_path / "a" / "s0.safetensors")
    assert set(stored["label"].unique().tolist()) == {0, 1, 2}
    for value, text in [(0.5, "0.5"), (np.nan, "NaN"), (-1, "-1"), (1.01, "1.01")]:
        label[0, 0, 0] = value
        save(label, data / "s1_seg.nii.gz")
        says = ["s1_seg.nii.gz", f"label value {text}, expected one of 0, 1, 2"]
        refused("preprocess", "--data", data, "--out", tmp_path / "b", *small, "--labels", "0,1,2", says=says)


def test_every_label_has_a_name_of_its_own_and_a_value_that_is_told_apart(tmp_path):
    label = np.zeros((28, 24, 26), np.uint8)
    label[6:10, 6:10, 6:10] = 1
    data = organs(tmp_path / "data", label, 1)
    both = "labels 1 and 2 are both named `tumour`"
    refused("preprocess", "--data", data, "--out", tmp_path / "s", "--labels", "0,1=tumour,2=tumour", says=["--labels: ", both])
    refused("preprocess", "--data", data, "--out", tmp_path / "s", "--labels", "0,16777216", says=["16777216", "-16777215 to 16777215"])
    # From a description, which does not matter where labels are left out.
    for kind in ("imagesTr", "labelsTr"):
        save(np.asanyarray(nibabel.load(data / ("s0.nii.gz" if kind == "imagesTr" else "s0_seg.nii.gz")).dataobj), tmp_path / f"task/{kind}/s0.nii.gz")
    labels = {"0": "background", "1": "tumour", "2": "tumour"}
    training = [{"image": "./imagesTr/s0.nii.gz", "label": "./labelsTr/s0.nii.gz"}]
    description = {"modality": {"0": "MRI"}, "labels": labels, "training": training, "test": []}
    (tmp_path / "task/dataset.json").write_text(json.dumps(description))
    common = ["preprocess", "--data", tmp_path / "task", "--size", 8, "--out"]
    refused(*common, tmp_path / "t", says=[tmp_path / "task", both, "--labels 0=name0,1=name1,2=name2"])
    pretext3d(*common, tmp_path / "u", "--no-labels")
    pretext3d(*common, tmp_path / "v", "--labels", "0,1=a,2=b")


def test_large_and_negative_values_come_back(tmp_path):
    label = np.zeros((28, 24, 26), np.int32)
    label[6:10, 6:10, 6:10], label[10:13, 6:10, 6:10] = 40000, -7
    data, store, run = organs(tmp_path / "data", label, 3), tmp_path / "store", tmp_path / "run"
    pretext3d("preprocess", "--data", data, "--out", store, "--size", 16, "--labels", "0,40000,-7")
    pretext3d("finetune", "--data", store, "--weights", "none", *SMALL, *FAST, "--out", run)
    pretext3d("predict", "--weights", run, "--input", data / "s0.nii.gz", "--output", tmp_path / "out", *FAST)
    predicted = nibabel.load(tmp_path / "out/s0.nii.gz")
    values = set(np.unique(np.asanyarray(predicted.dataobj)).tolist())
    assert predicted.get_data_dtype() == np.int32 and len(values) > 1 and values <= {0, 40000, -7}
