#!/usr/bin/env python3
"""Copies a store with its tissue taken out, to see what a task solves without anatomy.

    python3 benches/mask_store.py STORE OUT --keep background|outline

`background` leaves what lies outside the tissue (tissue becomes 0), `outline` makes all tissue 1 and the rest 0.
"""
import argparse
import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep", choices=["background", "outline"], required=True)
    # The phantoms' air is exactly 0, and any rim left of the head gives its outline away.
    parser.add_argument("--threshold", type=float, default=0.0, help="share of a channel's range above which is tissue (default: %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    for path in sorted(args.store.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata()
        image = tensors["image"]
        low, high = image.min(axis=(1, 2, 3), keepdims=True), image.max(axis=(1, 2, 3), keepdims=True)
        # Dark tissue inside the head counts as tissue: the outline of the union over the channels is filled row by row.
        tissue = ((image - low) > args.threshold * (high - low)).any(axis=0)
        for axis in range(3):
            forward = np.maximum.accumulate(tissue, axis)
            backward = np.flip(np.maximum.accumulate(np.flip(tissue, axis), axis), axis)
            tissue = tissue | (forward & backward)
        masked = np.where(tissue, 0, image) if args.keep == "background" else np.broadcast_to(tissue, image.shape)
        tensors["image"] = np.ascontiguousarray(masked, dtype=image.dtype)
        save_file(tensors, args.out / path.name, metadata)
    index = json.loads((args.store / "index.json").read_text())
    for subject in index["subjects"]:
        subject["bytes"] = (args.out / subject["file"]).stat().st_size
    (args.out / "index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    main()
