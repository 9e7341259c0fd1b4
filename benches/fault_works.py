"""What `faults.py` disturbs: each command on tiny generated data, how it is taken up again, and what it leaves, for a comparison to the bit."""
import csv
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import zipfile

from common import BINARY
from safetensors import safe_open

# What depends on the clock or on the process.
TIMING = {"seconds", "samples_per_s", "wait_share", "peak_memory_mib"}
# Streams, which grow while a process lives; the system's locks.
STREAMS = ("events.", "log.txt", ".lock", ".cell-lock")
NETWORK = ["--levels", 2, "--filters", 2, "--device", "cpu", "--threads", 1]
# A checkpoint after every step.
TRAINING = [*NETWORK, "--dropout", 0.1, "--batch-size", 2, "--epochs", 3, "--steps", 3, "--save-minutes", 0]
PRETRAIN = ["pretrain", "--data", "store", "--task", "rot", "--rot-head", "gap", *TRAINING]
FINETUNE = ["finetune", "--data", "store", "--weights", "w.pt", "--test-fraction", 0.2, "--patch", 16, *TRAINING]
SWEEP = """
name = "tiny"
data = "store"
tasks = ["rot"]
arms = ["scratch", "warmup"]
fractions = [1.0]
seeds = [0, 1]
pretrain_seeds = [0]
subset_seeds = [0]
val_fraction = 0.2
test_fraction = 0.2
"""
FLAGS = {name.lstrip("-"): value for name, value in zip(TRAINING[::2], TRAINING[1::2]) if name not in ("--batch-size", "--steps")}


def toml(name, table):
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join([f"\n[{name}]", *lines, ""])


def command(*arguments):
    return [str(BINARY), *map(str, arguments)]


def run(*arguments, folder):
    """Runs a command, which must succeed; its output, both streams."""
    done = subprocess.run(command(*arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode} of {arguments}:\n{done.stdout}")
    return done.stdout


def make_inputs(folder):
    """Scans, a store, trained runs and a sweep: what the commands read."""
    folder.mkdir(parents=True)
    run("phantom", "--kind", "brain", "--subjects", 10, "--size", 32, "--seed", 1, "--out", "scans", folder=folder)
    run("preprocess", "--data", "scans", "--out", "store", "--size", 16, "--threads", 1, folder=folder)
    run(*PRETRAIN, "--encoder", "plainconv", "--levels", 3, "--out", "plain", "--weights", "p", folder=folder)
    run(*PRETRAIN, "--out", "trained", "--weights", "w", folder=folder)
    run(*FINETUNE, "--out", "tuned", folder=folder)
    (folder / "sweep.toml").write_text(SWEEP + toml("pretrain", {**FLAGS, "batch-size": 2, "steps": 2, "rot-head": "gap"})
                                       + toml("finetune", {**FLAGS, "batch-size": 2, "steps": 2, "patch": 16}))
    run("sweep", "--config", "sweep.toml", "--out", "swept", folder=folder)


class Work:
    """A command that writes into a folder, from its beginning and when it is taken up again."""

    def __init__(self, name, out, first, again=None, needs=(), started=None):
        self.name, self.out, self.first, self.needs, self.started = name, out, first, needs, started
        self.again = first if again is None else again
        # Folders that a command locks are its own, and what was left there by a kill goes when it is taken up.
        self.tidies = name in ("pretrain", "finetune", "preprocess")

    def place(self, inputs, folder):
        """A folder to work in, with what the command reads."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("scans", "store", *self.needs):
            source = inputs / name
            shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy2(source, folder / name)
        self.before = set(files(folder))

    def arguments(self, folder):
        """How a user goes on from what is there."""
        return self.again if self.started is None or (folder / self.started).exists() else self.first

    def ended(self, folder):
        """Whether the command would refuse to do again what it has done."""
        return self.name.startswith("export --to") and (folder / "out/README.md").exists() and not (folder / "out/.unfinished").exists()

    def state(self, folder):
        """Digests of all that it wrote, by name."""
        new = [path for path in files(folder) if path not in self.before and not is_stream(path)]
        return {str(path): digest(folder / path) for path in new if not is_temporary(path)}

    def leftovers(self, folder):
        return [path for path in files(folder) if is_temporary(path)]

    def progress(self, folder):
        """What is done, a number that must not fall: steps in the last checkpoints, subjects, results and predictions."""
        steps = 0
        for path in folder.glob("**/last.safetensors"):
            with safe_open(path, "np") as file:
                where = json.loads(file.metadata()["progress"])
            steps += 1000 * where["epoch"] + where["step"]
        return steps + sum(1 for path in files(folder) if path not in self.before and not is_temporary(path))


def resumed(name, first):
    """A training, taken up with --resume as soon as its folder is a run."""
    return Work(name, "run", [*first, "--out", "run", *(["--weights", "out"] if name == "pretrain" else [])], [name, "--resume", "run"],
                needs=["w.pt", "w.json", "w.safetensors"], started="run/config.json")


TRAININGS = [resumed("pretrain", PRETRAIN), resumed("finetune", FINETUNE)]
PREPROCESS = Work("preprocess", "new", ["preprocess", "--data", "scans", "--out", "new", "--size", 16, "--threads", 1])
EXPORTS = [Work("export", "out", ["export", "--run", "trained", "--out", "out/encoder"], needs=["trained"])] + [
    Work(f"export --to {program}", "out", ["export", "--run", "plain", "--to", program, "--out", "out"], needs=["plain"])
    for program in ("nnunet", "monai", "huggingface")]
SWEEP_COMMAND = ["sweep", "--config", "sweep.toml", "--out", "out"]
THE_SWEEP = Work("sweep", "out", SWEEP_COMMAND, needs=["sweep.toml"])
PREDICTION = ["predict", "--weights", "tuned", "--input", "scans", "--output", "out", "--device", "cpu", "--threads", 1]
PREDICT = Work("predict", "out", PREDICTION, [*PREDICTION, "--overwrite"], needs=["tuned"])
PROBABILITIES = Work("predict --probabilities", "out", [*PREDICTION, "--probabilities"], [*PREDICTION, "--probabilities", "--overwrite"],
                     needs=["tuned"])
OF_STORE = ["store" if argument == "scans" else argument for argument in PREDICTION]
PREDICT_STORE = Work("predict of a store", "out", OF_STORE, [*OF_STORE, "--overwrite"], needs=["tuned"])
REPORT = Work("report", "out", ["report", "swept", "--out", "out"], needs=["swept"])


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def is_temporary(path):
    return any(part.startswith(".") and part.endswith(".tmp") for part in path.parts)


def is_stream(path):
    return path.name.startswith(STREAMS)


def without_timing(value):
    if isinstance(value, dict):
        return {key: without_timing(v) for key, v in value.items() if key not in TIMING}
    return [without_timing(v) for v in value] if isinstance(value, list) else value


def digest(path):
    """SHA-256 of a file's content without its timing; an error if the file is not whole."""
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(without_timing(json.loads(content))).encode()
    elif path.suffix == ".jsonl":
        content = json.dumps([without_timing(json.loads(line)) for line in content.splitlines()]).encode()
        assert path.read_bytes().endswith(b"\n") or not path.stat().st_size, f"{path}: cut off"
    elif path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(content.decode())))
        assert content.endswith(b"\n"), f"{path}: cut off"
        content = json.dumps([without_timing(row) for row in rows]).encode()
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            assert all(file.get_tensor(name) is not None for name in file.keys())
    elif path.suffix in (".pt", ".pth"):
        # TorchScript holds the description, too.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name.split("/", 1)[1]: archive.read(name) for name in sorted(archive.namelist())}
        members.pop(".data/serialization_id", None)  # a hash of the whole
        texts = {name: without_timing(json.loads(text)) for name, text in members.items() if name.endswith(".json")}
        content = repr(sorted((members | texts).items())).encode()
    elif path.suffix in (".md", ".html"):
        content = re.sub(rb"[0-9.]+ (s|min|MiB)\b", b"", content)
    elif path.suffix == ".gz":
        content = gzip.decompress(content)
    elif path.suffix == ".png":
        assert content.endswith(b"IEND\xaeB`\x82"), f"{path}: cut off"
    return hashlib.sha256(content).hexdigest()
