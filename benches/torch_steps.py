"""The networks of some tasks in plain PyTorch, on volumes the U-Net (its encoder, with a decoder where voxels are predicted) and
nnU-Net's networks as dynamic-network-architectures has it, on images torchvision's DenseNet-121, and their training step.

    python3 torch_steps.py --task rot --window 64 --batch 2 --steps 5 [--tuned] [--device cuda]
    python3 torch_steps.py --task mae --encoder resenc-l --window 64 --batch 2 --steps 5
    python3 torch_steps.py --task rot --encoder densenet121 --window 224 --batch 32 --channels 3 --steps 5

prints one JSON line a step: `{"seconds": ...}`. The network, loss and batch are those of `pretext3d bench-step`; the data are
random tensors that lie ready on the device.
"""
import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "python")]
from finetune_pytorch import Segmenter, loss_of  # noqa: E402
from pretext3d.unet import UNet  # noqa: E402

FILTERS, LEVELS = 16, 5
DEEPEST = FILTERS << (LEVELS - 1)
ROTATIONS = {"unet": 10, "densenet121": 4}
PATCHES, PERMUTATIONS, SHUFFLES = 27, 100, 32
# Features and blocks of the levels of nnU-Net's networks.
NNUNET = {
    "plainconv": ([32, 64, 128, 256, 320, 320], [2] * 6),
    "resenc-s": ([16, 32, 64, 128, 160, 160], [1, 2, 2, 2, 2, 2]),
    "resenc-m": ([32, 64, 128, 256, 320, 320], [1, 2, 2, 2, 2, 2]),
    "resenc-l": ([32, 64, 128, 256, 320, 320], [1, 3, 4, 6, 6, 6]),
}
COEFFICIENTS = 5
BLOCK, RATIO = 8, 0.75
TEMPERATURE = 0.5


def unet(channels):
    return UNet(3, channels, FILTERS, LEVELS, norm="batch")


def pool(deepest):
    """`[N, C, ...]` to `[N, F]`: pooled by 2 where that leaves anything."""
    if min(deepest.shape[2:]) >= 2:
        deepest = (F.max_pool3d if deepest.ndim == 5 else F.max_pool2d)(deepest, 2)
    return deepest.flatten(1)


def mlp(inputs, classes):
    layers = []
    for outputs in (2048, 1024):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.BatchNorm1d(outputs), nn.Dropout(0.5)]
        inputs = outputs
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


class Rotation(nn.Module):
    """`[B, C, s, s, s]` to logits `[B, 10]`."""

    def __init__(self, channels, window):
        super().__init__()
        side = window // 16
        self.encoder = unet(channels)
        self.head = mlp(DEEPEST * (side // 2 if side >= 2 else side) ** 3, ROTATIONS["unet"])

    def forward(self, x):
        return self.head(pool(self.encoder(x)[-1]))


class ImageRotation(nn.Module):
    """`[B, C, s, s]` to logits `[B, 4]`."""

    def __init__(self, window):
        # Only here: what it takes belongs to no figure of the volumes.
        import torchvision

        super().__init__()
        side = window // 32
        self.encoder = torchvision.models.densenet121().features
        self.head = mlp(1024 * (side // 2 if side >= 2 else side) ** 2, ROTATIONS["densenet121"])

    def forward(self, x):
        return self.head(pool(F.relu(self.encoder(x), inplace=True)))


class Jigsaw(nn.Module):
    """Patches `[B * 27, C, s, s, s]` and permutation ids `[B, 32]` to logits `[B * 32, 100]`."""

    def __init__(self, channels, patch):
        super().__init__()
        side = patch // 16
        self.features = DEEPEST * (side // 2 if side >= 2 else side) ** 3
        self.encoder = unet(channels)
        self.head = mlp(PATCHES * self.features, PERMUTATIONS)
        self.register_buffer("table", torch.stack([torch.randperm(PATCHES) for _ in range(PERMUTATIONS)]))

    def forward(self, x, ids):
        features = pool(self.encoder(x)[-1]).unflatten(0, (-1, PATCHES))
        shuffled = features[torch.arange(len(ids), device=x.device)[:, None, None], self.table[ids]]
        return self.head(shuffled.flatten(2).flatten(0, 1))


class Simclr(nn.Module):
    """Crops `[2 * B, C, s, s, s]`, partners one after the other, to unit vectors `[2 * B, 128]`."""

    def __init__(self, channels):
        super().__init__()
        self.encoder = unet(channels)
        width = DEEPEST
        self.head = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 128), nn.BatchNorm1d(128))

    def forward(self, x):
        return F.normalize(self.head(self.encoder(x)[-1].mean((2, 3, 4))).float(), dim=1)


def nnunet(encoder, channels, outputs):
    """nnU-Net's network, `[B, C, s, s, s]` to `[B, outputs, s, s, s]`."""
    # Only here: what it takes belongs to no other network's figure.
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    features, blocks = NNUNET[encoder]
    kind, convs = (PlainConvUNet, 2) if encoder == "plainconv" else (ResidualEncoderUNet, 1)
    network = kind(
        channels, len(features), features, nn.Conv3d, 3, [1, 2, 2, 2, 2, 2], blocks, outputs, convs, conv_bias=True,
        norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )
    network.apply(network.initialize)
    return network


def relative_error(restored, targets):
    """Squared error where the mask is 1 as a share of that of the mean, of `targets` `[2, B, C, ...]`, a window and its mask."""
    clean, mask = targets
    dims = tuple(range(2, clean.ndim))
    mean = (clean * mask).sum(dims, keepdim=True) / mask.sum(dims, keepdim=True)
    return ((restored - clean).square() * mask).sum() / ((clean - mean).square() * mask).sum()


def masks(batch, channels, window):
    """Exactly `RATIO` of the blocks of each window."""
    side = window // BLOCK
    chosen = torch.stack([torch.randperm(side**3) for _ in range(batch)]) < round(RATIO * side**3)
    blocks = chosen.float().reshape(batch, 1, side, side, side)
    for dim in (2, 3, 4):
        blocks = blocks.repeat_interleave(BLOCK, dim)
    return blocks.expand(-1, channels, -1, -1, -1)


def nt_xent(x, partners):
    scores = (x @ x.T / TEMPERATURE).masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), float("-inf"))
    return F.cross_entropy(scores, partners)


def build(task, encoder, window, batch, channels):
    """Network, its inputs, its targets and its loss."""
    if task == "vf":
        fused = torch.randn(batch, channels, window, window, window)
        classes = torch.randint(COEFFICIENTS, (batch, window, window, window))
        return Segmenter(unet(channels), COEFFICIENTS), (fused,), classes, loss_of
    if task in ("mae", "gen"):
        clean = torch.randn(batch, channels, window, window, window)
        mask = masks(batch, channels, window) if task == "mae" else torch.ones_like(clean)
        spoilt = clean * (1 - mask) if task == "mae" else torch.rand_like(clean)
        network = nnunet(encoder, channels, channels) if encoder in NNUNET else Segmenter(unet(channels), channels)
        return network, (spoilt,), torch.stack([clean, mask]), relative_error
    if task == "simclr":
        crops = torch.randn(2 * batch, channels, *[window * 3 // 4] * 3)
        return Simclr(channels), (crops,), torch.arange(2 * batch) ^ 1, nt_xent
    if task == "rot":
        flat = encoder == "densenet121"
        network = ImageRotation(window) if flat else Rotation(channels, window)
        inputs = torch.randn(batch, channels, *[window] * (2 if flat else 3))
        return network, (inputs,), torch.randint(ROTATIONS[encoder], (batch,)), F.cross_entropy
    # As the binary: 3 voxels of jitter at a window of 128, in proportion.
    patch = window // 3 - max((3 * window + 64) // 128, 1)
    ids = torch.stack([torch.randperm(PERMUTATIONS)[:SHUFFLES] for _ in range(batch)])
    patches = torch.randn(batch * PATCHES, channels, patch, patch, patch)
    return Jigsaw(channels, patch), (patches, ids), ids.flatten(), F.cross_entropy


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["rot", "jig", "mae", "gen", "vf", "simclr"], required=True)
    parser.add_argument("--encoder", choices=["unet", *NNUNET, "densenet121"], default="unet",
                        help="nnU-Net's: --task mae or gen; densenet121: --task rot on images of 3 channels")
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tuned", action="store_true", help="autocast bfloat16, channels last, fused AdamW, cuDNN benchmark")
    args = parser.parse_args()
    if args.encoder == "densenet121" and (args.task, args.channels) != ("rot", 3):
        parser.error("--encoder densenet121 goes with --task rot and --channels 3")

    if args.encoder in NNUNET and args.task not in ("mae", "gen"):
        parser.error(f"--encoder {args.encoder} goes with --task mae and gen")

    torch.manual_seed(0)
    network, inputs, targets, criterion = build(args.task, args.encoder, args.window, args.batch, args.channels)
    network, targets = network.to(args.device), targets.to(args.device)
    inputs = [x.to(args.device) for x in inputs]
    autocast = contextlib.nullcontext
    if args.tuned:
        torch.backends.cudnn.benchmark = True
        layout = torch.channels_last_3d if inputs[0].ndim == 5 else torch.channels_last
        network = network.to(memory_format=layout)
        inputs[0] = inputs[0].to(memory_format=layout)
        autocast = lambda: torch.autocast(torch.device(args.device).type, dtype=torch.bfloat16)  # noqa: E731
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=args.tuned or None)
    synchronize = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    for _ in range(args.steps):
        synchronize()
        start = time.perf_counter()
        with autocast():
            outputs = network(*inputs)
        loss = criterion(outputs.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        synchronize()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    if args.device.startswith("cuda"):
        print(json.dumps({"device_mib": torch.cuda.max_memory_allocated() / 2**20}))


if __name__ == "__main__":
    main()
