#!/usr/bin/env python3
"""Random 64^3 crops with rotation and flips, samples a second: ours from the store on one thread, against MONAI's CacheDataset
with its best number of worker processes."""
import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import monai.transforms as mt
from common import BINARY, save, summary
from monai.data import CacheDataset, DataLoader
from safetensors.torch import load_file
from scans import write
from torch.utils.data import RandomSampler

CROP, BATCH = 64, 8


def make_store(folder, scans):
    write(folder / "scans", scans)
    command = [BINARY, "preprocess", "--data", folder / "scans", "--out", folder / "store", "--protocol", "modern"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return folder / "store"


def ours(store, seconds):
    command = [BINARY, "bench-sampling", "--data", store, "--crop", CROP, "--seconds", seconds, "--threads", 1]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["samples_per_second"]


def monai_loader(store, workers):
    """The same scans, cached; drawn without end, so that an epoch's start does not count."""
    index = json.loads((store / "index.json").read_text())
    images = [{"image": load_file(store / entry["file"])["image"].float()} for entry in index["subjects"]]
    draw = mt.Compose([
        mt.RandSpatialCropd("image", (CROP,) * 3, random_size=False),
        mt.RandRotate90d("image", prob=0.75, max_k=3, spatial_axes=(0, 1)),
        mt.RandFlipd("image", prob=0.5, spatial_axis=0),
    ])
    data = CacheDataset(images, draw, progress=False)
    sampler = RandomSampler(data, replacement=True, num_samples=10**7)
    return DataLoader(data, batch_size=BATCH, sampler=sampler, num_workers=workers)


def monai(loader, seconds):
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(batches)["image"])
    return count / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="seconds a measurement (default: %(default)s)")
    args = parser.parse_args()
    rounds = {"pretext3d, 1 thread": [], **{f"monai, {workers} workers": [] for workers in (0, 1, 2)}}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "scans").mkdir()
        store = make_store(Path(folder), args.scans)
        loaders = {workers: monai_loader(store, workers) for workers in (0, 1, 2)}
        for _ in range(args.rounds):
            rounds["pretext3d, 1 thread"].append(ours(store, args.seconds))
            for workers, loader in loaders.items():
                rounds[f"monai, {workers} workers"].append(monai(loader, args.seconds))
    print(f"sampling {CROP}^3 crops with rotation and flip, samples a second (median of {args.rounds} rounds)")
    base = statistics.median(rounds["pretext3d, 1 thread"])
    for name, values in rounds.items():
        print(f"  {name:20} {statistics.median(values):9.0f}  ours is {base / statistics.median(values):5.1f} x")
    save("sampling", {name: {**summary(values), "rounds": values} for name, values in rounds.items()})


if __name__ == "__main__":
    main()
