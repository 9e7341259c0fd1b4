"""Where results go: folders that cannot be written are refused before the work, and no two processes work in one."""
import subprocess
import time

import pytest
from conftest import SMALL
from helpers import command, pretext3d, read_json, refused

TINY = ["--epochs", 1, "--steps", 1, *SMALL]


@pytest.mark.parametrize(
    "args",
    [
        ["preprocess", "--data", "nowhere", "--out", "file/out"],
        ["pretrain", "--data", "nowhere", "--task", "rot", "--out", "file/out"],
        ["pretrain", "--data", "nowhere", "--task", "rot", "--weights", "file/out/rot"],
        ["pretrain", "--data", "nowhere", "--task", "rot", "--weights", "taken"],
        ["finetune", "--data", "nowhere", "--weights", "none", "--out", "file/out"],
        ["export", "--run", "nowhere", "--out", "file/out/rot"],
        ["predict", "--weights", "nowhere", "--input", "nowhere", "--output", "file/out"],
        ["evaluate", "--predictions", "nowhere", "--labels", "nowhere", "--out", "file/out"],
        ["evaluate", "--predictions", "nowhere", "--labels", "nowhere", "--out", "link/out"],
        ["inspect", "--data", "nowhere", "--task", "rot", "--out", "file/out"],
        ["report", "nowhere", "--out", "file/out"],
    ],
    ids=lambda args: f"{args[0]} {' '.join(args[-2:])}",
)
def test_what_cannot_be_written_comes_before_all_else(tmp_path, args):
    """Tests may run as root, whom no permission stops: a file stands where a folder would."""
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "taken.pt").mkdir()
    message = refused(*args, cwd=tmp_path, says=[args[-2], args[-1].removesuffix("/rot"), "cannot be written"])
    assert "nowhere" not in message
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link", "taken.pt"}


def test_a_sweep_checks_its_folders(store, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/report").write_text("in the way")
    config = tmp_path / "sweep.toml"
    config.write_text(sweep_of(store))
    refused("sweep", "--config", config, "--out", tmp_path / "sweep", says=["sweep/report", "cannot be written"])
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["report"]


def test_pictures_that_cannot_be_drawn_are_refused_before_scoring(brains, tmp_path):
    out = tmp_path / "out"
    args = ["evaluate", "--predictions", tmp_path / "p", "--labels", brains, "--out", out, "--allow-missing"]
    (tmp_path / "p").mkdir()
    for i in (0, 1):
        truth = next(brains.glob(f"brain_000{i}/*_seg.nii.gz"))
        (tmp_path / "p" / f"brain_000{i}.nii.gz").write_bytes(truth.read_bytes())
    refused(*args, "--images", brains, "--channel", "pet", says=["--channel", "pet", "flair"])
    (tmp_path / "some").mkdir()
    (tmp_path / "some/brain_0000").symlink_to(brains / "brain_0000")
    refused(*args, "--images", tmp_path / "some", says=["some", "brain_0001"])
    assert not out.exists()


def test_settings_of_the_other_commands_runs(store, trained):
    config = trained.run / "config.json"
    refused("finetune", "--data", store, "--weights", "none", "--config", config, says=["--config", config, "run of `pretrain`"])


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_a_folder_under_way_is_refused_and_free_after_a_kill(store, tmp_path):
    run = tmp_path / "run"
    long = ["--data", store, "--task", "rot", "--epochs", 500, "--steps", 1, *SMALL, "--out", run, "--weights", tmp_path / "w"]
    process = subprocess.Popen(command("pretrain", *long), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(run / "best.safetensors", process)
        busy = [run, f"process {process.pid} "]
        refused("pretrain", "--resume", run, says=busy)
        # Reading does not disturb it.
        pretext3d("export", "--run", run, "--out", tmp_path / "early")
        # A copy of the settings would make a run here: even without them the folder is taken.
        (run / "config.json").rename(tmp_path / "config.json")
        refused("pretrain", *long, says=busy)
        refused("finetune", "--data", store, "--weights", "none", "--patch", 16, *TINY, "--out", run, says=busy)
        (tmp_path / "config.json").rename(run / "config.json")
    finally:
        process.kill()
        process.wait()
    done = len((run / "metrics.jsonl").read_text().splitlines())
    pretext3d("pretrain", "--resume", run, "--epochs", done + 2)
    assert (tmp_path / "w.pt").exists()


def test_runs_begun_together_get_folders_of_their_own(store, tmp_path):
    args = ["--data", store, "--task", "rot", *TINY]
    together = [
        subprocess.Popen(command("pretrain", *args, "--seed", seed), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for seed in range(4)
    ]
    ended = [process.communicate(timeout=280)[1] for process in together]
    assert [process.returncode for process in together] == [0] * 4, ended
    folders = sorted((tmp_path / "runs").iterdir())
    assert [folder.name for folder in folders] == [f"rot-{n}" for n in range(1, 5)]
    assert {read_json(folder / "config.json")["settings"]["seed"] for folder in folders} == set(range(4))


def sweep_of(store):
    return (
        f'name = "one"\ndata = "{store}"\ntasks = []\narms = ["scratch"]\nfractions = [1.0]\nseeds = [0]\n'
        "val_fraction = 0.2\ntest_fraction = 0.2\n"
        "[finetune]\nepochs = 3\nsteps = 2\nbatch-size = 2\nfilters = 4\nlevels = 3\npatch = 16\n"
    )


def test_a_sweep_under_way_is_refused(store, tmp_path):
    config, out = tmp_path / "sweep.toml", tmp_path / "sweep"
    config.write_text(sweep_of(store))
    args = ["sweep", "--config", config, "--out", out]
    process = subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(out / "cells/scratch-scratch-f1-s0/config.json", process)
    refused(*args, says=[out, f"process {process.pid} "])
    assert process.wait(timeout=280) == 0 and (out / "report/report.html").exists()
