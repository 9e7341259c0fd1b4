"""Given weights in a sweep, beside its own pretraining: published ones and earlier runs, their rows in the report, and what is refused."""
import json
import re
import shutil
import subprocess
import time

import pytest
import torch
import torchvision
from helpers import command, pretext3d, read_json, refused, renamed, rows
from test_sweep import flags_of, results, sweep, written

QUICK = ["--epochs", 1, "--steps", 1, "--batch-size", 2, "--val-draws", 1, "--device", "cpu", "--precision", "fp32", "--threads", 1]
ONE = {"fractions": [1.0], "seeds": [0], "arms": ["scratch", "full"], "vary": ""}


@pytest.fixture(scope="module")
def data(brains, tmp_path_factory):
    """Store of six labelled brains of 16^3, four of them to train on."""
    folder = tmp_path_factory.mktemp("given")
    pretext3d("preprocess", "--data", brains, "--out", folder / "store", "--size", 16, "--channels", "t1,flair")
    return folder / "store"


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Weights of other people's scans: of an encoder of nnU-Net's as its file, and a run of the sweeps' own encoder."""
    folder = tmp_path_factory.mktemp("others")
    pretext3d("phantom", "--kind", "brain", "--subjects", 4, "--size", 32, "--seed", 9, "--out", folder / "brats")
    renamed(folder / "brats", folder / "named", "other")
    pretext3d("preprocess", "--data", folder / "named", "--out", folder / "store", "--size", 16, "--channels", "t1,flair", "--no-labels")

    def pretrain(name, *flags):
        args = ["--data", folder / "store", "--task", "rot", "--rot-head", "gap", *QUICK, *flags]
        pretext3d("pretrain", *args, "--out", folder / name, "--weights", folder / f"{name}-w")

    pretrain("resenc", "--encoder", "resenc-s", "--features", "4,6", "--strides", "1x1x1,2x2x1")
    pretext3d("export", "--run", folder / "resenc", "--to", "nnunet", "--out", folder / "nnunet")
    pretrain("unet", "--filters", 2, "--levels", 2, "--fraction", 0.7)
    return folder


def table(name, file):
    return f'[[weights]]\nname = "{name}"\nfile = "{file}"\n'


def report(out):
    return (out / "report/report.md").read_text()


def test_a_free_encoder_is_one_row_beside_our_own(data, others, tmp_path):
    out, config, free = tmp_path / "out", tmp_path / "arms.toml", tmp_path / "free.pth"
    shutil.copy(others / "nnunet/checkpoint_final.pth", free)
    # Given weights alone, then beside a pretraining and an earlier run: lists grow.
    config.write_text(written(config, data, more=table("free", free), **ONE).read_text().replace('tasks = ["rot"]\n', ""))
    done = pretext3d(*sweep(config, out))
    assert set(results(out)) == {"cells/scratch-scratch-f1-s0", "cells/free-full-f1-s0"}
    assert '[[weights]] "free": another encoder (resenc-' in done.stderr and "features 4,6," in done.stderr
    before = results(out)
    both = table("free", free) + table("earlier", others / "unet") + "[finetune.pretext.earlier]\nlr = 2e-3\n"
    written(config, data, more=both, **ONE)
    pretext3d(*sweep(config, out))
    assert {name: when for name, when in results(out).items() if name in before} == before
    assert set(results(out)) - set(before) == {"pretrain/rot", "cells/rot-full-f1-s0", "cells/earlier-full-f1-s0"}
    assert read_json(out / "cells/earlier-full-f1-s0/config.json")["settings"]["lr"] == 2e-3

    record = {name: read_json(out / f"cells/{name}-full-f1-s0/result.json") for name in ("free", "earlier", "rot")}
    assert [result["pretext"] for result in record.values()] == ["free", "earlier", "rot"] and record["earlier"]["unlabelled"] == 0.7
    assert record["rot"]["encoder"] == record["earlier"]["encoder"] == "unet, filters 2, levels 2, norm instance"
    assert record["free"]["encoder"].endswith("strides 1x1x1,2x2x1") and record["free"]["weights"] == str(free)
    warnings = record["free"]["warnings"]
    assert any("does not say whom" in w for w in warnings) and "warnings" not in record["earlier"]
    # Their rows, what they are compared with, and what is known of them.
    text = report(out)
    for row in ("free full (another encoder than scratch)", "earlier full", "rot full"):
        assert text.count(f"| {row} |") >= 3, row
    own = text.split("### Difference to free")[1].split("###")[0]
    assert "| rot full (another encoder than free) | 100 %" in own and "earlier" not in own
    assert "| rot full | 100 %" in text.split("### Difference to earlier")[1].split("##")[0]
    known = text.split("## Given weights")[1]
    assert f"| free | {free} | resenc-" in known and "| scratch | - | unet, filters 2, levels 2, norm instance |" in known
    assert all(f"- free: {warning}"[:60] in known for warning in warnings) and "- earlier: " not in known
    assert "the given weights (earlier, free)" in text.split("##")[0] and "from the weights earlier: lr = 0.002" in text
    assert "Joint tasks" not in text and "differ in their" not in text
    assert {row["id"]: row["encoder"] for row in rows(out / "report/results.csv")}["free-full-f1-s0"] == record["free"]["encoder"]

    # The same weights elsewhere are the same; other weights of that name are not, and none are dropped.
    moved = tmp_path / "moved.pth"
    free.rename(moved)
    assert "0 of 5" in pretext3d(*sweep(written(config, data, more=both.replace(str(free), str(moved)), **ONE), out)).stderr
    shutil.copy(others / "unet-w.pt", free)
    refused(*sweep(written(config, data, more=both, **ONE), out), says=['[[weights]] "free"', free, "other weights", "another name", "--out"])
    refused(*sweep(written(config, data, more=table("free", moved), **ONE), out), says=['"earlier"', "not there any more"])
    # Cells of one name that began from different weights, as in the middle of a sweep.
    again = read_json(out / "sweep.json")
    cell = next(cell for cell in again["cells"] if cell["id"] == "free-full-f1-s0")
    again["cells"].append({**cell, "id": "other", "seed": 1})
    (out / "sweep.json").write_text(json.dumps(again))
    (out / "cells/other").mkdir()
    (out / "cells/other/result.json").write_text(json.dumps({**record["free"], "seed": 1, "weights_fingerprint": "ab" * 32}))
    assert "cells from the weights free began from different ones" in pretext3d("report", out).stdout


def test_weights_that_are_changed_meanwhile_start_no_cell(data, others, tmp_path):
    out, file = tmp_path / "out", shutil.copy(others / "unet-w.safetensors", tmp_path / "w.safetensors")
    description = shutil.copy(others / "unet-w.json", tmp_path / "w.json")
    changes = ONE | {"tasks": [], "steps": 20}
    config = written(tmp_path / "a.toml", data, more=table("a", file) + table("b", others / "unet"), **changes)
    text = description.read_text()
    with subprocess.Popen(command(*sweep(config, out)), stderr=subprocess.PIPE, text=True) as running:
        # While the first cell runs.
        while running.poll() is None and not (out / "cells/scratch-scratch-f1-s0/config.json").exists():
            time.sleep(0.01)
        description.write_text(text + " ")
        said = running.communicate()[1]
    assert running.returncode == 1 and '[[weights]] "a": ' in said and "was changed while the sweep runs" in said, said
    assert set(results(out)) == {"cells/scratch-scratch-f1-s0", "cells/b-full-f1-s0"}
    description.write_text(text)
    pretext3d(*sweep(config, out))
    assert "cells/a-full-f1-s0" in results(out)


def test_settings_and_rates_of_given_weights(data, others, tmp_path):
    plan = [tmp_path / "out", "--dry-run"]
    given = table("free", others / "nnunet/checkpoint_final.pth") + table("earlier", others / "unet-w.safetensors")
    more = "\n".join(["lr = 1e-3\ndropout = 0.1", given, "[finetune.pretext.free]\nlr = 2e-3", '[finetune.arm.slow]\nbase = "full"\nlr = 1e-5'])
    changes = ONE | {"arms": ["scratch", "full", "slow", "random"], "tasks": [], "vary": "other_people = true"}
    lines = pretext3d(*sweep(written(tmp_path / "a.toml", data, more=more, **changes), *plan)).stdout.splitlines()
    runs = {run["out"].split("/")[-1]: run for _, run in flags_of([line.replace("--other-people", "--other-people=true") for line in lines])}
    keys = ("weights", "weights-name", "arm", "lr", "filters", "dropout", "other-people")
    unet, file = str(others / "unet-w.safetensors"), str(others / "nnunet/checkpoint_final.pth")
    assert {name: [run.get(key) for key in keys] for name, run in runs.items()} == {
        "scratch-scratch-f1-s0": ["none", None, "scratch", "0.001", "2", "0.1", None],
        "random-frozen-f1-s0": ["none", None, "frozen", "0.001", "2", "0.1", None],
        # Their encoder is that of the file, so that no flag asks for another one.
        "free-full-f1-s0": [file, "free", "full", "0.002", None, "0.1", "true"],
        "free-slow-f1-s0": [file, "free", "full", "0.00001", None, "0.1", "true"],
        "earlier-full-f1-s0": [unet, "earlier", "full", "0.001", None, "0.1", "true"],
        "earlier-slow-f1-s0": [unet, "earlier", "full", "0.00001", None, "0.1", "true"],
    }
    # With the settings that are named, scratch has the same network.
    alone = ONE | {"tasks": []}
    config = written(tmp_path / "a.toml", data, more=table("free", file), **alone)
    said = re.search(r'"free": another encoder \((.*?)\)', pretext3d(*sweep(config, *plan)).stderr)[1]
    named, *others = said.split(", ")
    keys = [f'encoder = "{named}"', *(f'{key} = "{value}"' for key, value in (other.split(" ") for other in others))]
    config.write_text(config.read_text().replace("[finetune]\nfilters = 2\nlevels = 2", "\n".join(["[finetune]", *keys])))
    assert "another encoder" not in pretext3d(*sweep(config, *plan)).stderr
    grid = written(tmp_path / "a.toml", data, more=more, **(changes | {"arms": ["scratch", "full"], "vary": "lr_grid = [1e-3, 1e-2]"}))
    planned = pretext3d(*sweep(grid, *plan))
    assert "0 pretrainings and up to 18 fine-tunings, of which 12 choose rates and up to 3 run at them" in planned.stderr
    assert sum("/tuning/free-full" in line for line in planned.stdout.splitlines()) == 4


def test_torchvisions_densenet_beside_scratch_of_its_own_kind(tmp_path):
    pretext3d("phantom", "--kind", "fundus", "--subjects", 20, "--size", 48, "--out", tmp_path / "fundus")
    pretext3d("preprocess", "--data", tmp_path / "fundus", "--out", tmp_path / "store", "--size", 32)
    torch.save(torchvision.models.densenet121().state_dict(), tmp_path / "densenet121.pth")
    for encoder, other in (('encoder = "densenet121"', False), ("", True)):
        config = written(tmp_path / "a.toml", tmp_path / "store", tasks=[], **ONE)
        text = config.read_text().split("[pretrain]")[0] + f'[finetune]\ntask = "classification"\ndevice = "cpu"\n{encoder}\n'
        config.write_text(text + table("imagenet", "densenet121.pth"))
        # A path starts at the working directory.
        done = pretext3d(*sweep(config, tmp_path / "out", "--dry-run"), cwd=tmp_path)
        assert ("another encoder (densenet121)" in done.stderr) == other and "would be refused" not in done.stderr
        assert "does not say what scans it was trained on" in done.stderr and "--weights=densenet121.pth" in done.stdout


def test_refused_before_anything_runs(data, others, tmp_path):
    out, good = tmp_path / "out", others / "unet-w.pt"

    def check(more, *says, **changes):
        refused(*sweep(written(tmp_path / "bad.toml", data, more=more, **(ONE | changes)), out), says=says)
        assert not out.exists()

    for name in ("", "a b", "../x", ".x", "full", "slow", "scratch", "rot", "rotation", "rot-jig"):
        arm = '[finetune.arm.slow]\nbase = "full"\n' if name == "slow" else ""
        check(table(name, good) + arm, "[[weights]]", f'"{name}"', arms=["scratch", "slow"] if arm else ["full"])
    tune = ["finetune", "--data", data, "--weights", good, "--arm", "full", "--out", out]
    for name in ("", " ", "a\nb", "scratch", "random"):
        refused(*tune, f"--weights-name={name}", says=["--weights-name"])
    check(table("a", good) * 2, '"a"', "twice")
    check(table("a", good) + "arm = 1\n", "unknown field `arm`")
    check('[[weights]]\nname = "a"\n', "missing field `file`")
    check("", "`tasks` is empty", "[[weights]]", tasks=[])
    check(table("a", good), "none of `arms` starts from weights", arms=["scratch", "random"])
    check(table("a", good) + "[pretrain.a]\nlr = 1\n", "[pretrain.a]", "not a task")
    check(table("a", good) + "[finetune.pretext.b]\nlr = 1\n", "[finetune.pretext.b]", "no [[weights]]")
    check(table("a", good) + "[finetune.pretext.a]\nfilters = 4\n", "[finetune.pretext.a] filters", "all arms need the same")
    check(table("a", tmp_path / "none.pth"), '"a"', "none.pth", "No such file")
    check(table("a", tmp_path), '"a"', tmp_path)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes((others / "nnunet/checkpoint_final.pth").read_bytes()[:-300])
    check(table("a", damaged), '"a"', "damaged.pth")
    weights = torch.load(others / "nnunet/checkpoint_final.pth", weights_only=True)
    block = "encoder.stages.1.blocks.0.conv1"
    for name in (f"{block}.norm.bias", f"{block}.all_modules.1.bias"):
        del weights["network_weights"][name]
    torch.save(weights, tmp_path / "lacks.pth")
    check(table("a", tmp_path / "lacks.pth"), "a-full-f1-s0", "lacks.pth", f"{block}.norm.bias is missing")
    torch.save(torchvision.models.densenet121().state_dict(), tmp_path / "flat.pth")
    check(table("a", tmp_path / "flat.pth"), "a-full-f1-s0", "flat.pth", "2D data")
    check(table("a", good) + '[finetune.pretext.a]\ntransfer = "all"\n', "a-full-f1-s0", "holds no decoder")
    # Scans that are tested on were pretrained on, which no other settings and no other ids hide.
    seen = ["--data", data, "--task", "rot", "--rot-head", "gap", *QUICK, "--filters", 2, "--levels", 2]
    pretext3d("pretrain", *seen, "--out", tmp_path / "run", "--weights", tmp_path / "seen")
    for file in ("run", "seen.pt", "seen.safetensors"):
        check(table("a", tmp_path / file), '"a"', file, "of the 1 test subjects were pretrained on", vary="other_people = true")
