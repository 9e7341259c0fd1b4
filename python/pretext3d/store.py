"""Stores of preprocessed scans, as `pretext3d preprocess` writes them."""
from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

FORMAT = "pretext3d-store"
VERSION = 1
INDEX = "index.json"


class Label(NamedTuple):
    """What a voxel's label means."""

    value: int
    """In the owners' files; in a store it is the label's place in `Store.labels`."""
    name: str


class Region(NamedTuple):
    """A union of label values that is learnt as one mask; regions may overlap."""

    name: str
    values: list[int]
    """In the owners' files."""
    written: int
    """The one of them that a predicted voxel of it is written as, in place of an earlier region's."""


class _Scan(TypedDict):
    id: str
    subject: str
    image: Tensor


_Known = TypedDict("_Known", {"label": Tensor, "class": int, "values": dict[str, float | str], "contrast": str}, total=False)


class Sample(_Scan, _Known):
    """A scan of a store.

    `id`: of the scan; `subject`: the person, which is the id up to a `/`. `image`: `[C, D, H, W]` in RAS+, from left to right,
    posterior to anterior, inferior to superior, normalised; photographs `[C, H, W]`. `label`, where the scan has one: class of
    each voxel, `[D, H, W]`, uint8, a place in `Store.labels`, or 255 where nobody labelled. `class`, where the scan has one: a
    place in `Store.classes`. `values`, where the scan has any: of the columns that `preprocess --column` kept, by their names, a
    number or a text each.
    `contrast`: name of the only channel, in a store of `preprocess --channels-as-scans`.
    """


class Store(Dataset[Sample]):
    """The scans of a store, as a dataset: `len(store)`, `store[i]` in the order of `ids`, and with a DataLoader.

    `path`: the store's folder. `split`: only the scans that their dataset puts on this side, `train`, `val` or `test`.
    `subjects`: only these people's scans or these scans, by id, as `split.json` of a run names them; a single id may stand alone.
    `labelled`: only scans with a label, a class or a value. `dtype`: of images; None: as stored, float16 or float32, mapped from the
    file, so that cutting out a patch reads the patch.

    Raises FileNotFoundError for a missing file, ValueError for a store that is damaged, not complete or of a newer version, and for
    a choice that leaves nothing; each names the file. A file's header is looked at when its scan is read.
    """

    index: dict[str, Any]
    """`index.json`: settings of the preprocessing, layout, fingerprint, and what is said of each scan."""
    ids: list[str]
    channels: list[str]
    """Names of the image's channels."""
    labels: list[Label] | None
    """What the values in a label mean, background first; None: no scan has a label."""
    regions: list[Region]
    """Unions of label values that are learnt in place of the classes, in order; empty where labels are plain classes."""
    ignore: int | None
    """In the owners' files the value of voxels that nobody labelled, which are 255 in a store; None: all are labelled."""
    classes: list[str] | None
    """Names of the classes of whole scans; None: no scan has one."""
    spacing: list[tuple[float, ...]]
    """Of each scan: millimetres from voxel to voxel along each axis."""
    rank: int
    """2 for images, 3 for volumes."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str | None = None,
        subjects: Iterable[str] | str | None = None,
        labelled: bool = False,
        dtype: torch.dtype | None = torch.float32,
    ) -> None:
        self.path, self.dtype = Path(path), dtype
        self.index = _index(self.path)
        entries: list[dict[str, Any]] = self.index["subjects"]
        try:
            for entry in entries:
                _check_length(self.path / entry["file"], entry["bytes"])
            ranks = {2 if entry["shape"][0] == 1 else 3 for entry in entries}
            if len(ranks) > 1:
                raise ValueError(f"{self.path}: the store mixes images and volumes")
            self.rank = ranks.pop()
            self._entries = self._chosen(entries, split, subjects, labelled)
            self.ids = [entry["id"] for entry in self._entries]
            self.channels = list(self.index["channels"])
            labels, classes = self.index["labels"], self.index.get("classes")
            self.labels = None if labels is None else [Label(label["value"], label["name"]) for label in labels]
            self.regions = [Region(r["name"], list(r["values"]), r["written"]) for r in self.index.get("regions", [])]
            self.ignore = self.index.get("ignore")
            self.classes = None if classes is None else list(classes)
            self.spacing = [tuple(entry["spacing"][3 - self.rank :]) for entry in self._entries]
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{self.path / INDEX}: not a store's index: {error!r}") from error

    def _chosen(
        self, entries: list[dict[str, Any]], split: str | None, subjects: Iterable[str] | str | None, labelled: bool
    ) -> list[dict[str, Any]]:
        if split is not None:
            entries = [entry for entry in entries if entry["split"] == split]
            if not entries:
                raise ValueError(f"{self.path}: the dataset puts no scan on the side {split!r}")
        if subjects is not None:
            wanted = {subjects} if isinstance(subjects, str) else set(subjects)
            known = {name for entry in entries for name in (entry["id"], _subject(entry["id"]))}
            if wanted - known:
                raise ValueError(f"{self.path}: holds no subject {min(wanted - known)!r}{f' on the side {split!r}' if split else ''}")
            entries = [entry for entry in entries if not wanted.isdisjoint((entry["id"], _subject(entry["id"])))]
        if labelled:
            entries = [entry for entry in entries if entry["label"] or entry.get("class") is not None or entry.get("values")]
        if not entries:
            raise ValueError(f"{self.path}: no scan is left of those that were asked for")
        return entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, i: int) -> Sample:
        entry = self._entries[operator.index(i)]
        path = self.path / entry["file"]
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in ("image", "label") if name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path}: not a subject's file of a store, or damaged: {error}") from error
        expected = {"image": (len(self.channels), *entry["shape"])} | ({"label": tuple(entry["shape"])} if entry["label"] else {})
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            raise ValueError(f"{path}: holds {found}, the index says {expected}: preprocess again")
        if self.rank == 2:
            tensors = {name: tensor.squeeze(-3) for name, tensor in tensors.items()}
        image = tensors["image"] if self.dtype is None else tensors["image"].to(self.dtype)
        sample: Sample = {"id": entry["id"], "subject": _subject(entry["id"]), "image": image}
        if "label" in tensors:
            sample["label"] = tensors["label"]
        if entry.get("class") is not None:
            sample["class"] = entry["class"]
        if entry.get("values"):
            sample["values"] = dict(entry["values"])
        if "contrast" in entry:
            sample["contrast"] = entry["contrast"]
        return sample


def _subject(scan: str) -> str:
    return scan.split("/")[0]


def _check_length(path: Path, expected: int) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing from the store: preprocess again")
    if (found := path.stat().st_size) != expected:
        raise ValueError(f"{path}: truncated or replaced: {expected} bytes expected, found {found}; delete it and preprocess again")


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: not a store (no {INDEX}); make one with `pretext3d preprocess`")
    try:
        index = json.loads(path.read_bytes())
        kind, version = index["format"], index["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a store's index: {error!r}") from error
    if kind != FORMAT:
        raise ValueError(f"{path}: format is {kind!r}, expected {FORMAT!r}")
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(f"{path}: store of version {version}, this module reads up to {VERSION}: update it, or preprocess again")
    if index.get("complete") is not True:
        raise ValueError(f"{folder}: the store is not complete: run `pretext3d preprocess` again to finish it")
    if not index.get("subjects"):
        raise ValueError(f"{folder}: the store holds no subjects")
    return dict(index)
