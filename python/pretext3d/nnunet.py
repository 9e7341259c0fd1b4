"""nnU-Net's encoders and their decoder, with the names of dynamic-network-architectures."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import Encoder, Level
from .layers import Sides, conv, norm, per_axis, up_conv

SLOPE = 0.01


class ConvNorm(nn.Module):
    """Convolution and instance normalisation, where `active` then LeakyReLU."""

    def __init__(
        self, rank: int, inputs: int, outputs: int, kernel: Sides, stride: Sides = 1, active: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.conv = conv(rank, inputs, outputs, kernel, stride, bias)
        self.norm = norm(rank, "instance", outputs)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.leaky_relu(x, SLOPE) if self.active else x


class ConvNorms(nn.Module):
    """Such units in a row, of which the first may stride."""

    def __init__(self, rank: int, inputs: int, outputs: int, kernel: Sides, stride: Sides, count: int) -> None:
        super().__init__()
        units = [ConvNorm(rank, inputs, outputs, kernel, stride)]
        units += [ConvNorm(rank, outputs, outputs, kernel) for _ in range(count - 1)]
        self.convs = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x)
        return x


class Block(nn.Module):
    """Two convolutions beside a skip, which is averaged over the stride and, where the channels change, mapped by a convolution
    of one voxel. A side that is no multiple of the stride is rounded up."""

    def __init__(self, rank: int, inputs: int, outputs: int, kernel: Sides, stride: Sides = 1) -> None:
        super().__init__()
        self.conv1 = ConvNorm(rank, inputs, outputs, kernel, stride)
        self.conv2 = ConvNorm(rank, outputs, outputs, kernel, active=False)
        sides = per_axis(rank, stride)
        pool: Any = nn.AvgPool2d if rank == 2 else nn.AvgPool3d
        skip: list[nn.Module] = []
        if any(n > 1 for n in sides):
            skip.append(pool(sides, sides, ceil_mode=True, count_include_pad=False))
        if inputs != outputs:
            skip.append(ConvNorm(rank, inputs, outputs, 1, active=False, bias=False))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x), SLOPE)


class Blocks(nn.Module):
    """A stage of residual blocks, of which the first strides."""

    def __init__(self, rank: int, inputs: int, outputs: int, kernel: Sides, stride: Sides, count: int) -> None:
        super().__init__()
        blocks = [Block(rank, inputs, outputs, kernel, stride)]
        blocks += [Block(rank, outputs, outputs, kernel) for _ in range(count - 1)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x


class Staged(Encoder):
    """Stages of convolutions, one a level, of which the first convolution strides where others pool.

    `features`, `blocks`, `kernels` and `strides`: of each stage its channels, its convolutions or residual blocks, the sides of
    its kernels and the stride of its first convolution along each axis. `dropout`: probability after each stage.
    """

    residual: bool
    """Whether a stem stands before stages of residual blocks, or else stages are convolutions in a row."""

    def __init__(
        self,
        rank: int,
        in_channels: int,
        features: Sequence[int],
        blocks: Sequence[int],
        kernels: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        dropout: float = 0.0,
    ) -> None:
        if not len(features) == len(blocks) == len(kernels) == len(strides):
            raise ValueError("features, blocks, kernels and strides must name as many stages")
        levels, reduction = [], (1,) * rank
        for channels, stride in zip(features, strides):
            reduction = tuple(n * by for n, by in zip(reduction, stride, strict=True))
            levels.append(Level(channels, reduction))
        super().__init__(rank, in_channels, levels, "instance")
        self.kernels, self.dropout = [tuple(kernel) for kernel in kernels], dropout
        inputs = in_channels
        if self.residual:
            self.stem = ConvNorms(rank, in_channels, features[0], kernels[0], strides[0], 1)
            inputs = features[0]
        shapes = [(rank, *shape) for shape in zip([inputs, *features], features, kernels, strides, blocks)]
        stages = (Blocks(*shape) if self.residual else nn.Sequential(ConvNorms(*shape)) for shape in shapes)
        self.stages = nn.ModuleList(stages)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        if self.residual:
            x = self.stem(x)
        pyramid = []
        for stage in self.stages:
            x = F.dropout(stage(x), self.dropout, self.training)
            pyramid.append(x)
        return pyramid

    def new_decoder(self, outputs: int) -> nn.Module:
        return StagedDecoder(self.levels, self.kernels, 1 if self.residual else 2, outputs)


class PlainConv(Staged):
    """The encoder of nnU-Net's PlainConvUNet, which is also that of MONAI's DynUNet."""

    residual = False


class ResEnc(Staged):
    """The encoder of nnU-Net's ResidualEncoderUNet."""

    residual = True


class StagedDecoder(nn.Module):
    """nnU-Net's UNetDecoder: from a pyramid, finest first, to `[B, outputs, ...]` of the input's resolution."""

    def __init__(self, levels: Sequence[Level], kernels: Sequence[Sequence[int]], convs: int, outputs: int) -> None:
        super().__init__()
        rank = len(levels[0].reduction)
        self.transpconvs, self.stages = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(levels) - 1)):
            fine, coarse = levels[i], levels[i + 1]
            factor = [c // f for c, f in zip(coarse.reduction, fine.reduction)]
            self.transpconvs.append(up_conv(rank, coarse.channels, fine.channels, factor))
            self.stages.append(ConvNorms(rank, 2 * fine.channels, fine.channels, kernels[i], 1, convs))
        # nnU-Net has one at every resolution, named by its place.
        self.last = str(len(levels) - 2)
        self.seg_layers = nn.ModuleDict({self.last: conv(rank, levels[0].channels, outputs, 1)})

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        *skips, x = pyramid
        for up, stage in zip(self.transpconvs, self.stages):
            x = stage(torch.cat([up(x), skips.pop()], 1))
        logits: Tensor = self.seg_layers[self.last](x)
        return logits
