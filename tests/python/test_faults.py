"""Stores that are damaged or changed while they are read, and work that was killed at the worst moment: named, mended, taken up.
`benches/faults.py` tries many more moments."""
import os
import shutil
import signal
import subprocess
import time
from itertools import combinations
from pathlib import Path

import pytest
from helpers import ROOT, command, pretext3d, read_json, refused, rows, tensors

TINY = ["--levels", 2, "--filters", 2, "--batch-size", 2, "--device", "cpu", "--threads", 1]
PRETRAIN = ["--task", "rot", "--rot-head", "gap", "--steps", 1, "--schedule", "constant", *TINY]


@pytest.fixture
def own(store, tmp_path):
    """A copy of the store, to be damaged, and the path of a run on it."""
    shutil.copytree(store, tmp_path / "store")
    return tmp_path / "store", tmp_path / "run"


def under_way(store, run):
    """A run that has seen every scan."""
    process = subprocess.Popen(command("pretrain", "--data", store, *PRETRAIN, "--epochs", 5000, "--out", run, "--weights", run / "w"),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not ((run / "metrics.csv").exists() and len(rows(run / "metrics.csv")) >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


def fails(process, *says):
    """It must end by itself, with a message and no signal."""
    try:
        _, message = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1 and "panicked" not in message, (process.returncode, message)
    for text in says:
        assert str(text) in message, message


@pytest.mark.parametrize("length", [4096, -1])
def test_a_store_cut_off_while_it_is_read(own, length):
    """To its first page, so that the system would end the process, and by its last byte."""
    store, run = own
    process = under_way(store, run)
    for path in store.glob("*.safetensors"):
        whole = path.read_bytes()
        with open(path, "r+b") as file:
            file.truncate(length % len(whole))
    fails(process, "error: ", store, ".safetensors: ", "cut off", "preprocess again")


def test_voxels_written_over_while_they_are_read(brains, own):
    store, run = own
    process = under_way(store, run)
    files = sorted(store.glob("*.safetensors"))
    before = [path.read_bytes() for path in files]
    for path in files:
        with open(path, "r+b") as file:
            file.seek(-1000, 2)
            file.write(bytes(range(1, 251)) * 4)
    fails(process, "error: ", store, ".safetensors: ", "written over")
    done = len(rows(run / "metrics.csv"))
    resume = ["pretrain", "--resume", run, "--epochs", done + 1]
    # Not mended, it is not trained on later either.
    refused(*resume, says=[store, ".safetensors: ", "written over"])
    done_again = pretext3d("preprocess", "--data", brains, "--out", store, "--size", 32)
    assert "(0 kept)" in done_again.stdout and f"{files[0]}: was written over" in done_again.stderr
    assert [path.read_bytes() for path in files] == before
    pretext3d(*resume)
    assert len(rows(run / "metrics.csv")) == done + 1


def test_a_file_of_another_scan_in_the_place_of_one(own):
    store, run = own
    # Of the same size, which their headers, long or short, decide.
    pairs = combinations(sorted(store.glob("*.safetensors")), 2)
    first, second = next(pair for pair in pairs if len({path.stat().st_size for path in pair}) == 1)
    shutil.copy(second, first)
    refused("pretrain", "--data", store, *PRETRAIN, "--epochs", 3, "--val-fraction", 0.4, "--out", run, says=[first, "other voxels"])


SWEEP = """
name = "tiny"
data = "store"
tasks = []
arms = ["scratch"]
fractions = [1.0]
seeds = [0, 1]
subset_seeds = [0]
val_fraction = 0.34
test_fraction = 0.34

[finetune]
filters = 2
levels = 2
patch = 16
batch-size = 2
epochs = 1
steps = 1
device = "cpu"
threads = 1
"""


def test_a_store_made_anew_under_a_sweep(brains, own, tmp_path):
    store, out = own[0], tmp_path / "out"
    (tmp_path / "sweep.toml").write_text(SWEEP)
    sweep = ["sweep", "--config", "sweep.toml", "--out", "out"]
    process = subprocess.Popen(command(*sweep), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("cells/*/config.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    # The first cell reads what it has mapped; the second one would read another store.
    index = (store / "index.json").read_text()
    (store / "index.json").write_text(index.replace(read_json(store / "index.json")["fingerprint"], "0" * 64))
    fails(process, "error: store: ", "made anew or changed while the sweep runs")
    refused(*sweep, cwd=tmp_path, says=["out/cells/scratch-scratch-f1-s0: ", "another store than store is now"])
    (store / "index.json").write_text(index)
    pretext3d(*sweep, cwd=tmp_path)
    assert len(list(out.glob("cells/*/result.json"))) == 2


PROBED = SWEEP.replace("tasks = []", 'tasks = ["rot"]').replace('"scratch"', '"frozen"').replace("[0, 1]", "[0]") + """
[pretrain]
probe = "probe"
filters = 2
levels = 2
epochs = 1
steps = 1
batch-size = 2
device = "cpu"
threads = 1
rot-head = "gap"
"""


@pytest.mark.parametrize("name, plan, runs", [("store", SWEEP, "cells/*"), ("probe", PROBED, "pretrain/*")])
def test_a_store_made_anew_before_a_run_of_a_sweep_opens_it(own, tmp_path, name, plan, runs):
    store, out = tmp_path / name, tmp_path / "out"
    if name == "probe":
        shutil.copytree(own[0], store)
    (tmp_path / "sweep.toml").write_text(plan)
    sweep = ["sweep", "--config", "sweep.toml", "--out", "out"]
    process = subprocess.Popen(command(*sweep), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (cells := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    # It has yet to load its libraries.
    os.kill(int(cells[0]), signal.SIGSTOP)
    index, fingerprint = (store / "index.json").read_text(), read_json(store / "index.json")["fingerprint"]
    (store / "index.json").write_text(index.replace(fingerprint, "0" * 64))
    os.kill(int(cells[0]), signal.SIGCONT)
    fails(process, f"{name}: the store was made anew or changed while the sweep runs")
    (store / "index.json").write_text(index)
    pretext3d(*sweep, cwd=tmp_path)
    ran = list(out.glob(f"{runs}/config.json"))
    assert ran and all(read_json(path)["probe" if name == "probe" else "input"]["fingerprint"] == fingerprint for path in ran)
    # Nor do runs of before go together with new ones.
    (store / "index.json").write_text(index.replace(fingerprint, "0" * 64))
    refused(*sweep, cwd=tmp_path, says=[ran[0].parent.relative_to(tmp_path).parent, f"another store than {name} is now"])


def test_an_export_to_another_program_that_was_killed(trained, tmp_path):
    def export(target):
        return ["export", "--run", trained.run, "--to", target, "--out", tmp_path / "out"]

    pretext3d(*export("huggingface"))
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    refused(*export("huggingface"), says=["new or empty folder"])
    # Killed after its first file and within the second, and before the first.
    (tmp_path / "out/.unfinished").write_text("huggingface")
    (tmp_path / "out/config.json").unlink()
    (tmp_path / "out/.config.json.12.tmp").write_text("{")
    refused(*export("monai"), says=[tmp_path / "out", "--to huggingface that did not end"])
    pretext3d(*export("huggingface"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    (tmp_path / "out/..unfinished.12.tmp").write_text("")
    pretext3d(*export("huggingface"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole


def test_killed_between_the_best_checkpoint_and_the_last(store, tmp_path):
    run = tmp_path / "run"
    pretext3d("pretrain", "--data", store, *PRETRAIN, "--best", "last", "--epochs", 1, "--out", run, "--weights", run / "w")
    before = (run / "last.safetensors").read_bytes()
    pretext3d("pretrain", "--resume", run, "--epochs", 2)
    newest = (run / "best.safetensors").read_bytes()
    (run / "last.safetensors").unlink()
    (run / "last.safetensors").write_bytes(before)
    (run / ".last.safetensors.12.tmp").write_bytes(newest)
    done = pretext3d("pretrain", "--resume", run, "--epochs", 2)
    assert "epoch" not in done.stdout, "the epoch was done again"
    assert (run / "last.safetensors").read_bytes() == (run / "best.safetensors").read_bytes() == newest
    assert not list(run.glob(".*.tmp")) and tensors(run / "w.safetensors")[1]


def test_the_bench_counts_disturbed_trials_alone(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benches")
    import faults
    bench, works = faults.Bench(tmp_path, seed=1), []
    bench.begin()
    for disturbs in (2, 0, 1, 0):
        works.append(bench.next("abc"))
        with bench.trial("kept busy"):
            bench.counts["seen"] += 1
            for _ in range(disturbs):
                bench.disturbed("kills")
    with bench.trial("found broken"):
        raise faults.cases.Fault("lost")
    assert works == list("abca")
    assert bench.counts == {"seen": 2, "kills": 3}
    assert (bench.begun, bench.trials, bench.faults) == (5, 3, ["found broken: lost"])
