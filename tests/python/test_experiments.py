"""The paper's experiments: `experiments/*.toml`, `scripts/*.sh` and `make reproduce`, without running any training."""
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
from helpers import BINARY, ROOT, command, pretext3d, refused, renamed

# The proof on public data that is small enough for two cores.
PROOF = ["hippocampus", "idrid"]
PAPER = ["brats", "brats2d", "pancreas", "pancreas2d", "retina", "scaling", "phantom", "phantom2d", "fundus"]
EXPERIMENTS = [*PROOF, *PAPER]
# Small studies whose results are committed: nothing to name, and no smoke run.
STUDIES = ["phantom", "phantom2d", "fundus"]
CONFIGURATIONS = sorted(path.stem for path in (ROOT / "experiments").glob("*.toml"))
SCRIPTS = [ROOT / "scripts" / f"{name}.sh" for name in EXPERIMENTS]
STUDY = Path("benches/results/study-phantom")
JOINT = "rot,rpl,jig,cpc,exe"
SETTINGS = ("EXP", "DATA", "UNLABELLED", "SMOKE", "JOBS", "OUT", "ARGS", "PRETEXT3D", "OMP_NUM_THREADS", "MAKEFLAGS", "MAKELEVEL")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Stores of labelled scans, so many that the smallest share of the labels leaves one: brains, and photographs with grades."""
    folder = tmp_path_factory.mktemp("stores")
    for kind, subjects, size in [("brain", 28, 32), ("fundus", 40, 64)]:
        pretext3d("phantom", "--kind", kind, "--subjects", subjects, "--size", size, "--seed", 2, "--out", folder / kind)
        pretext3d("preprocess", "--data", folder / kind, "--out", folder / f"{kind}-store", "--size", 32)
    return {"segmentation": folder / "brain-store", "classification": folder / "fundus-store"}


@pytest.fixture(scope="module")
def labelled(stores):
    return stores["segmentation"]


def settings(name, smoke=False):
    """The file as TOML, with its [smoke] table over the rest."""
    config = tomllib.loads((ROOT / f"experiments/{name}.toml").read_text())
    changes = config.pop("smoke", {}) if smoke else {}
    return {**config, **changes}


def planned(*args):
    """What a sweep would run: the arguments of each process as (subcommand, flags)."""
    lines = pretext3d("sweep", *args, "--dry-run", cwd=ROOT).stdout.splitlines()
    parsed = [shlex.split(line) for line in lines]
    assert all(line[0] == str(BINARY) for line in parsed)
    return [(line[1], dict(flag.lstrip("-").split("=", 1) for flag in line[2:] if "=" in flag)) for line in parsed]


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations_are_accepted_and_complete(name, smoke, stores, store, tmp_path):
    out = tmp_path / "a sweep's folder"
    data = stores[settings(name)["finetune"].get("task", "segmentation")]
    args = ["--config", f"experiments/{name}.toml", "--data", data, "--out", out, *["--smoke"] * smoke]
    if name.removesuffix("-frozen") in STUDIES and smoke:
        refused("sweep", *args, cwd=ROOT, says=[f"experiments/{name}.toml", "[smoke]"])
        return
    config = settings(name, smoke)
    if "unlabelled" in config:
        args += ["--unlabelled", store, "--other-people"]
    runs = planned(*args)
    assert not out.exists()
    shares = config.get("unlabelled_fractions", [1.0])
    pretrained = [(flags["task"], float(flags["fraction"])) for kind, flags in runs if kind == "pretrain"]
    # One for each seed of pretraining, and for each fold, unless other scans are pretrained on.
    folds, encoders = config.get("folds", 1), len(config.get("pretrain_seeds", config["seeds"]))
    times = (1 if "unlabelled" in config else folds) * encoders
    assert sorted(pretrained) == sorted([(task, share) for task in config["tasks"] for share in shares] * times)
    # Runs that choose rates are of repetitions of their own.
    tuning = [flags for kind, flags in runs if kind == "finetune" and "/tuning/" in flags["out"]]
    assert len(tuning) % max(1, len(config.get("lr_grid", []))) == 0 and bool(tuning) == ("lr_grid" in config)
    cells = [flags for kind, flags in runs if kind == "finetune" and "/tuning/" not in flags["out"]]
    # Numbers of labelled subjects are shares of the training side.
    fractions = {float(cell["fraction"]) for cell in cells}
    assert len(fractions) == len(config.get("fractions", config.get("labelled")))
    grid = len(fractions) * len(config["seeds"]) * folds
    baselines = len({"scratch", "random"} & set(config["arms"]))
    assert len(cells) == len({flags["out"] for flags in cells})
    assert len(cells) == grid * (baselines + (len(config["arms"]) - baselines) * len(pretrained) // times)
    assert {(float(c["fraction"]), int(c["seed"])) for c in cells if c["arm"] == "scratch"} == {
        (fraction, seed) for fraction in config.get("fractions", fractions) for seed in config["seeds"]
    }
    # The same training for every arm: nothing but weights, arm, fraction, seed, fold and folder differs.
    own = {"weights", "arm", "fraction", "seed", "subset-seed", "out", "split"}
    # Where a table says so, also whether a decoder travels.
    own |= {"transfer"} if "pretext" in settings(name)["finetune"] else set()
    assert len({c["split"] for c in cells}) == folds
    assert len({tuple(sorted((k, v) for k, v in c.items() if k not in own)) for c in cells}) == 1
    # Pretraining on the labelled store must keep away from its test side.
    splits = {flags.get("split") for kind, flags in runs if kind == "pretrain"}
    assert splits == ({None} if "unlabelled" in config else {c["split"] for c in cells})
    again = [flags for kind, flags in planned(*args, "--unlabelled", store, "--other-people") if kind == "pretrain"]
    assert all(flags["data"] == str(store) and "split" not in flags for flags in again)


def test_protocol_of_the_paper():
    five = JOINT.split(",")
    for name in PAPER:
        config = settings(name)
        assert set(config["tasks"]) >= set(["exe"] if name == "phantom2d" else five)
        assert len(config["seeds"]) >= 3 or config["folds"] == 5
        assert config["arms"] == ["scratch", "warmup", *["frozen", "random"] * (name == "fundus")]
        smoke = settings(name, smoke=True)
        assert smoke["tasks"] == config["tasks"] and smoke["arms"] == config["arms"]
        if name in ("brats", "brats2d", "pancreas", "pancreas2d", "retina"):
            assert (JOINT in config["tasks"]) == (name in ("brats", "pancreas"))
            assert config["fractions"] == [0.05, 0.1, 0.25, 0.5, 1.0]
            assert len(smoke["fractions"]) == 2 and (len(smoke["seeds"]) == 2 or smoke["folds"] == 2)
    # A 2D baseline differs from its 3D experiment in what is trained only, not in data, split and grid of runs.
    for name in ("brats", "pancreas", "phantom"):
        volumes, slices = settings(name), settings(f"{name}2d")
        same = ["data", "unlabelled", "arms", "fractions", "seeds", "val_fraction", "test_fraction", "split_seed"]
        assert all(volumes.get(key) == slices.get(key) for key in same)
        for table in ("pretrain", "finetune"):
            assert slices[table]["slices"] == "axial" and "slices" not in volumes[table]
            assert all(slices[table].get(key) == volumes[table].get(key) for key in ("epochs", "steps", "filters", "levels", "lr"))
        # As many voxels a fine-tuning step; two are the default batch.
        batch, side = volumes["finetune"].get("batch-size", 2), volumes["finetune"]["patch"]
        assert slices["finetune"]["batch-size"] * slices["finetune"]["patch"] ** 2 == pytest.approx(batch * side**3, rel=0.05)
    retina = settings("retina")["pretrain"]
    assert retina["encoder"] == "densenet121" and retina["window"] == 224
    assert retina["rpl"]["rpl-jitter"] == retina["jig"]["jig-jitter"] == 8 and retina["cpc"]["cpc-grid"] == 5
    assert settings("scaling")["unlabelled_fractions"] == [0.1, 0.25, 0.5, 1.0]
    # The committed studies had one encoder and one label subset; what nobody has run yet answers whether it would help again.
    for name in CONFIGURATIONS:
        one = {key: settings(name).get(key) for key in ("pretrain_seeds", "subset_seeds")}
        assert one == dict.fromkeys(one, [0] if name.removesuffix("-frozen") in STUDIES else None)
    published = settings("brats")["published"]
    curves = {
        "cpc": [0.76, 0.78, 0.82, 0.91], "jig": [0.71, 0.76, 0.81, 0.90], "rot": [0.74, 0.77, 0.80, 0.90],
        "rpl": [0.74, 0.75, 0.80, 0.91], "exe": [0.75, 0.77, 0.80, 0.91], "scratch": [0.42, 0.58, 0.72, 0.88],
    }
    found = {(p["pretext"], p["fraction"]): p["value"] for p in published}
    assert found == {(t, f): v for t, values in curves.items() for f, v in zip([0.1, 0.25, 0.5, 1.0], values)}
    assert all("background" in p["metric"] and "pooled" in p["metric"] and "reference" in p["source"] for p in published)
    # Figures of BraTS beside phantoms would mislead.
    assert not settings("brats", smoke=True)["published"]


def test_protocol_of_the_proof():
    # Patches of relative patch location are too small for the hippocampus's network.
    for name, fractions, small in [("hippocampus", None, {"rpl"}), ("idrid", [0.1, 1.0], set())]:
        config = settings(name)
        assert set(config["tasks"]) >= {"rot", "rpl", "jig", "cpc", "exe", "mae", "simclr"} - small
        assert config.get("fractions") == fractions and (len(config["seeds"]) >= 5 or config["folds"] == 5)
        # Every repetition has an encoder and a label subset of its own, seen by no scan that is held out.
        assert not {"unlabelled", "pretrain_seeds", "subset_seeds"} & set(config)
        assert config["pretrain"]["norm"] == config["finetune"]["norm"] and settings(name, smoke=True)["tasks"] == config["tasks"]
    hippocampus = settings("hippocampus")
    assert hippocampus["labelled"] == [1, 3, 6, 13, "all"] and "vf" in hippocampus["tasks"]
    assert hippocampus["arms"] == ["scratch", "full"] and hippocampus["lr_grid"]
    # Left and right are the same eye to a grade, and not the same hippocampus.
    assert settings("idrid")["finetune"]["aug-flip"] > 0 and "aug-flip" not in hippocampus["finetune"]


def test_a_misspelt_flag_shows_before_anything_is_written(labelled, tmp_path):
    config = tmp_path / "sweep.toml"
    config.write_text((ROOT / "experiments/brats.toml").read_text().replace("batch-size", "batch-sizes"))
    says = ["scratch-scratch-f0.05-s0", "--batch-sizes"]
    refused("sweep", "--config", config, "--data", labelled, "--out", tmp_path / "out", "--dry-run", says=says)
    refused("sweep", "--config", config, "--data", labelled, "--out", tmp_path / "out", says=says)
    assert not (tmp_path / "out").exists()


def environment(**more):
    return {**{k: v for k, v in os.environ.items() if k not in SETTINGS}, **{k: str(v) for k, v in more.items()}}


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], ["EXP=", *EXPERIMENTS]),
        (["EXP=brast"], ["EXP=brast", *EXPERIMENTS]),
        (["EXP=brats pancreas"], ["EXP=brats pancreas", "expected"]),
        (["EXP=brats"], ["DATA is missing", "Register for BraTS", "DATA=/path", "SMOKE=1"]),
        (["EXP=scaling"], ["DATA is missing", "Register for BraTS"]),
        (["EXP=pancreas"], ["DATA is missing", "Task07_Pancreas", "dataset.json"]),
        (["EXP=pancreas", "DATA=/no where"], ["DATA=/no where", "no such folder", "Task07_Pancreas"]),
        (["EXP=brats", "DATA=/", "UNLABELLED=/no where"], ["UNLABELLED=/no where", "no such folder"]),
        (["EXP=brats", "SMOKE=1", "DATA=/"], ["SMOKE=1", "DATA"]),
        (["EXP=pancreas", "DATA=/", "UNLABELLED=/"], ["pancreas takes no UNLABELLED"]),
        (["EXP=phantom", "DATA=/"], ["phantom takes no DATA"]),
        (["EXP=pancreas2d"], ["DATA is missing", "Task07_Pancreas"]),
        (["EXP=retina"], ["DATA is missing", "APTOS 2019", "train.csv"]),
        (["EXP=hippocampus"], ["DATA is missing", "Task04_Hippocampus", "SMOKE=1"]),
        (["EXP=hippocampus", "DATA=/"], ["DATA=/: has no dataset.json, imagesTr, labelsTr", "Task04_Hippocampus"]),
        (["EXP=idrid", "DATA=/"], ["DATA=/: has no labels.csv, images", "id_code"]),
        (["EXP=idrid", "UNLABELLED=/"], ["idrid takes no UNLABELLED"]),
        (["EXP=fundus", "UNLABELLED=/"], ["fundus takes no UNLABELLED"]),
        (["EXP=phantom", "SMOKE=1"], ["phantom takes no SMOKE"]),
        (["EXP=brats", "SMOKE=1", "JOBS=two"], ["JOBS=two", "whole number"]),
    ],
)
def test_make_reproduce_says_what_is_wrong(arguments, says, stub):
    # The stub keeps a mistake here from building anything.
    done = subprocess.run(["make", "reproduce", *arguments], cwd=ROOT, env=stub.environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    for part in says:
        assert part in done.stderr.splitlines()[0], done.stderr
    assert not stub.commands()


def test_a_folder_that_is_another_one_is_named(stub, tmp_path):
    for task in ("Task04_Hippocampus", "Task07_Pancreas"):
        for part in ("imagesTr", "labelsTr"):
            (tmp_path / "msd" / task / part).mkdir(parents=True)
        (tmp_path / "msd" / task / "dataset.json").write_text(json.dumps({"name": task.split("_")[1]}))
    here = tmp_path / "msd/Task04_Hippocampus"
    for data, says in [
        (here.parent, f"it holds Task04_Hippocampus; name that folder: DATA={here}"),
        (here / "imagesTr", f"has dataset.json: DATA={here}"),
        (here.parent / "Task07_Pancreas", "its dataset.json does not speak of Hippocampus"),
    ]:
        done = stub.run(ROOT / "scripts/hippocampus.sh", tmp_path, DATA=data)
        assert done.returncode == 2 and f"error: DATA={data}: " in done.stderr and says in done.stderr, done.stderr
        assert not stub.commands()
    done = stub.run(ROOT / "scripts/hippocampus.sh", tmp_path, DATA=here, JOBS=1)
    assert done.returncode == 0 and [line[0] for line in stub.commands()] == ["preprocess", "sweep"]
    assert stub.commands()[0][-3:] == ["--intensity", "z-score", "--skip-duplicates"]


def test_shell_syntax():
    for script in sorted((ROOT / "scripts").glob("*.sh")):
        subprocess.run(["bash", "-n", script], check=True)
    assert all(os.access(script, os.X_OK) for script in SCRIPTS)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=ROOT / "scripts", check=True)


class Stub:
    """A program in the binary's place that writes down how it is called; a sweep runs `sweep` lines of shell."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.log, self.program, self.out = folder / "log", folder / "pretext3d", folder / "results"
        self.write()

    def write(self, sweep="", before=""):
        self.program.write_text(
            "#!/bin/bash\nline=$(printf '%q ' \"$@\")\necho \"$line\" >>" + shlex.quote(str(self.log))
            + f'\ncd {shlex.quote(str(self.folder))}\n{before}\nif [ "$1" = sweep ]; then\n:\n{sweep}\nfi\n'
        )
        self.program.chmod(0o755)

    def environment(self, **more):
        return environment(PRETEXT3D=self.program, **{"OUT": self.out, **more})

    def run(self, script, cwd, **more):
        self.log.unlink(missing_ok=True)
        env = self.environment(**more)
        return subprocess.run([script], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)

    def commands(self):
        return [shlex.split(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def stub(tmp_path):
    return Stub(tmp_path / "the stub's folder")


def flag(line, name):
    return line[line.index(name) + 1]


@pytest.mark.parametrize("script", SCRIPTS, ids=EXPERIMENTS)
def test_commands_of_a_script(script, stub, tmp_path):
    smoke = {} if script.stem in STUDIES else {"SMOKE": 1}
    done = stub.run(script, tmp_path, JOBS=2, **smoke)
    assert done.returncode == 0, done.stderr
    lines = stub.commands()
    # Each is shown before it runs.
    assert len([line for line in done.stderr.splitlines() if line.startswith("+ ") and f"{stub.program} " in line]) == len(lines)
    order = [line[0] for line in lines]
    assert order[0] == "phantom" and set(order) - {"report"} == {"phantom", "preprocess", "sweep"}
    stores = {flag(line, "--out"): flag(line, "--data") for line in lines if line[0] == "preprocess"}
    phantoms = {flag(line, "--out") for line in lines if line[0] == "phantom"}
    assert set(stores.values()) == phantoms
    sweeps = [line for line in lines if line[0] == "sweep"]
    for line in sweeps:
        assert ("--smoke" in line) == bool(smoke) and Path(flag(line, "--config")).stem in (script.stem, f"{script.stem}-frozen")
        assert {flag(line, name) for name in ("--data", "--unlabelled") if name in line} <= set(stores)
        assert flag(line, "--jobs") == "2"
    folders = [flag(line, "--out") for line in sweeps]
    assert len(set(folders)) == len(folders)
    reports = [line[1:] for line in lines if line[0] == "report"]
    # Of 2D beside 3D, where the 3D sweep is there: that of the phantoms is committed.
    common = [[str(STUDY), folders[0], "--out", f"{folders[0]}/report-2d-3d"]] if script.stem == "phantom2d" else []
    assert reports == common
    if script.stem in ("brats", "brats2d", "retina"):
        # On the training side alone, and on other scans.
        assert ["--unlabelled" in line for line in sweeps] == [False, True]
    if script.stem in STUDIES:
        # What the committed results were made from.
        config = settings(script.stem)
        assert set(stores) == {config["data"], config["unlabelled"]}
        sizes = [[flag(l, f"--{n}") for n in ("subjects", "size", "seed")] for l in lines if l[0] == "phantom"]
        made = [["400", "192", "1"], ["600", "192", "2"]] if script.stem == "fundus" else [["96", "48", "1"], ["128", "48", "2"]]
        assert sizes == made and done.stderr.count("OMP_NUM_THREADS=1 ") == len(sweeps)


def test_2d_is_reported_beside_the_3d_sweep(stub, tmp_path):
    there = stub.out / "sweep-brats-smoke"
    there.mkdir(parents=True)
    (there / "sweep.json").touch()
    done = stub.run(ROOT / "scripts/brats2d.sh", tmp_path, SMOKE=1)
    assert done.returncode == 0, done.stderr
    folders = [f"{stub.out}/sweep-brats2d-smoke{end}" for end in ("", "-other")]
    reports = [line[1:] for line in stub.commands() if line[0] == "report"]
    common = [str(there), folders[0], "--out", f"{folders[0]}/report-2d-3d"]
    assert reports == [common]
    assert "sweep-brats-smoke-other is not there" in done.stderr


def test_paths_with_spaces_from_any_folder(stub, tmp_path):
    here = tmp_path / "a folder of mine"
    (here / "my scans").mkdir(parents=True)
    (here / "other scans").mkdir()
    more = {"DATA": "my scans", "UNLABELLED": "other scans", "OUT": "my results", "JOBS": 1, "ARGS": "--config my.toml"}
    done = stub.run(ROOT / "scripts/brats.sh", here, **more)
    assert done.returncode == 0, done.stderr
    lines = stub.commands()
    assert [line[0] for line in lines] == ["preprocess", "sweep"] * 2
    assert [flag(line, "--data") for line in lines if line[0] == "preprocess"] == [str(here / "my scans"), str(here / "other scans")]
    assert "--no-labels" not in lines[0] and "--no-labels" in lines[2] and "--smoke" not in lines[1]
    assert lines[1][-2:] == ["--config", "my.toml"] and flag(lines[1], "--jobs") == "1"
    assert flag(lines[1], "--out") == str(here / "my results/sweep-brats") != flag(lines[3], "--out")


def test_scripts_do_not_pretrain_on_what_is_tested_on(labelled, tmp_path):
    """With the real binary in small: the scans of UNLABELLED, prepared as the script does it, are those of DATA by other names."""
    program = tmp_path / "small"
    program.write_text(f'#!/bin/bash\ncd {shlex.quote(str(tmp_path))}\nexec {shlex.quote(str(BINARY))} "${{@/#128/16}}"\n')
    program.chmod(0o755)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    brains = labelled.parent / "brain"
    env = environment(PRETEXT3D=program, DATA=brains, UNLABELLED=renamed(brains, tmp_path / "other", "twin"), JOBS=1, ARGS="--dry-run")
    done = subprocess.run([ROOT / "scripts/scaling.sh"], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "--no-labels" in done.stderr and "holds 12 scans that are held out" in done.stderr, done.stderr


def test_a_failure_stops_the_script(stub, tmp_path):
    stub.write(before='[ "$1" != preprocess ] || exit 1')
    done = stub.run(ROOT / "scripts/brats.sh", tmp_path, SMOKE=1)
    assert done.returncode == 1 and [line[0] for line in stub.commands()] == ["phantom", "phantom", "preprocess"]
    stub.write(sweep="exit 1")
    done = stub.run(ROOT / "scripts/brats.sh", tmp_path, SMOKE=1)
    assert done.returncode == 1 and [line[0] for line in stub.commands()][-2:] == ["preprocess", "sweep"]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGINT, 0)])
def test_a_signal_stops_the_sweep_once(number, code, stub, tmp_path):
    """Saved, and the script with it, also where the sweep had just finished; the user's impatience changes nothing."""
    stub.write(sweep=f'trap "echo told >>told" TERM INT\ntouch started\nwhile [ ! -s told ]; do sleep 0.1; done\nsleep 1\nexit {code}')
    env = stub.environment(SMOKE=1, JOBS=2)
    process = subprocess.Popen([ROOT / "scripts/brats.sh"], cwd=tmp_path, env=env, stderr=subprocess.PIPE, start_new_session=True)
    until = time.time() + 60
    for file in ("started", "told"):
        while not (stub.folder / file).exists():
            assert time.time() < until and process.poll() is None
            time.sleep(0.05)
        # As a terminal does it, to the whole group.
        os.killpg(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert (stub.folder / "told").read_text() == "told\n"
    assert [line[0] for line in stub.commands()][-2:] == ["preprocess", "sweep"]
