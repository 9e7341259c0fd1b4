"""Classification of photographs: runs and their scores against scikit-learn, predictions against plain PyTorch."""
import csv
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import pretext3d, read_json, refused, tensors
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, recall_score

GRADES = range(5)
SHAPE = ["--filters", 4, "--levels", 3]
QUICK = [*SHAPE, "--epochs", 3, "--steps", 32, "--batch-size", 8, "--lr", 3e-3, "--device", "cpu"]
CLASSIFY = ["--task", "classification", *QUICK]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def fundus(tmp_path_factory):
    """40 photographs with grades, as APTOS distributes them, and their store."""
    folder = tmp_path_factory.mktemp("fundus")
    pretext3d("phantom", "--kind", "fundus", "--subjects", 40, "--size", 64, "--out", folder / "aptos")
    pretext3d("preprocess", "--data", folder / "aptos", "--out", folder / "store", "--size", 32)
    return folder


@pytest.fixture(scope="module")
def run(fundus):
    out = fundus / "run"
    pretext3d("finetune", "--data", fundus / "store", "--weights", "none", *CLASSIFY, "--folds", 4, "--fold", 1, "--out", out)
    return out


def probabilities(logits):
    """Of ordered outputs, as documented: "at least k" may not rise with k, and the lowest class is certain to be reached."""
    at_least = torch.sigmoid(logits.double())
    at_least[:, 0] = 1
    for k in range(1, at_least.shape[1]):
        at_least[:, k] = torch.minimum(at_least[:, k], at_least[:, k - 1])
    return at_least - torch.cat([at_least[:, 1:], torch.zeros(len(at_least), 1)], 1)


def test_scores_agree_with_scikit_learn(run, fundus):
    rows = table(run / "test" / "predictions.csv")
    split = read_json(run / "split.json")
    classes = {s["id"]: s["class"] for s in read_json(fundus / "store" / "index.json")["subjects"]}
    assert sorted(row["id"] for row in rows) == split["test"]
    assert all(int(row["truth"]) == classes[row["id"]] for row in rows)
    truth, found = ([int(row[key]) for row in rows] for key in ["truth", "class"])
    assert len(set(found)) > 1
    check_scores(read_json(run / "test" / "scores.json"), truth, found)
    result = read_json(run / "result.json")
    assert (result["task"], result["metric"], result["fold"]) == ("classification", "kappa", 1)
    expected = cohen_kappa_score(truth, found, weights="quadratic", labels=GRADES)
    assert result["score"] == pytest.approx(expected, abs=1e-12)
    assert result["scores"]["accuracy"] == pytest.approx(accuracy_score(truth, found))
    # The best epoch by kappa on the validation side.
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kappas = [row["val/classification.kappa"] for row in history]
    assert result["best_epoch"] == history[int(np.argmax(kappas))]["epoch"]
    assert (run / "test" / "confusion.png").stat().st_size > 1000


def check_scores(scores, truth, found):
    with np.errstate(invalid="ignore"):
        kappa = cohen_kappa_score(truth, found, weights="quadratic", labels=GRADES)
    if np.isnan(kappa):
        assert scores["quadratic_weighted_kappa"] is None
    else:
        assert scores["quadratic_weighted_kappa"] == pytest.approx(kappa, abs=1e-12)
    assert scores["accuracy"] == pytest.approx(accuracy_score(truth, found), abs=1e-12)
    assert scores["confusion"]["counts"] == confusion_matrix(truth, found, labels=GRADES).tolist()
    recalls = recall_score(truth, found, labels=GRADES, average=None, zero_division=np.nan)
    for recall, expected in zip(scores["recall"].values(), recalls, strict=True):
        assert (recall is None) == np.isnan(expected) and (recall is None or recall == pytest.approx(expected))


def test_predictions_equal_those_of_the_exported_network(run, fundus, tmp_path):
    pretext3d("export", "--run", run, "--out", tmp_path / "net")
    net = torch.jit.load(tmp_path / "net.pt").eval()
    assert set(net.state_dict()) == set(tensors(tmp_path / "net.safetensors")[0])
    predict = ["predict", "--weights", run, "--device", "cpu", "--precision", "fp32"]
    pretext3d(*predict, "--input", fundus / "store", "--output", tmp_path / "all")
    rows = table(tmp_path / "all" / "predictions.csv")
    entries = {s["id"]: s["file"] for s in read_json(fundus / "store" / "index.json")["subjects"]}
    assert [row["id"] for row in rows] == list(entries)
    images = torch.stack([tensors(fundus / "store" / entries[row["id"]])[0]["image"][:, 0].float() for row in rows])
    with torch.no_grad():
        logits, exported = net(images), net.probabilities(images)
    found = torch.tensor([[float(row[f"p{k}"]) for k in GRADES] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, probabilities(logits), rtol=0, atol=1e-5)
    torch.testing.assert_close(exported.double(), found, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum(1), torch.ones(len(rows), dtype=torch.float64))
    # The number of outputs above one half, less one.
    assert [int(row["class"]) for row in rows] == ((torch.sigmoid(logits) > 0.5).sum(1) - 1).clamp(min=0).tolist()
    check_scores(read_json(tmp_path / "all" / "scores.json"), *([int(row[k]) for row in rows] for k in ["truth", "class"]))
    # The same photographs before preprocessing: a folder, and one file alone; half precision is stored.
    pretext3d(*predict, "--input", fundus / "aptos", "--output", tmp_path / "files")
    assert [row["id"] for row in table(tmp_path / "files" / "predictions.csv")] == list(entries)
    again = torch.tensor([[float(row[f"p{k}"]) for k in GRADES] for row in table(tmp_path / "files" / "predictions.csv")])
    torch.testing.assert_close(again.double(), found, rtol=0, atol=1e-5)
    one = next(fundus.glob(f"aptos/**/{rows[3]['id']}.png"))
    pretext3d(*predict, "--input", one, "--output", tmp_path / "one")
    [row] = table(tmp_path / "one" / "predictions.csv")
    assert row["id"] == rows[3]["id"] and "truth" not in row
    assert [float(row[f"p{k}"]) for k in GRADES] == pytest.approx(found[3].tolist(), abs=1e-5)


@pytest.mark.parametrize("truth", ["as predicted", "one other", "random"])
def test_degenerate_scores_agree_with_scikit_learn(run, fundus, tmp_path, truth):
    """Copies of one photograph, so that one class is predicted."""
    image = next(fundus.glob("aptos/**/*.png")).read_bytes()
    copies = [f"copy{i}" for i in range(12)]
    for name in copies:
        (tmp_path / f"{name}.png").write_bytes(image)
    predict = ["predict", "--weights", run, "--device", "cpu", "--input", tmp_path, "--output"]
    pretext3d(*predict, tmp_path / "plain")
    [found] = {int(row["class"]) for row in table(tmp_path / "plain" / "predictions.csv")}
    grades = {"as predicted": [found] * 12, "one other": [(found + 1) % 5] * 12, "random": [i * 7 % 5 for i in range(12)]}[truth]
    (tmp_path / "train.csv").write_text("id_code,diagnosis\n" + "".join(f"{n},{g}\n" for n, g in zip(copies, grades)))
    pretext3d(*predict, tmp_path / "scored")
    check_scores(read_json(tmp_path / "scored" / "scores.json"), sorted(grades), [found] * 12)


@pytest.mark.parametrize("flags", [["--outputs", "softmax", "--class-weights", "balanced"], ["--encoder", "densenet121"]])
def test_pretrained_encoders_and_other_outputs(fundus, tmp_path, flags):
    shape = flags if "--encoder" in flags else SHAPE
    pretrain = ["--task", "rot", "--rot-head", "gap", "--epochs", 1, "--steps", 1, "--batch-size", 2, "--val-draws", 1]
    out = ["--out", tmp_path / "pre", "--weights", tmp_path / "w"]
    pretext3d("pretrain", "--data", fundus / "store", *pretrain, *shape, "--device", "cpu", *out)
    common = ["--data", fundus / "store", *CLASSIFY[:2], *QUICK[len(SHAPE):], "--epochs", 1, "--steps", 2]
    done = pretext3d("finetune", *common, *flags, "--weights", tmp_path / "w.pt", "--arm", "frozen", "--out", tmp_path / "run")
    assert "0 adapted" in done.stderr
    before, _ = tensors(tmp_path / "w.safetensors")
    after, _ = tensors(tmp_path / "run" / "best.safetensors")
    learned = {name: tensor for name, tensor in before.items() if "running" not in name}
    assert learned and all(torch.equal(after[f"model.{name}"], tensor) for name, tensor in learned.items())
    if "softmax" in flags:
        pretext3d("export", "--run", tmp_path / "run", "--out", tmp_path / "net")
        net, x = torch.jit.load(tmp_path / "net.pt").eval(), torch.rand(3, 3, 32, 32)
        torch.testing.assert_close(net.probabilities(x), net(x).softmax(1))


def test_runs_from_before_there_was_a_setting_resume(run, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(run, older)
    config = read_json(older / "config.json")
    for name in ["outputs", "head-dropout"]:
        del config["settings"][name]
    (older / "config.json").write_text(json.dumps(config))
    resume = ["finetune", "--resume", older, "--epochs", 4]
    refused(*resume, "--outputs", "softmax", says=["--outputs was null and cannot change"])
    pretext3d(*resume)
    assert len((older / "metrics.jsonl").read_text().splitlines()) == 4


def test_an_encoder_that_saw_the_test_side_is_named(run, fundus, tmp_path):
    """Pretrained on the training side of fold 1, it has seen what fold 0 is tested on."""
    pretrain = ["--task", "exe", "--epochs", 1, "--steps", 1, "--batch-size", 2, "--val-draws", 1, *SHAPE, "--device", "cpu"]
    out = ["--out", tmp_path / "pre", "--weights", tmp_path / "w"]
    pretext3d("pretrain", "--data", fundus / "store", *pretrain, "--split", run / "split.json", *out)
    common = ["finetune", "--data", fundus / "store", *CLASSIFY[:2], *QUICK[len(SHAPE):], "--epochs", 2, "--steps", 1, "--folds", 4]
    for fold, warned in [(0, True), (1, False)]:
        done = pretext3d(*common, "--weights", tmp_path / "w.pt", "--fold", fold, "--out", tmp_path / f"fold{fold}")
        assert ("test subjects were pretrained on" in done.stderr) == warned, done.stderr


def test_copies_of_held_out_photographs_are_not_trained_on(fundus, tmp_path):
    images = sorted(fundus.glob("aptos/**/*.png"))[:12]
    for i, image in enumerate(images):
        for copy in ["a", "b"]:
            shutil.copy(image, tmp_path / f"{copy}{i}.png")
    (tmp_path / "train.csv").write_text("id_code,diagnosis\n" + "".join(f"{c}{i},{i % 5}\n" for i in range(12) for c in "ab"))
    store, out = tmp_path / "store", tmp_path / "run"
    pretext3d("preprocess", "--data", tmp_path, "--out", store, "--size", 32)
    args = [*CLASSIFY[:2], *QUICK, "--batch-size", 2, "--epochs", 1, "--steps", 1, "--folds", 3, "--fold", 0]
    done = pretext3d("finetune", "--data", store, "--weights", "none", *args, "--out", out)
    assert "copies of held-out ones" in done.stderr
    split = read_json(out / "split.json")
    sides = {side: {name[1:] for name in split[side]} for side in ["train", "val", "test"]}
    assert not sides["train"] & (sides["val"] | sides["test"]) and not sides["val"] & sides["test"]
    # In a split of the user's own they are named.
    assert "are copies" not in pretext3d("finetune", "--data", store, "--weights", "none", *args[:-4], "--split", out / "split.json",
                                     "--out", tmp_path / "same").stderr
    twin = split["test"][0]
    twin = ("b" if twin[0] == "a" else "a") + twin[1:]
    split["train"].append(twin)
    (tmp_path / "own.json").write_text(json.dumps({**split, "test": [name for name in split["test"] if name != twin]}))
    done = pretext3d("finetune", "--data", store, "--weights", "none", *args[:-4], "--split", tmp_path / "own.json", "--out",
                     tmp_path / "own")
    assert f"copies of held-out ones, and the split has them on another side: {twin}" in done.stderr
    assert len(split["test"]) == 8 and split["train"] and split["val"]


def test_grades_as_a_quantity(fundus, tmp_path):
    """Images, and grades by their numbers."""
    run, out = tmp_path / "run", tmp_path / "out"
    quick = ["--task", "regression", *SHAPE, "--epochs", 1, "--steps", 2, "--batch-size", 4, "--device", "cpu"]
    done = pretext3d("finetune", "--data", fundus / "store", "--weights", "none", *quick, "--regression-loss", "squared", "--out", run)
    assert "5 distinct whole numbers, which --task classification takes for classes" in done.stderr
    for data in [fundus / "store", fundus / "aptos"]:
        pretext3d("predict", "--weights", run, "--input", data, "--output", out, "--overwrite", "--device", "cpu")
        rows = table(out / "predictions.csv")
        classes = {s["id"]: s["class"] for s in read_json(fundus / "store" / "index.json")["subjects"]}
        assert {row["id"]: float(row["grade"]) for row in rows} == classes
        errors = [abs(float(row["predicted grade"]) - float(row["grade"])) for row in rows]
        assert read_json(out / "scores.json")["mean_absolute_error"] == pytest.approx(np.mean(errors))


def test_twins_of_different_grades_are_not_trained_on(fundus, tmp_path):
    images = sorted(fundus.glob("aptos/**/*.png"))[:13]
    for i, image in enumerate(images):
        shutil.copy(image, tmp_path / f"a{i}.png")
    shutil.copy(images[0], tmp_path / "twin.png")
    (tmp_path / "train.csv").write_text("id_code,diagnosis\ntwin,4\n" + "".join(f"a{i},{i % 3}\n" for i in range(13)))
    store = tmp_path / "store"
    pretext3d("preprocess", "--data", tmp_path, "--out", store, "--size", 32)
    args = ["finetune", "--data", store, "--weights", "none", *CLASSIFY[:2], *SHAPE, "--batch-size", 2, "--epochs", 1, "--steps", 1,
            "--device", "cpu"]
    done = pretext3d(*args, "--folds", 3, "--fold", 0, "--val-fraction", 0.5, "--out", tmp_path / "run")
    assert "2 scans are copies of one another with different values" in done.stderr and "trained on: a0, twin" in done.stderr
    split = read_json(tmp_path / "run" / "split.json")
    assert not {"a0", "twin"} & {name for side in ["train", "val", "test"] for name in split[side]}
    assert len(split["train"] + split["val"] + split["test"]) == 12
    # In a split of the user's own they are left out of the training side.
    split["train"] += ["a0", "twin"]
    (tmp_path / "own.json").write_text(json.dumps(split))
    done = pretext3d(*args, "--split", tmp_path / "own.json", "--out", tmp_path / "own")
    assert f"{len(split['train']) - 2} training" in done.stderr


BAD = {
    "voxels without labels": (["--task", "segmentation"], ["has no labels", "--task classification"]),
    "settings of segmentation": (["--task", "classification", "--patch", 16], ["--patch", "--task segmentation"]),
    "slices of photographs": (["--task", "classification", "--slices", "axial"], ["--slices", "images"]),
    "weights of too few classes": (["--task", "classification", "--class-weights", "1,2"], ["--class-weights", "2 numbers", "expected 5: one a class"]),
    "a fold beyond the last": (["--task", "classification", "--folds", 3, "--fold", 3], ["--fold", "2"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused(fundus, tmp_path, name):
    flags, says = BAD[name]
    refused("finetune", "--data", fundus / "store", "--weights", "none", *QUICK, *flags, "--out", tmp_path / "run", says=says)
    assert not (tmp_path / "run").exists()


def test_volumes_without_classes_and_wrong_inputs_are_refused(store, run, fundus, tmp_path):
    args = ["--data", store, "--weights", "none", *CLASSIFY, "--out", tmp_path / "run"]
    refused("finetune", *args, says=["no scan has a class", "--task segmentation"])
    predict = ["predict", "--weights", run, "--output", tmp_path / "out"]
    refused(*predict, "--input", fundus / "store", "--probabilities", says=["--probabilities"])
    refused(*predict, "--input", store, says=[str(store)])
    (tmp_path / "broken").mkdir()
    for i, content in enumerate([b"no image", next((fundus / "aptos").glob("**/*.png")).read_bytes()]):
        (tmp_path / "broken" / f"{i}.png").write_bytes(content)
    refused(*predict, "--input", tmp_path / "broken", says=["0", "1 predictions"])
    assert [row["id"] for row in table(tmp_path / "out" / "predictions.csv")] == ["1"]
    refused(*predict, "--input", tmp_path / "broken", says=["already there", "--overwrite"])
