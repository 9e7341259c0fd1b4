#!/usr/bin/env python3
"""Preprocessing from .nii.gz: read, orient, resample to 1.5 mm, z-score; ours (which also writes its store) against MONAI and
TorchIO with 0 and 2 worker processes, on the same cores, alternating. Beside them what nothing can beat: the files decompressed by
libdeflate, the fastest decoder, with as many processes; and our start, which one command has once."""
import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import deflate
import monai.transforms as mt
import torch
import torchio as tio
from common import BINARY, save, summary
from scans import write
from torch.utils.data import DataLoader, Dataset

SPACING = 1.5


class Scans(Dataset):
    def __init__(self, paths, load):
        self.paths, self.load = paths, load

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.load(self.paths[i])


def with_monai():
    steps = [
        mt.LoadImage(image_only=True, ensure_channel_first=True),
        mt.Orientation("RAS", labels=None),
        mt.Spacing((SPACING,) * 3, mode="bilinear"),
        mt.NormalizeIntensity(nonzero=True),
    ]
    chain = mt.Compose(steps)
    return lambda path: torch.as_tensor(chain(path))


def with_torchio():
    steps = [tio.ToCanonical(), tio.Resample(SPACING), tio.ZNormalization(masking_method=lambda x: x > 0)]
    chain = tio.Compose(steps)
    return lambda path: chain(tio.ScalarImage(path)).data


def inflate(path):
    packed = path.read_bytes()
    # The file ends with how much it holds.
    return len(deflate.gzip_decompress(packed, int.from_bytes(packed[-4:], "little")))


def seconds_of(load, paths, workers):
    start = time.perf_counter()
    loader = DataLoader(Scans(paths, load), batch_size=None, num_workers=workers)
    count = sum(1 for _ in loader)
    assert count == len(paths)
    return (time.perf_counter() - start) / count


def seconds_of_ours(data, count):
    with tempfile.TemporaryDirectory() as out:
        command = [BINARY, "preprocess", "--data", data, "--out", f"{out}/store", "--protocol", "modern", "--spacing", SPACING]
        start = time.perf_counter()
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return (time.perf_counter() - start) / count


def seconds_to_start():
    start = time.perf_counter()
    subprocess.run([str(BINARY), "--version"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=128, help="scans a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    args = parser.parse_args()
    peers = {"monai": with_monai(), "torchio": with_torchio(), "inflate": inflate}
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), args.scans)
        rounds = {"pretext3d": [], **{f"{name}, {workers} workers": [] for name in peers for workers in (0, 2)}}
        for load in peers.values():
            load(paths[0])
        for _ in range(args.rounds):
            rounds["pretext3d"].append(seconds_of_ours(folder, args.scans))
            for name, load in peers.items():
                for workers in (0, 2):
                    rounds[f"{name}, {workers} workers"].append(seconds_of(load, paths, workers))
    start = min(seconds_to_start() for _ in range(5))
    print(f"preprocessing, seconds a scan (median of {args.rounds} rounds of {args.scans} scans)")
    ours = statistics.median(rounds["pretext3d"])
    for name, values in rounds.items():
        print(f"  {name:20} {statistics.median(values):7.4f} s  {statistics.median(values) / ours:5.2f} x ours")
    print(f"  our start, in a round of {args.scans} scans once: {start:.3f} s")
    figures = {name: {**summary(values), "rounds": values} for name, values in rounds.items()}
    save("preprocess", {**figures, "scans": args.scans, "start": start})


if __name__ == "__main__":
    main()
