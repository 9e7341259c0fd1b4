#!/usr/bin/env python3
"""Seconds a training step beside other work: with none, one and four busy processes on the same cores, ours as it is and with the wait of
OpenMP's default (`GOMP_SPINCOUNT=300000`), alternating. Where every process gets its share of the cores, a step takes as many times longer as
`ideal` says."""
import argparse
import json
import os
import statistics
import subprocess

from common import BINARY, save, summary

CASES = [("rot", 64, "auto"), ("jig", 96, "auto"), ("jig", 96, "fp32")]
WAITS = {"pretext3d": {}, "OpenMP's default": {"GOMP_SPINCOUNT": "300000"}}
WARMUP, TIMED = 1, 4


def ideal(busy, cores):
    """Of `cores` threads beside `busy` others, the slowest of which decides."""
    return -(-(cores + busy) // cores)


def steps(task, window, precision, environment):
    command = [BINARY, "bench-step", "--task", task, "--window", window, "--precision", precision, "--norm", "batch", "--steps", WARMUP + TIMED]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([str(part) for part in command], env=own | environment, check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [line["seconds"] for line in lines if "seconds" in line][WARMUP:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 4], help="busy processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each kind (default: %(default)s)")
    parser.add_argument("--no-record", action="store_true", help="print the figures, write no file")
    args = parser.parse_args()
    cores, figures = len(os.sched_getaffinity(0)), []
    for task, window, precision in CASES:
        quiet = None
        for busy in sorted({0, *args.busy}):
            others = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(busy)]
            try:
                seconds = {name: [] for name in WAITS}
                for _ in range(args.rounds):
                    for name, environment in WAITS.items():
                        seconds[name] += steps(task, window, precision, environment)
            finally:
                for other in others:
                    other.kill()
            quiet = quiet or statistics.median(seconds["pretext3d"])
            for name, values in seconds.items():
                times = statistics.median(values) / quiet
                print(f"{task} {window} {precision:4}  {busy} busy  {name:16}  {statistics.median(values):7.3f} s  {times:5.2f} x quiet, ideal {ideal(busy, cores)}")
                case = {"task": task, "window": window, "precision": precision, "busy": busy, "name": name, "ideal": ideal(busy, cores)}
                figures.append({**case, "seconds_a_step": summary(values), "times_quiet": times})
    if not args.no_record:
        save("beside", figures)


if __name__ == "__main__":
    main()
