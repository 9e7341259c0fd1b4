"""What the benchmarks share: the machine they ran on, child processes with their peak memory, and where figures go."""
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BINARY = Path(os.environ.get("PRETEXT3D", ROOT / "target/release/pretext3d"))
PACKAGES = ("torch", "torchvision", "dynamic-network-architectures", "monai", "torchio", "nibabel", "numpy", "simpleitk", "pydicom")


def machine():
    """The machine's description, for the figures' file."""
    info = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    info = {key.strip(): value.strip() for key, value in info.items()}
    flags = set(info.get("flags", "").split())
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": info.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_flags": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        "memory_gib": round(memory / 2**20, 1),
        "gpu": gpu(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": versions,
        "commit": output("git", "rev-parse", "--short", "HEAD"),
    }


def gpu():
    names = output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return names.splitlines()[0] if names else None


def output(*command):
    """Standard output of a command, None if it cannot run."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def save(section, figures):
    """Adds a section to the file of today's figures on this class of machine."""
    description = machine()
    name = f"{description['cores']}-core-{description['cpu']}"
    if description["gpu"]:
        name = description["gpu"].split(",")[0]
    host = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = ROOT / "benches/results" / f"{datetime.date.today()}-{host}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {}
    content = {**content, "machine": description, section: figures}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"figures: {path.relative_to(ROOT)}")


def child(command):
    """Runs a command that prints JSON lines. Returns the lines and the process's peak resident memory in MiB.

    The caller must not have imported torch: a child's peak includes what its parent held when it was started.
    """
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([str(part) for part in command], stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"error: exit {process.returncode} of: {' '.join(map(str, command))}")
        out.seek(0)
        return [json.loads(line) for line in out if line.startswith("{")], usage.ru_maxrss / 1024


def summary(values):
    """Median, extremes and count."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
