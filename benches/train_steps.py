#!/usr/bin/env python3
"""Pretraining steps on volumes (U-Net, nnU-Net's encoders) and images (DenseNet-121): ours, PyTorch with its defaults, and PyTorch tuned the same way;
alternating, a process each."""
import argparse
import statistics
import sys
from typing import NamedTuple

from common import BINARY, ROOT, child, save, summary


class Case(NamedTuple):
    task: str
    window: int
    encoder: str = "unet"
    rank: int = 3
    channels: int = 1
    # Scans a step; a GPU gets more volumes to have something to do.
    batch: int = 2
    gpu_batch: int = 16
    # Steps of a process on the CPU, after `warmup` that are not timed.
    timed: int = 3
    warmup: int = 2

    def __str__(self):
        return f"{self.encoder} {self.task} {self.window}^{self.rank}"


CASES = [
    Case("rot", 64, timed=6),
    Case("rot", 96),
    Case("jig", 96),
    Case("mae", 64, timed=6),
    Case("gen", 64, timed=6),
    Case("vf", 64, timed=6),
    Case("simclr", 64, batch=4, timed=6),
    Case("mae", 64, encoder="resenc-s", gpu_batch=8),
    Case("mae", 64, encoder="resenc-m", gpu_batch=8),
    Case("mae", 64, encoder="plainconv", gpu_batch=8),
    Case("mae", 64, encoder="resenc-l", gpu_batch=8),
    Case("mae", 96, encoder="resenc-l", gpu_batch=4, timed=2, warmup=1),
    Case("rot", 224, encoder="densenet121", rank=2, channels=3, batch=32, gpu_batch=32, timed=2, warmup=1),
]
GPU_STEPS = {"timed": 20, "warmup": 2}


def commands(case, batch, steps, device):
    same = ["--task", case.task, "--encoder", case.encoder, "--window", case.window, "--channels", case.channels]
    same += ["--batch", batch, "--steps", steps, "--device", device]
    torch = [sys.executable, ROOT / "benches/torch_steps.py", *same]
    ours = [BINARY, "bench-step", *same, "--rank", case.rank]
    # As the U-Net of torch_steps.py.
    ours += ["--norm", "batch"] if case.encoder == "unet" else []
    return {
        "pretext3d": [*ours, "--precision", "auto"],
        "pretext3d fp32": [*ours, "--precision", "fp32"],
        "torch defaults": torch,
        "torch tuned": [*torch, "--tuned"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="scans a step (default: 2 volumes on the CPU, 16 on a GPU; 32 images)")
    parser.add_argument("--encoder", choices=sorted({case.encoder for case in CASES}), help="only the cases of this encoder, as a section of their own")
    parser.add_argument("--task", choices=sorted({case.task for case in CASES}), help="only the cases of this task, likewise")
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")
    figures = []
    for case in CASES:
        if args.encoder not in (None, case.encoder) or args.task not in (None, case.task):
            continue
        case = case._replace(batch=case.gpu_batch, **GPU_STEPS) if cuda else case
        batch = args.batch or case.batch
        todo = commands(case, batch, case.warmup + case.timed, args.device)
        runs = {name: [] for name in todo}
        for _ in range(args.rounds):
            for name, command in todo.items():
                lines, peak = child(command)
                seconds = [line["seconds"] for line in lines if "seconds" in line][case.warmup :]
                device_mib = next((line["device_mib"] for line in lines if "device_mib" in line), None)
                runs[name].append({"seconds": seconds, "peak_mib": peak, "device_mib": device_mib})
                runs[name][-1]["wait_share"] = next((line["wait_share"] for line in lines if "wait_share" in line), None)
        print(f"{case}, {batch} scans a step, {args.device}; medians of {args.rounds} rounds, peak memory")
        base = None
        for name, rounds in runs.items():
            median = statistics.median(statistics.median(r["seconds"]) for r in rounds)
            peak = statistics.median(r["peak_mib"] for r in rounds)
            base = base or median
            waits = [r["wait_share"] for r in rounds if r["wait_share"] is not None]
            wait = f"  waits {100 * statistics.median(waits):.1f} %" if waits else ""
            print(f"  {name:16} {median:8.4f} s  {median / base:5.2f} x ours  {peak:7.0f} MiB{wait}")
            entry = {"task": case.task, "encoder": case.encoder, "rank": case.rank, "window": case.window, "batch": batch}
            entry |= {"device": args.device, "name": name}
            figures.append({**entry, "seconds_a_step": median, "peak_mib": peak, "rounds": rounds})
            figures[-1]["spread"] = summary([s for r in rounds for s in r["seconds"]])
    parts = ["train_steps", "cuda" if cuda else "", args.encoder or "", args.task or ""]
    save("_".join(part for part in parts if part), figures)


if __name__ == "__main__":
    main()
