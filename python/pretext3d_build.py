"""Build backend of the wheel (pyproject.toml): maturin, told where libtorch is, and the program put into the package.

maturin would put the program on the PATH as it is, where it could not find libtorch: how far `lib/python3.x/site-packages` is from
there differs from one environment to the next. Inside of the package it is beside torch, and `pretext3d/__main__.py` starts it.
"""
from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import maturin  # type: ignore[import-untyped]
from maturin import build_sdist, get_requires_for_build_sdist, prepare_metadata_for_build_wheel  # noqa: F401  Hooks of PEP 517.

ROOT = Path(__file__).resolve().parents[1]
# With every installed package: pip's isolated builds see their own only, by environment variables.
FIND = "from importlib.metadata import distribution as d; t = d('torch'); print(t.version, t.locate_file('torch'), sep='\\n')"
SCRIPTS = ".data/scripts/pretext3d"
PROGRAM = "pretext3d/bin/pretext3d"
# Version of torch that the program was built with.
TORCH = "pretext3d/bin/torch.txt"
START = "[console_scripts]\npretext3d = pretext3d.__main__:main\n"


def wanted() -> str:
    """Version of torch that the wheel is for."""
    found = re.search(r'"torch *== *([^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert found, "pyproject.toml names no torch"
    return found[1]


def torch() -> Path | None:
    """Folder of the wanted torch: that of the environment, or else of an isolated build."""
    for flags in (["-E"], []):
        done = subprocess.run([sys.executable, *flags, "-c", FIND], capture_output=True, text=True)
        version, _, folder = done.stdout.strip().partition("\n")
        if version.split("+")[0] == wanted() and Path(folder, "include/torch/csrc/api/include/torch/torch.h").is_file():
            return Path(folder)
    return None


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:
    """maturin's own, and torch where the environment has not got it."""
    return [*maturin.get_requires_for_build_wheel(config_settings), *([] if torch() else [f"torch=={wanted()}"])]


def build_wheel(directory: str, config_settings: object = None, metadata_directory: str | None = None) -> str:
    """Writes the wheel into a folder and returns its name."""
    folder = torch()
    if folder is None:
        sys.exit(f"error: building needs torch {wanted()}, {sys.prefix} has not got it: python3 -m pip install torch=={wanted()}")
    os.environ.pop("LIBTORCH_USE_PYTORCH", None)
    os.environ["LIBTORCH"] = str(folder)
    os.environ["PRETEXT3D_RPATH"] = "$ORIGIN/../../torch/lib"
    # Not that of `make`, which builds against another torch.
    os.environ.setdefault("CARGO_TARGET_DIR", str(ROOT / "target/wheel"))
    # Headers that scripts/env.sh has fetched for `make`.
    os.environ.setdefault("PRETEXT3D_C10D", str(ROOT / "target/c10d"))
    name: str = maturin.build_wheel(directory, config_settings, metadata_directory)
    into_package(Path(directory, name))
    return name


def into_package(wheel: Path) -> None:
    """Moves the program of maturin's wheel into the package, and has it started from there."""
    part, record = wheel.with_suffix(".part"), []
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as new:
        [program] = [name for name in old.namelist() if name.endswith(SCRIPTS)]
        [info] = [name for name in old.namelist() if name.endswith(".dist-info/RECORD")]

        def add(item: zipfile.ZipInfo, data: bytes) -> None:
            new.writestr(item, data, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{item.filename},sha256={digest},{len(data)}\n")

        for item in old.infolist():
            if item.filename != info:
                data = old.read(item)
                if item.filename == program:
                    item.filename = PROGRAM
                add(item, data)
        for name, text in ((info.replace("RECORD", "entry_points.txt"), START), (TORCH, wanted())):
            item = zipfile.ZipInfo(name)
            item.external_attr = 0o644 << 16
            add(item, text.encode())
        new.writestr(old.getinfo(info), "".join(record) + f"{info},,\n")
    part.replace(wheel)
