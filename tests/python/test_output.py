"""Output that goes nowhere: a reader that went away, a full disk. Neither is a panic, and no work is lost."""
import os
import re
import subprocess
from types import SimpleNamespace

import pytest
from conftest import SMALL
from helpers import command, pretext3d

TINY = ["--epochs", 1, "--steps", 1, *SMALL]


def commands():
    """Names of all subcommands, hidden ones included, as the binary lists them."""
    listing = pretext3d("--help").stdout.split("Commands:")[1].split("Options:")[0]
    shown = re.findall(r"^  ([a-z-]+)", listing, re.MULTILINE)
    assert "help" in shown and len(shown) > 10, shown
    return [*(name for name in shown if name != "help"), "bench-step", "bench-sampling"]


@pytest.fixture(scope="module")
def finetuned(store, tmp_path_factory):
    """A fine-tuned run, its predictions, and a sweep's configuration."""
    folder = tmp_path_factory.mktemp("finetuned")
    flags = ["--data", store, "--weights", "none", "--patch", 16, *TINY, "--out", folder / "run"]
    pretext3d("finetune", *flags)
    pretext3d("predict", "--weights", folder / "run", "--input", store, "--output", folder / "predicted")
    sweep = folder / "sweep.toml"
    sweep.write_text(
        f'name = "quiet"\ndata = "{store}"\ntasks = []\narms = ["scratch"]\nfractions = [1.0]\nseeds = [0]\n'
        "val_fraction = 0.2\ntest_fraction = 0.2\n"
        "[finetune]\nepochs = 1\nsteps = 1\nbatch-size = 2\nfilters = 4\nlevels = 3\npatch = 16\n"
    )
    pretext3d("sweep", "--config", sweep, "--out", folder / "sweep")
    return SimpleNamespace(folder=folder, sweep=sweep)


@pytest.fixture
def arguments(brains, store, trained, finetuned, tmp_path):
    """Arguments of every subcommand that make it print."""
    done, out = finetuned.folder, tmp_path / "out"
    return {
        "phantom": ["--kind", "brain", "--subjects", 1, "--size", 32, "--out", out],
        "preprocess": ["--data", brains, "--out", out, "--size", 16],
        "pretrain": ["--data", store, "--task", "rot", *TINY, "--out", out, "--weights", tmp_path / "w"],
        "finetune": ["--data", store, "--weights", "none", "--patch", 16, *TINY, "--out", out],
        "sweep": ["--config", finetuned.sweep, "--out", out],
        "export": ["--run", trained.run, "--out", out / "w"],
        "predict": ["--weights", done / "run", "--input", store, "--output", out],
        "evaluate": ["--predictions", done / "predicted", "--labels", brains, "--out", out],
        "inspect": ["--data", store, "--task", "rot", "--out", out],
        "embed": ["--weights", trained.run, "--input", store, "--out", out / "features"],
        "report": [done / "sweep", "--out", out],
        "doctor": [],
        "bench-step": ["--task", "rot", "--window", 16, "--steps", 2],
        "bench-sampling": ["--data", store, "--crop", 16, "--seconds", 0.1],
    }


def with_stdout(where, *args):
    """Runs a command whose standard output is `where`: a file's path, or None for a pipe that nobody reads."""
    if where:
        out = os.open(where, os.O_WRONLY)
    else:
        read, out = os.pipe()
        os.close(read)
    try:
        return subprocess.run(command(*args), stdout=out, stderr=subprocess.PIPE, text=True, timeout=300)
    finally:
        os.close(out)


@pytest.mark.parametrize("name", commands())
def test_help_of_every_command(name):
    text = pretext3d(name, "--help").stdout
    assert f"Usage: pretext3d {name}" in text and re.match(r"[A-Z].{20,}\n", text), text
    lines = text.splitlines()
    for line, after in zip(lines, [*lines[1:], ""]):
        flag = re.match(r" +(?:-\w, |<)?(--[a-z-]+|[A-Z]+>)", line)
        if flag and not name.startswith("bench"):
            # Beside the flag or below it.
            assert re.search(r"\S  +\S", line) or re.match(r" +\w", after), f"{flag[1]} of {name} is not described"


@pytest.mark.parametrize("name", commands())
def test_a_reader_that_went_away_changes_nothing(arguments, tmp_path, name):
    done = with_stdout(None, name, *arguments[name])
    assert done.returncode == 0 and "panicked" not in done.stderr and "error" not in done.stderr, done.stderr
    # The work is done.
    made = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    expected = {
        "phantom": "brain_0000_t1.nii.gz",
        "preprocess": "index.json",
        "pretrain": "w.pt",
        "finetune": "result.json",
        "sweep": "report.html",
        "export": "w.pt",
        "predict": "brain_0000.nii.gz",
        "evaluate": "scores.csv",
        "inspect": "rot.png",
        "embed": "features.csv",
        "report": "report.html",
    }
    assert expected.get(name) in made | {None}, made


@pytest.mark.parametrize("name", ["doctor", "pretrain", "sweep", "evaluate"])
def test_a_full_disk_at_standard_output_is_an_error(arguments, tmp_path, name):
    done = with_stdout("/dev/full", name, *arguments[name])
    assert done.returncode == 1 and "panicked" not in done.stderr, done.stderr
    assert "error: standard output" in done.stderr and "No space left" in done.stderr, done.stderr
    if name == "pretrain":
        assert (tmp_path / "w.pt").exists() and (tmp_path / "out/result.json").exists()


def test_the_parsers_words_go_nowhere_too():
    for args in (["--help"], ["--version"], ["pretrain", "--help"]):
        assert with_stdout(None, *args).returncode == 0
        full = with_stdout("/dev/full", *args)
        assert full.returncode == 1 and "No space left" in full.stderr
    # Usage errors and errors keep their code when standard error cannot be written.
    for where in ("/dev/full", None):
        for args, code in ((["pretrian"], 2), (["report", "/nowhere"], 1), (["doctor"], 0)):
            with open(where or os.devnull, "w") as err:
                read, closed = os.pipe()
                os.close(read)
                done = subprocess.run(command(*args), stdout=subprocess.PIPE, stderr=err if where else closed, timeout=60)
                os.close(closed)
            assert done.returncode == code, (where, args)
