"""Samples of the contrastive tasks against NumPy and SciPy, from the numbers that `inspect` recorded."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_samples import batch_of, cut, inside, inspect, moved_and_read, side_of, store  # noqa: F401 (a fixture)


def whole(image):
    return dict(start=[0, 0, 0], size=image.shape[1:])


@pytest.mark.parametrize("grid, window", [(None, 64), (3, 50), (4, 33)])
def test_cpc(store, tmp_path, grid, window):  # noqa: F811
    folder, images, rank = store
    flags = ["--cpc-grid", grid] if grid else []
    views, targets, description = batch_of(folder, "cpc", tmp_path, "--n", 5, "--window", window, *flags)
    n = grid or {2: 7, 3: 3}[rank]
    step = window // (n + 1)
    side, crop = 2 * step, 2 * step * 7 // 8
    axes = range(3 - rank, 3)
    cells = list(np.ndindex(*[1] * (3 - rank), *[n] * rank))
    assert views.shape == (5, n**rank, 2, *side_of(rank, side)) and targets.shape == (5, 0)
    flips, places, crops = [], [], []
    for patches, sample in zip(views, description["samples"], strict=True):
        image, params = images[sample["scan"]], sample["params"]
        assert params["window"]["size"] == side_of(rank, window) and inside(params["window"], whole(image))
        # As dark as the darkest voxel of the channel: 0 would be tissue where scans are standardised.
        fill = cut(image, params["window"]).min(axis=(1, 2, 3))
        for view, patch, cell in zip(patches, params["patches"], cells, strict=True):
            corner = [w + i * step for w, i in zip(params["window"]["start"], cell)]
            part = cut(cut(image, dict(start=corner, size=side_of(rank, side))), dict(start=patch["crop"], size=side_of(rank, crop)))
            part = np.flip(part, [1 + a for a in range(3) if patch["flip"][a]])
            room = [(p, s - c - p) for p, s, c in zip(patch["place"], side_of(rank, side), side_of(rank, crop))]
            padded = [np.pad(channel, room, constant_values=least) for channel, least in zip(part, fill, strict=True)]
            np.testing.assert_array_equal(view, padded)
            flips.append(patch["flip"]), places.append(patch["place"]), crops.append(patch["crop"])
    for a in range(3):
        drawn = [list(np.array(values)[:, a]) for values in (flips, places, crops)]
        if a in axes:
            assert 0.3 < np.mean(drawn[0]) < 0.7
            assert set(drawn[1]) == set(drawn[2]) == set(range(side - crop + 1))
        else:
            assert not any(map(any, drawn))


def transformed(image, anchor, params):
    """Flip, rotation, zoom about the window's centre, then contrast and brightness, of all channels."""
    spatial, intensity = params["spatial"], params["intensity"]
    flip, axis = np.diag([-1.0 if f else 1.0 for f in spatial["flip"]]), spatial["axis"]
    # Positive from the lower to the higher of the other axes; about axis 1 that is against the right-hand rule.
    turn = np.eye(3)[axis] * np.radians(spatial["degrees"]) * (-1 if axis == 1 else 1)
    forward = np.diag(spatial["zoom"]) @ Rotation.from_rotvec(turn).as_matrix() @ flip
    for moved, before in zip(moved_and_read(image, params["window"], np.linalg.inv(forward))[0], anchor, strict=True):
        mean, extent = before.mean(dtype=np.float64), float(before.max()) - float(before.min())
        yield mean + intensity["contrast"] * (moved - mean) + intensity["shift"] * extent


def test_exemplar(store, tmp_path):  # noqa: F811
    folder, images, rank = store
    views, targets, description = batch_of(folder, "exe", tmp_path, "--n", 60, "--window", 25)
    assert views.shape == (60, 3, 2, *side_of(rank, 25)) and targets.shape == (60, 0)
    drawn, pairs = [], set()
    for (anchor, positive, negative), sample in zip(views, description["samples"], strict=True):
        params = sample["params"]
        image, other = images[sample["scan"]], images[params["negative_id"]]
        pairs.add((sample["scan"], params["negative_id"]))
        for view, region, scan in [(anchor, params["window"], image), (negative, params["negative_window"], other)]:
            assert region["size"] == side_of(rank, 25)
            np.testing.assert_array_equal(view, cut(scan, region))
        for before, after, expected in zip(anchor, positive, transformed(image, anchor, params), strict=True):
            # Single precision, in coordinates as in values.
            tolerance = 1e-5 * (before.max() - before.min())
            np.testing.assert_allclose(after, expected, rtol=0, atol=tolerance)
        drawn.append(params["spatial"] | params["intensity"])
    # Every scan meets every other one, and never itself.
    assert pairs == {(a, b) for a in images for b in images if a != b}
    right = np.mean([d["degrees"] % 90 == 0 for d in drawn])
    assert 0.3 < right < 0.7
    assert {d["axis"] for d in drawn} == ({0} if rank == 2 else {0, 1, 2})
    for name, low, high in [("contrast", 0.5, 1.5), ("shift", -0.125, 0.125)]:
        values = [d[name] for d in drawn]
        assert low <= min(values) < low + 0.2 * (high - low) and high - 0.2 * (high - low) < max(values) <= high
    for a in range(3):
        zooms, flips = [d["zoom"][a] for d in drawn], [d["flip"][a] for d in drawn]
        if a >= 3 - rank:
            assert 0.8 <= min(zooms) < 0.85 and 1.15 < max(zooms) <= 1.2 and 0.3 < np.mean(flips) < 0.7
        else:
            assert set(zooms) == {1} and not any(flips)


@pytest.mark.parametrize(
    "task, flags, parts",
    [
        ("cpc", ["--cpc-grid", 2], ["2 patches a side"]),
        ("cpc", ["--window", 3], ["window of 3"]),
        ("exe", ["--exe-margin", 2.5], ["2.5"]),
    ],
)
def test_impossible(store, tmp_path, task, flags, parts):  # noqa: F811
    done = inspect(store[0], task, tmp_path, "--n", 1, *flags)
    assert done.returncode == 1 and all(part in done.stderr for part in parts), done.stderr
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("task", ["cpc", "exe"])
def test_seed_decides(store, tmp_path, task):  # noqa: F811
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for folder, seed in [(first, 4), (again, 4), (other, 5)]:
        batch_of(store[0], task, folder, "--n", 2, "--window", 32, "--seed", seed)
    read = lambda folder: (folder / f"{task}.safetensors").read_bytes()
    assert read(first) == read(again) != read(other)
