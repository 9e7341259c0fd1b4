#!/usr/bin/env python3
"""Weak scaling: one process on one core against N processes that train as one, each on a core of its own with as many samples a step; and, for what
the cores take from each other, N processes that know nothing of one another. In alternation."""
import argparse
import csv
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from common import BINARY, ROOT, save, summary

# With the samples a step that each has by default.
TASKS = {"rot": 4, "mae": 2, "simclr": 16}


def start(folder, args, core, rank=None):
    """A training bound to a core; `rank`: rank, number of processes and port of those that train as one."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    if rank:
        number, world, port = map(str, rank)
        env |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    command = [BINARY, "pretrain", *args, "--out", folder / "run", "--weights", folder / "weights"]
    bind = lambda: os.sched_setaffinity(0, {core})
    return subprocess.Popen([str(part) for part in command], env=env, preexec_fn=bind, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(processes):
    for process in processes:
        _, error = process.communicate()
        if process.returncode:
            sys.exit(f"error: exit {process.returncode} of {' '.join(process.args)}\n{error.decode()}")


def rates(folder):
    """Samples a second in each epoch but the first, in which libraries warm up."""
    with open(folder / "run/metrics.csv", newline="") as file:
        return [float(row["samples_per_s"]) for row in csv.DictReader(file)][1:]


def measure(kind, n, args, batch):
    """Samples a second of all processes together."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(i) for i in range(n)]
        if kind == "together":
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            args = [*args, "--batch-size", n * batch]
            finish([start(folders[0], args, core, (core, n, port)) for core in range(n)])
            return rates(folders[0])
        args, used = [*args, "--batch-size", batch], folders if kind == "apart" else folders[:1]
        finish([start(folder, args, core) for core, folder in enumerate(used)])
        return [sum(each) for each in zip(*map(rates, used))]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data/stores/phantom-brain", help="store (default: that of `make pretrain`)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="N (default: all cores)")
    parser.add_argument("--window", default="64", help="voxels a side (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="samples a step and process (default: the task's own)")
    parser.add_argument("--steps", type=int, default=10, help="steps an epoch, of three (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--no-record", action="store_true", help="print the figures, and keep them nowhere")
    args = parser.parse_args()
    n, figures = args.processes, []
    for task, batch in TASKS.items():
        batch = args.batch or batch
        settings = ["--data", args.data, "--task", task, "--window", args.window, "--steps", args.steps, "--epochs", 3,
                    "--val-draws", 1, "--device", "cpu", "--threads", 1]
        samples = {"one": [], "together": [], "apart": []}
        for _ in range(args.rounds):
            for kind, rates in samples.items():
                rates += measure(kind, n, settings, batch)
        rate = {kind: summary(rates) for kind, rates in samples.items()}
        share = {kind: rate[kind]["median"] / (n * rate["one"]["median"]) for kind in ("together", "apart")}
        print(f"{task}, {batch} samples a step and process: one core {rate['one']['median']:.2f} samples/s, {n} processes {rate['together']['median']:.2f}: "
              f"{share['together']:.1%} of {n} times one (processes that do not talk: {share['apart']:.1%})", flush=True)
        figures.append({"task": task, "window": args.window, "batch_a_process": batch, "processes": n,
                        "samples_per_s": rate, "efficiency": share})
    if not args.no_record:
        save("scaling", figures)


if __name__ == "__main__":
    main()
