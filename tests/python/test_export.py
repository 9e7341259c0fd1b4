"""Exported weights as PyTorch sees them."""
import io
import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from conftest import SMALL
from helpers import ROOT, pretext3d, read_json, rows, tensors
from pretext3d import build

EXTRA = "pretext3d.json"


def load(weights):
    """A fresh copy of the exported module, and its description."""
    extra = {EXTRA: ""}
    module = torch.jit.load(weights.with_suffix(".pt"), _extra_files=extra)
    return module, json.loads(extra[EXTRA])


def plain(weights):
    """The same weights in an ordinary module."""
    description = read_json(weights.with_suffix(".json"))
    encoder = build(description)
    state, _ = tensors(weights.with_suffix(".safetensors"))
    encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in state.items()}, strict=True)
    return encoder


def volume(module_channels, *shape, seed=0):
    return torch.randn(shape[0], module_channels, *shape[1:], generator=torch.Generator().manual_seed(seed))


def test_names_and_values_equal_the_state_dict(trained):
    module, _ = load(trained.weights)
    state, _ = tensors(trained.weights.with_suffix(".safetensors"))
    assert set(module.state_dict()) == set(state)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in state.items())
    learned = {name for name, _ in module.named_parameters()}
    assert learned == {name for name in state if not name.endswith(("running_mean", "running_var"))}
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in module.parameters())
    assert {name for name, _ in module.named_buffers()} == set(state) - learned


def test_weights_are_the_best_checkpoints(trained):
    state, _ = tensors(trained.weights.with_suffix(".safetensors"))
    best, _ = tensors(trained.run / "best.safetensors")
    encoder = {name.removeprefix("model."): t for name, t in best.items() if name.startswith("model.encoder.")}
    assert set(state) == set(encoder)
    # But for the statistics, which are those of whole scans (test_calibrate.py).
    assert all(torch.equal(state[name], encoder[name]) == ("running" not in name) for name in state)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("shape", [(1, 16, 16, 16), (2, 17, 13, 22), (3, 4, 9, 7)])
def test_pyramid_equals_a_plain_module(trained, shape, train):
    module, description = load(trained.weights)
    reference = plain(trained.weights)
    x = volume(description["network"]["in_channels"], *shape)
    module.train(train), reference.train(train)
    pyramid, expected = module(x), reference(x)
    assert len(pyramid) == len(expected) == len(description["levels"])
    for level, found, wanted in zip(description["levels"], pyramid, expected):
        assert found.shape == (shape[0], level["channels"], *(n // level["reduction"] for n in shape[1:]))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    # Training mode must have moved the running statistics, and to the same values.
    before, _ = tensors(trained.weights.with_suffix(".safetensors"))
    statistics = dict(reference.named_buffers())
    for name, found in module.named_buffers():
        torch.testing.assert_close(found, statistics[name.removeprefix("encoder.")], rtol=1e-5, atol=1e-6)
        assert torch.equal(found, before[name]) != train


def test_gradients_reach_every_parameter_and_a_step_changes_the_output(trained):
    module, description = load(trained.weights)
    module.train()
    x = volume(description["network"]["in_channels"], 2, 16, 16, 16)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = module(x)
    sum(level.square().mean() for level in before).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, module(x)))


def test_module_survives_saving_again(trained):
    module, description = load(trained.weights)
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    again = torch.jit.load(buffer).eval()
    x = volume(description["network"]["in_channels"], 1, 16, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(again(x), module.eval()(x)))


def test_description_travels_inside(trained, store):
    _, description = load(trained.weights)
    assert description == read_json(trained.weights.with_suffix(".json"))
    index = read_json(store / "index.json")
    assert description["network"]["in_channels"] == len(index["channels"])
    assert [level["reduction"] for level in description["levels"]] == [1, 2, 4]
    assert [level["channels"] for level in description["levels"]] == [4, 8, 16]
    # Whoever feeds the encoder their own scans needs to know how these were prepared.
    text = json.dumps(description)
    for fact in (index["fingerprint"], "RAS", "rot", torch.__version__.split("+")[0], *index["channels"]):
        assert fact in text, fact


@pytest.mark.parametrize(
    "flags",
    [
        ["--size", 16],
        ["--protocol", "modern", "--spacing", 1],
        ["--protocol", "modern", "--spacing", 1, "--foreground", 60],
        ["--protocol", "modern", "--spacing", 1, "--window", "-20,90"],
    ],
)
def test_preprocess_equals_the_stores_normalisation(tmp_path, flags):
    """Scans that already lie on the store's grid, so that only their intensities change."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for i in range(3):
        # The third has a background far below zero, which is no air.
        channels = 2 if "--foreground" in flags else 3
        means, widths = [80, -300, -950][:channels], [30, 200, 20][:channels]
        raw = np.random.default_rng(i).normal(means, widths, (16, 16, 16, channels)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(raw, np.eye(4)), scans / f"case{i}.nii.gz")
    store = tmp_path / "store"
    pretext3d("preprocess", "--data", scans, "--out", store, "--dtype", "f32", *flags)
    run = ["--task", "rot", "--epochs", 1, "--rot-head", "gap", *SMALL, "--val-fraction", 0.34, "--batch-size", 2]
    pretext3d("pretrain", "--data", store, *run, "--out", tmp_path / "run", "--weights", tmp_path / "w")
    module, _ = load(tmp_path / "w")
    for entry in read_json(store / "index.json")["subjects"]:
        raw = nibabel.load(scans / f"{entry['id']}.nii.gz").get_fdata(dtype=np.float32)
        raw = torch.from_numpy(np.ascontiguousarray(np.moveaxis(raw, -1, 0)))
        stored = tensors(store / entry["file"])[0]["image"]
        torch.testing.assert_close(module.preprocess(raw), stored, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module.preprocess(raw[None])[0], stored, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(raw, stored)


def test_export_of_a_run_by_hand_gives_the_same(trained, tmp_path):
    pretext3d("export", "--run", trained.run, "--out", tmp_path / "again")
    for suffix in (".safetensors", ".json"):
        assert (tmp_path / f"again{suffix}").read_bytes() == trained.weights.with_suffix(suffix).read_bytes(), suffix
    pretext3d("export", "--run", trained.run, "--checkpoint", "last", "--out", tmp_path / "last")
    state, _ = tensors(tmp_path / "last.safetensors")
    last, _ = tensors(trained.run / "last.safetensors")
    assert all(torch.equal(tensor, last[f"model.{name}"]) for name, tensor in state.items() if "running" not in name)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_finetuning_example_runs(trained, store, ending):
    script = ROOT / "scripts/finetune_pytorch.py"
    arguments = [trained.weights.with_suffix(ending), store, "--train", "3", "--steps", "12", "--crop", "16"]
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("step")]
    assert losses and all(loss == loss for loss in losses)
    assert "Dice on 3 held-out subjects" in done.stdout and "mean:" in done.stdout


def test_best_says_which_epoch_is_exported(store, tmp_path):
    """With a rate that changes weights but no accuracy, so that the metric takes the first epoch."""
    for best in ("last", "metric"):
        args = ["--task", "rot", "--epochs", 4, "--steps", 2, *SMALL, "--rot-head", "gap", "--lr", 1e-6, "--schedule", "constant"]
        out = ["--out", tmp_path / best, "--weights", tmp_path / "w" / best]
        pretext3d("pretrain", "--data", store, *args, "--best", best, *out)
        history = [float(row["val/rot.accuracy"]) for row in rows(tmp_path / best / "metrics.csv")]
        chosen = 4 if best == "last" else 1 + history.index(max(history))
        assert best == "last" or chosen < 4, "the metric would choose the last epoch too"
        assert read_json(tmp_path / "w" / f"{best}.json")["epoch"] == chosen
        assert read_json(tmp_path / best / "result.json")["value"] == history[chosen - 1]
        state, _ = tensors(tmp_path / "w" / f"{best}.safetensors")
        last, _ = tensors(tmp_path / best / "last.safetensors")
        learnt = [name for name in state if "running" not in name]
        assert all(torch.equal(state[name], last[f"model.{name}"]) for name in learnt) == (best == "last")
