"""The U-Net: its encoder, and the decoder that stands above it and above DenseNet-121."""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import Encoder, Level
from .layers import conv, max_pool, norm, up_conv


class Stage(nn.Module):
    """Two times convolution, ReLU, batch normalisation; instance normalisation stands before the ReLU."""

    def __init__(self, rank: int, inputs: int, outputs: int, kind: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_first, self.dropout = kind == "instance", dropout
        self.conv0, self.norm0 = conv(rank, inputs, outputs, 3), norm(rank, kind, outputs)
        self.conv1, self.norm1 = conv(rank, outputs, outputs, 3), norm(rank, kind, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for convolve, normalise in ((self.conv0, self.norm0), (self.conv1, self.norm1)):
            x = F.relu(normalise(convolve(x))) if self.norm_first else normalise(F.relu(convolve(x)))
        return F.dropout(x, self.dropout, self.training)


class UNet(Encoder):
    """The U-Net's encoder: `levels` resolutions with a max-pooling by 2 between them, `filters` channels at the finest, twice as
    many at each further one. `norm`: `batch` or `instance`. `dropout`: probability after each level."""

    def __init__(
        self, rank: int, in_channels: int, filters: int = 16, levels: int = 5, dropout: float = 0.0, norm: str = "instance"
    ) -> None:
        super().__init__(rank, in_channels, [Level(filters << i, (1 << i,) * rank) for i in range(levels)], norm)
        inputs = in_channels
        for i, level in enumerate(self.levels):
            self.add_module(f"level{i}", Stage(rank, inputs, level.channels, norm, dropout))
            inputs = level.channels

    def pyramid(self, x: Tensor) -> list[Tensor]:
        pyramid: list[Tensor] = []
        for i in range(len(self.levels)):
            pyramid.append(getattr(self, f"level{i}")(max_pool(pyramid[-1]) if pyramid else x))
        return pyramid

    def new_decoder(self, outputs: int) -> nn.Module:
        return UNetDecoder(self.levels, outputs, self.norm)


class UNetDecoder(nn.Module):
    """From a pyramid, finest first, to `[B, outputs, ...]` of the input's resolution: each step enlarges by what the encoder
    reduced and puts the encoder's map beside it. The last step of an encoder whose finest map is coarser than its input has no
    map to put beside."""

    def __init__(self, levels: Sequence[Level], outputs: int, kind: str) -> None:
        super().__init__()
        rank, finest = len(levels[0].reduction), levels[0]
        whole = Level(finest.channels, (1,) * rank)
        skips = [*levels[:-1]] if finest.reduction == whole.reduction else [whole, *levels[:-1]]
        coarse = levels[-1]
        for i, fine in enumerate(reversed(skips)):
            factor = [c // f for c, f in zip(coarse.reduction, fine.reduction)]
            inputs = fine.channels if fine is whole else 2 * fine.channels
            self.add_module(f"step{i}_up", up_conv(rank, coarse.channels, fine.channels, factor))
            self.add_module(f"step{i}", Stage(rank, inputs, fine.channels, kind))
            coarse = fine
        self.steps = len(skips)
        self.output = conv(rank, finest.channels, outputs, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        *skips, x = pyramid
        for i in range(self.steps):
            x = getattr(self, f"step{i}_up")(x)
            x = getattr(self, f"step{i}")(torch.cat([skips.pop(), x], 1) if skips else x)
        logits: Tensor = self.output(x)
        return logits
