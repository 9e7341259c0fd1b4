#!/usr/bin/env python3
"""Pretraining steps: ours, PyTorch with its defaults, and PyTorch tuned the same way; alternating, a process each."""
import argparse
import statistics
import sys

from common import BINARY, ROOT, child, save, summary

# Task, window and scans a step on the CPU; a GPU gets more scans to have something to do.
CASES = [("rot", 64, 2), ("rot", 96, 2), ("jig", 96, 2)]
WARMUP = 2


def commands(task, window, batch, steps, device):
    same = ["--task", task, "--window", window, "--batch", batch, "--steps", steps, "--channels", 1, "--device", device]
    torch = [sys.executable, ROOT / "benches/torch_unet.py", *same]
    return {
        "pretext3d": [BINARY, "bench-step", *same, "--precision", "auto"],
        "pretext3d fp32": [BINARY, "bench-step", *same, "--precision", "fp32"],
        "torch defaults": torch,
        "torch tuned": [*torch, "--tuned"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="scans a step (default: 2 on the CPU, 16 on a GPU)")
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")
    figures = []
    for task, window, batch in CASES:
        batch = args.batch or (16 if cuda else batch)
        timed = 20 if cuda else 6 if window == 64 else 3
        runs = {name: [] for name in commands(task, window, batch, 1, args.device)}
        for _ in range(args.rounds):
            for name, command in commands(task, window, batch, WARMUP + timed, args.device).items():
                lines, peak = child(command)
                seconds = [line["seconds"] for line in lines if "seconds" in line][WARMUP:]
                device_mib = next((line["device_mib"] for line in lines if "device_mib" in line), None)
                runs[name].append({"seconds": seconds, "peak_mib": peak, "device_mib": device_mib})
        print(f"{task} {window}^3, {batch} scans a step, {args.device}; medians of {args.rounds} rounds, peak memory")
        base = None
        for name, rounds in runs.items():
            median = statistics.median(statistics.median(r["seconds"]) for r in rounds)
            peak = statistics.median(r["peak_mib"] for r in rounds)
            base = base or median
            print(f"  {name:16} {median:8.4f} s  {median / base:5.2f} x ours  {peak:7.0f} MiB")
            entry = {"task": task, "window": window, "batch": batch, "device": args.device, "name": name}
            figures.append({**entry, "seconds_a_step": median, "peak_mib": peak, "rounds": rounds})
            figures[-1]["spread"] = summary([s for r in rounds for s in r["seconds"]])
    save("train_steps_cuda" if cuda else "train_steps", figures)


if __name__ == "__main__":
    main()
