"""What all encoders have in common."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Level(NamedTuple):
    """One level of the feature pyramid."""

    channels: int
    reduction: tuple[int, ...]
    """Voxels of the input per voxel of the map, for each spatial axis."""


class Encoder(nn.Module):
    """An encoder: `[B, C, D, H, W]` (images and slices `[B, C, H, W]`) in RAS+ to a list of feature maps, finest first.

    An ordinary module: train it, freeze it, copy it, move it, save it. The names in its state dict are those of the export's
    `.safetensors` without the prefix `encoder.`.
    """

    rank: int
    """Spatial axes: 2 or 3."""
    in_channels: int
    levels: tuple[Level, ...]
    """The feature maps, finest first."""
    norm: str
    """`batch` or `instance`."""
    decoder: nn.Module | None
    """Of weights that hold a pretrained decoder: from the feature maps to its task's output, `[B, outputs, D, H, W]`."""
    description: dict[str, Any]
    """What the export says of itself: settings, expected input, levels, subjects seen. Empty for a network made by hand."""

    def __init__(self, rank: int, in_channels: int, levels: Sequence[Level], norm: str) -> None:
        super().__init__()
        self.rank, self.in_channels, self.levels, self.norm = rank, in_channels, tuple(levels), norm
        self.description = {}
        self.register_module("decoder", None)

    def forward(self, x: Tensor) -> list[Tensor]:
        if x.ndim != 2 + self.rank:
            raise ValueError(f"expected [B, C] and {self.rank} spatial axes, found {list(x.shape)}")
        return self.pyramid(x)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The feature maps of `[B, C, ...]`."""
        raise NotImplementedError

    def new_decoder(self, outputs: int) -> nn.Module:
        """A decoder with new weights of the shape that belongs to this encoder, as `finetune` trains it: from the feature maps
        to `[B, outputs, D, H, W]`, for inputs whose sides are multiples of the deepest reduction."""
        raise NotImplementedError

    def preprocess(self, volume: Tensor) -> Tensor:
        """The training's normalisation of intensities, channel by channel, of a raw scan `[C, D, H, W]` or `[B, C, D, H, W]`
        (images without `D`) in RAS+; float32. Orientation, cropping and resampling come before. An encoder of slices wants the
        whole volume here, and slices of what it returns.

        Raises ValueError if there is no description to say how, or for a tensor of other axes.
        """
        # A folder for Hugging Face has these keys at the top.
        about = self.description.get("input", self.description)
        if "preprocessing" not in about:
            raise ValueError("the encoder has no description that says how its scans were normalised")
        rank = 3 if about.get("slices") else self.rank
        if volume.ndim not in (1 + rank, 2 + rank):
            raise ValueError(f"expected [C] or [B, C] and {rank} spatial axes, found {list(volume.shape)}")
        return normalise(volume, about["preprocessing"], rank)


def normalise(volume: Tensor, settings: dict[str, Any], rank: int) -> Tensor:
    """Normalises each channel of `[..., D, H, W]` by itself, as the export's TorchScript does. `settings`: `preprocessing` of a
    description. Constant channels become 0."""
    x = volume.to(torch.float32)
    axes = tuple(range(-rank, 0))
    intensity = settings["intensity"]
    if intensity["kind"] == "window":
        return torch.clamp((x - intensity["lo"]) / (intensity["hi"] - intensity["lo"]), 0.0, 1.0)
    low = x.amin(axes, keepdim=True)
    if intensity["kind"] == "minmax":
        return (x - low) / torch.clamp(x.amax(axes, keepdim=True) - low, min=1e-12)
    if intensity["kind"] != "zscoreforeground":
        raise ValueError(f"normalisation {intensity['kind']!r} is not known here: update pretext3d")
    if settings["foreground"]["kind"] == "above":
        threshold = torch.full_like(low, settings["foreground"]["value"])
    else:
        # Air in Hounsfield units, if enough lies above it, or half-way between minimum and mean.
        middle = low + (x.mean(axes, keepdim=True) - low) / 2
        tissue = (x > -500.0).to(x.dtype).mean(axes, keepdim=True)
        threshold = torch.where((low < -500.0) & (tissue >= 0.005), torch.full_like(low, -500.0), middle)
    inside = (x > threshold).to(x.dtype)
    count = torch.clamp(inside.sum(axes, keepdim=True), min=1.0)
    mean = (x * inside).sum(axes, keepdim=True) / count
    variance = ((x - mean) * (x - mean) * inside).sum(axes, keepdim=True) / count
    return (x - mean) / torch.clamp(variance.sqrt(), min=1e-12)
