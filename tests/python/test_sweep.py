"""Sweeps end to end: every cell once, killed and taken up again, sharded, grown, with failures, and bad configurations."""
import json
import os
import re
import shutil
import signal
import subprocess
import time
from itertools import product

import pytest
from helpers import command, pretext3d, read_json, refused, renamed, rows

CONFIG = """
name = "tiny"
data = "{data}"
tasks = {tasks}
arms = {arms}
fractions = {fractions}
seeds = {seeds}
val_fraction = 0.2
{test}
{vary}

[pretrain]
filters = 2
levels = 2
epochs = 1
steps = {steps}
batch-size = 2
val-draws = 1
device = "cpu"
precision = "fp32"
threads = 1

[pretrain.rot]
rot-head = "gap"

[finetune]
filters = 2
levels = 2
epochs = 2
steps = {steps}
loss = "{loss}"
device = "cpu"
precision = "fp32"
threads = 1
{more}
"""
DEFAULTS = {"tasks": ["rot"], "arms": ["scratch", "warmup"], "fractions": [0.25, 1.0], "seeds": [0, 1], "steps": 1,
            "loss": "dice", "test": "test_fraction = 0.2",
            "vary": "pretrain_seeds = [0]\nsubset_seeds = [0]"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eleven labelled brains of 16^3, seven of them to train on."""
    folder = tmp_path_factory.mktemp("sweep")
    pretext3d("phantom", "--kind", "brain", "--subjects", 11, "--size", 32, "--seed", 3, "--out", folder / "brats")
    pretext3d("preprocess", "--data", folder / "brats", "--out", folder / "store", "--size", 16)
    return folder / "store"


def written(path, data, more="", **changes):
    text = CONFIG.format(data=data, more=more, **{k: str(v).replace("'", '"') for k, v in (DEFAULTS | changes).items()})
    path.write_text(text)
    return path


def sweep(config, out, *more):
    return ["sweep", "--config", config, "--out", out, *more]


def results(out):
    """The records of finished work by folder, with when each was written."""
    return {str(path.parent.relative_to(out)): path.stat().st_mtime_ns for path in sorted(out.glob("*/*/result.json"))}


def names(tasks=("rot",), fractions=("0.25", "1"), seeds=(0, 1)):
    """Folders of a whole sweep of scratch and warmup."""
    cells = {f"cells/{p}-{'scratch' if p == 'scratch' else 'warmup'}-f{f}-s{s}"
             for p, f, s in product(("scratch", *tasks), fractions, seeds)}
    return cells | {f"pretrain/{task}" for task in tasks}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A sweep that ran at one go, with its configuration."""
    folder = tmp_path_factory.mktemp("finished")
    config = written(folder / "tiny.toml", data)
    done = pretext3d(*sweep(config, folder / "out"), cwd=folder)
    return folder / "out", config, done


def scores(out):
    """What a sweep computed, cell by cell."""
    timing = {"seconds", "peak_memory_mib", "weights"}
    records = {path.parent.name: read_json(path) for path in out.glob("cells/*/result.json")}
    return {cell: {key: value for key, value in record.items() if key not in timing} for cell, record in records.items()}


def test_every_cell_once_and_a_report(finished):
    out, _, done = finished
    assert set(results(out)) == names()
    assert len(re.findall(r"^\S+-f\S+: dice ", done.stdout, re.M)) == 8 and "9 done" in done.stderr
    split = read_json(out / "split.json")
    table = rows(out / "report/results.csv")
    assert len(table) == 8 and (out / "report/report.html").is_file()
    # A pretraining of seconds took more than no minutes.
    assert re.search(r"^\| rot \|.*\| (\d+ min )?\d+ s \|$", (out / "report/report.md").read_text(), re.M)
    # What `report` prints follows the cells.
    printed = pretext3d("report", out).stdout
    assert "\nrot warmup " in printed and printed.endswith(f"\n{out / 'report/report.html'}\n") and done.stdout.endswith(printed)
    for cell in read_json(out / "sweep.json")["cells"]:
        folder = out / "cells" / cell["id"]
        result, settings = read_json(folder / "result.json"), read_json(folder / "config.json")["settings"]
        for key in ("pretext", "arm", "fraction", "seed", "rank"):
            assert result[key] == cell[key]
        assert read_json(folder / "split.json") == split
        assert [result[f"{side}_subjects"] for side in ("train", "val", "test")] == [{0.25: 2, 1: 7}[cell["fraction"]], 2, 2]
        assert (settings["weights"] == "none") == (cell["pretext"] == "scratch")
    # Pretrained on the training side alone: what is tested on was not seen.
    assert read_json(out / "pretrain/rot/split.json") == split
    message = (out / "pretrain/rot/log.txt").read_text()
    assert "7 training and 2 validation scans" in message


def test_again_does_nothing_and_reports_the_same(finished):
    out, config, _ = finished
    before, report = results(out), {path.name: path.read_bytes() for path in (out / "report").iterdir()}
    done = pretext3d(*sweep(config, out), cwd=out.parent)
    assert results(out) == before and "0 of 9" in done.stderr
    pretext3d("report", out)
    assert {path.name: path.read_bytes() for path in (out / "report").iterdir()} == report


def started(config, out, *more):
    return subprocess.Popen(command(*sweep(config, out, *more)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(process):
    """Processes of a sweep's cells."""
    task = f"/proc/{process.pid}/task/{process.pid}/children"
    return [int(pid) for pid in open(task).read().split()]


def wait_for(process, what):
    deadline = time.monotonic() + 240
    while not (found := what()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_killed_and_run_again(data, finished, tmp_path):
    out, config = tmp_path / "out", written(tmp_path / "tiny.toml", data)
    # The sweep itself, by a signal that nothing can catch, in a fine-tuning that trains.
    process = started(config, out)
    wait_for(process, lambda: len(results(out)) >= 3)
    wait_for(process, lambda: children(process))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = results(out)
    assert 3 <= len(before) < 9
    # Stopped by Ctrl-C: every cell that runs is told, and saved.
    process = started(config, out, "--jobs", 2)
    side_by_side = wait_for(process, lambda: (pids := children(process))[1:] and pids)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130 and "run the same command to go on" in message, message
    assert len(side_by_side) == 2 and not any(os.path.exists(f"/proc/{pid}") for pid in side_by_side)
    before |= results(out)
    assert len(before) < 9
    done = pretext3d(*sweep(config, out, "--jobs", 4))
    assert all(re.fullmatch(r"\S+: (dice [01]\.\d{4}|pretrained), \d+ s", line) for line in done.stdout.split("\n\n")[0].splitlines()[:-1])
    after = results(out)
    assert set(after) == names() and all(after[name] == when for name, when in before.items()), "done work was repeated"
    assert scores(out) == scores(finished[0])
    assert (out / "report/report.html").is_file()


def test_a_killed_cell_is_named_and_the_others_are_done(data, tmp_path):
    out = tmp_path / "out"
    config = written(tmp_path / "long.toml", data, arms=["scratch"], tasks=[], fractions=[1.0], steps=100)
    process = started(config, out, "--jobs", 2)
    victim = wait_for(process, lambda: children(process))[0]
    wait_for(process, lambda: (out / "cells/scratch-scratch-f1-s0/config.json").exists())
    # By its own id, a child of the process above.
    subprocess.run(["kill", "-KILL", str(victim)], check=True)
    _, message = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "scratch-scratch-f1-s0: killed by signal 9" in message and "1 failed: scratch-scratch-f1-s0" in message, message
    assert list(results(out)) == ["cells/scratch-scratch-f1-s1"]
    before = results(out)
    pretext3d(*sweep(config, out))
    after = results(out)
    assert len(after) == 2 and after["cells/scratch-scratch-f1-s1"] == before["cells/scratch-scratch-f1-s1"]


def test_shards_at_the_same_time(data, finished, tmp_path):
    out, config = tmp_path / "out", written(tmp_path / "tiny.toml", data)
    shards = [started(config, out, "--shard", f"{i}/2") for i in (1, 2)]
    ended = [process.communicate(timeout=280) for process in shards]
    assert [process.returncode for process in shards] == [0, 0], ended
    assert set(results(out)) == names()
    printed = [re.findall(r"^(\S+): dice ", text, re.M) for text, _ in ended]
    assert not set(printed[0]) & set(printed[1]) and len(printed[0]) + len(printed[1]) == 8
    assert scores(out) == scores(finished[0])
    assert (out / "report/results.csv").is_file()


def test_a_shard_alone_does_not_wait_for_ever(data, tmp_path):
    """The second shard has no pretraining of its own, and nobody runs the first."""
    out, config = tmp_path / "out", written(tmp_path / "tiny.toml", data, fractions=[1.0], seeds=[0])
    done = pretext3d(*sweep(config, out, "--shard", "2/2"))
    assert set(results(out)) == {"pretrain/rot", "cells/rot-warmup-f1-s0"} and "this shard is done" in done.stdout
    assert not (out / "report").exists()
    pretext3d(*sweep(config, out, "--shard", "1/2"))
    assert set(results(out)) == names(fractions=["1"], seeds=[0]) and (out / "report").is_dir()


@pytest.mark.parametrize("shard", ["1/1", "2/2"])
def test_what_fails_at_run_time_is_named(data, tmp_path, shard):
    """A pretraining that fails: its cells are given up, the others done, with one shard and with several."""
    pretext3d("phantom", "--kind", "brain", "--subjects", 5, "--size", 32, "--seed", 9, "--out", tmp_path / "others")
    # Too few for a validation side with a triplet, which shows when the split is drawn.
    others = stored(tmp_path / "few", "--size", 16, data=tmp_path / "others")
    out, config = tmp_path / "out", written(tmp_path / "bad.toml", data, tasks=["exe"], fractions=[1.0],
                                            test=f'test_fraction = 0.2\nother_people = true\nunlabelled = "{others}"')
    says = ["pretraining exe", "at least 2 validation scans", "1 failed: pretraining exe and with it 2 cells"]
    message = refused(*sweep(config, out, "--shard", shard), says=says)
    assert "log.txt" in message
    assert all(name.startswith("cells/scratch") for name in results(out))
    assert len(results(out)) == (2 if shard == "1/1" else 0)


def test_growing_lists(data, finished, tmp_path):
    out, config = tmp_path / "out", written(tmp_path / "tiny.toml", data, fractions=[1.0], seeds=[0])
    pretext3d(*sweep(config, out))
    before = results(out)
    pretext3d(*sweep(written(config, data, fractions=[0.25, 1.0], seeds=[1, 0]), out))
    after = results(out)
    assert set(after) == names() and all(after[name] == when for name, when in before.items())
    assert scores(out) == scores(finished[0])
    message = refused(*sweep(config, out, "--data", data / "../store"), says=["`data`", "--out"])
    assert "other settings" in message
    others = {"finetune": {"loss": "dice-ce"}, "seeds": {"seeds": [0]}}
    for key, changes in others.items():
        refused(*sweep(written(config, data, **changes), out), says=[f"`{key}` was", "is now", out, "--out"])
    assert results(out) == after and len(read_json(out / "sweep.json")["cells"]) == 8


def flags_of(lines):
    """What `sweep --dry-run` prints, as subcommand and flags."""
    words = [line.split() for line in lines]
    return [(line[1], dict(word[2:].split("=", 1) for word in line[2:])) for line in words]


def test_a_repetition_varies_what_the_user_says(data, tmp_path):
    out, config = tmp_path / "out", tmp_path / "tiny.toml"

    def plan(vary, **changes):
        done = pretext3d(*sweep(written(config, data, vary=vary, seeds=[0, 3], **changes), out, "--dry-run"))
        runs = flags_of(done.stdout.splitlines())
        return done.stderr, *([flags for kind, flags in runs if kind == wanted] for wanted in ("pretrain", "finetune"))

    # Unless said otherwise an encoder and a label subset for each, which the plan counts.
    said, pretrained, tuned = plan("", fractions=[0.25])
    assert "2 pretrainings and 4 fine-tunings" in said
    assert [(run["seed"], run["out"]) for run in pretrained] == [("0", f"{out}/pretrain/rot"), ("3", f"{out}/pretrain/rot-p3")]
    encoders = {"0": f"{out}/pretrain/rot/encoder.pt", "3": f"{out}/pretrain/rot-p3/encoder.pt"}
    assert all(run["subset-seed"] == run["seed"] and run["weights"] in ("none", encoders[run["seed"]]) for run in tuned)
    assert {run["split"] for run in pretrained + tuned} == {f"{out}/split.json"}
    # One for all, or others than those of the fine-tunings.
    said, pretrained, tuned = plan("pretrain_seeds = [5]\nsubset_seeds = [8, 9]", fractions=[0.25])
    assert "1 pretrainings and 4 fine-tunings" in said and [run["seed"] for run in pretrained] == ["5"]
    assert {(run["seed"], run["subset-seed"]) for run in tuned} == {("0", "8"), ("3", "9")}
    # Splits of their own, also of folds: then each pretrains on its own training side.
    for test, folds in (("test_fraction = 0.2", [""]), ("folds = 2", ["-k0", "-k1"])):
        said, pretrained, tuned = plan("split_seeds = [6, 7]\npretrain_seeds = [0]", fractions=[1.0], test=test)
        names = {("0", f"-d6{fold}") for fold in folds} | {("3", f"-d7{fold}") for fold in folds}
        assert {(run["seed"], run["split"]) for run in tuned} == {(seed, f"{out}/split{name}.json") for seed, name in names}
        assert {(run["out"], run["split"]) for run in pretrained} == {
            (f"{out}/pretrain/rot{name}", f"{out}/split{name}.json") for _, name in names}
        assert all(run["weights"] == "none" or run["split"][len(f"{out}/split"):-5] in run["weights"] for run in tuned)
    for vary, says in {
        "pretrain_seeds = [1, 2, 3]": ["`pretrain_seeds` has 3 seeds", "the 2 `seeds`"],
        "subset_seeds = []": ["`subset_seeds` has 0 seeds"],
        "split_seed = 4\nsplit_seeds = [1, 2]": ["`split_seed` or `split_seeds`"],
    }.items():
        refused(*sweep(written(config, data, vary=vary, seeds=[0, 3]), out), says=[config, *says])
    assert not out.exists()


VARIANTS = """
[finetune.pretext.rotation]
dropout = 0.1
batch-size = 3

[finetune.arm.scratch]
lr = 0.01

[finetune.arm.slow]
base = "full"
lr = 1e-4
batch_size = 4
"""


def test_arms_and_variants_have_settings_of_their_own(data, tmp_path):
    out, fixed = tmp_path / "out", {"seeds": [0], "fractions": [1.0]}
    config = written(tmp_path / "arms.toml", data, arms=["scratch", "full", "slow", "random"], more=VARIANTS, **fixed)
    runs = flags_of(pretext3d(*sweep(config, out, "--dry-run")).stdout.splitlines())
    found = {run["out"].split("/")[-1]: {key: run.get(key) for key in ("arm", "lr", "dropout", "batch-size")}
             for kind, run in runs if kind == "finetune"}
    assert found == {
        "scratch-scratch-f1-s0": {"arm": "scratch", "lr": "0.01", "dropout": None, "batch-size": None},
        "rot-full-f1-s0": {"arm": "full", "lr": None, "dropout": "0.1", "batch-size": "3"},
        "rot-slow-f1-s0": {"arm": "full", "lr": "0.0001", "dropout": "0.1", "batch-size": "4"},
        "random-frozen-f1-s0": {"arm": "frozen", "lr": None, "dropout": None, "batch-size": None},
    }
    # As they run and are reported; more variants may follow, those that ran keep their settings.
    written(config, data, arms=["scratch", "full"], more=VARIANTS, **fixed)
    pretext3d(*sweep(config, out))
    before = results(out)
    more = VARIANTS + '\n[finetune.arm.slower]\nbase = "full"\nlr = 1e-5'
    written(config, data, arms=["scratch", "full", "slower"], more=more, **fixed)
    pretext3d(*sweep(config, out))
    assert set(results(out)) - set(before) == {"cells/rot-slower-f1-s0"}
    assert read_json(out / "cells/rot-slower-f1-s0/config.json")["settings"]["lr"] == 1e-5
    text = (out / "report/report.md").read_text()
    assert "| rot slower |" in text and "slower, a variant of full: lr = 0.00001" in text and "scratch: lr = 0.01" in text
    assert "after pretraining by rotation: batch-size = 3, dropout = 0.1" in text and "slow," not in text
    written(config, data, arms=["scratch", "full", "slower"], more=more.replace("0.01", "0.02"), **fixed)
    refused(*sweep(config, out), says=["`finetune` was", "is now", out])
    for table, says in {
        "arm.slow]\nlr = 1": ['"slow"', "scratch, warmup, full, frozen or random", "`base`"],
        'arm.slow]\nbase = "ful"': ['"ful" as the base of a variant'],
        'arm.slow]\nbase = "full"\nlearning-rate = 1': ["rot-slow-f1-s0", "--learning-rate"],
        'arm.full]\nbase = "warmup"': ["[finetune.arm.full] base"],
        "arm.full]\nfilters = 4": ["[finetune.arm.full] filters", "all arms need the same"],
        "arm.full]\nseed = 4": ["[finetune.arm.full] seed", "the sweep sets it"],
        "pretext.rott]\nlr = 1": ["[finetune.pretext.rott]", "rott"],
        'pretext."rot,jig"]\nlr = 1': ["rot,jig"],
        'pretext.rot]\ntask = "classification"': ["[finetune.pretext.rot] task"],
    }.items():
        arms = ["scratch", "slow" if "arm.slow" in table else "full"]
        refused(*sweep(written(config, data, arms=arms, more=f"[finetune.{table}", **fixed), tmp_path / "new"), says=says)
    assert not (tmp_path / "new").exists()


def test_numbers_of_labelled_subjects(data, tmp_path):
    """Exactly so many, on training sides of different sizes."""
    out = tmp_path / "out"

    def of(labelled, *more, **changes):
        text = written(tmp_path / "numbers.toml", data, **({"seeds": [0], "arms": ["scratch"], "tasks": []} | changes)).read_text()
        # Folds of 3, 3, 3 and 2 subjects.
        config = tmp_path / "numbers.toml"
        config.write_text(re.sub("fractions = .*", labelled, text))
        return sweep(config, out, *more)

    folds = {"test": "folds = 4\nrun_folds = [0, 3]"}
    pretext3d(*of('labelled = [3, "all"]', **folds))
    sizes = {k: len(read_json(out / f"split-k{k}.json")["train"]) for k in (0, 3)}
    assert len(set(sizes.values())) > 1
    runs = flags_of(pretext3d(*of('labelled = [1, 3, "all"]', "--dry-run", **folds)).stdout.splitlines())
    shares = {run["out"].split("/")[-1]: float(run["fraction"]) for _, run in runs}
    assert shares == {f"scratch-scratch-n1-s0-k{k}": 1 / n for k, n in sizes.items()}
    for k, n in sizes.items():
        found = [read_json(out / f"cells/scratch-scratch-{labels}-s0-k{k}/result.json") for labels in ("n3", "f1")]
        assert [result["train_subjects"] for result in found] == [3, n]
    text = (out / "report/report.md").read_text()
    assert f"| arm | 3 labelled subjects ({300 / sizes[0]:.4g} %) | 100 % of the labels |" in text and "warning" not in text.lower()
    for labelled, says in {
        "labelled = [8]": ["`labelled`: 8 subjects", "has 7"],
        'labelled = [7, "all"]': ["`labelled`: 7 subjects are all"],
        "labelled = [0.5]": ["`labelled`", '"all"', "0.5"],
        "labelled = [1]\nfractions = [0.5]": ["`fractions`", "not both"],
        "": ["`fractions`", "`labelled`"],
    }.items():
        refused("sweep", "--config", of(labelled)[2], "--out", tmp_path / "new", says=says)


def test_every_arm_chooses_its_rate_on_the_validation_side(data, tmp_path):
    out, fixed = tmp_path / "out", {"arms": ["scratch", "full", "random"], "fractions": [0.25, 1.0], "seeds": [0], "steps": 3}

    def grid(keys, **changes):
        return written(tmp_path / "grid.toml", data, more="lr = 1e-3", vary=keys, **(fixed | changes))

    keys = "lr_grid = [3e-2, 1e-3]\nlr_grid_seeds = [7]"
    planned = pretext3d(*sweep(grid(keys), out, "--dry-run"))
    assert "1 pretrainings and up to 18 fine-tunings, of which 6 choose rates and up to 6 run at them" in planned.stderr
    runs = {run["out"]: run for kind, run in flags_of(planned.stdout.splitlines()) if kind == "finetune"}
    tuning = {name.split("/")[-1]: run for name, run in runs.items() if "/tuning/" in name}
    arms = ("scratch-scratch", "rot-full", "random-frozen")
    assert set(tuning) == {f"{arm}-f0.25-s7-lr{lr}" for arm in arms for lr in ("0.03", "0.001")}
    assert all(run["seed"] == run["subset-seed"] == "7" and run["lr"] == name.split("-lr")[1] for name, run in tuning.items())
    assert tuning["rot-full-f0.25-s7-lr0.03"]["weights"].endswith("pretrain/rot/encoder.pt")
    assert {run["lr"] for name, run in runs.items() if "/cells/" in name} == {"0.001"}
    # Two shards: the first waits for the rates, or finds them out itself.
    shards = [started(tmp_path / "grid.toml", out, "--shard", f"{i}/2", "--jobs", 2) for i in (1, 2)]
    ended = [process.communicate(timeout=280) for process in shards]
    assert [process.returncode for process in shards] == [0, 0], ended
    chosen, extra = {}, set()
    for arm in read_json(out / "rates.json")["chosen"]:
        best = {}
        for lr in ("0.001", "0.03"):
            folder = out / f"tuning/{arm['pretext']}-{arm['arm']}-f0.25-s7-lr{lr}"
            best[float(lr)] = max(json.loads(line)["val/segmentation.dice"] for line in (folder / "metrics.jsonl").read_text().splitlines())
        assert [(tried["lr"], pytest.approx(tried["score"]), tried["runs"]) for tried in arm["grid"]] == [(*item, 1) for item in best.items()]
        assert arm["lr"] == max(sorted(best), key=best.get)
        chosen[f"{arm['pretext']}-{arm['arm']}"] = arm["lr"]
        extra |= {f"cells/{arm['pretext']}-{arm['arm']}-f{f}-s0-lr0.03" for f in ("0.25", "1") if arm["lr"] == 0.03}
    assert set(chosen) == set(arms)
    cells = {f"cells/{arm}-f{f}-s0" for arm in arms for f in ("0.25", "1")}
    assert set(results(out)) == cells | extra | {f"tuning/{name}" for name in tuning} | {"pretrain/rot"}
    for name in extra:
        assert read_json(out / name / "config.json")["settings"]["lr"] == 0.03
    text, table = (out / "report/report.md").read_text(), rows(out / "report/results.csv")
    assert "every arm at its own learning rate" in text and "all at the common learning rate" in text
    assert {row["id"]: row["lr"] for row in table} == {name.split("/")[1]: "0.03" if "-lr" in name else "0.001" for name in cells | extra}
    # What is chosen stays.
    before = results(out)
    assert re.search(r"(\d+) of \1|0 of", pretext3d(*sweep(tmp_path / "grid.toml", out)).stderr) and results(out) == before
    refused(*sweep(grid(keys.replace("[3e-2,", "[1e-2, 3e-2,")), out), says=["`lr_grid` was", "is now", out])
    new = tmp_path / "new"
    for keys, says in {
        "lr_grid = [1e-3]": ["`lr_grid`", "two or more"],
        "lr_grid = [1e-3, 1e-3]": ["`lr_grid`", "different"],
        "lr_grid = [1e-3, 1e-2]\nlr_grid_seeds = [0]": ["`lr_grid_seeds`: 0", "`seeds`"],
        "lr_grid = [1e-3, 1e-2]\nlr_grid_labels = [0.5]": ["`lr_grid_labels`: 0.5"],
        "lr_grid_seeds = [5]": ["go with `lr_grid`"],
    }.items():
        refused(*sweep(grid(keys), new), says=says)
    refused(*sweep(written(tmp_path / "grid.toml", data, vary="lr_grid = [1e-3, 1e-2]", **fixed), new), says=["[finetune] lr"])


def test_encoders_and_label_subsets_differ_between_repetitions(data, finished, tmp_path):
    vary = "subset_seeds = [0, 2]"
    out, config = tmp_path / "out", written(tmp_path / "tiny.toml", data, vary=vary, fractions=[0.25])
    pretext3d(*sweep(config, out))
    found, before = scores(out), scores(finished[0])
    fingerprints = {cell: result["weights_fingerprint"] for cell, result in found.items()}
    assert fingerprints["rot-warmup-f0.25-s0"] != fingerprints["rot-warmup-f0.25-s1"]
    # Seed 0 draws as before; seed 1 trains on two other subjects.
    assert found["scratch-scratch-f0.25-s0"] == before["scratch-scratch-f0.25-s0"]
    history = [(folder / "cells/scratch-scratch-f0.25-s1/metrics.jsonl").read_text() for folder in (out, finished[0])]
    losses = [[json.loads(line)["train/loss"] for line in text.splitlines()] for text in history]
    assert losses[0] != losses[1]
    first = (out / "report/report.md").read_text().split("##")[0]
    assert "the label subset and the pretraining (one encoder for each repetition). The same for all" in first and "the split." in first
    first = (finished[0] / "report/report.md").read_text().split("##")[0]
    assert "the split, the label subset and the encoder (one for all repetitions)" in first
    # A seed keeps what it stood for.
    refused(*sweep(written(config, data, fractions=[0.25]), out), says=["seed 1 was of pretraining 1", "`pretrain_seeds`", out])


def test_a_sweep_of_an_earlier_version_had_one_encoder(data, finished, tmp_path):
    """Its record names no seeds of pretraining: it goes on where that is said, and its report says so."""
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    record = read_json(out / "sweep.json")
    for key in ("pretrain_seeds", "subset_seeds"):
        del record["settings"][key]
    (out / "sweep.json").write_text(json.dumps(record))
    assert "the encoder (one for all repetitions)" in pretext3d("report", out).stdout
    refused(*sweep(written(tmp_path / "new.toml", data, vary=""), out), says=["seed 1 was of pretraining 0", "`pretrain_seeds`"])
    assert "0 of 9" in pretext3d(*sweep(written(tmp_path / "same.toml", data), out)).stderr


def test_new_tasks_bring_tables_of_their_own(data, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    tables = "[pretrain.exe]\nlr = 2e-3\n[finetune.pretext.exe]\nlr = 1e-2"
    grown = written(tmp_path / "grown.toml", data, more=tables, tasks=["rot", "exe"])
    planned = pretext3d(*sweep(grown, out, "--dry-run")).stdout.splitlines()
    assert len(planned) == 5 and all("exe" in line for line in planned)
    assert [line.split("--lr=")[1].split()[0] for line in planned] == ["0.002"] + ["0.01"] * 4
    # What ran keeps what it had.
    refused(*sweep(written(grown, data, more="[finetune.pretext.rot]\nlr = 1e-2"), out), says=["`finetune` was"])
    grown.write_text(written(grown, data).read_text().replace('rot-head = "gap"', 'lr = 1e-2'))
    refused(*sweep(grown, out), says=["`pretrain` was"])


def test_every_fold_has_its_own_test_side_and_pretraining(data, tmp_path):
    changes = {"fractions": [1.0], "seeds": [0]}
    out, config = tmp_path / "out", written(tmp_path / "folds.toml", data, test="folds = 3\nrun_folds = [0, 2]", **changes)
    done = pretext3d(*sweep(config, out))
    cells = {f"cells/{arm}-f1-s0-k{k}" for arm in ("scratch-scratch", "rot-warmup") for k in (0, 2)}
    assert set(results(out)) == cells | {"pretrain/rot-k0", "pretrain/rot-k2"} and "2 pretrainings and 4 fine-tunings" in done.stderr
    # All folds are drawn and kept, so that those run later fit these.
    splits = [read_json(out / f"split-k{k}.json") for k in range(3)]
    everyone = sorted(entry["id"] for entry in read_json(data / "index.json")["subjects"])
    assert sorted(sum((split["test"] for split in splits), [])) == everyone and not (out / "split.json").exists()
    for k in (0, 2):
        weights = {str(out / f"pretrain/rot-k{k}/encoder.pt")}
        for arm in ("scratch-scratch", "rot-warmup"):
            cell = out / f"cells/{arm}-f1-s0-k{k}"
            result = read_json(cell / "result.json")
            assert result["fold"] == k and sorted(case["id"] for case in result["cases"]) == splits[k]["test"]
            assert read_json(cell / "split.json") == splits[k] and result["weights"] in weights | {None}
        # Its encoder saw nothing that is tested on.
        assert read_json(out / f"pretrain/rot-k{k}/split.json") == splits[k]
    text = (out / "report/report.md").read_text()
    assert "Folds share training subjects" in text and "warning" not in text.lower() and "2 folds" in text
    before = results(out)
    # The fold that was left out, without doing the others again.
    written(config, data, test="folds = 3\nrun_folds = [0, 1, 2]", **changes)
    planned = pretext3d(*sweep(config, out, "--dry-run")).stdout.splitlines()
    assert len(planned) == 3 and all("split-k1.json" in line for line in planned)
    pretext3d(*sweep(config, out))
    assert set(results(out)) - set(before) == {"pretrain/rot-k1", *(cell.replace("k0", "k1") for cell in cells if "k0" in cell)}
    refused(*sweep(written(config, data, test="folds = 4", **changes), out), says=["`folds` was 3 and is now 4"])


def stored(folder, *flags, data):
    pretext3d("preprocess", "--data", data, "--out", folder, *flags)
    return folder


def test_scans_that_are_held_out_are_not_pretrained_on(data, finished, tmp_path):
    brats, split = data.parent / "brats", read_json(finished[0] / "split.json")
    plan = sweep(written(tmp_path / "tiny.toml", data), tmp_path / "out", "--dry-run", "--unlabelled")
    twin = renamed(brats, tmp_path / "twin", "twin")
    # Whatever was done to them: without labels as scripts/experiment.sh has it, and under another name too.
    kinds = [(brats, ["--size", 16, "--no-labels"]), (twin, ["--size", 12, "--channels", "flair,t1", "--dtype", "f32"]),
             (twin, ["--protocol", "modern", "--spacing", 4, "--no-labels"])]
    for n, (scans, flags) in enumerate(kinds):
        store = stored(tmp_path / f"store{n}", *flags, data=scans)
        refused(*plan, store, "--other-people", says=[store, "holds 4 scans that are held out", data, "is tested on", "leave them out"])
    # The side that chooses the epoch counts like the one that is tested on; the training side may be pretrained on.
    sides = {side: stored(tmp_path / side, "--size", 16, "--window", "0,900",
                          data=renamed(brats, tmp_path / f"of-{side}", "twin", split[side])) for side in ("train", "val")}
    refused(*plan, sides["val"], says=["holds 2 scans", "chooses the best epoch", split["val"][0]])
    planned = pretext3d(*plan, sides["train"])
    assert len(planned.stdout.splitlines()) == 9
    # That the scans are others in kind is said before anything runs.
    assert "the window 0 to 900" in planned.stderr and "minimum and maximum" in planned.stderr

    # Other scans with the same ids are refused unless they are said to be other people's, pretrained on once for all folds.
    pretext3d("phantom", "--kind", "brain", "--subjects", 11, "--size", 32, "--seed", 9, "--out", tmp_path / "others")
    other = stored(tmp_path / "other", "--size", 16, "--no-labels", data=tmp_path / "others")
    refused(*plan, other, says=["holds 4 subjects with the ids", "brain_0", "--other-people"])
    config = written(tmp_path / "folds.toml", data, test="folds = 3\nother_people = true", fractions=[1.0], seeds=[0])
    folds = sweep(config, tmp_path / "out", "--dry-run", "--unlabelled")
    planned = pretext3d(*folds, other).stdout.splitlines()
    assert len(planned) == 7 and sum(" pretrain " in line for line in planned) == 1 and "split" not in planned[0]
    # Of a cross-validation everybody is tested on once.
    refused(*folds, sides["train"], says=["holds 7 scans", "is tested on"])
    # Of a store of an earlier version only the ids and the voxels as stored are known.
    index = read_json(other / "index.json")
    for subject in index["subjects"]:
        del subject["images"]
    (other / "index.json").write_text(json.dumps(index))
    assert "11 of its scans" in pretext3d(*folds, other).stderr


def test_2d_on_slices_has_the_subjects_of_3d_and_stands_beside_it(data, tmp_path):
    changes = {"fractions": [1.0], "seeds": [0]}
    volumes = written(tmp_path / "volumes.toml", data, arms=["scratch"], tasks=[], **changes)
    slices = written(tmp_path / "slices.toml", data, **changes)
    slices.write_text(slices.read_text().replace("threads = 1", 'threads = 1\nslices = "coronal"'))
    folders = [tmp_path / "volumes", tmp_path / "slices"]
    for config, out, rank in zip([volumes, slices], folders, [3, 2]):
        pretext3d(*sweep(config, out))
        assert {cell["rank"] for cell in read_json(out / "sweep.json")["cells"]} == {rank}
    assert read_json(folders[0] / "split.json") == read_json(folders[1] / "split.json")
    scratch = [read_json(out / "cells/scratch-scratch-f1-s0/result.json") for out in folders]
    assert [case["id"] for case in scratch[0]["cases"]] == [case["id"] for case in scratch[1]["cases"]]
    pretext3d("report", *folders, "--out", tmp_path / "both")
    text = (tmp_path / "both/report.md").read_text()
    assert all(row in text for row in ("| scratch 3D |", "| scratch 2D |", "| rot warmup 2D |")), text


# What is refused before anything runs: settings and what the message must say.
REFUSED = {
    "misspelt key": ({"more": "[finetun]\nlr = 1"}, ["finetun"]),
    "misspelt flag": ({"more": "learning-rate = 1"}, ["--learning-rate"]),
    "misspelt flag of pretraining": ({"more": "[pretrain.rpl]\njiter = 1", "tasks": ["rpl"]}, ["--jiter", "rpl"]),
    "no value of this kind": ({"more": 'lr = "fast"'}, ["--lr", "fast"]),
    "unknown task": ({"tasks": ["rotate"]}, ["rotate"]),
    "unknown arm": ({"arms": ["froozen"]}, ["froozen", "frozen"]),
    "a fraction above 1": ({"fractions": [10]}, ["fractions", "10"]),
    "no subject": ({"fractions": [0.01, 1.0]}, ["`fractions`", "0.01", "no subject of the 7"]),
    "nothing": ({"seeds": []}, ["`seeds` is empty"]),
    "no weights": ({"tasks": []}, ["`tasks` is empty"]),
    "a seed twice": ({"seeds": [1, 1]}, ["scratch-scratch-f0.25-s1", "twice"]),
    "a task twice": ({"tasks": ["rot", "rot"]}, ["rot-warmup", "twice"]),
    "a seed of pretraining as a flag": ({"more": "[pretrain.rpl]\nseed = 1", "tasks": ["rpl"]}, ["[pretrain] seed", "the sweep sets it"]),
    "a task by two names": ({"tasks": ["rot", "rotation"]}, ["rot-warmup", "twice"]),
    "what the sweep sets": ({"more": "seed = 4"}, ["[finetune] seed"]),
    "another network": ({"more": "[pretrain.rpl]\nfilters = 4", "tasks": ["rot", "rpl"]}, ["`filters`", "4", "2", "rpl"]),
    "slices on one side alone": ({"more": 'slices = "axial"'}, ["`slices`", "not set", "axial"]),
    "slices of no plane": ({"more": 'slices = "oblique"', "tasks": [], "arms": ["scratch"]}, ["[finetune] slices", "oblique"]),
    "two kinds of test side": ({"test": "test_fraction = 0.2\nfolds = 3"}, ["`test_fraction`", "`folds`"]),
    "no test side": ({"test": ""}, ["`test_fraction`", "`folds`"]),
    "one fold": ({"test": "folds = 1"}, ["`folds`", "found 1"]),
    "more folds than subjects": ({"test": "folds = 12"}, ["12 folds", "found 11"]),
    "a fold that is none": ({"test": "folds = 3\nrun_folds = [3]"}, ["`run_folds`", "0 to 2"]),
    "another downstream task": ({"more": 'task = "detection"'}, ["[finetune] task", "detection"]),
    "a patch that no scan holds": ({"more": "patch = 64"}, ["scratch", "--patch 64", "at most 32"]),
    "a patch that the encoder does not pool evenly": ({"more": "patch = 15"}, ["scratch", "15", "multiple of 2"]),
    "weights that are not there": ({"more": '[pretrain.rpl]\ninit = "gone.pt"', "tasks": ["rpl"]}, ["rpl", "gone.pt", "No such file"]),
    "a window of pretraining that no scan holds": ({"more": "[pretrain.rpl]\nwindow = 64", "tasks": ["rpl"]}, ["--window 64", "rpl", "at most 32"]),
    "a table of no task": ({"more": "[pretrain.rott]\nlr = 1"}, ["pretrain.rott"]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_before_anything_runs(data, tmp_path, kind):
    changes, says = REFUSED[kind]
    refused(*sweep(written(tmp_path / "bad.toml", data, **changes), tmp_path / "out"), says=says)
    assert not (tmp_path / "out").exists()


def test_what_the_stores_rule_out(data, tmp_path):
    config = written(tmp_path / "tiny.toml", data)
    out = tmp_path / "out"
    refused(*sweep(config, out, "--data", tmp_path / "nowhere"), says=[tmp_path / "nowhere"])
    refused(*sweep(config, out, "--unlabelled", data), says=[data, "is tested on"])
    refused(*sweep(config, out, "--shard", "3/2"), says=["3/2"], code=2)
    refused(*sweep(config, out, "--jobs", "0"), says=["--jobs"], code=2)
    refused(*sweep(config, out, "--smoke"), says=[config, "[smoke]"])
    pretext3d("preprocess", "--data", data.parent / "brats", "--out", tmp_path / "bare", "--size", 16, "--no-labels")
    refused(*sweep(config, out, "--data", tmp_path / "bare"), says=[tmp_path / "bare", "label"])
    assert not out.exists()
