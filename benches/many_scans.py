#!/usr/bin/env python3
"""A store of many small scans: files of 16 to 24 voxels a side with headers of many kinds, preprocessed by one process, again with nothing
to do, and by shards; how long its index takes to open, what opening asks of the file system, how long checksums take, and the memory of a
training over an epoch."""
import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
from common import BINARY, save, summary

SHARDS, SIDE = 4, 16


def header(rng, image):
    """One of the many ways in which scanners and programs write the same scan."""
    spacing = rng.choice([0.8, 1.0, 1.5, 3.0], 3)
    axes, signs = rng.permutation(3), rng.choice([-1, 1], 3)
    affine = np.zeros((4, 4))
    affine[axes, range(3)] = signs * spacing
    affine[:, 3] = [*rng.uniform(-100, 100, 3), 1]
    nifti = nibabel.Nifti1Image(image, affine)
    nifti.header.set_data_dtype(np.int16)
    nifti.header["descrip"] = b"written by many_scans.py"
    if rng.random() < 0.5:
        nifti.set_qform(affine, 1)
        nifti.set_sform(None, 0)
    if rng.random() < 0.3:
        nifti.header.set_slope_inter(2.0, -100)
    return nifti


def write(folder, count):
    """Writes so many scans, two of every fourth person, three in ten compressed."""
    person = session = 0
    for i in range(count):
        rng = np.random.default_rng(i)
        shape = rng.integers(16, 25, 3)
        grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
        inside = sum((x / 0.9) ** 2 for x in grid) < 1
        image = np.where(inside, rng.normal(400, 90, shape), 0).clip(0, 1000).astype(np.int16)
        session = session + 1 if session == 1 and person % 4 == 0 else 1
        person += session == 1
        place = folder / f"sub-{person:05}" / f"ses-{session}" / "anat"
        place.mkdir(parents=True)
        ending = ".nii.gz" if rng.random() < 0.3 else ".nii"
        nibabel.save(header(rng, image), place / f"sub-{person:05}_ses-{session}_T1w{ending}")


def preprocess(data, store, *flags):
    return run([BINARY, "preprocess", "--data", data, "--out", store, "--size", SIDE, *flags])


def run(command):
    """Seconds."""
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: exit {done.returncode} of {' '.join(map(str, command))}\n{done.stderr}")
    return time.perf_counter() - start


def contents(store):
    return {path.name: path.read_bytes() for path in store.iterdir() if not path.name.startswith(".")}


def calls(command):
    """How often a command asked about files, opened or listed them, by system call; None without strace."""
    if not shutil.which("strace"):
        return None
    with tempfile.NamedTemporaryFile("r") as out:
        run(["strace", "-f", "-c", "-o", out.name, *command])
        rows = [line.split() for line in out]
    names = ("openat", "newfstatat", "statx", "getdents64")
    return {row[-1]: int(row[3]) for row in rows if row and row[-1] in names}


def resident(pid):
    """MiB of memory: of the process's own, and of mapped files; None once it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return None
    kib = dict(re.findall(r"(RssAnon|RssFile):\s+(\d+)", text))
    return [int(kib[name]) / 1024 for name in ("RssAnon", "RssFile")] if kib else None


def train(store, folder):
    """Memory over two epochs of every scan, at each tenth of the time: `[seconds, MiB of the process's own, MiB of mapped files]`."""
    command = [BINARY, "pretrain", "--task", "rot", "--data", store, "--out", folder / "run", "--weights", folder / "weights",
               "--epochs", 2, "--levels", 2, "--filters", 2, "--window", SIDE, "--batch-size", 32, "--draws", 1, "--val-draws", 1]
    start, seen = time.perf_counter(), []
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        found = resident(process.pid)
        if found:
            seen.append([round(part, 1) for part in (time.perf_counter() - start, *found)])
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"error: exit {process.returncode} of pretrain")
    return [seen[(len(seen) - 1) * tenth // 10] for tenth in range(11)]


def inspect(store, folder):
    """A command that opens a store and reads one scan."""
    return [BINARY, "inspect", "--data", store, "--task", "rot", "--window", SIDE, "--n", 1, "--out", folder / "inspect"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=22000, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of opening the store (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data, few, store, shared = (folder / name for name in ("data", "few", "store", "shared"))
        write(data, args.scans)
        write(few, 2)
        preprocess(few, folder / "small")
        seconds = {"preprocess": preprocess(data, store), "preprocess again": preprocess(data, store)}
        for shard in range(1, SHARDS + 1):
            seconds[f"shard {shard}/{SHARDS}"] = preprocess(data, shared, "--shard", f"{shard}/{SHARDS}")
        same = contents(store) == contents(shared)
        many = [run(inspect(store, folder)) for _ in range(args.rounds)]
        small = [run(inspect(folder / "small", folder)) for _ in range(args.rounds)]
        seconds["checksums"] = run([BINARY, "doctor", "--data", store])
        figures = {
            "scans": args.scans,
            "index_bytes": (store / "index.json").stat().st_size,
            "seconds": seconds,
            "inspect": {"many": summary(many), "two scans": summary(small)},
            "open": min(many) - min(small),
            "calls": {"many": calls(inspect(store, folder)), "two scans": calls(inspect(folder / "small", folder))},
            "shards_equal_one_process": same,
            "memory": train(store, folder),
        }
    print(f"{args.scans} scans")
    for name, value in seconds.items():
        print(f"  {name:20} {value:8.2f} s")
    print(f"  {'opening the index':20} {figures['open']:8.2f} s; calls {figures['calls']}")
    print(f"  shards make the same store: {same}")
    print("  memory over two epochs, MiB of the process and of mapped files:")
    for at, own, mapped in figures["memory"]:
        print(f"    {at:8.1f} s {own:8.1f} {mapped:8.1f}")
    save("many_scans", figures)
    if not same:
        sys.exit("error: the shards' store differs from that of one process")


if __name__ == "__main__":
    main()
