#!/usr/bin/env python3
"""A residual encoder from a folder of `pretext3d export --to huggingface`, as an ordinary module: from_pretrained.py FOLDER

Needs torch, huggingface_hub and dynamic-network-architectures. Scans are [B, C, x, y, z] in RAS+ orientation.
"""
import sys

from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from huggingface_hub import PyTorchModelHubMixin
from torch import nn


class Pretrained(ResidualEncoder, PyTorchModelHubMixin):
    def __init__(self, network: dict, **_):
        flat = network["rank"] == 2
        super().__init__(
            network["in_channels"], len(network["features"]), network["features"], nn.Conv2d if flat else nn.Conv3d,
            network["kernels"], network["strides"], network["blocks"], conv_bias=True,
            norm_op=nn.InstanceNorm2d if flat else nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, return_skips=True,
        )


if __name__ == "__main__":
    encoder = Pretrained.from_pretrained(sys.argv[1])
    print(sum(p.numel() for p in encoder.parameters()), "parameters, levels of", encoder.output_channels, "channels")
