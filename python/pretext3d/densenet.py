"""DenseNet-121 for images (Huang et al. 2017), with the names of torchvision's `densenet121().features`."""
from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import Encoder, Level
from .layers import BatchNorm2d, conv
from .unet import UNetDecoder

GROWTH = 32
BOTTLENECK = 4 * GROWTH
STEM = 64
BLOCKS = (6, 12, 24, 16)


class DenseLayer(nn.Module):
    """Normalisation, ReLU and convolution, 1x1 and 3x3, to `GROWTH` new channels."""

    def __init__(self, inputs: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = BatchNorm2d(inputs), conv(2, inputs, BOTTLENECK, 1, bias=False)
        self.norm2, self.conv2 = BatchNorm2d(BOTTLENECK), conv(2, BOTTLENECK, GROWTH, 3, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm1(x)))
        x = self.conv2(F.relu(self.norm2(x)))
        return F.dropout(x, self.dropout, self.training)


class DenseBlock(nn.Module):
    """Layers that each add their channels to those before."""

    def __init__(self, inputs: int, layers: int, dropout: float) -> None:
        super().__init__()
        for i in range(layers):
            self.add_module(f"denselayer{i + 1}", DenseLayer(inputs + GROWTH * i, dropout))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.cat([x, layer(x)], 1)
        return x


class Transition(nn.Module):
    """To half the channels and half the sides."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm, self.conv = BatchNorm2d(inputs), conv(2, inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet121(Encoder):
    """DenseNet-121: the stem, then each dense block before its transition, the last one normalised. `dropout`: probability after
    each dense layer."""

    def __init__(self, in_channels: int, dropout: float = 0.0) -> None:
        levels, inputs = [Level(STEM, (2, 2))], STEM
        for i, layers in enumerate(BLOCKS):
            levels.append(Level(inputs + GROWTH * layers, (4 << i, 4 << i)))
            inputs = levels[-1].channels // 2
        super().__init__(2, in_channels, levels, "batch")
        self.conv0, self.norm0 = conv(2, in_channels, STEM, 7, 2, bias=False), BatchNorm2d(STEM)
        inputs = STEM
        for i, layers in enumerate(BLOCKS, 1):
            channels = levels[i].channels
            self.add_module(f"denseblock{i}", DenseBlock(inputs, layers, dropout))
            if i < len(BLOCKS):
                self.add_module(f"transition{i}", Transition(channels))
                inputs = channels // 2
            else:
                self.norm5 = BatchNorm2d(channels)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        pyramid = [F.relu(self.norm0(self.conv0(x)))]
        x = F.max_pool2d(pyramid[0], 3, stride=2, padding=1)
        for i in range(1, len(BLOCKS)):
            pyramid.append(getattr(self, f"denseblock{i}")(x))
            x = getattr(self, f"transition{i}")(pyramid[-1])
        last = getattr(self, f"denseblock{len(BLOCKS)}")(x)
        return [*pyramid, F.relu(cast(Tensor, self.norm5(last)))]

    def new_decoder(self, outputs: int) -> nn.Module:
        return UNetDecoder(self.levels, outputs, self.norm)
