"""Data that several test files share, made once a session by the binary itself."""
import locale
import os
import signal
from types import SimpleNamespace

import pytest
from helpers import BINARY, pretext3d

# A shell's job in the background ignores Ctrl-C and hands that down, and bash cannot trap what it inherits so.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As commands that compute set it themselves, by starting the program anew: a quarter of a second in each of many.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Small enough for seconds a run: 3 levels, so that 24 voxels still pool.
SMALL = ["--filters", "4", "--levels", "3", "--batch-size", "2", "--device", "cpu", "--threads", "2"]


def pytest_sessionstart():
    if not BINARY.is_file():
        pytest.exit(f"{BINARY}: not found; build it (cargo build) or name it in PRETEXT3D", returncode=2)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than a few seconds; runs after the others")
    # TorchScript is one of the two formats of an export, and the other outlives it.
    config.addinivalue_line("filterwarnings", "ignore:.*torch.jit.*:DeprecationWarning")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(autouse=True)
def kept_locale():
    """ITK sets the process's locale where it reads DICOM, and later tests would read what we print as ASCII."""
    yield
    locale.setlocale(locale.LC_ALL, "")


@pytest.fixture(scope="session")
def brains(tmp_path_factory):
    """Folder of six generated brains in the BraTS layout."""
    folder = tmp_path_factory.mktemp("brains") / "brats"
    pretext3d("phantom", "--kind", "brain", "--subjects", 6, "--size", 32, "--seed", 1, "--out", folder)
    return folder


@pytest.fixture(scope="session")
def store(brains, tmp_path_factory):
    """The brains as a store of 32-voxel cubes."""
    folder = tmp_path_factory.mktemp("stores") / "brains"
    pretext3d("preprocess", "--data", brains, "--out", folder, "--size", 32)
    return folder


@pytest.fixture(scope="session")
def trained(store, tmp_path_factory):
    """A finished run of two epochs, with its folder and its exported weights."""
    folder = tmp_path_factory.mktemp("trained")
    run, weights = folder / "run", folder / "weights" / "rot"
    args = ["--data", store, "--task", "rot", "--epochs", 2, *SMALL, "--norm", "batch", "--out", run, "--weights", weights]
    done = pretext3d("pretrain", *args, cwd=folder)
    return SimpleNamespace(run=run, weights=weights, output=done.stdout + done.stderr, args=args)
