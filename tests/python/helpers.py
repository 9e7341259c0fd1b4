"""What several test files need: the binary, and reading what it wrote."""
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("PRETEXT3D", ROOT / "target/debug/pretext3d")).resolve()
DUMP = os.environ.get("SCAN_DUMP", str(ROOT / "target/debug/examples/scan_dump"))
sys.path.insert(0, str(ROOT / "python"))


def command(*args):
    """Command line of a subcommand, its arguments as strings."""
    return [str(BINARY), *map(str, args)]


def pretext3d(*args, cwd=None, fails=None, **kwargs):
    """Runs the binary and returns the finished process; it must succeed, or exit with the code `fails`."""
    done = subprocess.run(command(*args), cwd=cwd, capture_output=True, text=True, timeout=300, **kwargs)
    assert done.returncode == (fails or 0), f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def refused(*args, says=(), code=1, cwd=None, **kwargs):
    """Runs the binary, which must exit with `code`, without a panic, and with every text of `says` in its message."""
    done = pretext3d(*args, cwd=cwd, fails=code, **kwargs)
    assert "panicked" not in done.stderr and "error" in done.stderr, done.stderr
    for part in says:
        assert str(part) in done.stderr, f"{part!r} is not in: {done.stderr}"
    return done.stderr


def renamed(brats, folder, name, only=None):
    """Copies a folder of brain phantoms, or those of the ids in `only`, under other ids that begin with `name`."""
    for path in sorted(brats.glob("brain_*/*")):
        if only is None or path.parent.name in only:
            subject = path.parent.name.replace("brain", name)
            (folder / subject).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / subject / path.name.replace("brain", name))
    return folder


def tensors(path):
    """Tensors of a safetensors file by name, and its metadata."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def read_json(path):
    return json.loads(Path(path).read_text())


def rows(path):
    """Rows of a CSV file as dictionaries."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def dump(files, out):
    """Runs examples/scan_dump.rs once over all files: for each its JSON line and the stem of what it wrote."""
    out.mkdir(exist_ok=True)
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # a header must not claim terabytes
    run = subprocess.run([DUMP, str(out), *map(str, files)], capture_output=True, text=True, preexec_fn=limit)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(lines) == len(files)
    return [(line, out / str(n)) for n, line in enumerate(lines)]
