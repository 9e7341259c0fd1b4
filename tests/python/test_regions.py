"""nnU-Net's regions and its ignore label, against nnU-Net itself: what is stored, learnt, predicted and scored."""
import json

import nibabel
import numpy as np
import pytest
import torch
from helpers import pretext3d, read_json, refused, rows, tensors
from monai.metrics import compute_hausdorff_distance
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.label_handling.label_handling import LabelManager

# Neither the names nor the values of the regions are in order, nor is what they are written as.
REGIONS = {"background": 0, "whole": [1, 3, 2], "core": [2, 3], "active": 2}
ORDER = [1, 3, 2]
IGNORE = 255
SMALL = ["--filters", 2, "--levels", 2, "--patch", 16, "--batch-size", 1, "--epochs", 1, "--steps", 1, "--lr", 0, "--aug-off"]
FAST = ["--device", "cpu", "--precision", "fp32", "--threads", 1]
NONE = ["--weights", "none", "--foreground-share", 0]


def save(array, path, spacing=(1, 1, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array, np.diag([*spacing, 1])).to_filename(path)


def dataset(folder, labels, order=None, subjects=5, known=1.0, shape=(16, 16, 16)):
    """An nnU-Net dataset of nested balls; a share of the voxels that is not `known` has the value of `ignore`."""
    for n in range(subjects):
        rng = np.random.default_rng(n)
        place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        away = np.linalg.norm(place - np.array(shape) / 2 - rng.uniform(-2, 2, 3), axis=-1)
        label = np.select([away < 2.5, away < 4, away < 6], [2, 3, 1], 0).astype(np.uint8)
        save((rng.normal(100, 10, shape) + 40 * label).astype(np.float32), folder / f"imagesTr/case_{n}_0000.nii.gz")
        if known < 1:
            label[rng.random(shape) >= known] = labels["ignore"]
        save(label, folder / f"labelsTr/case_{n}.nii.gz")
    describe(folder, labels, order)
    return folder


def describe(folder, labels, order=None):
    about = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 5}
    (folder / "dataset.json").write_text(json.dumps(about | ({"regions_class_order": order} if order else {})))


def array(path):
    return np.asanyarray(nibabel.load(path).dataobj)


def loss_of(labels, ignored):
    """nnU-Net's loss of logits against classes, 255 where nobody labelled; its Dice is minus ours, less one."""
    dice = {"batch_dice": True, "do_bg": True, "smooth": 1.0, "ddp": False}
    if isinstance(labels["whole"], int):
        ignore = {"ignore_label": IGNORE} if ignored else {}
        loss = DC_and_CE_loss(dice | {"do_bg": False}, {}, **ignore, dice_class=MemoryEfficientSoftDiceLoss)
        return lambda logits, classes: loss(logits, classes[:, None]) + 1
    masks = [values if isinstance(values, list) else [values] for name, values in labels.items() if name not in ("background", "ignore")]
    # With an ignore label it adds the cross-entropies of the regions up, otherwise it takes their mean; ours is always the mean.
    loss = DC_and_BCE_loss({}, dice, use_ignore_label=ignored, weight_ce=1 / len(masks) if ignored else 1)

    def of(logits, classes):
        target = [torch.isin(classes, torch.tensor(values)) for values in masks] + ([classes == IGNORE] if ignored else [])
        return loss(logits, torch.stack(target, 1).float()) + 1

    return of


@pytest.mark.parametrize(
    "labels, known",
    [
        (REGIONS, 1.0),
        (REGIONS | {"ignore": 4}, 0.05),
        ({"background": 0, "whole": 1, "core": 3, "active": 2, "ignore": 4}, 0.05),
    ],
    ids=["regions", "sparse-regions", "sparse-classes"],
)
def test_what_is_learnt_predicted_and_scored_is_nnunets(tmp_path, labels, known):
    order = ORDER if isinstance(labels["whole"], list) else None
    data, store, run = dataset(tmp_path / "Dataset001_X", labels, order, known=known), tmp_path / "store", tmp_path / "run"
    done = pretext3d("preprocess", "--data", data, "--out", store, "--size", 16, "--dtype", "f32")
    index = read_json(store / "index.json")
    assert index.get("ignore") == labels.get("ignore") and [label["value"] for label in index["labels"]] == [0, 1, 2, 3]
    if order:
        assert "regions whole (1+3+2, written as 1), core (2+3, written as 3), active (2, written as 2)" in done.stderr
        assert [(r["name"], r["values"], r["written"]) for r in index["regions"]] == [("whole", [1, 3, 2], 1), ("core", [2, 3], 3), ("active", [2], 2)]
    stored = {entry["id"]: tensors(store / entry["file"])[0] for entry in index["subjects"]}
    for name, held in stored.items():
        truth = array(data / f"labelsTr/{name}.nii.gz")
        assert np.array_equal(held["label"].numpy(), np.where(truth == labels.get("ignore"), IGNORE, truth))

    split = {"seed": 0, "train": ["case_0"], "val": ["case_1"], "test": ["case_2", "case_3", "case_4"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    pretext3d("finetune", "--data", store, *NONE, *SMALL, *FAST, "--split", tmp_path / "split.json", "--out", run)
    pretext3d("export", "--run", run, "--out", tmp_path / "net")
    network = torch.jit.load(tmp_path / "net.pt")
    names = [name for name in labels if name not in ("background", "ignore")]
    outputs = names if order else ["background", "whole", "active", "core"]
    about = read_json(tmp_path / "net.json")
    assert about["outputs"] == {"names": outputs, "activation": "sigmoid" if order else "softmax"}
    with torch.no_grad():
        logits = network(stored["case_0"]["image"][None])
    loss = loss_of(labels, "ignore" in labels)(logits, stored["case_0"]["label"][None].long())
    assert logits.shape[1] == len(outputs)
    assert float(rows(run / "metrics.csv")[0]["train/loss"]) == pytest.approx(float(loss), abs=2e-5)

    # Maps: one window, so that no average comes between.
    out = tmp_path / "out"
    pretext3d("predict", "--weights", run, "--input", store, "--output", out, "--probabilities", *FAST)
    manager = LabelManager(labels, order)
    found = set()
    for name, held in stored.items():
        probabilities = array(out / f"{name}.probabilities.nii.gz")
        probabilities = np.moveaxis(probabilities.squeeze(), -1, 0)
        with torch.no_grad():
            logits = network(held["image"][None])
            expected = network.probabilities(held["image"][None])[0].numpy()
        assert np.allclose(probabilities, expected, atol=1e-5)
        assert np.allclose(expected, manager.apply_inference_nonlin(logits[0]).numpy(), atol=1e-6)
        predicted, close = array(out / f"{name}.nii.gz"), np.abs(expected - 0.5).min(0) < 1e-5
        wanted = manager.convert_logits_to_segmentation(logits[0].numpy())
        assert np.array_equal(predicted[~close], wanted[~close])
        found |= set(np.unique(predicted))
    assert len(found) > 1 and found <= {0, 1, 2, 3}

    # Scores of the test, by nnU-Net's evaluation and by `evaluate`, which takes the labels from the dataset.
    masks = {name: tuple(labels[name]) if isinstance(labels[name], list) else labels[name] for name in names}
    for path in out.glob("*.probabilities.nii.gz"):
        path.unlink()
    pretext3d("evaluate", "--predictions", out, "--labels", data, "--out", tmp_path / "scores")
    evaluated = {(row["case"], row["group"]): row for row in rows(tmp_path / "scores/scores.csv")}
    tested = {(row["case"], row["group"]): row for row in rows(run / "test/scores.csv")}
    assert len(evaluated) == 15 and len(tested) == 9
    for name in stored:
        metrics = compute_metrics(str(data / f"labelsTr/{name}.nii.gz"), str(out / f"{name}.nii.gz"), NibabelIO(), list(masks.values()), labels.get("ignore"))
        for region, mask in masks.items():
            row, dice = evaluated[name, region], metrics["metrics"][mask]["Dice"]
            assert row["dice"] == "" if np.isnan(dice) else float(row["dice"]) == pytest.approx(dice, abs=1e-9)
            assert tested.get((name, region), row)["dice"] == row["dice"]
    scores = read_json(run / "result.json")["scores"]
    assert all(f"dice.{name}" in scores and f"hd95_mm.{name}" in scores for name in names)
