"""Learning rates of a fine-tuning: of the given encoder and of the new layers, in each arm and phase."""
import json
import math

import pytest
import torch
from helpers import pretext3d, read_json, refused, rows, tensors

FAST = ["--batch-size", 2, "--device", "cpu", "--precision", "fp32", "--threads", 1]
SHAPE = ["--filters", 2, "--levels", 2]
STATISTICS = ("running_mean", "running_var")
LR, ENCODER_LR, FLOOR, STEPS = 4e-3, 1e-3, 0.05, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labelled brains of 16^3 voxels, and an encoder."""
    folder = tmp_path_factory.mktemp("schedule")
    pretext3d("phantom", "--kind", "brain", "--subjects", 8, "--size", 32, "--seed", 4, "--out", folder / "brats")
    pretext3d("preprocess", "--data", folder / "brats", "--out", folder / "store", "--size", 16, "--channels", "flair")
    pretext3d("pretrain", "--data", folder / "store", "--task", "rot", "--rot-head", "gap", *SHAPE, *FAST, "--epochs", 1, "--steps", 2,
              "--out", folder / "run", "--weights", folder / "w")
    return folder


def finetune(folder, out, arm, *more):
    weights = ["none", *SHAPE] if arm == "scratch" else [folder / "w.pt"]
    return ["finetune", "--data", folder / "store", "--weights", *weights, "--arm", arm, "--patch", 8, *FAST, "--steps", STEPS,
            "--lr", LR, "--out", out, *more]


def rise(step, ramp):
    return FLOOR + (1 - FLOOR) * step / ramp


def rise_and_decay(step, ramp, steps):
    return rise(step, ramp) if step < ramp else (1 + math.cos(math.pi * (step - ramp) / (steps - 1 - ramp))) / 2


def shares(arm, epochs):
    """The share of its peak that each rate has in the last step of each epoch: new layers, encoder. Ramps of 1.5 and 1.25 epochs,
    two frozen epochs."""
    first, second, frozen, total = STEPS * 3 // 2, STEPS * 5 // 4, 2 * STEPS, epochs * STEPS
    for step in range(STEPS - 1, total, STEPS):
        if arm != "warmup":
            share = rise_and_decay(step, first, total)
            yield share, share * (arm != "frozen")
        elif step < frozen:
            # At most half of that phase; then the peak.
            ramp = (frozen - 1) // 2
            yield (rise(step, ramp) if step < ramp else 1), 0
        else:
            share = rise_and_decay(step - frozen, second, total - frozen)
            yield share, share


@pytest.mark.parametrize("arm", ["scratch", "frozen", "warmup", "full"])
def test_rates_of_each_arm(folder, tmp_path, arm):
    own = arm in ("warmup", "full")
    more = ["--encoder-lr", ENCODER_LR] if own else []
    more += ["--frozen-epochs", 2, "--unfreeze-warmup-epochs", 1.25] if arm == "warmup" else []
    pretext3d(*finetune(folder, tmp_path / "run", arm, "--epochs", 6, "--warmup-epochs", 1.5, "--warmup-floor", FLOOR, *more))
    found = rows(tmp_path / "run/metrics.csv")
    for row, (new, given) in zip(found, shares(arm, 6), strict=True):
        assert float(row["lr"]) == pytest.approx(LR * new, abs=1e-12), row
        # Where the encoder's rate is the others' it has no column.
        expected = None if arm == "scratch" else pytest.approx(given * ENCODER_LR, abs=1e-12)
        assert (float(row["lr_encoder"]) if "lr_encoder" in row else None) == expected, row
    if arm == "warmup":
        assert len({row["lr_encoder"] for row in found}) > 3


def test_each_rate_moves_its_own_weights(folder, tmp_path):
    pretrained, _ = tensors(folder / "w.safetensors")
    learned = [name for name in pretrained if not name.endswith(STATISTICS)]
    moved = {}
    for name, rates in {"encoder": ["--lr", 0, "--encoder-lr", 1e-3], "decoder": ["--lr", 1e-3, "--encoder-lr", 0],
                        "both": ["--lr", 1e-3], "none": ["--lr", 0]}.items():
        pretext3d(*finetune(folder, tmp_path / name, "full", "--epochs", 1, *rates))
        moved[name], _ = tensors(tmp_path / name / "last.safetensors")
    decoder = [name for name in moved["none"] if name.startswith("model.segmentation.") and not name.endswith(STATISTICS)]

    def same(run, names, start):
        return {torch.equal(moved[run][name], start[name]) for name in names}

    encoder = {f"model.{name}": pretrained[name] for name in learned}
    assert same("encoder", encoder, encoder) == {False} and same("encoder", decoder, moved["none"]) == {True}
    assert same("decoder", encoder, encoder) == {True} and same("decoder", decoder, moved["none"]) == {False}
    assert same("both", encoder, encoder) == {False} and same("both", decoder, moved["none"]) == {False}


def test_lengths_that_follow_from_the_epochs_are_written_down(folder, tmp_path):
    pretext3d(*finetune(folder, tmp_path / "run", "warmup", "--epochs", 5, "--steps", 1))
    pretext3d("finetune", "--resume", tmp_path / "run", "--epochs", 10)
    settings = read_json(tmp_path / "run/config.json")["settings"]
    assert [settings[key] for key in ("epochs", "frozen-epochs", "unfreeze-warmup-epochs")] == [10, 1, 0.5]
    assert "encoder-lr" not in settings and settings["warmup-floor"] == 0.001


def test_a_run_from_before_these_settings_goes_on(folder, tmp_path):
    pretext3d(*finetune(folder, tmp_path / "run", "warmup", "--epochs", 2, "--steps", 1))
    config = read_json(tmp_path / "run/config.json")
    for key in ("warmup-floor", "unfreeze-warmup-epochs", "transfer"):
        del config["settings"][key]
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    pretext3d("finetune", "--resume", tmp_path / "run", "--epochs", 3)
    assert [float(row["lr_encoder"]) > 0 for row in rows(tmp_path / "run/metrics.csv")] == [False, True, False]


REFUSED = {
    "scratch has no given weights": ("scratch", ["--encoder-lr", 1e-4], ["--encoder-lr", "scratch has none"]),
    "frozen never trains them": ("frozen", ["--encoder-lr", 1e-4], ["--encoder-lr", "never trains the encoder"]),
    "full has one warm-up": ("full", ["--unfreeze-warmup-epochs", 1], ["--unfreeze-warmup-epochs", "--arm warmup only"]),
    "a negative rate": ("full", ["--encoder-lr=-1"], ["--encoder-lr", "from 0 on", "-1"]),
    "a negative length": ("warmup", ["--unfreeze-warmup-epochs=-1"], ["--unfreeze-warmup-epochs", "from 0 on"]),
    "a floor above the peak": ("full", ["--warmup-floor", 1.5], ["--warmup-floor", "0 to 1", "1.5"]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(folder, tmp_path, kind):
    arm, more, says = REFUSED[kind]
    refused(*finetune(folder, tmp_path / "run", arm, *more), says=says)
    assert not (tmp_path / "run").exists()
