"""Encoders that pretext3d pretrained, and the stores of scans that it makes, in PyTorch.

    encoder = pretext3d.load("weights/rot.pt")
    scans = pretext3d.Store("data/stores/phantom-brain")
    pyramid = encoder(scans[0]["image"][None])
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .encoder import Encoder, Level
    from .store import Label, Region, Sample, Store
    from .weights import build, load

__all__ = ["Encoder", "Label", "Level", "Region", "Sample", "Store", "build", "load"]

MODULES = {"Encoder": "encoder", "Level": "encoder", "Label": "store", "Region": "store", "Sample": "store", "Store": "store", "build": "weights", "load": "weights"}


def __getattr__(name: str) -> Any:
    # When it is first asked for: the program starts through this package, and need not wait for torch to be imported.
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
