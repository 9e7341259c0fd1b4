"""Scans that are far from cubes: windows, patches and grids per axis, turns that keep a window's shape."""
import itertools
import json

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from helpers import pretext3d, read_json, refused, tensors
from test_samples import batch_of, cut, matrix, moved_and_read

SHAPES = [(24, 20, 12)] * 6  # two of them are held out
TINY = ["--levels", 2, "--filters", 2, "--epochs", 1, "--steps", 1, "--batch-size", 2, "--device", "cpu", "--val-draws", 1, "--val-fraction", 0.34]
TUNE = ["--levels", 2, "--filters", 2, "--epochs", 1, "--steps", 1, "--batch-size", 2, "--device", "cpu", "--weights", "none"]


def make_store(folder, shapes, spacing=(1, 1, 1), seed=0):
    """Random scans of these shapes with a label of one class, as a store that keeps every voxel; and the scans."""
    random = np.random.default_rng(seed)
    scans = {}
    for i, shape in enumerate(shapes):
        image = random.integers(1, 30000, shape).astype(np.float32)
        label = np.zeros(shape, np.uint8)
        label[tuple(slice(n // 3, 2 * n // 3 + 1) for n in shape)] = 1
        for name, values in [(f"s{i}_t1", image), (f"s{i}_seg", label)]:
            path = folder / "data" / f"s{i}" / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.Nifti1Image(values, np.diag([*spacing, 1])).to_filename(path)
        scans[f"s{i}"] = image
    args = ["--protocol", "modern", "--spacing", ",".join(map(str, spacing)), "--foreground", 0, "--labels", "0,1=lesion"]
    pretext3d("preprocess", "--data", folder / "data", "--out", folder / "store", *args, "--dtype", "f32", "--intensity", "min-max")
    index = read_json(folder / "store/index.json")
    assert [tuple(s["shape"]) for s in index["subjects"]] == [tuple(s) for s in shapes]
    return folder / "store"


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("flat"), SHAPES)


def images_of(store):
    return {path.stem: tensors(path)[0]["image"].numpy() for path in store.glob("*.safetensors")}


def test_all_tasks_take_a_window_per_axis(flat, tmp_path):
    run, weights = tmp_path / "run", tmp_path / "w"
    tasks = ["rot", "rpl", "jig", "cpc", "exe", "mae", "vf", "gen", "simclr"]
    args = ["--data", flat, "--task", ",".join(tasks), "--window", "20,16,8", "--rpl-grid", "3,3,1", "--jig-grid", "2,2,1"]
    args += ["--jig-permutations", 4, "--jig-shuffles", 2, "--cpc-grid", "3,3,1", "--mae-block", "4,4,2", "--simclr-crop", "12,10,6"]
    done = pretext3d("pretrain", *args, *TINY, "--out", run, "--weights", weights)
    assert "window 20,16,8," in done.stderr
    turns = "rot: 4 of 10 classes, the turns that keep a window of 20,16,8 voxels: not rotated; 180 degrees about axis 0"
    assert turns in done.stderr
    settings = read_json(run / "config.json")["settings"]
    assert settings["window"] == [20, 16, 8] and settings["rpl-grid"] == [3, 3, 1] and settings["mae-block"] == [4, 4, 2]
    pretext3d("pretrain", "--resume", run, "--epochs", 2, cwd=tmp_path)
    assert len((run / "metrics.csv").read_text().splitlines()) == 3
    encoder = torch.jit.load(f"{weights}.pt")
    maps = encoder(torch.zeros(1, 1, 20, 16, 8))
    assert [tuple(m.shape[2:]) for m in maps] == [(20, 16, 8), (10, 8, 4)]
    # As it is written is as it is read, a settings file's too; equal sides are one number, as before.
    again = tmp_path / "again"
    pretext3d("pretrain", "--config", run / "config.json", "--out", again, "--window", "8,8,8", "--task", "rot", "--weights", weights)
    assert read_json(again / "config.json")["settings"]["window"] == 8


def test_windows_of_slices_and_of_images_per_axis(flat, tmp_path):
    run = tmp_path / "run"
    args = ["--data", flat, "--slices", "axial", "--window", "24,12", "--rpl-grid", "3,1", *TINY]
    done = pretext3d("pretrain", "--task", "rot,rpl,mae", *args, "--out", run, "--weights", tmp_path / "w")
    assert "rot: 2 of 4 classes, the turns that keep a window of 24,12 voxels: not rotated; 180 degrees" in done.stderr
    assert read_json(run / "config.json")["settings"]["window"] == [24, 12]


def test_patches_of_grids_per_axis_are_cut_from_their_cells(flat, tmp_path):
    images = images_of(flat)
    for task, grid, views in [("jig", (3, 2, 1), 6), ("rpl", (3, 3, 1), 2)]:
        flags = ["--n", 8, "--window", "24,18,10", f"--{task}-grid", ",".join(map(str, grid)), f"--{task}-jitter", "3,2,1"]
        flags += ["--jig-permutations", 4, "--jig-shuffles", 2] if task == "jig" else []
        seen, targets, description = batch_of(flat, task, tmp_path, *flags)
        cell = [n // c for n, c in zip((24, 18, 10), grid)]
        size = [c - j for c, j in zip(cell, (3, 2, 1))]
        assert seen.shape[1:] == (views, 1, *size) and description["window"] == [24, 18, 10]
        cells = list(itertools.product(*map(range, grid)))
        for patches, target, sample in zip(seen, targets, description["samples"], strict=True):
            params = sample["params"]
            others = cells[:4] + cells[5:]
            of = cells if task == "jig" else [cells[4], others[target[0]]]
            for view, patch, index in zip(patches, params["patches"], of, strict=True):
                np.testing.assert_array_equal(view, cut(images[sample["scan"]], patch))
                offset = np.subtract(patch["start"], params["window"]["start"]) - np.multiply(index, cell)
                assert patch["size"] == size and (offset >= 0).all() and (offset < (3, 2, 1)).all()


def test_turns_in_one_plane(flat, tmp_path):
    images = images_of(flat)
    views, targets, description = batch_of(flat, "rot", tmp_path, "--n", 30, "--window", 12, "--rot-planes", "axial")
    for view, target, sample in zip(views, targets, description["samples"], strict=True):
        window = cut(images[sample["scan"]], sample["params"]["window"])
        np.testing.assert_array_equal(view[0], np.rot90(window, target[0], axes=(1, 2)))
    assert sorted(set(targets[:, 0])) == [0, 1, 2, 3]


def test_stretched_voxels_are_said_of_rotation(tmp_path):
    store = make_store(tmp_path, [(16, 16, 10)] * 4, spacing=(1, 1, 3))
    args = ["pretrain", "--data", store, "--task", "rot", "--window", 8, *TINY, "--weights", tmp_path / "w"]
    assert "voxels of 1.00 x 1.00 x 3.00 mm on average" in (said := pretext3d(*args, "--out", tmp_path / "a").stderr)
    assert "out of the axial plane" in said and "--rot-planes axial" in said
    done = pretext3d(*args, "--out", tmp_path / "b", "--rot-planes", "axial")
    assert "out of the" not in done.stderr and read_json(tmp_path / "b/config.json")["settings"]["rot-planes"] == ["axial"]


def test_fine_tuning_and_prediction_in_patches_per_axis(flat, tmp_path):
    run = tmp_path / "run"
    pretext3d("finetune", "--data", flat, "--patch", "16,12,8", *TUNE, "--out", run)
    assert read_json(run / "config.json")["downstream"]["patch"] == [16, 12, 8]
    done = pretext3d("predict", "--weights", run, "--input", flat.parent / "data", "--output", tmp_path / "out")
    written = sorted((tmp_path / "out").rglob("*.nii.gz"))
    assert len(written) == 6 and nibabel.load(written[0]).shape == (24, 20, 12), done.stderr
    pretext3d("export", "--run", run, "--out", tmp_path / "network")
    logits = torch.jit.load(tmp_path / "network.pt")(torch.zeros(1, 1, 16, 12, 8))
    assert tuple(logits.shape) == (1, 2, 16, 12, 8)


def test_small_scans_are_padded_and_no_longer_decide_for_all(tmp_path):
    # Five scans and two thin ones: the median is that of the five.
    shapes = [(24, 20, 12), (24, 20, 13), (26, 20, 12), (24, 21, 12), (24, 20, 12), (24, 9, 3), (11, 20, 4)]
    store = make_store(tmp_path, shapes)
    images = images_of(store)
    views, _, description = batch_of(store, "simclr", tmp_path / "look", "--n", 14)
    assert description["window"] == [24, 20, 12]
    views, _, description = batch_of(store, "rpl", tmp_path / "look", "--n", 14, "--rpl-grid", "3,3,1", "--rpl-jitter", 1)
    padded = 0
    for pair, sample in zip(views, description["samples"], strict=True):
        image = images[sample["scan"]]
        missing = [max(0, n - m) for n, m in zip((24, 20, 12), image.shape[1:])]
        whole = np.pad(image[0], [(n // 2, n - n // 2) for n in missing], constant_values=image.min())[None]
        padded += any(missing)
        for view, patch in zip(pair, sample["params"]["patches"], strict=True):
            np.testing.assert_array_equal(view, cut(whole, patch))
    assert padded == 4
    args = ["--data", store, "--task", "rpl,mae", "--rpl-grid", "3,3,1", *TINY, "--weights", tmp_path / "w"]
    said = pretext3d("pretrain", *args, "--out", tmp_path / "run").stderr
    assert "--window 24,20,12: from the median scan of 24 x 20 x 12 voxels of 1.00 x 1.00 x 1.00 mm" in said
    assert said.count("2 of 7 scans are smaller (e.g. s5, 24 x 9 x 3 voxels)") == 1 and "each channel's smallest value" in said
    # Its windows are those of its export and of a resumed run.
    said = pretext3d("pretrain", "--resume", tmp_path / "run", "--epochs", 2, cwd=tmp_path).stderr
    assert "window 24,20,12," in said and "from the median" not in said
    tune = pretext3d("finetune", "--data", store, *TUNE, "--out", tmp_path / "tuned").stderr
    assert "--patch 24,20,12: from the median" in tune and "2 of 7 scans are smaller" in tune
    # Larger than any of them, as 155 slices in 160: said, and done.
    tune = pretext3d("finetune", "--data", store, *TUNE, "--patch", "32,24,16", "--out", tmp_path / "all").stderr
    assert "--patch 32,24,16: 7 of 7 scans are smaller" in tune and "median" not in tune
    refused("finetune", "--data", store, *TUNE, "--patch", "32,24,28", "--out", tmp_path / "no", says=["28 voxels along axis 2", "13 (s1)"])


def test_nothing_is_said_of_cubes_and_they_have_the_window_that_they_had(store, tmp_path):
    said = pretext3d("pretrain", "--data", store, "--task", "rot", *TINY, "--out", tmp_path / "run", "--weights", tmp_path / "w").stderr
    assert "median" not in said and "smaller" not in said and "window 32," in said
    assert read_json(tmp_path / "run/config.json")["settings"]["window"] == 32


def test_what_fits_no_axis_is_refused_with_the_numbers(flat, tmp_path):
    out = ["--out", tmp_path / "no"]
    args = ["pretrain", "--data", flat, *TINY, *out]
    axes = "(left to right, back to front, bottom to top)"
    for flags, says in [
        (["--task", "rot", "--window", "16,16"], ["--window has 2 numbers, expected 1 or 3", axes]),
        (["--task", "rot", "--window", "16,12,8", "--slices", "axial"], ["--window has 3 numbers, expected 1 or 2 (rows, columns)"]),
        (["--task", "rpl", "--rpl-grid", "3,3"], ["--rpl-grid has 2 numbers", axes]),
        (["--task", "rpl", "--rpl-grid", "3,3,2"], ["odd number of cells", "found 3,3,2"]),
        (["--task", "jig", "--jig-grid", 1], ["2 or more cells", "found 1"]),
        (["--task", "jig", "--window", "16,16,2"], ["jig", "16,16,2", "no 3 cells a side"]),
        (["--task", "cpc", "--cpc-grid", "1,3,3"], ["1 patches a side"]),
        (["--task", "mae", "--window", "16,12,7"], ["--window", "a side of 7 voxels", "multiple of 2", "6 or 8"]),
        (["--task", "mae", "--mae-block", "4,4,9", "--window", "16,12,8"], ["--mae-block", "4,4,9", "16,12,8"]),
        (["--task", "gen", "--window", "16,12,6"], ["gen", "16,12,6", "at least 8"]),
        (["--task", "simclr", "--window", "16,12,8", "--simclr-crop", "8,8,9"], ["1 to 16,12,8", "found 8"]),
        (["--task", "rot", "--slices", "axial", "--rot-planes", "axial"], ["--rot-planes", "volumes"]),
    ]:
        refused(*args, *flags, says=says)
    refused(*args, "--task", "rot", "--window", "16,a", says=["128,128,32"], code=2)
    refused("finetune", "--data", flat, *TUNE, *out, "--patch", "16,12", says=["--patch has 2 numbers, expected 1 or 3", axes])
    assert not (tmp_path / "no").exists()


def test_no_corner_is_filled_where_the_scan_goes_on(flat, tmp_path):
    """Turned windows are those of the whole scan, turned about the window's centre, as SciPy has it."""
    images = images_of(flat)
    flags = ["--n", 40, "--window", "12,10,6", "--mae-block", 2, "--mae-spatial", 1, "--mae-flip", 0.5, "--mae-intensity", 0]
    _, _, description = batch_of(flat, "mae", tmp_path, *flags)
    for view, sample in zip(tensors(tmp_path / "mae.safetensors")[0]["clean"].numpy(), description["samples"], strict=True):
        image, params = images[sample["scan"]], sample["params"]
        moved, _ = moved_and_read(image, params["window"], matrix(params["augmentation"]["spatial"]))
        np.testing.assert_allclose(view[0, 0], moved[0], rtol=0, atol=2e-5)


def test_labels_lie_where_the_image_does_at_even_ratios(tmp_path):
    """Against PyTorch's trilinear maps of each class, and the image's own centre of mass; at an odd ratio every third voxel."""
    grid = np.indices((36, 24, 48)).reshape(3, -1).T
    random = np.random.default_rng(2)
    label = np.zeros((36, 24, 48), np.uint8)
    for value in (1, 2, 1, 2):
        centre, radii = random.uniform((10, 8, 12), (26, 16, 36)), random.uniform(4, 8, 3)
        label[(((grid - centre) / radii) ** 2).sum(1).reshape(label.shape) < 1] = value
    data = tmp_path / "data/s0"
    data.mkdir(parents=True)
    nibabel.Nifti1Image((label > 0).astype(np.float32), np.eye(4)).to_filename(data / "s0_t1.nii.gz")
    nibabel.Nifti1Image(label, np.eye(4)).to_filename(data / "s0_seg.nii.gz")
    args = ["--protocol", "modern", "--intensity", "min-max", "--dtype", "f32", "--foreground", -1, "--labels", "0,1=a,2=b"]
    for spacing in ("2,2,2", "2,4,1", "3,3,3"):
        store = tmp_path / spacing
        pretext3d("preprocess", "--data", tmp_path / "data", "--out", store, *args, "--spacing", spacing)
        stored = tensors(store / "s0.safetensors")[0]
        found, image = stored["label"].numpy(), stored["image"].numpy()[0]
        if spacing == "3,3,3":
            np.testing.assert_array_equal(found, label[1::3, 1::3, 1::3])
            continue
        shares = torch.stack([torch.from_numpy((label == k).astype(np.float64)) for k in range(3)])[None]
        shares = torch.nn.functional.interpolate(shares, size=found.shape, mode="trilinear")[0].numpy()
        largest = shares.max(0)
        clear = (shares >= largest - 1e-9).sum(0) == 1
        np.testing.assert_array_equal(found[clear], shares.argmax(0)[clear])
        assert (np.take_along_axis(shares, found[None].astype(int), 0)[0] >= largest - 1e-9).all() and (~clear).sum() > 10
        for axis in range(3):
            place = np.indices(found.shape)[axis]
            apart = (place * (found > 0)).sum() / (found > 0).sum() - (place * image).sum() / image.sum()
            # The upper of two voxels that are as near is a quarter of a new voxel off.
            assert abs(apart) < 0.12, (spacing, axis, apart)


def test_too_small_scans_say_what_the_grid_needs(tmp_path):
    store = make_store(tmp_path, [(35, 40, 14)] * 4)
    args = ["pretrain", "--data", store, *TINY[2:], "--out", tmp_path / "no"]
    # The window that is named works, with scans that are padded.
    for task, levels, found, window in [("rpl", 4, "10,12,3 voxels in a window of 35,40,14", 51), ("jig", 5, "10,12,3 voxels", 102)]:
        says = [f"task {task}: its patches have {found}", f"give --window {window} (smaller scans are padded)", f"--{task}-grid", "--levels"]
        refused(*args, "--task", task, "--levels", levels, says=says)
    refused(*args, "--task", "cpc", "--cpc-grid", 4, "--norm", "batch", "--levels", 5, says=["task cpc: its patches have 14,16,4 voxels", "give --window 40 "])
    refused(*args, "--task", "rpl", "--window", 2, says=["rpl", "a window of 2", "no 3 cells a side"])


def test_enlarging_is_said_with_its_size(tmp_path):
    random = np.random.default_rng(0)
    for i, shape in enumerate([(12, 14, 10), (20, 22, 16)]):
        folder = tmp_path / f"data/s{i}"
        folder.mkdir(parents=True)
        nibabel.Nifti1Image(random.integers(1, 99, shape).astype(np.float32), np.diag([1, 1, 4, 1])).to_filename(folder / f"s{i}_t1.nii.gz")
    args = ["preprocess", "--data", tmp_path / "data", "--no-labels", "--foreground", 0]
    said = pretext3d(*args, "--out", tmp_path / "cube", "--size", 32).stderr
    assert "2 of 2 scans are enlarged, most of all s0: 12 x 14 x 10 voxels became 32 x 32 x 32, 19.5 times as many" in said
    assert "--size 14 keeps as many" in said
    said = pretext3d(*args, "--out", tmp_path / "fine", "--protocol", "modern", "--spacing", 1).stderr
    assert "most of all s0: 12 x 14 x 10 voxels became 12 x 14 x 40, 4.0 times" in said and "of 1.00 x 1.00 x 4.00 mm" in said
    assert "enlarged" not in pretext3d(*args, "--out", tmp_path / "same", "--protocol", "modern", "--spacing", "1,1,4").stderr
    # Photographs of digits, say.
    for i in range(2):
        image = Image.fromarray(random.integers(60, 255, (28, 24, 3)).astype(np.uint8))
        (tmp_path / "photos").mkdir(exist_ok=True)
        image.save(tmp_path / f"photos/p{i}.png")
    said = pretext3d("preprocess", "--data", tmp_path / "photos", "--out", tmp_path / "images").stderr
    assert "2 of 2 scans are enlarged" in said and "28 x 28 pixels became 224 x 224, 64.0 times as many" in said and "--size 28 keeps" in said


def test_a_resumed_fine_tuning_keeps_the_patch_that_it_began_with(flat, tmp_path):
    """Also where another one is the default now, as after an update."""
    run = tmp_path / "run"
    pretext3d("finetune", "--data", flat, "--patch", "12,8,8", *TUNE, "--out", run)
    description = read_json(run / "config.json")
    del description["settings"]["patch"]
    (run / "config.json").write_text(json.dumps(description))
    said = pretext3d("finetune", "--resume", run, "--epochs", 2).stderr
    assert "patches of [12, 8, 8] voxels" in said and "median" not in said
    assert len((run / "metrics.csv").read_text().splitlines()) == 3


def test_exports_for_nnunet_have_the_patch_in_its_order(flat, tmp_path):
    args = ["--data", flat, "--task", "mae", "--encoder", "resenc-s", "--window", "16,12,8", "--strides", "1x1x1,2x2x1", *TINY]
    pretext3d("pretrain", *args, "--out", tmp_path / "run", "--weights", tmp_path / "w")
    pretext3d("export", "--run", tmp_path / "run", "--to", "nnunet", "--out", tmp_path / "nnunet")
    plan = read_json(tmp_path / "nnunet/adaptation_plan.json")
    assert plan["pretrain_plan"]["configurations"]["pretext3d"]["patch_size"] == [8, 12, 16]
    assert plan["recommended_downstream_patchsize"] == [64, 64, 64]
