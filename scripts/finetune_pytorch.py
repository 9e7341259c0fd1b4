#!/usr/bin/env python3
"""Fine-tune a pretrained encoder for segmentation in plain PyTorch.

    python3 scripts/finetune_pytorch.py weights/rot.pt data/stores/phantom-brain
    python3 scripts/finetune_pytorch.py weights/rot.safetensors data/stores/phantom-brain --plain

The first form loads the TorchScript module with `torch.jit.load`; the second puts the same weights into an ordinary
`nn.Module`. Either way a U-Net decoder is hung on the feature pyramid, everything is trained on the store's labels, and the
Dice of each class on held-out subjects is printed. Needs torch and safetensors.
"""
import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


def norm(description):
    """Kind of normalisation in an exported network; nnU-Net's have one only, exports from before there was a choice do not name theirs."""
    network = description["network"]
    return "instance" if "features" in network else network.get("norm", "batch")


class Stage(nn.Module):
    """Two times convolution, ReLU, batch normalisation; instance normalisation stands before the ReLU."""

    def __init__(self, inputs, outputs, norm="batch"):
        super().__init__()
        normalise = {"batch": nn.BatchNorm3d, "instance": partial(nn.InstanceNorm3d, affine=True)}[norm]
        self.norm_first = norm == "instance"
        self.conv0, self.norm0 = nn.Conv3d(inputs, outputs, 3, padding=1), normalise(outputs)
        self.conv1, self.norm1 = nn.Conv3d(outputs, outputs, 3, padding=1), normalise(outputs)

    def forward(self, x):
        for conv, norm in [(self.conv0, self.norm0), (self.conv1, self.norm1)]:
            x = F.relu(norm(conv(x))) if self.norm_first else norm(F.relu(conv(x)))
        return x


class Encoder(nn.Module):
    """The exported encoder as an ordinary module: `[B, C, D, H, W]` to a list of feature maps, finest first."""

    def __init__(self, in_channels, channels, norm="batch"):
        super().__init__()
        self.depth = len(channels)
        for i, (inputs, outputs) in enumerate(zip([in_channels, *channels], channels)):
            self.add_module(f"level{i}", Stage(inputs, outputs, norm))

    @classmethod
    def of(cls, description):
        """As an export's description says."""
        return cls(description["network"]["in_channels"], [level["channels"] for level in description["levels"]], norm(description))

    def forward(self, x):
        pyramid = [self.level0(x)]
        for i in range(1, self.depth):
            pyramid.append(self.get_submodule(f"level{i}")(F.max_pool3d(pyramid[-1], 2)))
        return pyramid


class Segmenter(nn.Module):
    """A decoder on the pyramid of any encoder: class scores at the input's resolution."""

    def __init__(self, encoder, channels, classes, norm):
        super().__init__()
        self.encoder = encoder
        pairs = list(zip(channels[1:], channels))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose3d(coarse, fine, 2, stride=2) for coarse, fine in pairs)
        self.stages = nn.ModuleList(Stage(2 * fine, fine, norm) for _, fine in pairs)
        self.output = nn.Conv3d(channels[0], classes, 1)

    def forward(self, x):
        *skips, y = self.encoder(x)
        for up, stage, skip in zip(self.up, self.stages, skips[::-1]):
            y = stage(torch.cat([up(y), skip], 1))
        return self.output(y)


def load_encoder(path, plain):
    """The encoder and its description."""
    if plain:
        description = json.loads(path.with_suffix(".json").read_text())
        if description.get("architecture", "unet") != "unet":
            sys.exit(f"error: {path}: --plain is for the U-Net, this is {description['architecture']}; give the .pt without --plain")
        encoder = Encoder.of(description)
        weights = {name: tensor for name, tensor in load_file(path).items() if name.startswith("encoder.")}
        encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in weights.items()})
        return encoder, description
    extra = {"pretext3d.json": ""}
    encoder = torch.jit.load(path, map_location="cpu", _extra_files=extra)
    return encoder, json.loads(extra["pretext3d.json"])


def load_subjects(store, multiple):
    """Images `[C, D, H, W]` and labels `[D, H, W]` of a store, padded to sides that the encoder can pool; class names."""
    index = json.loads((store / "index.json").read_text())
    subjects = []
    for entry in index["subjects"]:
        tensors = load_file(store / entry["file"])
        if "label" not in tensors:
            sys.exit(f"error: {store / entry['file']}: no label to learn from")
        pad = [n for side in tensors["label"].shape[::-1] for n in (0, -side % multiple)]
        image = F.pad(tensors["image"].float()[None], pad, mode="replicate")[0]
        subjects.append((image, F.pad(tensors["label"], pad).long()))
    return subjects, [label["name"] for label in index["labels"]]


def random_crop(image, label, side):
    start = [torch.randint(n - side + 1, ()).item() for n in label.shape]
    box = tuple(slice(s, s + side) for s in start)
    return image[(slice(None), *box)], label[box]


def loss_of(scores, label):
    """Cross-entropy plus soft Dice over the classes."""
    probability = scores.softmax(1)
    truth = F.one_hot(label, scores.shape[1]).movedim(-1, 1).to(scores.dtype)
    overlap = 2 * (probability * truth).sum((0, 2, 3, 4)) / (probability + truth).sum((0, 2, 3, 4)).clamp(min=1)
    return F.cross_entropy(scores, label) + 1 - overlap.mean()


@torch.no_grad()
def dice(model, subjects, classes, device):
    """Dice of each class but the background: scored per subject, then averaged over those who have the class."""
    model.eval()
    scores = [[] for _ in range(classes)]
    for image, label in subjects:
        predicted = model(image[None].to(device)).argmax(1)[0].cpu()
        for k in range(1, classes):
            size = (predicted == k).sum() + (label == k).sum()
            if size > 0:
                scores[k].append((2 * ((predicted == k) & (label == k)).sum() / size).item())
    return [sum(s) / len(s) if s else float("nan") for s in scores[1:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="exported weights: .pt, or .safetensors with --plain")
    parser.add_argument("store", type=Path, help="store with labels, as `pretext3d preprocess` writes it")
    parser.add_argument("--plain", action="store_true", help="use an ordinary nn.Module instead of TorchScript")
    parser.add_argument("--train", type=int, default=8, help="labelled subjects to train on (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=2, help="crops a step (default: %(default)s)")
    parser.add_argument("--crop", type=int, default=64, help="side of a crop in voxels (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for path in (args.weights, args.store / "index.json"):
        if not path.exists():
            parser.error(f"{path}: not found")

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, description = load_encoder(args.weights, args.plain)
    levels = description["levels"]
    if not all(isinstance(level["reduction"], int) for level in levels):
        sys.exit(f"error: {args.weights}: halves its axes unequally, this script's decoder needs an encoder that halves all of them alike")
    subjects, classes = load_subjects(args.store, levels[-1]["reduction"])
    smallest = min(min(label.shape) for _, label in subjects)
    if args.crop % levels[-1]["reduction"] or not 0 < args.crop <= smallest:
        parser.error(f"--crop {args.crop}: expected a multiple of {levels[-1]['reduction']}, at most {smallest}")
    train, held_out = subjects[: args.train], subjects[args.train :]
    if not held_out:
        parser.error(f"--train {args.train}: no subject is left to test on, {args.store} has {len(subjects)}")
    model = Segmenter(encoder, [level["channels"] for level in levels], len(classes), norm(description)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    for step in range(1, args.steps + 1):
        model.train()
        crops = [random_crop(*train[i], args.crop) for i in torch.randint(len(train), (args.batch_size,))]
        image, label = (torch.stack(tensors).to(device) for tensors in zip(*crops))
        loss = loss_of(model(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == args.steps:
            print(f"step {step}/{args.steps}  loss {loss.item():.3f}", flush=True)
    scores = dice(model, held_out, len(classes), device)
    print(f"Dice on {len(held_out)} held-out subjects")
    for name, score in zip(classes[1:], scores):
        print(f"  class {name}: {score:.3f}")
    print(f"  mean: {sum(scores) / len(scores):.3f}")


if __name__ == "__main__":
    main()
