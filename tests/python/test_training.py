"""What training computes, against PyTorch: optimizers, number formats, joint exports, and a loss that is not finite."""
import json
import math

import pytest
import torch
from conftest import SMALL
from helpers import pretext3d, read_json, refused, rows, tensors
from pretext3d import build
from safetensors.torch import save_file

FAST = [*SMALL, "--rot-head", "gap", "--precision", "fp32"]


def pretrain(store, out, *more, task="rot"):
    return ["pretrain", "--data", store, "--task", task, *FAST, *more, "--out", out, "--weights", out / "w"]


def checkpoint(run, which="last"):
    """Weights and first moments by name."""
    state, _ = tensors(run / f"{which}.safetensors")
    below = lambda prefix: {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    return below("model."), below("optimizer.first.")


def test_a_step_of_every_optimizer_is_pytorchs(store, tmp_path):
    step = ["--epochs", 1, "--steps", 1, "--schedule", "constant", "--warmup-epochs", 0, "--clip", 0]
    # Nothing moves: the weights are the first ones, and the momentum is the gradient.
    pretext3d(*pretrain(store, tmp_path / "still", *step, "--optimizer", "sgd", "--lr", 0, "--weight-decay", 0))
    weights, gradients = checkpoint(tmp_path / "still")
    assert len(gradients) > 10 and all(gradient.any() for gradient in gradients.values())
    kinds = {
        "sgd": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9),
        "adam": lambda groups: torch.optim.Adam(groups, lr=0.01),
        "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01),
    }
    for kind, optimizer in kinds.items():
        pretext3d(*pretrain(store, tmp_path / kind, *step, "--optimizer", kind, "--lr", 0.01, "--weight-decay", 0.1))
        found, _ = checkpoint(tmp_path / kind)
        expected = {name: torch.nn.Parameter(weights[name].clone()) for name in gradients}
        for name, parameter in expected.items():
            parameter.grad = gradients[name].clone()
        # Biases and normalisations do not decay.
        decayed = [p for p in expected.values() if p.dim() > 1]
        others = [p for p in expected.values() if p.dim() == 1]
        optimizer([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]).step()
        for name, parameter in expected.items():
            assert not torch.equal(found[name], weights[name]), f"{kind}: {name} did not move"
            torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-5, atol=1e-7, msg=f"{kind}: {name}")


def test_bfloat16_trains_beside_float32(store, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        args = pretrain(store, tmp_path / precision, "--epochs", 2, "--steps", 3, "--precision", precision)
        assert f"in {precision}" in pretext3d(*args).stderr
        losses[precision] = [float(row["train/loss"]) for row in rows(tmp_path / precision / "metrics.csv")]
        state, _ = tensors(tmp_path / precision / "last.safetensors")
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"] and losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


def test_a_loss_that_is_not_finite_ends_the_run_and_spoils_nothing(store, tmp_path):
    run = tmp_path / "run"
    pretext3d(*pretrain(store, run, "--epochs", 1, "--steps", 2, "--schedule", "constant"))
    before = (run / "last.safetensors").read_bytes()
    # The run goes on from weights with an infinite one.
    state, metadata = tensors(run / "last.safetensors")
    state["model.encoder.level0.conv0.weight"].view(-1)[0] = math.inf
    save_file(state, run / "last.safetensors", metadata)
    spoilt = (run / "last.safetensors").read_bytes()
    message = refused("pretrain", "--resume", run, "--epochs", 3, "--save-minutes", 0, says=["step 1", "rot", "brain_"])
    assert "NaN" in message or "inf" in message
    assert (run / "last.safetensors").read_bytes() == spoilt and len(rows(run / "metrics.csv")) == 1
    best, _ = tensors(run / "best.safetensors")
    assert all(tensor.isfinite().all() for tensor in best.values())
    (run / "last.safetensors").write_bytes(before)
    pretext3d("pretrain", "--resume", run, "--epochs", 2)


def test_a_joint_export_has_statistics_of_its_own(store, tmp_path):
    """Neither task's: those of whole windows (test_calibrate.py)."""
    run = tmp_path / "run"
    batch = ["--norm", "batch"]
    pretext3d(*pretrain(store, run, "--epochs", 1, "--steps", 8, "--val-fraction", 0.34, *batch, task="rot,exe"))
    weights, _ = checkpoint(run, "best")
    exported, _ = tensors(run / "w.safetensors")
    means = sorted(name for name in exported if name.endswith("running_mean"))
    assert len(means) == 6
    for name in means:
        own = [weights[f"{task}.statistics.{name.removeprefix('encoder.').replace('.', '_')}"] for task in ("rot", "exe")]
        assert not torch.equal(*own) and not any(torch.equal(exported[name], mean) for mean in own)
    module = torch.jit.load(run / "w.pt").eval()
    description = read_json(run / "w.json")
    plain = build(description).eval()
    plain.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in exported.items()}, strict=True)
    x = torch.rand(2, 4, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for found, expected in zip(module(x), plain(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_windows_of_dense_tasks_fit_the_network(brains, tmp_path):
    """Scans of 22 voxels and an encoder that pools by 4: what the decoder doubles must be what was halved."""
    store, run = tmp_path / "store", tmp_path / "run"
    pretext3d("preprocess", "--data", brains, "--out", store, "--size", 22)
    step = ["--epochs", 1, "--steps", 1, "--val-fraction", 0.34]
    assert "window 20," in pretext3d(*pretrain(store, run, *step, task="simclr,vf")).stderr
    row = rows(run / "metrics.csv")[0]
    assert all(0 <= float(row[f"val/vf.{metric}"]) <= 1 for metric in ("dice", "accuracy")) and float(row["val/vf.loss"]) > 0
    # A batch of two scans: each crop has its partner and two others.
    assert float(row["val/simclr.chance"]) == pytest.approx(1 / 3) and float(row["val/simclr.loss"]) > 0
    assert any(name.startswith("vf.decoder.output") for name in checkpoint(run)[0])
    refused(*pretrain(store, tmp_path / "other", *step, "--window", 22, task="vf"), says=["vf", "--window", "22 voxels", "20 or 24"])
    # Without a decoder nothing is rounded; a sheet is of windows for the default network, which pools by 16.
    assert "window 22," in pretext3d(*pretrain(store, tmp_path / "rot", *step)).stderr
    pretext3d("inspect", "--data", store, "--task", "vf", "--n", 1, "--out", tmp_path / "sheet")
    assert list(tensors(tmp_path / "sheet/vf.safetensors")[0]["views"].shape) == [1, 1, 4, 16, 16, 16]
    # Beside the run's own network the window is that of the run, and the prediction a class for each voxel, not one for each channel.
    pretext3d("inspect", "--data", store, "--task", "vf", "--n", 2, "--weights", run, "--out", tmp_path / "sheet")
    predicted = tensors(tmp_path / "sheet/vf.safetensors")[0]["prediction"]
    assert list(predicted.shape) == [2, 1, 20, 20, 20] and set(predicted.unique().tolist()) <= {0, 1, 2, 3, 4}


def test_volumes_with_classes(store, tmp_path):
    """No layout brings classes of volumes yet: they are written into the index, as `preprocess` does for photographs."""
    copy = tmp_path / "store"
    copy.mkdir()
    for path in store.glob("*.safetensors"):
        (copy / path.name).symlink_to(path)
    index = read_json(store / "index.json")
    index["classes"] = ["well", "ill"]
    for i, entry in enumerate(index["subjects"]):
        entry["class"] = i % 2
    (copy / "index.json").write_text(json.dumps(index))
    run = tmp_path / "run"
    flags = ["--task", "classification", "--epochs", 1, "--steps", 2, *SMALL, "--precision", "fp32", "--folds", 3, "--fold", 0]
    flags += ["--val-fraction", 0.5]
    pretext3d("finetune", "--data", copy, "--weights", "none", *flags, "--out", run)
    result = read_json(run / "result.json")
    assert (result["task"], result["metric"], result["rank"], result["test_subjects"]) == ("classification", "kappa", 3, 2)
    pretext3d("predict", "--weights", run, "--input", copy, "--output", tmp_path / "p", "--device", "cpu", "--precision", "fp32")
    pretext3d("export", "--run", run, "--out", tmp_path / "net")
    module = torch.jit.load(tmp_path / "net.pt").eval()
    entries = {entry["id"]: entry for entry in index["subjects"]}
    table = rows(tmp_path / "p/predictions.csv")
    assert [row["id"] for row in table] == list(entries)
    for row in table:
        assert int(row["truth"]) == entries[row["id"]]["class"]
        image = tensors(store / entries[row["id"]]["file"])[0]["image"].float()[None]
        with torch.no_grad():
            expected = module.probabilities(image)[0].tolist()
        assert [float(row["p0"]), float(row["p1"])] == pytest.approx(expected, abs=1e-4)
    flips = ["predict", "--weights", run, "--input", copy, "--output", tmp_path / "f", "--flips", "--device", "cpu"]
    pretext3d(*flips)
    flipped = [float(row["p0"]) for row in rows(tmp_path / "f/predictions.csv")]
    assert flipped != [float(row["p0"]) for row in table]


def test_deep_supervision_trains_an_output_more(store, tmp_path):
    auxiliary = {f"segmentation.decoder.step0_output.{part}" for part in ("weight", "bias")}
    losses, states, moments, networks = {}, {}, {}, {}
    for name, flags in (("plain", []), ("deep", ["--deep-supervision"])):
        run = tmp_path / name
        args = ["--data", store, "--weights", "none", "--patch", 16, "--epochs", 1, "--steps", 1, *SMALL, "--precision", "fp32"]
        pretext3d("finetune", *args, *flags, "--out", run)
        losses[name] = float(rows(run / "metrics.csv")[0]["train/loss"])
        states[name], moments[name] = checkpoint(run)
        pretext3d("export", "--run", run, "--out", tmp_path / f"{name}-net")
        networks[name] = torch.jit.load(tmp_path / f"{name}-net.pt").eval()
    # Of three levels the finest has an output in any case, and the deepest is the encoder's own.
    assert states["deep"].keys() - states["plain"].keys() == auxiliary
    assert all(moments["deep"][name].any() for name in auxiliary)
    assert losses["deep"] != losses["plain"]
    # What predicts is the finest output alone.
    x = torch.rand(1, 4, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert networks["deep"](x).shape == networks["plain"](x).shape == (1, 4, 16, 16, 16)
    assert set(networks["deep"].state_dict()) == set(networks["plain"].state_dict())
