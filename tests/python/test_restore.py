"""Tasks that restore voxels: what they export, what `inspect --weights` shows of them, and the windows that a decoder needs."""
import numpy as np
import pytest
import torch
from conftest import SMALL
from helpers import pretext3d, read_json, refused, rows, tensors

TINY = [*SMALL, "--levels", "2", "--filters", "2", "--precision", "fp32"]


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    """A short run of each task, and of both with a task that predicts classes."""
    folder = tmp_path_factory.mktemp("restore")
    for task in ("mae", "gen", "mae,rot"):
        # Exports estimate BatchNorm's statistics anew. The joint run has those of its tasks.
        norm = "batch" if "," in task else "instance"
        flags = ["--epochs", 2, "--steps", 4, "--mae-fill", "learnt", "--rot-head", "gap", "--norm", norm]
        out = folder / task
        pretext3d("pretrain", "--data", store, "--task", task, *TINY, *flags, "--out", out, "--weights", out / "w")
    return folder


@pytest.mark.parametrize("task", ["mae", "gen"])
def test_nothing_learnt_is_1_and_the_last_epoch_is_exported(runs, task):
    run = runs / task
    table = rows(run / "metrics.csv")
    errors = [float(row[f"val/{task}.relative_error"]) for row in table]
    # It begins with 0 everywhere, the foreground's mean, which is further off than the window's.
    assert 0.3 < errors[1] < errors[0] < 3
    assert [float(row["val/loss"]) for row in table] == pytest.approx(errors, rel=1e-4)
    result = read_json(run / "result.json")
    assert (result["metric"], result["chance"]) == (f"{task}.relative_error", 1)
    assert result["value"] == pytest.approx(errors[1], rel=1e-6)
    assert read_json(run / "w.json")["epoch"] == 2


def test_a_mean_of_what_is_good_high_and_what_is_good_low_is_not_recorded(runs):
    result = read_json(runs / "mae,rot/result.json")
    assert result["value"] is None and result["chance"] is None
    assert "mae.relative_error" in result["metric"] and "rot.accuracy" in result["metric"]


@pytest.mark.parametrize("weights", ["mae", "mae/last.safetensors", "gen", "gen/w.pt", "mae,rot"])
def test_pictures_are_what_the_network_gives(store, runs, tmp_path, weights):
    """The prediction of every sample against the export's encoder and decoder, run by PyTorch."""
    task = weights[:3]
    flags = ["--mae-fill", "learnt"] if task == "mae" else []
    pretext3d("inspect", "--task", task, "--data", store, "--n", 3, "--weights", runs / weights, *flags, "--out", tmp_path)
    assert (tmp_path / f"{task}.png").read_bytes().startswith(b"\x89PNG")
    found, _ = tensors(tmp_path / f"{task}.safetensors")
    assert found["prediction"].shape == found["clean"][:, 0].shape == (3, 4, 32, 32, 32)
    if weights == "mae,rot":
        return  # the statistics are the task's own, those of the export are of both
    x = found["views"][:, 0]
    if task == "mae":
        state, _ = tensors(runs / "mae/last.safetensors")
        mask = torch.from_numpy(np.kron(found["targets"].reshape(3, 8, 8, 8).numpy(), np.ones((1, 4, 4, 4))))
        x = x + (mask[:, None] * state["model.mae.fill"]).float()
    network = torch.jit.load(runs / task / "w.pt").eval()
    with torch.no_grad():
        expected = network.decoder(network(x))
    torch.testing.assert_close(found["prediction"], expected, rtol=1e-3, atol=1e-3)


def test_weights_that_say_nothing_of_the_task(store, runs, trained, tmp_path):
    inspect = ["inspect", "--data", store, "--n", 1, "--out", tmp_path]
    refused(*inspect, "--task", "gen", "--weights", runs / "mae", says=["gen.decoder", "missing", "pretrained with gen"])
    refused(*inspect, "--task", "mae", "--weights", runs / "mae", says=["mae.fill", "unknown", "--mae- flags"])
    refused(*inspect, "--task", "mae", "--weights", trained.run, says=["mae.decoder", "missing"])
    refused(*inspect, "--task", "rot", "--weights", trained.run, says=["rot is no picture", "decoder"])
    assert not list(tmp_path.iterdir())


def test_a_window_fits_the_decoder(store, tmp_path):
    """The store's 32 voxels are no multiple of 2 to the power of 4 alone; 24 of them are one of 8, 20 of 4."""
    args = ["pretrain", "--data", store, "--task", "mae", "--epochs", 1, "--steps", 1, *SMALL]
    refused(*args, "--levels", 4, "--window", 20, "--out", tmp_path / "bad", says=["mae", "--window", "20", "16 or 24"])
    pretext3d(*args, "--levels", 4, "--window", 24, "--out", tmp_path / "run", "--weights", tmp_path / "w")
    assert read_json(tmp_path / "run/config.json")["settings"]["window"] == 24
