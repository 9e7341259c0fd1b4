#!/usr/bin/env python3
"""Preprocessing of photographs: decode JPEG, cut off the dark border, centre on a black square, reduce to 224 pixels; ours (which also
writes its store) against Pillow and NumPy with 0 and 2 worker processes, on the same cores, alternating."""
import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import BINARY, save, summary
from PIL import Image
from torch.utils.data import DataLoader, Dataset

SIDE = 224
PIXELS = (2848, 4288)
# As the program: brighter than 10 of 255, in 2 % of a line.
BLACK, SHARE = 10, 0.02


def write(folder, count, height, width):
    """A bright disc with structure and noise on black, as photographs of the retina are."""
    y, x = np.ogrid[0:height, 0:width]
    distance = np.hypot(y - height / 2, x - width / 2).astype(np.float32) / np.float32(0.48 * height)
    levels = np.float32([200, 100, 40])
    shade = levels * (1 - 0.5 * distance[..., None])
    # Noise takes longest to make: shifted, it is another one.
    noise = 2 * np.random.default_rng(count).standard_normal((height, width, 3), np.float32)
    paths = []
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = Image.fromarray(rng.normal(size=(height // 32, width // 32)).astype(np.float32))
        structure = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))[..., None]
        pixels = shade + 12 * structure + np.roll(noise, rng.integers(height * width) * 3)
        pixels *= (distance < 1)[..., None]
        paths.append(folder / f"eye{i:04}.jpg")
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def with_pillow(path):
    image = Image.open(path)
    bright = (np.asarray(image) > BLACK).any(2)
    box = []
    for axis in (0, 1):
        enough = np.flatnonzero(bright.sum(1 - axis) >= SHARE * bright.shape[1 - axis])
        box.append((int(enough[0]), int(enough[-1]) + 1))
    (top, bottom), (left, right) = box
    side = max(bottom - top, right - left)
    first = [low - (side - (high - low)) // 2 for low, high in ((left, right), (top, bottom))]
    square = image.crop((first[0], first[1], first[0] + side, first[1] + side))
    small = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32) / 255
    return torch.from_numpy(small).permute(2, 0, 1)


class Photographs(Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return with_pillow(self.paths[i])


def seconds_of(paths, workers):
    start = time.perf_counter()
    count = sum(1 for _ in DataLoader(Photographs(paths), batch_size=None, num_workers=workers))
    assert count == len(paths)
    return (time.perf_counter() - start) / count


def seconds_of_ours(folder, count):
    with tempfile.TemporaryDirectory() as out:
        command = [BINARY, "preprocess", "--data", folder, "--out", f"{out}/store", "--size", SIDE]
        start = time.perf_counter()
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return (time.perf_counter() - start) / count


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=int, default=50, help="photographs a round (default: %(default)s)")
    parser.add_argument("--pixels", type=int, nargs=2, default=PIXELS, help="height and width (default: 2848 4288, as IDRiD)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), args.photographs, *args.pixels)
        rounds = {"pretext3d": [], **{f"pillow, {workers} workers": [] for workers in (0, 2)}}
        for _ in range(args.rounds):
            rounds["pretext3d"].append(seconds_of_ours(folder, len(paths)))
            for workers in (0, 2):
                rounds[f"pillow, {workers} workers"].append(seconds_of(paths, workers))
    print(f"photographs of {' x '.join(map(str, args.pixels))}, seconds each (median of {args.rounds} rounds of {len(paths)})")
    ours = statistics.median(rounds["pretext3d"])
    for name, values in rounds.items():
        print(f"  {name:20} {statistics.median(values):7.4f} s  {statistics.median(values) / ours:5.2f} x ours")
    figures = {name: {**summary(values), "rounds": values} for name, values in rounds.items()}
    section = "photographs" if tuple(args.pixels) == PIXELS else f"photographs_{len(paths)}"
    save(section, {**figures, "pixels": args.pixels, "photographs": len(paths)})


if __name__ == "__main__":
    main()
