"""Samples against NumPy: every view that `inspect` writes is cut again from the store's own file, from the numbers it recorded."""

import itertools
import json
import subprocess

import numpy as np
import pytest
from helpers import BINARY
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.ndimage import affine_transform



def inspect(store, task, out, *flags):
    command = [BINARY, "inspect", "--data", store, "--task", task, "--out", out, *flags]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def batch_of(store, task, out, *flags):
    done = inspect(store, task, out, *flags)
    assert done.returncode == 0, done.stderr
    assert (out / f"{task}.png").read_bytes().startswith(b"\x89PNG")
    with safe_open(out / f"{task}.safetensors", "np") as file:
        return file.get_tensor("views"), file.get_tensor("targets"), json.loads(file.metadata()["inspect"])


def cut(image, region):
    spatial = tuple(slice(a, a + n) for a, n in zip(region["start"], region["size"]))
    return image[(slice(None), *spatial)]


def inside(inner, outer):
    return all(
        o <= i and i + m <= o + n
        for i, m, o, n in zip(inner["start"], inner["size"], outer["start"], outer["size"])
    )


@pytest.fixture(scope="module", params=[2, 3])
def store(request, tmp_path_factory):
    """A store of random scans, no two voxels alike, every side of another length."""
    folder = tmp_path_factory.mktemp(f"store{request.param}d")
    random = np.random.default_rng(request.param)
    subjects = []
    for i in range(3):
        shape = (1 if request.param == 2 else 67 + i, 64 + 2 * i, 70)
        image = random.permutation(2 * np.prod(shape)).astype(np.float32).reshape(2, *shape)
        file = folder / f"scan{i}.safetensors"
        save_file({"image": image}, file)
        subjects.append(
            dict(id=f"scan{i}", file=file.name, bytes=file.stat().st_size, shape=shape, spacing=[1, 1, 1])
            | dict(label=False, split=None, fingerprint="")
        )
    settings = dict(grid=dict(kind="spacing", mm=[1, 1, 1]), foreground=dict(kind="auto"), intensity=dict(kind="minmax"))
    index = dict(format="pretext3d-store", version=1, complete=True, fingerprint="", layout="folder")
    index |= dict(settings=settings | dict(dtype="f32"), channels=["t1", "flair"], labels=None, subjects=subjects, left_out=[])
    (folder / "index.json").write_text(json.dumps(index))
    images = {}
    for subject in subjects:
        with safe_open(folder / subject["file"], "np") as file:
            images[subject["id"]] = file.get_tensor("image")
    return folder, images, request.param


def side_of(rank, n):
    return [1 if rank == 2 else n, n, n]


def test_rotation(store, tmp_path):
    folder, images, rank = store
    views, targets, description = batch_of(folder, "rot", tmp_path, "--n", 60, "--window", 20)
    planes = [(2, 3)] if rank == 2 else [(2, 3), (1, 3), (1, 2)]
    turns = [(0, planes[0])] + [(k, plane) for plane in planes for k in (1, 2, 3)]
    for view, target, sample in zip(views, targets, description["samples"], strict=True):
        region = sample["params"]["window"]
        assert region["size"] == side_of(rank, 20)
        k, plane = turns[target[0]]
        np.testing.assert_array_equal(view[0], np.rot90(cut(images[sample["scan"]], region), k, plane))
    assert set(targets.ravel()) == set(range(len(turns)))
    assert len({tuple(s["params"]["window"]["start"]) for s in description["samples"]}) > 50


def patch_side(window):
    """Grid of 3; the jitter is 3 voxels at 128, in proportion."""
    return window // 3 - max(1, int(3 * window / 128 + 0.5))


def check_patch(patch, cell, window, rank):
    side = window["size"][2] // 3
    start = [s + i * side for s, i in zip(window["start"], cell)]
    assert inside(patch, dict(start=start, size=side_of(rank, side)))
    assert patch["size"] == side_of(rank, patch_side(window["size"][2]))


def cells_of(rank):
    return list(itertools.product(range(1 if rank == 2 else 3), range(3), range(3)))


def test_relative_patch_location(store, tmp_path):
    folder, images, rank = store
    views, targets, description = batch_of(folder, "rpl", tmp_path, "--n", 120, "--window", 64)
    centre = (0, 1, 1) if rank == 2 else (1, 1, 1)
    others = [cell for cell in cells_of(rank) if cell != centre]
    offsets = set()
    for pair, target, sample in zip(views, targets, description["samples"], strict=True):
        window = sample["params"]["window"]
        for view, patch, cell in zip(pair, sample["params"]["patches"], [centre, others[target[0]]], strict=True):
            check_patch(patch, cell, window, rank)
            np.testing.assert_array_equal(view, cut(images[sample["scan"]], patch))
        offsets.add(tuple(np.subtract(sample["params"]["patches"][0]["start"], window["start"])))
    assert description["window"] == 64
    assert set(targets.ravel()) == set(range(len(others)))
    assert len(offsets) == 2**rank  # a jitter of 2 voxels


def test_jigsaw(store, tmp_path):
    folder, images, rank = store
    views, targets, description = batch_of(folder, "jig", tmp_path, "--n", 4, "--window", 64, "--jig-shuffles", 30)
    cells, seen = cells_of(rank), {}
    for patches, ids, sample in zip(views, targets, description["samples"], strict=True):
        image, params = images[sample["scan"]], sample["params"]
        for view, patch, cell in zip(patches, params["patches"], cells, strict=True):
            check_patch(patch, cell, params["window"], rank)
            np.testing.assert_array_equal(view, cut(image, patch))
        assert len(set(ids)) == 30 and all(0 <= i < 100 for i in ids)
        for i, permutation in zip(ids, params["permutations"], strict=True):
            assert sorted(permutation) == list(range(len(cells)))
            assert seen.setdefault(i, permutation) == permutation  # an id always means the same permutation
    assert len({tuple(p) for p in seen.values()}) == len(seen) > 50


def intensities(channel, change, before):
    """A channel with its intensities changed as recorded, but for noise; `before`: as it was before it was moved."""
    low, high, mean = before.min(), before.max(), before.mean()
    if change["intensity"]:
        moved = lambda x: mean + change["intensity"]["contrast"] * (x - mean) + change["intensity"]["shift"] * (high - low)
        channel, (low, high) = moved(channel), map(moved, (low, high))
    if change["gamma"]:
        channel = low + (high - low) * ((channel - low) / (high - low)).clip(0, 1) ** change["gamma"]
    return channel


def augmented(window, augmentation):
    """A window [C, D, H, W] changed as recorded; None where noise was added, whose draws NumPy does not have."""
    spatial, changes = augmentation["spatial"], augmentation["channels"]
    assert spatial["degrees"] == 0 and spatial["zoom"] == [1, 1, 1]
    if any(change["noise"] for change in changes):
        return None
    flipped = np.flip(window, [a + 1 for a in range(3) if spatial["flip"][a]]).astype(float)
    return np.stack([intensities(channel, change, channel) for channel, change in zip(flipped, changes, strict=True)])


@pytest.mark.parametrize("flags, classes, flips", [([], 5, False), (["--vf-classes", 3, "--vf-flip", 0.5], 3, True)])
def test_volume_fusion(store, tmp_path, flags, classes, flips):
    folder, images, rank = store
    views, targets, description = batch_of(folder, "vf", tmp_path, "--n", 30, "--window", 32, *flags)
    axes = range(3 - rank, 3)
    compared, sides = 0, []
    for view, target, sample in zip(views, targets, description["samples"], strict=True):
        params = sample["params"]
        front, back = params["front"], params["back"]
        assert front["id"] == sample["scan"] != back["id"]
        assert 10 <= len(params["boxes"]) < 40
        fused = np.zeros(side_of(rank, 32), int)
        for box in params["boxes"]:
            cut(fused[None], box["region"])[:] = box["class"]
            sides += [box["region"]["size"][a] for a in axes]
        np.testing.assert_array_equal(target.reshape(fused.shape), fused)
        parts = [augmented(cut(images[part["id"]], part["window"]), part["augmentation"]) for part in (front, back)]
        assert any(any(part["augmentation"]["spatial"]["flip"]) for part in (front, back)) <= flips
        if all(part is not None for part in parts):
            a = fused / (classes - 1)
            expected = a * parts[0] + (1 - a) * parts[1]
            np.testing.assert_allclose(view[0], expected, rtol=0, atol=1e-5 * np.ptp(expected))
            compared += 1
    assert compared > 8
    assert set(targets.ravel()) == set(range(classes))
    assert (min(sides), max(sides)) == (8, 20)


def clean_of(out, task):
    with safe_open(out / f"{task}.safetensors", "np") as file:
        return file.get_tensor("clean")


def test_masked_autoencoding(store, tmp_path):
    folder, images, rank = store
    still = ["--mae-spatial", 0, "--mae-intensity", 0]
    views, targets, description = batch_of(folder, "mae", tmp_path, "--n", 5, "--window", 64, *still)
    clean, grid = clean_of(tmp_path, "mae"), side_of(rank, 8)
    assert description["window"] == 64 and views.shape == clean.shape == (5, 1, 2, *side_of(rank, 64))
    for view, whole, target, sample in zip(views, clean, targets, description["samples"], strict=True):
        np.testing.assert_array_equal(whole[0], cut(images[sample["scan"]], sample["params"]["window"]))
        # Blocks of 8, three quarters of them, each whole.
        assert target.sum() == round(0.75 * np.prod(grid)) and set(target) == {0, 1}
        block = np.ones(side_of(rank, 8))
        masked = np.kron(target.reshape(grid), block).astype(bool)
        for image, wanted, fill in zip(view[0], whole[0], sample["params"]["fill"], strict=True):
            np.testing.assert_array_equal(image[~masked], wanted[~masked])
            # The store has no z-scores, where 0 would be the mean.
            np.testing.assert_allclose(image[masked], wanted[~masked].mean(), rtol=1e-5)
            assert fill == image[masked][0]
    assert len({tuple(target) for target in targets}) == 5

    flags = ["--mae-block", 5, "--mae-ratio", 0.3, "--window", 20, "--mae-fill", "zero", "--mae-intensity", 1]
    views, targets, _ = batch_of(folder, "mae", tmp_path / "other", "--n", 3, "--mae-spatial", 0, *flags)
    clean, grid = clean_of(tmp_path / "other", "mae"), side_of(rank, 4)
    for view, whole, target in zip(views, clean, targets, strict=True):
        assert target.sum() == round(0.3 * np.prod(grid))
        masked = np.kron(target.reshape(grid), np.ones(side_of(rank, 5))).astype(bool)
        assert (view[0][:, masked] == 0).all() and (view[0][:, ~masked] != whole[0][:, ~masked]).mean() > 0.99


def bezier(curve, x):
    """A curve's values at x in 0 to 1."""
    t = np.linspace(0, 1, 100001)
    places, values = (3 * (1 - t) ** 2 * t * p + 3 * (1 - t) * t**2 * q + t**3 for p, q in zip(*curve["points"], strict=True))
    return np.interp(x, places, 1 - values if curve["reversed"] else values)


def test_models_genesis(store, tmp_path):
    folder, images, rank = store
    flags = ["--n", 40, "--window", 28, "--gen-shuffle", 0, "--gen-flip", 0.5]
    views, targets, description = batch_of(folder, "gen", tmp_path, *flags)
    clean = clean_of(tmp_path, "gen")
    assert views.shape == clean.shape == (40, 1, 2, *side_of(rank, 28)) and targets.size == 0
    curves, paintings, sides, flips, channels = [], [], {True: [], False: []}, [], 0
    for view, whole, sample in zip(views, clean, description["samples"], strict=True):
        params = sample["params"]
        flips.append(params["flip"])
        window = np.flip(cut(images[sample["scan"]], params["window"]), [a + 1 for a in range(3) if params["flip"][a]])
        np.testing.assert_array_equal(whole[0], window)
        assert params["shuffle"] is None
        painted = np.zeros(side_of(rank, 28), bool)
        if painting := params["painting"]:
            paintings.append(painting["outer"])
            assert 1 <= len(painting["boxes"]) <= 5
            for box in painting["boxes"]:
                cut(painted[None], box)[:] = True
                sides[painting["outer"]] += box["size"][3 - rank :]
            painted ^= painting["outer"]
        for image, before, curve in zip(view[0], window, params["curves"], strict=True):
            # Of the whole channel, as it was: from 0 to 1.
            low, high = before.min().astype(float), before.max().astype(float)
            found, unit = (image - low) / (high - low), (before - low) / (high - low)
            expected = bezier(curve, unit) if curve else unit
            away = np.abs(found - expected)[~painted]
            # The curve is a table with straight lines between its 256 places, which shows where it is steep.
            assert away.max(initial=0) < (0.06 if curve else 1e-6) and np.sum(away > 1e-3) <= 0.03 * away.size
            noise = np.sort(found[painted])
            assert noise.size == 0 or np.abs(noise - (np.arange(noise.size) + 0.5) / noise.size).max() < 2.5 / noise.size**0.5
            curves += [curve["reversed"]] if curve else []
            channels += 1
        assert not painting or not np.array_equal(view[0, 0][painted], view[0, 1][painted])
    assert (min(sides[True]), max(sides[True])) == (12, 16) and (min(sides[False]), max(sides[False])) == (4, 9)
    # Nine in ten of the channels and of the samples; half of the curves fall, four in five of the paintings leave boxes.
    assert 60 < len(curves) < channels == 80 and 0.3 < np.mean(curves) < 0.7
    assert 28 < len(paintings) < 40 and 0.6 < np.mean(paintings) < 0.95
    assert 0.3 < np.mean(np.array(flips)[:, 3 - rank :]) < 0.7 and not np.array(flips)[:, : 3 - rank].any()


def test_models_genesis_shuffles_nearby_voxels(store, tmp_path):
    """No two voxels are alike, so that each tells where it was."""
    folder, images, rank = store
    flags = ["--n", 4, "--window", 40, "--gen-curve", 0, "--gen-paint", 0, "--gen-shuffle", 1]
    views, _, description = batch_of(folder, "gen", tmp_path, *flags)
    for view, sample in zip(views, description["samples"], strict=True):
        window = cut(images[sample["scan"]], sample["params"]["window"])
        sources = []
        for image, before in zip(view[0], window, strict=True):
            order = np.argsort(before, axis=None)
            place = np.searchsorted(before.ravel()[order], image.ravel())
            sources.append(order[place])
            np.testing.assert_array_equal(before.ravel()[sources[-1]], image.ravel())
        np.testing.assert_array_equal(*sources)
        moved = np.abs(np.subtract(np.indices(window.shape[1:]).reshape(3, -1), np.unravel_index(sources[0], window.shape[1:])))
        # Boxes of at most 4 voxels a side; of all voxels about 1.8 times are in one.
        assert moved.max(1).tolist() == [0 if rank == 2 else 3, 3, 3]
        assert 0.6 < moved.any(0).mean() < 0.9
        for axis in range(3 - rank, 3):
            near = [np.mean(moved[axis] == n) for n in range(4)]
            assert near == sorted(near, reverse=True) and near[3] > 0.01


def test_simclr(store, tmp_path):
    folder, images, rank = store
    views, targets, description = batch_of(folder, "simclr", tmp_path, "--n", 12, "--window", 40)
    axes = range(3 - rank, 3)
    turned, noisy, scans = 0, 0, {}
    for pair, target, sample in zip(views, targets, description["samples"], strict=True):
        assert scans.setdefault(sample["scan"], target[0]) == target[0]  # the same scan, the same target
        first, second = (crop["region"] for crop in sample["params"]["crops"])
        for axis in axes:
            assert abs(first["start"][axis] - second["start"][axis]) <= 10  # three quarters of 40 overlap by two thirds or more
        for view, crop in zip(pair, sample["params"]["crops"], strict=True):
            assert crop["region"]["size"] == side_of(rank, 30) and inside(crop["region"], sample["params"]["window"])
            spatial = crop["augmentation"]["spatial"]
            moved, read = moved_and_read(images[sample["scan"]], crop["region"], matrix(spatial))
            turned += spatial["degrees"] % 90 != 0
            for channel, before, found, change in zip(moved, read, view, crop["augmentation"]["channels"], strict=True):
                expected = intensities(channel, change, before)
                low, high = before.min(), before.max()
                if change["noise"]:
                    sd = change["noise"]["sd"] * (high - low)
                    assert np.std(found - expected) == pytest.approx(sd, rel=0.15) and abs(np.mean(found - expected)) < sd / 4
                    noisy += 1
                else:
                    # All but voxels on a border, where rounding decides on which side they lie.
                    assert np.quantile(np.abs(found - expected), 0.99) < 1e-3 * (high - low)
    assert len(scans) == 3 and turned > 4 and 10 < noisy < 40


def moved_and_read(image, region, turn):
    """A region of [C, D, H, W] as it looks in the whole scan turned about the region's centre, and all of the scan that it is made of, the
    smallest value of which lies beyond the scan's ends."""
    half = (np.array(region["size"]) - 1) / 2
    centre = np.array(region["start"]) + half
    corners = np.array(list(itertools.product([-1, 1], repeat=3))) * half @ turn.T + centre
    low, high = np.floor(corners.min(0)), np.ceil(corners.max(0)) + 1
    read = image[(slice(None), *(slice(int(max(a, 0)), int(b)) for a, b in zip(low, high)))].astype(float)
    moved = [
        affine_transform(channel.astype(float), turn, centre - turn @ half, region["size"], order=1, mode="grid-constant", cval=part.min())
        for channel, part in zip(image, read)
    ]
    return moved, read


def matrix(spatial):
    """Of a flip, a rotation and a zoom about the centre: from output to input coordinates."""
    angle = np.deg2rad(spatial["degrees"])
    b, c = [(1, 2), (0, 2), (0, 1)][spatial["axis"]]
    turn = np.eye(3)
    turn[[b, b, c, c], [b, c, b, c]] = np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)
    return np.diag(np.where(spatial["flip"], -1, 1)) @ turn @ np.diag(1 / np.array(spatial["zoom"]))


@pytest.mark.parametrize("task", ["rpl", "jig"])
def test_no_jitter_warns(store, tmp_path, task):
    done = inspect(store[0], task, tmp_path, "--n", 1, "--window", 64, f"--{task}-jitter", 0)
    assert done.returncode == 0 and f"warning: --{task}-jitter 0" in done.stderr
    with safe_open(tmp_path / f"{task}.safetensors", "np") as file:
        assert file.get_tensor("views").shape[-1] == 64 // 3
    assert "warning" not in inspect(store[0], task, tmp_path, "--n", 1).stderr


@pytest.mark.parametrize("task", ["rot", "rpl", "jig", "mae", "gen"])
def test_seed_decides(store, tmp_path, task):
    folder, _, _ = store
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    batch_of(folder, task, first, "--n", 2, "--seed", 4)
    batch_of(folder, task, again, "--n", 2, "--seed", 4)
    batch_of(folder, task, other, "--n", 2, "--seed", 5)
    read = lambda folder: (folder / f"{task}.safetensors").read_bytes()
    assert read(first) == read(again) != read(other)


def test_long_names(store, tmp_path):
    assert inspect(store[0], "relative-patch-location", tmp_path, "--n", 1).returncode == 0
    assert (tmp_path / "rpl.safetensors").exists()


@pytest.mark.parametrize(
    "task, flags, parts",
    [
        ("rot", ["--window", 150], ["150 voxels along axis", "at most"]),
        ("rpl", ["--window", 64, "--rpl-jitter", 21], ["64", "21"]),
        ("jig", ["--jig-permutations", 1], ["1 permutations"]),
        ("vf", ["--vf-classes", 1], ["--vf-classes", "1"]),
        ("gen", ["--gen-curve", 0, "--gen-shuffle", 0, "--gen-paint", 0], ["nothing spoils the input", "--gen-curve"]),
        ("gen", ["--window", 7], ["a window of 7 voxels", "at least 8"]),
        ("mae", ["--window", 64, "--mae-block", 64], ["--mae-block", "masks 1 of the 1 blocks"]),
        ("simclr", ["--window", 64, "--simclr-crop", 65], ["--simclr-crop", "64", "65"]),
    ],
)
def test_impossible(store, tmp_path, task, flags, parts):
    done = inspect(store[0], task, tmp_path, "--n", 3, *flags)
    assert done.returncode == 1 and all(part in done.stderr for part in parts), done.stderr
    assert not list(tmp_path.glob("*.safetensors"))
