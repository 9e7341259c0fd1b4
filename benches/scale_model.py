#!/usr/bin/env python3
"""How long a step would take on 8 to 512 GPUs, each with as many samples as one had: a calculation, not a measurement.

From the seconds of a step measured on one H100 (benches/results), the bytes of its gradients, and bandwidths and latencies that others
published. docs/scale.md has the formula; this prints its table, which a test compares."""
import json
import math
from pathlib import Path

RESULTS = Path(__file__).parent / "results/2026-11-23-nvidia-h100-80gb-hbm3.json"
# The U-Net with 16 filters and 5 levels on one channel, its deepest features, the hidden layers of a task's head, and its classes.
ENCODER, DEEPEST, HIDDEN, CLASSES = 3_536_736, 256, (2048, 1024), {"rot": 10, "jig": 100}
# Of float32 gradients, and a bucket of the reducer.
BYTES, BUCKET = 4, 25 * 2**20
# Of a step, the share of the backward pass, in which buckets travel.
BACKWARD = 2 / 3
GPUS_A_NODE = 8
# Bytes a second of NCCL's "bus bandwidth": rings over NVLink 4 (github.com/NVIDIA/nccl-tests/issues/212), one port of 400 Gbit/s
# (issue 290 there, its lower figure), and one of 100 Gbit/s with the same share of its line rate.
NVLINK, PORT_400 = 370e9, 46e9
NETWORKS = {"400 Gbit/s a GPU": GPUS_A_NODE * PORT_400, "400 Gbit/s a node": PORT_400, "100 Gbit/s a node": PORT_400 / 4}
# Seconds of the smallest all-reduce of 16 GPUs on 2 nodes (github.com/NVIDIA/nccl/issues/1244), here for each doubling of the nodes.
LATENCY = 47.5e-6
# Small collectives of a step that nothing hides: logits and targets forward, logits backward. And the agreement, whose words pass from rank to
# rank over TCP, in seconds a rank: an assumption.
GATHERS, HOP = 3, 50e-6
COUNTS = [8, 16, 64, 512]


def parameters(task, window):
    """Of encoder and head. `rot` pools the deepest map by 2, `jig` has 27 patches that end as one voxel each."""
    inputs = DEEPEST * ((window // 32) ** 3 if task == "rot" else 27)
    widths = [inputs, *HIDDEN, CLASSES[task]]
    linear = sum((a + 1) * b for a, b in zip(widths, widths[1:]))
    return ENCODER + linear + 2 * sum(HIDDEN)


def latency(gpus):
    return LATENCY * max(1, math.log2(gpus / GPUS_A_NODE))


def all_reduce(size, gpus, network):
    """Seconds, by the definition of bus bandwidth."""
    bandwidth = NVLINK if gpus <= GPUS_A_NODE else min(NVLINK, network)
    return latency(gpus) + 2 * (gpus - 1) / gpus * size / bandwidth


def step(alone, size, gpus, network):
    """Seconds of a step that takes `alone` on one GPU: its last bucket and what of the others outlasts the backward pass come on top."""
    last = size % BUCKET or BUCKET
    others = (size - last) // BUCKET
    hidden = others * all_reduce(BUCKET, gpus, network)
    small = GATHERS * latency(gpus) + HOP * (gpus - 1)
    return alone + all_reduce(last, gpus, network) + max(0, hidden - BACKWARD * alone) + small


def table():
    cases = [c for c in json.loads(RESULTS.read_text())["train_steps_cuda"] if c["name"] == "pretext3d"]
    heads = [f"{gpus} GPUs" for gpus in COUNTS]
    lines = ["| step on one GPU | network | " + " | ".join(heads) + " |", "| --- | --- |" + " --- |" * len(COUNTS)]
    for case in cases:
        alone, size = case["seconds_a_step"], BYTES * parameters(case["task"], case["window"])
        for name, network in NETWORKS.items():
            efficiencies = [alone / step(alone, size, gpus, network) for gpus in COUNTS]
            cells = " | ".join(f"{100 * share:.0f} %" for share in efficiencies)
            lines.append(f"| `{case['task']}`, {case['batch']} x {case['window']}^3, {1000 * alone:.1f} ms | {name} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
