"""Exported weights as ordinary modules."""
from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .densenet import DenseNet121
from .encoder import Encoder
from .nnunet import PlainConv, ResEnc
from .unet import UNet

FORMAT = "pretext3d-encoder"
VERSION = 1
# Name of the description in a TorchScript file.
DESCRIPTION = "pretext3d.json"
ENCODER, DECODER = "encoder.", "decoder."
ZIP = b"PK\x03\x04"
# Name of the weights in a folder for Hugging Face.
MODEL = "model.safetensors"

ARCHITECTURES: dict[str, type[Encoder]] = {
    "unet": UNet,
    "densenet121": DenseNet121,
    "plainconv": PlainConv,
    "resenc-s": ResEnc,
    "resenc-m": ResEnc,
    "resenc-l": ResEnc,
}


def load(path: str | os.PathLike[str]) -> Encoder:
    """Loads a pretrained encoder, on the CPU and in training mode, as every new module is.

    `path`: an export's `.pt` or `.safetensors` (with its `.json` beside it), their name without the ending, or a folder of
    `pretext3d export --to huggingface`. Loading is strict: every tensor of the file is one of the module, and the other way
    round. A pretrained decoder in the weights becomes the encoder's `decoder`.

    Raises FileNotFoundError if there is no such file, and ValueError, which names the file, if it is damaged, of a newer version,
    or holds anything but a pretrained encoder.
    """
    path = Path(path)
    named = (Path(f"{path}{ending}") for ending in (".safetensors", ".pt"))
    whole = next((file for file in named if file.is_file()), None)
    if path.is_file():
        with path.open("rb") as file:
            is_script = file.read(len(ZIP)) == ZIP or path.suffix == ".pt"
        state, description = _script(path) if is_script else _safetensors(path, path.with_suffix(".json"))
    elif (path / MODEL).is_file():
        state, description = _safetensors(path / MODEL, path / "config.json")
    # A run's folder may have the name of its weights.
    elif whole is not None:
        return load(whole)
    elif path.is_dir():
        raise FileNotFoundError(f"{path}: a folder without {MODEL}; expected one of `pretext3d export --to huggingface`")
    else:
        raise FileNotFoundError(
            f"{path}: not found; expected an export's .pt or .safetensors, their name without the ending, or a folder of "
            "`pretext3d export --to huggingface`"
        )
    _check(description, path)
    try:
        # Nothing is made before it is clear that the file has it.
        with torch.device("meta"):
            encoder = build(description)
            if any(name.startswith(DECODER) for name in state):
                encoder.decoder = encoder.new_decoder(description["decoder"]["outputs"])
        encoder.load_state_dict({name.removeprefix(ENCODER): tensor for name, tensor in state.items()}, assign=True)
    except (RuntimeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: its tensors and its description do not fit each other: {error}") from error
    return encoder


def build(description: dict[str, Any]) -> Encoder:
    """The encoder that an export's description (its `.json`) says, with new weights, as PyTorch draws them.

    Raises ValueError if it says nothing of a network, or of one that is not known here.
    """
    # Exports from before there was a choice name neither architecture nor normalisation.
    network = {"architecture": "unet", **description.get("network", {})}
    name = network.pop("architecture")
    if name not in ARCHITECTURES or "in_channels" not in network:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"the network is {name!r} with {sorted(network)}, expected one of {known} with its settings")
    if name == "unet":
        network.setdefault("norm", "batch")
    try:
        encoder = ARCHITECTURES[name](**network)
    except TypeError as error:
        raise ValueError(f"the network is {name!r} with {sorted(network)}, which are not its settings: {error}") from error
    encoder.description = description
    return encoder


def _json(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        description = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(description, dict):
        raise ValueError(f"{path}: expected a description of an export, found {text[:20]!r}")
    return description


def _safetensors(path: Path, description: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not description.is_file():
        raise FileNotFoundError(
            f"{description}: not found; it says what network {path} holds. Both are written by `pretext3d pretrain` and "
            "`pretext3d export`; the .pt holds them in one"
        )
    try:
        # Copies: the file may change while they are in use.
        state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged: {error}") from error
    return state, _json(description.read_bytes(), description)


def _script(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    extra = {DESCRIPTION: ""}
    try:
        with warnings.catch_warnings():
            # Upstream is giving TorchScript up; this reads it as long as torch does.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(path, map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ValueError(f"{path}: not a TorchScript file, or damaged: {error}") from error
    text: str | bytes = extra[DESCRIPTION]
    if not text:
        raise ValueError(f"{path}: TorchScript of another program: there is no {DESCRIPTION} in it")
    state: dict[str, Tensor] = module.state_dict()
    return state, _json(text, path)


def _check(description: dict[str, Any], path: Path) -> None:
    kind, version = description.get("format", FORMAT), description.get("version", 0)
    if kind != FORMAT:
        raise ValueError(
            f"{path}: holds a {kind}, expected a {FORMAT}, which pretraining writes; run a fine-tuned network with torch.jit.load"
        )
    if not isinstance(version, int):
        raise ValueError(f"{path}: its version is {version!r}, expected a number up to {VERSION}")
    if version > VERSION:
        raise ValueError(f"{path}: written by a newer version ({version}, this one knows {VERSION}): update pretext3d")
