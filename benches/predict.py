"""Seconds that a scan takes to be segmented in windows: `pretext3d predict`, MONAI's `sliding_window_inference`, nnU-Net's predictor.

All have the same network (ours, exported as TorchScript), the same windows with Gaussian weights, the same mirror images, float32, and
alternate. The scans are as long as whole windows of half overlap, so that nnU-Net's windows, which it spreads evenly, are the others'. Ours
is the time from the store to the written label, the others' data lie ready in memory as tensors and their argmax stays there.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import common

CLASSES = 3


def flags():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="plainconv", help="of pretext3d finetune")
    parser.add_argument("--network", default="", help="further flags of finetune, e.g. '--levels 3 --filters 8'")
    parser.add_argument("--patch", type=int, default=64, help="side of the windows in voxels")
    parser.add_argument("--windows", type=int, default=4, help="along each axis")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--no-record", action="store_true", help="print the figures, write no file")
    return parser.parse_args()


def pretext3d(*arguments):
    done = subprocess.run([common.BINARY, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: exit {done.returncode} of: {' '.join(map(str, arguments))}\n{done.stderr}")
    return done.stderr


def prepare(folder, args):
    """A run on five scans, the run's network, and a store of one of them. Returns the side of the scans."""
    import nibabel
    import numpy as np

    side = args.patch + (args.windows - 1) * args.patch // 2
    (folder / "data").mkdir()
    for n in range(5):
        random = np.random.default_rng(n)
        label = random.integers(0, CLASSES, (side // 8 + 1,) * 3).repeat(8, 0).repeat(8, 1).repeat(8, 2)[:side, :side, :side]
        image = (100 * label + random.normal(200, 20, label.shape)).astype(np.float32)
        for name, voxels in [(f"s{n}", image), (f"s{n}_seg", label.astype(np.uint8))]:
            nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(folder / f"data/{name}.nii.gz")
    grid = ["--protocol", "modern", "--spacing", "1,1,1", "--foreground=-10000", "--labels", ",".join(map(str, range(CLASSES)))]
    pretext3d("preprocess", "--data", folder / "data", "--out", folder / "store", *grid)
    # The scan that is predicted.
    (folder / "first").mkdir()
    for name in ("s0", "s0_seg"):
        (folder / f"data/{name}.nii.gz").rename(folder / f"first/{name}.nii.gz")
    pretext3d("preprocess", "--data", folder / "first", "--out", folder / "one", *grid)
    train = ["--encoder", args.encoder, *args.network.split(), "--patch", args.patch, "--batch-size", 2, "--epochs", 1, "--steps", 1]
    where = ["--device", args.device, "--out", folder / "run"]
    pretext3d("finetune", "--data", folder / "store", "--weights", "none", *train, *where)
    pretext3d("export", "--run", folder / "run", "--out", folder / "network")
    return side


def ours(folder, args, flips, precision):
    """Seconds of the scan, as `predict` prints them."""
    predict = ["predict", "--weights", folder / "run", "--input", folder / "one", "--output", folder / "predicted", "--overwrite"]
    how = ["--device", args.device, "--precision", precision, "--threads", args.threads, *(["--flips"] if flips else [])]
    (seconds,) = re.findall(r"^s0: ([0-9.]+) s$", pretext3d(*predict, *how), re.M)
    return float(seconds)


def competitors(folder, args):
    """For each a function from whether to mirror to seconds and the label."""
    import torch
    from itertools import combinations
    from monai.inferers import sliding_window_inference
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from safetensors.torch import load_file

    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    network = torch.jit.load(str(folder / "network.pt"), map_location=device).eval()
    (subject,) = json.loads((folder / "one/index.json").read_text())["subjects"]
    image = load_file(folder / "one" / subject["file"])["image"].float().to(device)
    patch = [args.patch] * 3

    def probabilities(x):
        return network(x).softmax(1)

    def mirrored(x):
        axes = [a for n in range(4) for a in combinations((2, 3, 4), n)]
        return sum(probabilities(x.flip(a)).flip(a) for a in axes) / len(axes)

    def monai(flips):
        window = dict(roi_size=patch, sw_batch_size=1, overlap=0.5, mode="gaussian", sigma_scale=0.125)
        with torch.inference_mode():
            return sliding_window_inference(image[None], predictor=mirrored if flips else probabilities, **window)[0].argmax(0)

    def nnunet(flips):
        predictor = nnUNetPredictor(use_mirroring=flips, device=device, allow_tqdm=False, perform_everything_on_device=args.device == "cuda")
        plans = SimpleNamespace(get_label_manager=lambda _: SimpleNamespace(num_segmentation_heads=CLASSES))
        predictor.manual_initialization(network, plans, SimpleNamespace(patch_size=patch), None, {}, "", (0, 1, 2))
        return predictor.predict_sliding_window_return_logits(image.cpu()).argmax(0)

    def timed(predict, flips):
        synchronize = torch.cuda.synchronize if args.device == "cuda" else lambda: None
        synchronize()
        started = time.perf_counter()
        label = predict(flips)
        synchronize()
        return time.perf_counter() - started, label.cpu().numpy()

    return {"MONAI": lambda flips: timed(monai, flips), "nnU-Net": lambda flips: timed(nnunet, flips)}


def main():
    args = flags()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        side = prepare(folder, args)
        others = competitors(folder, args)
        import nibabel
        import numpy as np

        figures = {key: getattr(args, key) for key in ("encoder", "network", "patch", "threads", "device")} | {"side": side}
        for flips in (False, True):
            seconds, agreement = {}, {}
            for round_ in range(args.rounds + 1):
                now = {"pretext3d": ours(folder, args, flips, "auto"), "pretext3d fp32": ours(folder, args, flips, "fp32")}
                found = np.asarray(nibabel.load(folder / "predicted/s0.nii.gz").dataobj)
                for name, run in others.items():
                    now[name], label = run(flips)
                    agreement[name] = float((label == found).mean())
                # The first one warms up.
                if round_:
                    for name, value in now.items():
                        seconds.setdefault(name, []).append(value)
            name = "flips" if flips else "plain"
            figures[name] = {key: common.summary(values) for key, values in seconds.items()} | {"same_label": agreement}
            print(json.dumps({name: figures[name]}), flush=True)
            # nnU-Net averages logits, with weights half a voxel further on.
            assert agreement["MONAI"] > 0.999, agreement
        if not args.no_record:
            common.save("predict" + ("_cuda" if args.device == "cuda" else ""), figures)


if __name__ == "__main__":
    main()
