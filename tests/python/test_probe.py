"""`pretrain --probe`: its score against NumPy, what it chooses, what it leaves alone, and who knows of it."""
import re

import nibabel
import numpy as np
import pytest
import torch
from conftest import SMALL
from helpers import pretext3d, read_json, refused, renamed, rows, tensors
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import cohen_kappa_score, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_resume import assert_same, state

TINY = ["--filters", 2, "--levels", 2, "--batch-size", 2, "--steps", 2, "--device", "cpu", "--threads", 2, "--precision", "fp32"]
MOMENTUM = 0.1


def arguments(store, folder, *extra, task="rot"):
    out = ["--out", folder / "run", "--weights", folder / "w"]
    return ["pretrain", "--data", store, "--task", task, "--rot-head", "gap", *TINY, "--schedule", "constant",
            "--warmup-epochs", 0, *extra, *out]


def scores(run, column="val/probe.dice"):
    return [float(row[column]) if row[column] else None for row in rows(run / "metrics.csv")]


def calibrated(weights, batches):
    """The exported encoder in evaluation, with statistics over these batches."""
    module = torch.jit.load(weights.with_suffix(".pt")).train()
    buffers = dict(module.named_buffers())
    seen = {name: [] for name in buffers}
    with torch.no_grad():
        for batch in batches:
            for name, buffer in buffers.items():
                buffer.zero_()
            module(batch)
            for name, buffer in buffers.items():
                seen[name].append(buffer.double() / MOMENTUM)
        for name in (name for name in buffers if name.endswith("running_mean")):
            means, variances = (torch.stack(seen[n]) for n in (name, name.replace("mean", "var")))
            buffers[name].copy_(means.mean(0))
            buffers[name.replace("mean", "var")].copy_(variances.mean(0) + means.var(0, unbiased=False))
    return module.eval()


def naive_dice(weights, scans):
    """As documented, of scans so small that every voxel is fitted on."""
    encoder = calibrated(weights, [scan["image"].float()[None] for scan in scans])
    features, truth = [], [scan["label"].numpy().ravel() for scan in scans]
    with torch.no_grad():
        for scan in scans:
            levels = [torch.nn.functional.interpolate(level, size=scan["label"].shape) for level in encoder(scan["image"].float()[None])]
            features.append(torch.cat(levels, 1)[0].flatten(1).T.double().numpy())
    classes = range(1, max(map(max, truth)) + 1)
    found = []
    for half in (0, 1):
        x, y = features[half], truth[half]
        mean, sd = x.mean(0), x.std(0)
        one_hot = np.eye(len(classes) + 1)[y]
        z = (x - mean) / sd
        weights = np.linalg.solve(z.T @ z + 0.25 * len(z) * np.eye(z.shape[1]), z.T @ (one_hot - one_hot.mean(0)))

        def dice(scan, threshold):
            values = (features[scan] - mean) / sd @ weights + one_hot.mean(0)
            ahead = values[:, 1:].max(1) - values[:, 0] > threshold
            predicted = np.where(ahead, 1 + values[:, 1:].argmax(1), 0)
            pairs = [(truth[scan] == c, predicted == c) for c in classes]
            return [2 * (t & p).sum() / (t.sum() + p.sum()) for t, p in pairs if t.any() or p.any()]

        best = max(np.linspace(-0.5, 1, 31), key=lambda threshold: np.mean(dice(half, threshold)))
        found += dice(1 - half, best)
    return np.mean(found)


@pytest.fixture(scope="module")
def abdomens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("abdomens") / "scans"
    pretext3d("phantom", "--kind", "abdomen", "--subjects", 8, "--size", 32, "--seed", 1, "--out", folder)
    return folder


def test_dice_equals_that_of_numpy(tmp_path):
    """On a ball and a rod in noise, small enough that every voxel is fitted on."""
    lines = ["subject,image,label"]
    for i in range(6):
        rng = np.random.default_rng(i)
        at = np.indices((12, 12, 12)) - rng.uniform(4, 7, (3, 1, 1, 1))
        label = np.where((at**2).sum(0) < 9, 1, np.where((at[:2] ** 2).sum(0) < 3, 2, 0)).astype(np.uint8)
        image = (100 + 60.0 * label + rng.normal(0, 30, label.shape)).astype(np.float32)
        for name, data in (("image", image), ("label", label)):
            nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / f"{name}{i}.nii.gz")
        lines.append(f"s{i},image{i}.nii.gz,label{i}.nii.gz")
    (tmp_path / "scans.csv").write_text("\n".join(lines) + "\n")
    store = tmp_path / "store"
    pretext3d("preprocess", "--data", tmp_path / "scans.csv", "--out", store, "--size", 12, "--labels", "0,1,2")
    probe = ["--probe", store, "--probe-scans", 2, "--probe-every", 1, "--epochs", 2, "--best", "last", "--lr", 0.02]
    pretext3d(*arguments(store, tmp_path, *probe))
    files = {s["id"]: s["file"] for s in read_json(store / "index.json")["subjects"]}
    chosen = read_json(tmp_path / "run/config.json")["probe"]["scans"]
    found = scores(tmp_path / "run")
    assert len(chosen) == 2 and found[0] != found[1]
    scans = [tensors(store / files[name])[0] for name in chosen]
    assert found[1] == pytest.approx(naive_dice(tmp_path / "w", scans), abs=2e-3)


def probed_photographs(store, folder):
    """Features `[N, D]` of the photographs that a run was probed on, and their entries in the store."""
    config, subjects = read_json(folder / "run/config.json"), read_json(store / "index.json")["subjects"]
    subjects = {s["id"]: s for s in subjects}
    chosen = [subjects[name] for name in config["probe"]["scans"]]
    images = torch.stack([tensors(store / s["file"])[0]["image"].float()[:, 0] for s in chosen])
    with torch.no_grad():
        pyramid = calibrated(folder / "w", images.split(8))(images)
    return torch.cat([level.mean((2, 3)) for level in pyramid], 1).double().numpy(), chosen


def left_out_one_by_one(x, y, model):
    ridge = make_pipeline(StandardScaler(), model(alphas=[10.0**e for e in range(-2, 7)]))
    others = [np.arange(len(y)) != i for i in range(len(y))]
    return [ridge.fit(x[other], y[other]).predict(x[~other])[0] for other in others]


def test_kappa_equals_that_of_scikit_learn(tmp_path):
    pretext3d("phantom", "--kind", "fundus", "--subjects", 20, "--size", 48, "--out", tmp_path / "aptos")
    store = tmp_path / "store"
    pretext3d("preprocess", "--data", tmp_path / "aptos", "--out", store, "--size", 32)
    # Ten scans are left out one by one.
    pretext3d(*arguments(store, tmp_path, "--probe", store, "--probe-scans", 10, "--epochs", 1))
    x, chosen = probed_photographs(store, tmp_path)
    y = np.array([s["class"] for s in chosen])
    predicted = left_out_one_by_one(x, y, RidgeClassifierCV)
    [found] = scores(tmp_path / "run", "val/probe.kappa")
    assert found == pytest.approx(cohen_kappa_score(y, predicted, weights="quadratic", labels=range(5)), abs=1e-6)


def test_a_quantity_is_probed_and_chooses_the_epoch(tmp_path):
    pretext3d("phantom", "--kind", "fundus", "--subjects", 20, "--size", 48, "--out", tmp_path / "aptos")
    [table] = (tmp_path / "aptos").rglob("*.csv")
    grades, store = rows(table), tmp_path / "store"
    lines = [f"{row['id_code']},{10 * int(row['diagnosis']) + i / 7:.4f},7.5" for i, row in enumerate(grades)]
    table.write_text("image,lesion,same\n" + "\n".join(lines) + "\n")
    pretext3d("preprocess", "--data", tmp_path / "aptos", "--out", store, "--size", 32, "--column", "lesion,same")
    probe = ["--probe", store, "--probe-scans", 10, "--probe-every", 1, "--best", "probe"]
    network = ["--filters", 4, "--lr", 3e-3, "--steps", 4]
    # Neither says what is read out.
    refused(*arguments(store, tmp_path, *probe, "--epochs", 1), says=["--probe-column takes one of its columns: lesion, same"])
    for column, says in (("size", ["no column `size`", "lesion, same"]), ("same", ["all scans are of the value 7.5"])):
        refused(*arguments(store, tmp_path, *probe, "--probe-column", column, "--epochs", 1), says=says)
        assert not (tmp_path / "run").exists(), "refused before anything is written"
    refused(*arguments(store, tmp_path, "--probe-column", "lesion"), says=["--probe-column goes with --probe"])

    probe += ["--probe-column", "lesion"]
    for name in ("straight", "resumed"):
        (tmp_path / name).mkdir()
    done = pretext3d(*arguments(store, tmp_path / "straight", *probe, *network, "--epochs", 3))
    assert re.search(r"val/probe\.r_squared: 10 scans, .* before training", done.stderr)
    pretext3d(*arguments(store, tmp_path / "resumed", *probe, *network, "--epochs", 2))
    pretext3d("pretrain", "--resume", tmp_path / "resumed/run", "--epochs", 3)
    assert_same(tmp_path / "resumed/run", tmp_path / "straight/run")
    refused("pretrain", "--resume", tmp_path / "resumed/run", "--probe-column", "same", says=["--probe-column was"])
    found = scores(tmp_path / "straight/run", "val/probe.r_squared")
    description = read_json(tmp_path / "straight/w.json")
    assert description["epoch"] == 1 + found.index(max(found)) and description["seen"]["probe"]["scans"]
    assert read_json(tmp_path / "straight/run/config.json")["settings"]["probe-column"] == "lesion"
    # The export is of the best epoch.
    x, chosen = probed_photographs(store, tmp_path / "straight")
    y = np.array([s["values"]["lesion"] for s in chosen])
    assert max(found) == pytest.approx(r2_score(y, left_out_one_by_one(x, y, RidgeCV)), abs=1e-5)


@pytest.fixture(scope="module")
def straight(store, tmp_path_factory):
    """Two tasks that feed the encoder differently, probed every second epoch of five."""
    folder = tmp_path_factory.mktemp("probed")
    done = pretext3d(*arguments(store, folder, "--val-fraction", 0.34, "--epochs", 5, "--probe", store, "--probe-every", 2, task="rot,exe"))
    return folder, done


def test_training_knows_nothing_of_the_probe(store, straight, tmp_path):
    pretext3d(*arguments(store, tmp_path, "--val-fraction", 0.34, "--epochs", 5, task="rot,exe"))
    (found, metrics), (wanted, with_probe) = state(straight[0] / "run"), state(tmp_path / "run")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[n], wanted[n]) if isinstance(found[n], torch.Tensor) else found[n] == wanted[n] for n in found)
    assert [{k: v for k, v in row.items() if k != "val/probe.dice"} for row in metrics] == with_probe
    looks = scores(straight[0] / "run")
    assert [look is not None for look in looks] == [False, True, False, True, True]
    lines = [line for line in straight[1].stdout.splitlines() if line.startswith("epoch")]
    assert ["val/probe.dice" in line for line in lines] == [look is not None for look in looks]
    assert re.search(r"val/probe\.dice: 4 scans, .* 0\.\d+ before training", straight[1].stderr)


def test_resumed_runs_have_the_same_looks(store, straight, tmp_path):
    pretext3d(*arguments(store, tmp_path, "--val-fraction", 0.34, "--epochs", 2, "--probe", store, "--probe-every", 2, task="rot,exe"))
    pretext3d("pretrain", "--resume", tmp_path / "run", "--epochs", 5)
    assert_same(tmp_path / "run", straight[0] / "run")
    refused("pretrain", "--resume", tmp_path / "run", "--probe-every", 1, says=["--probe-every"])


def test_the_probe_rises_with_pretraining_and_can_choose_the_epoch(abdomens, tmp_path):
    store = tmp_path / "store"
    pretext3d("preprocess", "--data", abdomens, "--out", store, "--size", 32)
    probe = ["--probe", store, "--probe-every", 1, "--best", "probe", "--epochs", 4]
    network = ["--filters", 4, "--levels", 3, "--batch-size", 4, "--steps", 16, "--lr", 3e-3]
    done = pretext3d(*arguments(store, tmp_path, *probe, *network))
    found = scores(tmp_path / "run")
    before = float(re.search(r"(0\.\d+) before training", done.stderr)[1])
    assert max(found) > 1.3 * before > 0
    best = 1 + found.index(max(found))
    description, result = read_json(tmp_path / "w.json"), read_json(tmp_path / "run/result.json")
    assert description["epoch"] == best
    assert result["value"] == float(rows(tmp_path / "run/metrics.csv")[best - 1]["val/rot.accuracy"])
    progress = tensors(tmp_path / "run/best.safetensors")[1]["progress"]
    assert f'"best":[{best - 1},{max(found)}]' in progress


def test_only_training_subjects_are_probed_and_later_runs_know_them(brains, store, tmp_path):
    other = tmp_path / "other"
    pretext3d("preprocess", "--data", renamed(brains, tmp_path / "renamed", "case"), "--out", other, "--size", 32)
    segment = ["--weights", "none", *SMALL, "--epochs", 1, "--steps", 1, "--patch", 16, "--val-fraction", 0.34, "--test-fraction", 0.34]
    pretext3d("finetune", "--data", store, *segment, "--out", tmp_path / "first")
    split = read_json(tmp_path / "first/split.json")
    assert len(split["train"]) == 2
    # The same scans under other names are held out too.
    for folder, probe, name in (("a", store, "brain"), ("b", other, "case")):
        args = arguments(store, tmp_path / folder, "--epochs", 1, "--split", tmp_path / "first/split.json", "--probe", probe)
        pretext3d(*args)
        wanted = [s.replace("brain", name) for s in split["train"]]
        assert sorted(read_json(tmp_path / folder / "run/config.json")["probe"]["scans"]) == wanted
    seen = read_json(tmp_path / "b/w.json")["seen"]
    assert len(seen["probe"]["subjects"]) == 2 and seen["probe"]["scans"]

    # Pretrained on other scans, probed on these: a fine-tuning that tests on them warns.
    pretext3d("phantom", "--kind", "brain", "--subjects", 4, "--size", 32, "--seed", 9, "--out", tmp_path / "new")
    pretext3d("preprocess", "--data", renamed(tmp_path / "new", tmp_path / "new2", "new"), "--out", tmp_path / "newstore", "--size", 32)
    pretext3d(*arguments(tmp_path / "newstore", tmp_path / "c", "--epochs", 1, "--probe", other))
    tune = ["--weights", tmp_path / "c/w.pt", "--arm", "full", "--epochs", 1, "--steps", 1, "--patch", 16, "--batch-size", 2]
    tune += ["--device", "cpu", "--split", tmp_path / "first/split.json", "--out", tmp_path / "tuned"]
    done = pretext3d("finetune", "--data", store, *tune)
    assert "2 of the 2 test subjects were probed on during pretraining, with their labels" in done.stderr.replace("scans of ", "")
    assert any("probed on" in warning for warning in read_json(tmp_path / "tuned/result.json")["warnings"])

    # A sweep does not begin.
    (tmp_path / "sweep.toml").write_text(
        f'data = "{store}"\nunlabelled = "{tmp_path / "newstore"}"\nname = "s"\ntasks = ["rot"]\narms = ["full"]\nfractions = [1.0]\n'
        f'seeds = [0]\nval_fraction = 0.34\ntest_fraction = 0.34\n[pretrain]\nprobe = "{other}"\n'
    )
    refused("sweep", "--config", tmp_path / "sweep.toml", "--dry-run", cwd=tmp_path, says=["`probe`", "held out"])


@pytest.mark.parametrize("flags", [["--slices", "coronal"], ["--norm", "instance"]])
def test_slices_and_instance_normalisation(store, tmp_path, flags):
    pretext3d(*arguments(store, tmp_path, "--epochs", 1, "--probe", store, *flags))
    [found] = scores(tmp_path / "run")
    assert 0 < found < 1


def test_what_cannot_be_probed_is_refused(brains, store, tmp_path):
    bare, far = tmp_path / "bare", tmp_path / "far"
    pretext3d("preprocess", "--data", brains, "--out", bare, "--size", 32, "--no-labels")
    pretext3d("preprocess", "--data", brains, "--out", far, "--size", 32, "--window", "0,100")
    small = [("--probe", bare, ["no labels"]), ("--probe", far, ["window 0 to 100"]), ("--probe-every", 0, ["--probe-every"]),
             ("--probe-scans", 4, ["--probe"]), ("--best", "probe", ["--probe"])]
    for flag, value, says in small:
        refused(*arguments(store, tmp_path, "--epochs", 1, flag, value), says=says)
        assert not (tmp_path / "run").exists(), "refused before anything is written"
