#!/usr/bin/env python3
"""What each task learns on the generated brains with its default settings: held-out metrics and the time that took."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import BINARY, ROOT, save

TASKS = ["rot", "rpl", "jig", "cpc", "exe", "mae", "gen", "vf", "simclr"]
CORES = 2


def start(task, store, folder, device, extra, cores):
    out = Path(folder) / task.replace(",", "-")
    command = [BINARY, "pretrain", "--task", task, "--data", store, "--device", device, "--out", out, "--weights", out / "weights", *extra]
    pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    log = open(f"{out}.log", "w")
    return out, time.monotonic(), subprocess.Popen([str(c) for c in command], stdout=log, stderr=log, preexec_fn=pin)


def finish(task, out, started, process, device, extra):
    if process.wait():
        sys.exit(f"error: {task} failed:\n{Path(f'{out}.log').read_text()}")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    best = json.loads((out / "weights.json").read_text())["metrics"]
    figures = {
        "task": task,
        "device": device,
        "flags": extra,
        "epochs": len(rows),
        "steps": int(rows[-1]["step"]),
        "minutes": round((time.monotonic() - started) / 60, 2),
        "wait_share": max(row["wait_share"] for row in rows[1:] or rows),
        "best": {key: value for key, value in best.items() if key.startswith("val/")},
        "last": {key: value for key, value in rows[-1].items() if key.startswith("val/")},
    }
    print(f"{task}: {figures['minutes']} min, best {figures['best']}", flush=True)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=ROOT / "data/stores/phantom-brain", help="store (default: %(default)s, made by `make pretrain`)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="default: all")
    parser.add_argument("--section", default="tasks", help="name in the results file (default: %(default)s)")
    parser.add_argument("--pinned", action="store_true", help=f"run them at the same time, each on {CORES} cores of its own")
    args, extra = parser.parse_known_args()
    available = sorted(os.sched_getaffinity(0))
    if args.pinned and len(available) < CORES * len(args.tasks):
        sys.exit(f"error: --pinned needs {CORES * len(args.tasks)} cores, this machine has {len(available)}")
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        if args.pinned:
            cores = [set(available[i * CORES : (i + 1) * CORES]) for i in range(len(args.tasks))]
            runs = [(task, *start(task, args.data, folder, args.device, extra, c)) for task, c in zip(args.tasks, cores)]
            figures = [finish(*run, args.device, extra) for run in runs]
        else:
            for task in args.tasks:
                figures.append(finish(task, *start(task, args.data, folder, args.device, extra, None), args.device, extra))
    save(args.section, figures)


if __name__ == "__main__":
    main()
