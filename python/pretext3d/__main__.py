"""Starts the program of the wheel with the libtorch of this Python's torch: `pretext3d`, or `python -m pretext3d`."""
from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

PROGRAM = Path(__file__).with_name("bin") / "pretext3d"


def libtorch() -> str:
    """Folder of the libraries of this Python's torch. Reads its version; importing it takes seconds."""
    wanted = PROGRAM.with_name("torch.txt").read_text().strip()
    install = f"python3 -m pip install torch=={wanted}"
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(f"error: pretext3d needs torch {wanted}, {sys.prefix} has none: {install}")
    folder = Path(spec.origin).parent
    file = folder / "version.py"
    version = re.search(r"^__version__ = '(.*)'", file.read_text() if file.is_file() else "", re.M)
    # `+cpu`, `+cu130`: any of them will do.
    if version is None or version[1].split("+")[0] != wanted:
        sys.exit(f"error: pretext3d needs torch {wanted}, found {version[1] if version else 'another'} in {folder}: {install}")
    if not (folder / "lib/libtorch.so").is_file():
        sys.exit(f"error: {folder / 'lib'}: no libtorch.so; torch {version[1]} is not whole: {install} --force-reinstall")
    return str(folder / "lib")


def main() -> NoReturn:
    """Becomes the program: its arguments, streams, signals and exit code are its own."""
    if not PROGRAM.is_file():
        sys.exit(f"error: {PROGRAM}: not found; the program comes with the wheel: python3 -m pip install . in a checkout")
    rest = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = libtorch() + (f":{rest}" if rest else "")
    # Messages name commands to copy by the name of this one.
    name = sys.argv[0]
    short = name in (__file__, shutil.which("pretext3d"))
    # Python ignores these, and the program would inherit that.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    os.execv(PROGRAM, ["pretext3d" if short else name, *sys.argv[1:]])


if __name__ == "__main__":
    main()
