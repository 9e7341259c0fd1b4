"""Weights meet the people and the input that they were trained on: what is known of both, and what is said of it."""
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import pretext3d, read_json, renamed, tensors
from safetensors.torch import load_file

FAST = ["--epochs", 1, "--steps", 1, "--batch-size", 2, "--device", "cpu", "--precision", "fp32", "--threads", 1]
SHAPE = ["--filters", 2, "--levels", 2]


def preprocess(data, out, *more):
    pretext3d("preprocess", "--data", data, "--out", out, "--size", 16, *more)
    return out


def pretrain(data, out, *more):
    pretext3d("pretrain", "--data", data, "--task", "rot", "--rot-head", "gap", *FAST, "--out", out / "run", "--weights", out / "w",
              *more)
    return out / "w.pt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten brains, as a store of two channels and of the same two in the other order; an encoder of all of the first store."""
    folder = tmp_path_factory.mktemp("transfer")
    pretext3d("phantom", "--kind", "brain", "--subjects", 10, "--size", 32, "--seed", 5, "--out", folder / "brats")
    preprocess(folder / "brats", folder / "ab", "--channels", "t1,flair", "--no-labels")
    preprocess(folder / "brats", folder / "ba", "--channels", "flair,t1")
    pretrain(folder / "ab", folder / "pretrained", *SHAPE)
    return folder


@pytest.fixture
def finetune(folder, tmp_path):
    """Runs a fine-tuning in which nothing is learnt; gives what it said, kept and recorded."""
    def run(weights, data="ba", *more):
        out = tmp_path / "run"
        shutil.rmtree(out, ignore_errors=True)
        done = pretext3d("finetune", "--data", folder / data, "--weights", weights, "--arm", "full", *FAST, "--lr", 0, "--patch", 8, "--overlap", 0,
                         "--out", out, *more)
        kept = (out / "load.txt").read_text()
        assert kept in done.stderr
        said = [line.removeprefix("warning: ") for line in kept.splitlines() if line.startswith("warning: ")]
        assert said == read_json(out / "result.json").get("warnings", [])
        return SimpleNamespace(out=out, kept=kept, said=said, split=read_json(out / "split.json"))
    return run


def test_channels_in_another_order_are_put_in_order(folder, finetune):
    done = finetune(folder / "pretrained/w.pt")
    assert "1 adapted" in done.kept and "[1, 0]" in done.kept and not any("channels" in line for line in done.said)
    name = "encoder.level0.conv0.weight"
    before, after = load_file(folder / "pretrained/w.safetensors")[name], tensors(done.out / "best.safetensors")[0][f"model.{name}"]
    assert torch.equal(before.flip(1), after)


def test_test_subjects_are_known_again_in_another_store(folder, finetune, tmp_path):
    """Neither the store's settings nor where the weights lie matters; a split that held them out is clean."""
    everyone = "scans of 2 of the 2 test subjects were pretrained on"
    moved = shutil.copy(folder / "pretrained/w.pt", tmp_path / "moved.pt")
    for weights in (folder / "pretrained/w.pt", moved, folder / "pretrained/run", folder / "pretrained/run/last.safetensors"):
        done = finetune(weights)
        assert any(everyone in line for line in done.said), (weights, done.said)
    assert any("validation subjects were pretrained on" in line for line in done.said) == bool(
        set(done.split["val"]) & set(read_json(folder / "pretrained/run/split.json")["train"]))

    clean = pretrain(folder / "ab", tmp_path / "clean", *SHAPE, "--split", done.out / "split.json")
    assert finetune(clean).said == []
    # What it started from counts as well.
    chained = pretrain(folder / "ab", tmp_path / "chained", "--init", folder / "pretrained/w.safetensors", "--split",
                       done.out / "split.json")
    assert any(everyone in line for line in finetune(chained).said)

    seen = read_json(folder / "pretrained/w.json")["seen"]
    assert len(seen["train"]["subjects"]) == 8 and len(seen["val"]["subjects"]) == 2 and seen["complete"]
    assert "brain" not in json.dumps(seen)


def test_scans_are_known_by_other_ids_and_ids_by_other_scans(folder, finetune, tmp_path):
    preprocess(renamed(folder / "brats", tmp_path / "others", "other"), folder / "renamed", "--channels", "t1,flair")
    said = finetune(folder / "pretrained/w.pt", "renamed").said
    assert any("scans of 2 of the 2 test subjects" in line and "other_" in line for line in said), said
    pretext3d("phantom", "--kind", "brain", "--subjects", 10, "--size", 32, "--seed", 6, "--out", tmp_path / "strangers")
    preprocess(tmp_path / "strangers", folder / "strangers", "--channels", "t1,flair")
    said = finetune(folder / "pretrained/w.pt", "strangers").said
    assert any("2 of the 2 test subjects have the ids" in line for line in said) and not any("scans of" in line for line in said), said
    assert finetune(folder / "pretrained/w.pt", "strangers", "--other-people").said == []


def test_weights_that_say_nothing_are_said_to(folder, finetune, tmp_path):
    alone = tmp_path / "alone.safetensors"
    shutil.copy(folder / "pretrained/w.safetensors", alone)
    said = finetune(alone).said
    assert any("does not say whom" in line for line in said) and any("does not say what scans" in line for line in said)
    # Neither do those that start from it know all.
    chained = pretrain(folder / "ab", tmp_path / "chained", "--init", alone, "--split", tmp_path / "run/split.json")
    assert any("there may be more" in line for line in finetune(chained).said)


def test_what_earlier_versions_did_not_keep_is_said(folder, finetune, tmp_path):
    shutil.copytree(folder / "ba", folder / "old", dirs_exist_ok=True)
    index = read_json(folder / "old/index.json")
    for subject in index["subjects"]:
        del subject["images"]
    (folder / "old/index.json").write_text(json.dumps(index))
    said = finetune(folder / "pretrained/w.pt", "old").said
    assert any("whether 10 of the scans" in line and "not known" in line for line in said), said
    # Scans were known by other hashes at first.
    for n, subject in enumerate(index["subjects"]):
        subject["images"] = [f"{n:064x}"]
    (folder / "old/index.json").write_text(json.dumps(index))
    said = finetune(folder / "pretrained/w.pt", "old").said
    assert any("whether 10 of the scans" in line and "not known" in line for line in said), said
    for name, seen in (("old-run", None), ("hashes", read_json(folder / "pretrained/run/seen.json"))):
        run = shutil.copytree(folder / "pretrained/run", tmp_path / name)
        (run / "seen.json").unlink()
        if seen:
            for side in ("train", "val"):
                seen[side]["scans"] = [mark.replace("x", "0") for mark in seen[side]["scans"]]
            (run / "seen.json").write_text(json.dumps(seen))
        said = finetune(run).said
        assert any("under other ids or settings" in line for line in said) and any("have the ids" in line for line in said), said


def test_other_intensities_and_channels_are_named(folder, finetune, tmp_path):
    pretext3d("preprocess", "--data", folder / "brats", "--out", folder / "z", "--protocol", "modern", "--spacing", 2,
              "--channels", "t1,t2")
    said = finetune(folder / "pretrained/w.pt", "z", "--val-fraction", 0.3).said
    assert any("minimum and maximum" in line and "mean and standard deviation" in line for line in said), said
    assert any("t1, flair" in line and "t1, t2" in line for line in said), said
    # The same of a pretraining that starts from it.
    pretrain(folder / "z", tmp_path / "next", "--init", folder / "pretrained/w.pt")
    kept = (tmp_path / "next/run/load.txt").read_text()
    assert "minimum and maximum" in kept and "t1, t2" in kept
    warned = read_json(tmp_path / "next/run/result.json")["warnings"]
    assert len(warned) == 2 and all(f"warning: {line}" in kept for line in warned)
    # Weights of others that lie in a run's folder are not taken for the run's.
    stray = shutil.copy(folder / "pretrained/w.safetensors", tmp_path / "next/run/stray.safetensors")
    assert any("does not say what scans" in line for line in finetune(stray, "z", "--val-fraction", 0.3).said)


def test_a_sweep_tries_the_network_of_the_weights_that_it_starts_from(folder, tmp_path):
    """Patches of 4 voxels are too small for the default network, not for this one of two levels."""
    config = tmp_path / "sweep.toml"
    config.write_text(
        f'name = "init"\ndata = "{folder / "ba"}"\ntasks = ["rpl"]\narms = ["full"]\nfractions = [1.0]\nseeds = [0]\n'
        f'val_fraction = 0.2\ntest_fraction = 0.2\n[pretrain]\ninit = "{folder / "pretrained/w.pt"}"\n')
    planned = pretext3d("sweep", "--config", config, "--out", tmp_path / "out", "--dry-run")
    assert "would be refused" not in planned.stderr
    config.write_text(config.read_text().split("[pretrain]")[0] + '[pretrain]\nnorm = "batch"\n[finetune]\nnorm = "batch"\n')
    assert "too small" in pretext3d("sweep", "--config", config, "--out", tmp_path / "out", "--dry-run").stderr
