"""nnU-Net's regions and its ignore label, against nnU-Net itself: what is stored, learnt, predicted and scored."""
import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from helpers import ROOT, pretext3d, read_json, refused, rows, tensors
from monai.metrics import compute_hausdorff_distance
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from pretext3d import Region, Store

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
    stored = {entry["id"]: tensors(store / entry["file"])[0] for entry in index["subjects"]}
    for name, held in stored.items():
        truth = array(data / f"labelsTr/{name}.nii.gz")
        assert np.array_equal(held["label"].numpy(), np.where(truth == labels.get("ignore"), IGNORE, truth))

    scans = Store(store)
    assert scans.ignore == labels.get("ignore") and torch.equal(scans[0]["label"], stored["case_0"]["label"])
    assert scans.regions == ([Region("whole", [1, 3, 2], 1), Region("core", [2, 3], 3), Region("active", [2], 2)] if order else [])

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


def test_random_maps_are_scored_as_nnunet_and_monai_do(tmp_path):
    rng, labels, spacing = np.random.default_rng(3), REGIONS | {"ignore": 4}, (1.5, 1.0, 2.0)
    truths, out = tmp_path / "labels", tmp_path / "predictions"
    for n in range(4):
        truth, predicted = (rng.choice(4, (14, 12, 11), p=p).astype(np.uint8) for p in ([0.7, 0.1, 0.1, 0.1], [0.6, 0.3, 0.06, 0.04]))
        if n == 3:
            # What is predicted of this region, and what it truly is, lies where nobody labelled.
            truth[truth == 2], predicted[7:][predicted[7:] == 2], truth[:7] = 0, 0, 4
        truth[rng.random(truth.shape) < 0.3] = 4
        save(truth, truths / f"case_{n}.nii.gz", spacing)
        save(predicted, out / f"case_{n}.nii.gz", spacing)
    describe(tmp_path, labels, ORDER)
    evaluate = ["evaluate", "--predictions", out, "--labels", truths, "--description", tmp_path / "dataset.json", "--out", tmp_path / "scores"]
    pretext3d(*evaluate)
    found = {(row["case"], row["group"]): row for row in rows(tmp_path / "scores/scores.csv")}
    for n in range(4):
        files = [str(folder / f"case_{n}.nii.gz") for folder in (truths, out)]
        truth, predicted = map(array, files)
        for region in ("whole", "core", "active"):
            values = labels[region] if isinstance(labels[region], list) else [labels[region]]
            row, dice = found[f"case_{n}", region], compute_metrics(*files, NibabelIO(), [tuple(values)], 4)["metrics"][tuple(values)]["Dice"]
            masks = [torch.tensor(np.isin(x, values) & (truth != 4))[None, None].float() for x in (predicted, truth)]
            if np.isnan(dice):
                assert (n, region) == (3, "active") and row["dice"] == row["hd95_mm"] == ""
                continue
            assert float(row["dice"]) == pytest.approx(dice, abs=1e-9)
            hd95 = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing)
            assert float(row["hd95_mm"]) == pytest.approx(float(hd95), abs=1e-4)
    assert len(found) == 12 and read_json(tmp_path / "scores/scores.json")["settings"]["groups"] == {"whole": [1, 3, 2], "core": [2, 3], "active": [2]}
    # Each value by itself, where they are asked for; the ignored ones stay so.
    pretext3d(*evaluate, "--regions", "classes", "--classes", "1,2,3")
    assert {row["group"] for row in rows(tmp_path / "scores/scores.csv")} == {"1", "2", "3"}

    refused(*evaluate, "--regions", "brats", says=["the labels have regions of their own", "whole, core, active"])
    refused(*evaluate, "--description", tmp_path / "none.json", says=["--description: ", "none.json: cannot be read"])
    describe(tmp_path, {"background": 0, "a": [1, 2], "b": 3}, [1, 3])
    refused(*evaluate, says=["case_0.nii.gz: label value 4, expected one of 0, 1, 2, 3"])
    describe(tmp_path, labels, ORDER)
    save(truth, out / "case_2.nii.gz", spacing)
    refused(*evaluate, says=["case_2.nii.gz: value 4 is that of voxels that nobody labelled (`ignore`), which a prediction does not hold"])


def test_windows_are_drawn_where_there_are_labels(tmp_path):
    """One labelled slice of 16, and one labelled voxel in 10: volumes and slices are learnt from nothing else, scans without any not at all."""
    labels = {"background": 0, "whole": 1, "core": 3, "active": 2, "ignore": 9}
    slices, points = tmp_path / "slices", tmp_path / "points"
    dataset(slices, labels), dataset(points, labels, known=0.1)
    for n in range(5):
        path = slices / f"labelsTr/case_{n}.nii.gz"
        label = array(path).copy()
        label[:, :, :7], label[:, :, 8:] = 9, 9
        save(label, path)
    # Nobody labelled this one; in that one the only voxel is lost on a coarse grid.
    alone = np.full((16, 16, 16), 9, np.uint8)
    save(alone, points / "labelsTr/case_1.nii.gz")
    alone[8, 8, 8] = 1
    save(alone, points / "labelsTr/case_3.nii.gz")
    for data, side, lost in [(slices, 16, set()), (points, 4, {"case_1", "case_3"}), (points, 8, {"case_1"})]:
        store = tmp_path / f"store-{data.name}"
        done = pretext3d("preprocess", "--data", data, "--out", store, "--size", side, "--overwrite")
        entries = read_json(store / "index.json")["subjects"]
        assert {entry["id"] for entry in entries if not entry["label"]} == lost
        for case in lost:
            assert f"{case}: no voxel of its label is labelled on the stored grid: kept as a scan without a label" in done.stderr
    # Of eight voxels in one the only one that is labelled decides.
    assert set(tensors(store / "case_3.safetensors")[0]["label"].unique().tolist()) == {1, IGNORE}
    for name, *flags in [("slices", "--slices", "axial"), ("points",), ("points", "--deep-supervision")]:
        run = tmp_path / f"run-{name}-{len(flags)}"
        pretext3d("finetune", "--data", tmp_path / f"store-{name}", *NONE, "--filters", 2, "--levels", 2, "--patch", 8, "--batch-size", 1, "--epochs", 6,
                  "--steps", 1, "--lr", 1e-3, "--aug-off", *FAST, *flags, "--out", run)
        losses = [float(row["train/loss"]) for row in rows(run / "metrics.csv")]
        # A window without a labelled voxel has none.
        assert len(losses) == 6 and all(loss > 0.05 for loss in losses), losses
    # A probe reads out what is labelled, and the example for PyTorch says that it does not.
    probe = ["--probe", tmp_path / "store-points", "--out", tmp_path / "rot", "--weights", tmp_path / "weights"]
    pretext3d("pretrain", "--task", "rot", "--data", tmp_path / "store-slices", "--filters", 4, "--levels", 2, "--epochs", 1, "--steps", 1,
              "--window", 8, *FAST, *probe)
    assert 0 < float(rows(tmp_path / "rot/metrics.csv")[0]["val/probe.dice"]) <= 1
    script = [sys.executable, ROOT / "scripts/finetune_pytorch.py", tmp_path / "weights.pt", tmp_path / "store-points"]
    assert "store-points: has regions or unlabelled voxels" in subprocess.run(script, capture_output=True, text=True).stderr


def test_labels_of_a_folder_are_described_by_a_file_or_by_hand(tmp_path):
    data, small = tmp_path / "data", ["--size", 8]
    source = dataset(tmp_path / "nnunet", REGIONS | {"ignore": 4}, ORDER, subjects=3, known=0.5)
    for n in range(3):
        save(array(source / f"imagesTr/case_{n}_0000.nii.gz"), data / f"p{n}_t1.nii.gz")
        save(array(source / f"labelsTr/case_{n}.nii.gz"), data / f"p{n}_seg.nii.gz")
    preprocess = ["preprocess", "--data", data, *small, "--out"]
    refused(*preprocess, tmp_path / "a", says=["hold 0,1,2,3,4: give --labels 0,1,2,3,4", "--labels FILE.json"])
    pretext3d(*preprocess, tmp_path / "a", "--labels", source / "dataset.json")
    pretext3d("preprocess", "--data", source, *small, "--out", tmp_path / "b")
    first, second = (read_json(tmp_path / name / "index.json") for name in "ab")
    assert [first[key] for key in ("labels", "regions", "ignore")] == [second[key] for key in ("labels", "regions", "ignore")]
    pretext3d(*preprocess, tmp_path / "c", "--labels", "0,1=oedema,2,3=active,4=ignore")
    third = read_json(tmp_path / "c/index.json")
    assert third["ignore"] == 4 and "regions" not in third and [label["name"] for label in third["labels"]] == ["label 0", "oedema", "label 2", "active"]
    assert np.array_equal(*(tensors(tmp_path / name / "p0.safetensors")[0]["label"] for name in "ac"))
    # What is ignored, and what the regions are, tells stores apart; files are kept where only the regions differ.
    refused(*preprocess, tmp_path / "c", "--labels", "0,1=oedema,2,3=active,4", says=["holds a store of other settings", "ignore is 4 there, none"])
    describe(source, {"background": 0, "a": [1, 2, 3], "b": [2, 3], "active": 3, "ignore": 4}, [1, 2, 3])
    again = [*preprocess, tmp_path / "a", "--labels", source / "dataset.json"]
    refused(*again, says=["holds a store of other settings", "regions is ["])
    refused(*preprocess, tmp_path / "d", "--labels", f"0,1,{source / 'dataset.json'}", says=["either values or one description"])
    refused(*preprocess, tmp_path / "d", "--labels", "0,1=a,2=b,3=c", says=["label value 4, expected one of 0, 1, 2, 3"])
    # Of a store with regions: others are not scored in their place, and whole scans have no class.
    finetune = ["finetune", "--data", tmp_path / "a", "--weights", "none", *SMALL, "--out", tmp_path / "run"]
    refused(*finetune, "--regions", "brats", says=["the labels have regions of their own, which are scored without --regions: whole, core, active"])
    refused(*finetune[:4], "none", "--task", "classification", "--out", tmp_path / "run", says=["it has labels of voxels: --task segmentation"])
    refused(*finetune, "--class-weights", "1,2", says=["--class-weights has 2 numbers, expected 3", "one a region"])
