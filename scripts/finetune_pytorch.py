#!/usr/bin/env python3
"""Fine-tune a pretrained encoder for segmentation in plain PyTorch.

    python3 scripts/finetune_pytorch.py weights/rot.pt data/stores/phantom-brain

Loads the exported weights (`.pt` or `.safetensors`) as an ordinary `nn.Module`, puts a new decoder on its feature pyramid, trains
both on the store's labels, and prints the Dice of each class on held-out subjects. Needs torch, numpy and safetensors.
"""
import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

# Works without an installed pretext3d: the module is plain Python.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import pretext3d  # noqa: E402


class Segmenter(nn.Module):
    """Scores of classes at the input's resolution, `[B, classes, D, H, W]`."""

    def __init__(self, encoder, classes):
        super().__init__()
        self.encoder, self.decoder = encoder, encoder.new_decoder(classes)

    def forward(self, x):
        return self.decoder(self.encoder(x))


def load_subjects(store, multiples):
    """Images `[C, D, H, W]` and labels `[D, H, W]`, padded to sides that the encoder can reduce."""
    subjects = []
    for scan in store:
        image, label = scan["image"], scan["label"].long()
        pad = [n for side, multiple in zip(label.shape[::-1], multiples[::-1]) for n in (0, -side % multiple)]
        subjects.append((F.pad(image[None], pad, mode="replicate")[0], F.pad(label, pad)))
    return subjects


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
    parser.add_argument("weights", type=Path, help="exported weights: .pt, or .safetensors with its .json")
    parser.add_argument("store", type=Path, help="store with labels, as `pretext3d preprocess` writes it")
    parser.add_argument("--train", type=int, default=8, help="labelled subjects to train on (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=2, help="crops a step (default: %(default)s)")
    parser.add_argument("--crop", type=int, default=64, help="side of a crop in voxels (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        encoder = pretext3d.load(args.weights)
        store = pretext3d.Store(args.store, labelled=True)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if encoder.rank != 3 or not store.labels:
        sys.exit(f"error: {args.weights} and {args.store}: expected an encoder of volumes, and volumes with labels")
    if store.regions or store.ignore is not None:
        sys.exit(f"error: {args.store}: has regions or unlabelled voxels; this example learns plain classes, `pretext3d finetune` all of them")
    classes, multiples = [label.name for label in store.labels], encoder.levels[-1].reduction
    subjects = load_subjects(store, multiples)
    smallest = min(min(label.shape) for _, label in subjects)
    if any(args.crop % n for n in multiples) or not 0 < args.crop <= smallest:
        parser.error(f"--crop {args.crop}: expected a multiple of {' and '.join(map(str, sorted(set(multiples))))}, at most {smallest}")
    train, held_out = subjects[: args.train], subjects[args.train :]
    if not held_out:
        parser.error(f"--train {args.train}: no subject is left to test on, {args.store} has {len(subjects)}")
    model = Segmenter(encoder, len(classes)).to(device)
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
