"""Layers for images and volumes alike: `rank` is the number of spatial axes, 2 or 3."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

Sides = int | Sequence[int]


def per_axis(rank: int, sides: Sides) -> tuple[int, ...]:
    """A number for each spatial axis."""
    return (sides,) * rank if isinstance(sides, int) else tuple(sides)


def conv(rank: int, inputs: int, outputs: int, kernel: Sides, stride: Sides = 1, bias: bool = True) -> nn.Module:
    """Convolution with padding by half the kernel."""
    sides = per_axis(rank, kernel)
    kind: Any = nn.Conv2d if rank == 2 else nn.Conv3d
    layer: nn.Module = kind(inputs, outputs, sides, per_axis(rank, stride), tuple(n // 2 for n in sides), bias=bias)
    return layer


def up_conv(rank: int, inputs: int, outputs: int, factor: Sides) -> nn.Module:
    """Transposed convolution that enlarges each axis by a factor, its kernel as large as its stride."""
    kind: Any = nn.ConvTranspose2d if rank == 2 else nn.ConvTranspose3d
    layer: nn.Module = kind(inputs, outputs, per_axis(rank, factor), per_axis(rank, factor))
    return layer


def max_pool(x: Tensor) -> Tensor:
    """Max-pooling of `[B, C, ...]` by 2; odd sides are rounded down."""
    return nn.functional.max_pool2d(x, 2) if x.ndim == 4 else nn.functional.max_pool3d(x, 2)


def norm(rank: int, kind: str, channels: int) -> nn.Module:
    """Normalisation of the kind `batch` or `instance`, with weight and bias."""
    kinds = {("batch", 2): BatchNorm2d, ("batch", 3): BatchNorm3d, ("instance", 2): InstanceNorm2d, ("instance", 3): InstanceNorm3d}
    return kinds[kind, rank](channels)


class _Uncounted(_BatchNorm):
    """BatchNorm that does not count its batches: exports hold no counter, and with a momentum none is needed."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.num_batches_tracked = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # The parent's would ask for a counter.
        nn.Module._load_from_state_dict(self, *args, **kwargs)


class BatchNorm2d(_Uncounted, nn.BatchNorm2d):
    """Of images."""


class BatchNorm3d(_Uncounted, nn.BatchNorm3d):
    """Of volumes."""


class _Unchecked(_InstanceNorm):
    """Instance normalisation that makes a map of one voxel 0, as the program does; PyTorch's own refuses it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.instance_norm(x, self.weight, self.bias, None, None, True, self.momentum or 0.0, self.eps, True)


class InstanceNorm2d(_Unchecked, nn.InstanceNorm2d):
    """Of images."""


class InstanceNorm3d(_Unchecked, nn.InstanceNorm3d):
    """Of volumes."""
