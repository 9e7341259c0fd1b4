"""`pretext3d preprocess` against nibabel, NumPy and PyTorch."""

import json
import shutil
import signal
import subprocess
import time

import nibabel
import numpy
import pytest
from helpers import BINARY, pretext3d
import torch
from safetensors import safe_open

SIDE = 24


def preprocess(data, out, *flags, code=0):
    command = [BINARY, "preprocess", "--data", str(data), "--out", str(out), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def blob(rng, shape, background=0.0):
    """A smooth object, off centre, on a constant background."""
    grid = numpy.stack(numpy.meshgrid(*[numpy.linspace(-1, 1, n) for n in shape], indexing="ij"))
    centre = rng.uniform(-0.2, 0.2, 3)[:, None, None, None]
    radius = rng.uniform(0.4, 0.7, 3)[:, None, None, None]
    inside = (((grid - centre) / radius) ** 2).sum(0) < 1
    texture = 100 + 30 * numpy.sin(4 * grid[0] + rng.uniform(0, 6)) + 20 * numpy.cos(5 * grid[1] * grid[2]) + rng.normal(0, 2, shape)
    return numpy.where(inside, texture, background).astype(numpy.float32), inside


def affine_of(codes, spacing, rng):
    """An affine whose axes point to `codes`, slightly oblique."""
    direction = nibabel.orientations.axcodes2ornt(codes)
    matrix = numpy.eye(4)
    matrix[:3, :3] = 0
    for axis, (world, sign) in enumerate(direction):
        matrix[int(world), axis] = sign * spacing[axis]
    angle = 0.1
    turn = numpy.array([[numpy.cos(angle), -numpy.sin(angle), 0], [numpy.sin(angle), numpy.cos(angle), 0], [0, 0, 1]])
    matrix[:3, :3] = turn @ matrix[:3, :3]
    matrix[:3, 3] = rng.uniform(-50, 50, 3)
    return matrix


def save(array, affine, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory):
    """Four scans in different orientations, labels 0, 1, 2."""
    root = tmp_path_factory.mktemp("decathlon")
    rng = numpy.random.default_rng(0)
    training = []
    for n, (codes, shape) in enumerate([("RAS", (30, 36, 28)), ("LPS", (33, 25, 40)), ("PSR", (27, 39, 30)), ("LIA", (40, 24, 32))]):
        image, inside = blob(rng, shape)
        label = numpy.where(inside & (image > 100), 1, 0)
        label = numpy.where(inside & (image > 125), 2, label).astype(numpy.uint8)
        affine = affine_of(codes, rng.uniform(0.7, 1.6, 3), rng)
        save(image, affine, root / "imagesTr" / f"case_{n}.nii.gz")
        save(label, affine, root / "labelsTr" / f"case_{n}.nii.gz")
        training.append({"image": f"./imagesTr/case_{n}.nii.gz", "label": f"./labelsTr/case_{n}.nii.gz"})
    description = {
        "name": "test",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "organ", "2": "tumour"},
        "numTraining": 4,
        "numTest": 0,
        "training": training,
        "test": [],
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def read(store, entry):
    with safe_open(store / entry["file"], framework="numpy") as file:
        text = {key: json.loads(value) for key, value in file.metadata().items() if key not in ("key", "fingerprint")}
        label = file.get_tensor("label") if "label" in file.keys() else None
        return file.get_tensor("image"), label, text


def oriented(path):
    image = nibabel.as_closest_canonical(nibabel.load(path))
    return numpy.asarray(image.dataobj, numpy.float64), image.affine


def box(image):
    threshold = -500 if image.min() < -500 else image.min() + (image.mean() - image.min()) / 2
    where = numpy.argwhere(image > threshold)
    return where.min(0), where.max(0) + 1


def index(store):
    return json.loads((store / "index.json").read_text())


@pytest.mark.parametrize("dtype,tolerance", [("f32", 2e-5), ("f16", 6e-4)])
def test_paper_protocol(decathlon, tmp_path, dtype, tolerance):
    text = preprocess(decathlon, tmp_path / "s", "--size", SIDE, "--dtype", dtype, "--threads", 2)
    assert "4 scans" in text and f"{SIDE} x {SIDE} x {SIDE}" in text
    found = index(tmp_path / "s")
    assert found["complete"] and [e["id"] for e in found["subjects"]] == [f"case_{n}" for n in range(4)]
    assert [label["value"] for label in found["labels"]] == [0, 1, 2]
    for entry in found["subjects"]:
        raw, affine = oriented(decathlon / "imagesTr" / f"{entry['id']}.nii.gz")
        low, high = box(raw)
        part = tuple(slice(a, b) for a, b in zip(low, high))
        expected = torch.nn.functional.interpolate(torch.from_numpy(raw[part].copy())[None, None], size=(SIDE,) * 3, mode="trilinear")[0]
        expected = ((expected - expected.min()) / (expected.max() - expected.min())).numpy()
        image, label, meta = read(tmp_path / "s", entry)
        assert image.dtype == {"f16": numpy.float16, "f32": numpy.float32}[dtype] and image.shape == (1, SIDE, SIDE, SIDE)
        assert numpy.abs(image - expected).max() < tolerance

        raw_label, _ = oriented(decathlon / "labelsTr" / f"{entry['id']}.nii.gz")
        # In double precision the position decides, not its rounding.
        where = [(low[a] + ((2 * numpy.arange(SIDE) + 1) * (high[a] - low[a])) // (2 * SIDE)) for a in range(3)]
        # Half-way between two, test_geometry.py says which.
        clear = [((2 * numpy.arange(SIDE) + 1) * (high[a] - low[a])) % (2 * SIDE) != 0 for a in range(3)]
        assert label.dtype == numpy.uint8 and numpy.array_equal(label[numpy.ix_(*clear)], raw_label[numpy.ix_(*where)][numpy.ix_(*clear)])
        nearest = torch.nn.functional.interpolate(torch.from_numpy(raw_label[part].copy())[None, None], size=(SIDE,) * 3, mode="nearest-exact")
        assert (nearest[0, 0].numpy() != label)[numpy.ix_(*clear)].mean() < 1e-3 and all(kept.sum() > SIDE / 2 for kept in clear)

        # The metadata leads from a stored voxel back to the world and to the file.
        original = nibabel.load(decathlon / "imagesTr" / f"{entry['id']}.nii.gz")
        assert meta["original_shape"] == list(original.shape) and numpy.allclose(meta["original_affine"], original.affine, atol=1e-4)
        assert meta["crop"] == {"start": low.tolist(), "size": (high - low).tolist()}
        scale = (high - low) / SIDE
        for voxel in [(0, 0, 0), (3, 7, 11), (SIDE - 1,) * 3]:
            scan = low + (numpy.array(voxel) + 0.5) * scale - 0.5
            assert numpy.allclose(numpy.array(meta["affine"]) @ [*voxel, 1], affine @ [*scan, 1], atol=1e-3)
        assert numpy.allclose(entry["spacing"], nibabel.affines.voxel_sizes(numpy.array(meta["affine"])))
        assert numpy.allclose(nibabel.affines.voxel_sizes(affine) * scale, entry["spacing"], atol=1e-4)
        source, flip = meta["orientation"]["source"], meta["orientation"]["flip"]
        turned = numpy.asarray(original.dataobj).transpose(source)
        assert numpy.array_equal(numpy.flip(turned, [a for a in range(3) if flip[a]]), raw.astype(numpy.float32))


def test_modern_protocol(decathlon, tmp_path):
    spacing = numpy.array([1.5, 2.0, 1.1])
    preprocess(decathlon, tmp_path / "s", "--protocol", "modern", "--spacing", "1.5,2,1.1", "--dtype", "f32")
    for entry in index(tmp_path / "s")["subjects"]:
        raw, affine = oriented(decathlon / "imagesTr" / f"{entry['id']}.nii.gz")
        low, high = box(raw)
        raw = raw[tuple(slice(a, b) for a, b in zip(low, high))]
        image, _, meta = read(tmp_path / "s", entry)
        step = spacing / nibabel.affines.voxel_sizes(affine)
        size = numpy.maximum(numpy.floor(numpy.array(raw.shape) / step + 0.5), 1).astype(int)
        assert list(image.shape[1:]) == size.tolist() and numpy.allclose(entry["spacing"], spacing)
        # grid_sample with the same centre and positions in voxels.
        axes = [(n - 1) / 2 + (numpy.arange(m) - (m - 1) / 2) * s for n, m, s in zip(raw.shape, size, step)]
        grid = numpy.stack(numpy.meshgrid(*axes, indexing="ij"), -1)
        grid = (2 * grid + 1) / numpy.array(raw.shape) - 1
        grid = torch.from_numpy(grid[..., ::-1].copy())[None]
        expected = torch.nn.functional.grid_sample(
            torch.from_numpy(raw.copy())[None, None], grid, mode="bilinear", padding_mode="border", align_corners=False
        )[0].numpy()
        foreground = expected > expected.min() + (expected.mean() - expected.min()) / 2
        expected = (expected - expected[foreground].mean()) / expected[foreground].std()
        assert numpy.abs(image - expected).max() < 1e-3


def test_window_and_channels(tmp_path):
    """BraTS names, contrasts chosen and ordered, a window, labels 0, 1, 2, 4 to classes."""
    rng = numpy.random.default_rng(1)
    data = tmp_path / "data"
    affine = affine_of("LPS", (1, 1, 1), rng)
    for n in range(2):
        name = f"Brats18_{n}"
        image, inside = blob(rng, (20, 24, 22))
        for k, contrast in enumerate(["t1", "t1ce", "t2", "flair"]):
            save(image * (k + 1), affine, data / name / f"{name}_{contrast}.nii.gz")
        save(numpy.where(inside, 4, 0).astype(numpy.uint8), affine, data / name / f"{name}_seg.nii.gz")
    preprocess(data, tmp_path / "s", "--size", 16, "--channels", "flair,t1", "--window", "0,400", "--dtype", "f32")
    found = index(tmp_path / "s")
    assert found["channels"] == ["flair", "t1"]
    assert found["settings"]["intensity"] == {"kind": "window", "lo": 0.0, "hi": 400.0}
    for entry in found["subjects"]:
        image, label, _ = read(tmp_path / "s", entry)
        assert image.shape[0] == 2 and set(numpy.unique(label)) == {0, [v["value"] for v in found["labels"]].index(4)}
        assert image.min() >= 0 and image.max() <= 1
        unclipped = image[0] < 1
        assert numpy.allclose(image[0][unclipped], 4 * image[1][unclipped], atol=1e-5) and unclipped.mean() > 0.3
    # The protocol's grid with another normalisation: contrasts four times as bright become equal.
    preprocess(data, tmp_path / "z", "--size", 16, "--channels", "flair,t1", "--intensity", "z-score", "--dtype", "f32")
    for entry in index(tmp_path / "z")["subjects"]:
        image, _, _ = read(tmp_path / "z", entry)
        low = image.min((1, 2, 3), keepdims=True)
        inside = image > low + (image.mean((1, 2, 3), keepdims=True) - low) / 2
        assert numpy.allclose([[c[i].mean(), c[i].std()] for c, i in zip(image, inside)], [0, 1], atol=1e-4)
        assert image.shape == (2, 16, 16, 16) and numpy.allclose(image[0], image[1], atol=1e-4)
    assert "no channel `pd`" in preprocess(data, tmp_path / "x", "--channels", "pd", code=1)


def test_restart_and_changed_settings(decathlon, tmp_path):
    data, store = tmp_path / "data", tmp_path / "s"
    shutil.copytree(decathlon, data)
    preprocess(data, store, "--size", SIDE)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.glob("*.safetensors")}
    fingerprint = index(store)["fingerprint"]

    (store / "case_1.safetensors").unlink()
    (store / "case_2.safetensors").write_bytes(before["case_2.safetensors"][0][:-5])
    (store / ".case_1.safetensors.99.tmp").write_bytes(b"half")
    assert "2 kept" in preprocess(data, store, "--size", SIDE)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.glob("*.safetensors")}
    assert {name: entry[0] for name, entry in after.items()} == {name: entry[0] for name, entry in before.items()}
    assert after["case_0.safetensors"] == before["case_0.safetensors"]
    assert index(store)["fingerprint"] == fingerprint
    assert not list(store.glob("*.tmp")) and not list(store.glob(".*.tmp"))

    text = preprocess(data, store, "--size", SIDE + 1, code=1)
    assert f"grid.side is {SIDE} there, {SIDE + 1} was asked for" in text and "--overwrite" in text
    assert index(store)["fingerprint"] == fingerprint and index(store)["complete"]
    assert "dtype" in preprocess(data, store, "--size", SIDE, "--dtype", "f32", code=1)

    # A source that changed is done again, the others are not.
    image = nibabel.load(data / "imagesTr/case_3.nii.gz")
    save(numpy.asarray(image.dataobj)[::-1].copy(), image.affine, data / "imagesTr/case_3.nii.gz")
    assert "3 kept" in preprocess(data, store, "--size", SIDE)
    assert index(store)["fingerprint"] != fingerprint

    assert "0 kept" in preprocess(data, store, "--size", SIDE + 1, "--overwrite")
    assert read(store, index(store)["subjects"][0])[0].shape[1] == SIDE + 1

    # A subject that the data no longer has is not deleted unasked.
    description = json.loads((data / "dataset.json").read_text())
    description["training"].pop(0)
    (data / "dataset.json").write_text(json.dumps(description))
    (data / "imagesTr/case_0.nii.gz").unlink()
    (data / "labelsTr/case_0.nii.gz").unlink()
    text = preprocess(data, store, "--size", SIDE + 1, code=1)
    assert "1 subjects that the data does not" in text and "case_0.safetensors" in text
    assert "3 kept" in preprocess(data, store, "--size", SIDE + 1, "--overwrite")
    assert not (store / "case_0.safetensors").exists()


def test_broken_scans(tmp_path):
    rng = numpy.random.default_rng(2)
    data, store = tmp_path / "data", tmp_path / "s"
    image, _ = blob(rng, (20, 21, 22))
    affine = numpy.diag([1.0, 1, 1, 1])
    save(image, affine, data / "good_a.nii.gz")
    save(image[::-1].copy(), affine, data / "good_b.nii.gz")
    nan = image.copy()
    nan[3, 4, 5] = numpy.nan
    nan[3, 4, 6] = numpy.inf
    save(nan, affine, data / "nan.nii.gz")
    save(numpy.full_like(image, 7), affine, data / "constant.nii.gz")
    (data / "text.nii").write_text("not a scan " * 100)
    whole = (data / "good_a.nii.gz").read_bytes()
    (data / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])

    text = preprocess(data, store, "--size", 16, code=1)
    assert "4 scans cannot be used" in text and "2 are done" in text and "--skip-bad" in text
    for name, reason in [("nan", "2 of 9240 voxels are NaN or infinite"), ("constant", "every voxel is 7"), ("text.nii", ""), ("cut.nii.gz", "")]:
        assert any(name in line and reason in line for line in text.splitlines()), (name, text)
    assert not index(store)["complete"]

    text = preprocess(data, store, "--size", 16, "--skip-bad")
    assert "2 scans (2 kept, 4 left out)" in text
    found = index(store)
    assert found["complete"] and len(found["left_out"]) == 4 and len(found["subjects"]) == 2
    assert any("NaN" in entry["reason"] for entry in found["left_out"])


def test_odd_but_real_intensities(tmp_path):
    """A background far below zero that is no air; one absurd voxel."""
    rng = numpy.random.default_rng(4)
    affine, data = numpy.diag([1.0, 1, 1, 1]), tmp_path / "data"
    image, _ = blob(rng, (20, 21, 22))
    save(image, affine, data / "plain.nii.gz")
    save(image - 2000, affine, data / "negative.nii.gz")
    for name, value, at in [("absurd", 1e30, image.argmax()), ("below", -3e9, image.argmin())]:
        outlier = image.copy()
        outlier.flat[at] = value
        save(outlier, affine, data / f"{name}.nii.gz")
    for protocol in ["paper", "modern"]:
        store = tmp_path / protocol
        text = preprocess(data, store, "--protocol", protocol, "--dtype", "f32", *(["--size", 20] if protocol == "paper" else ["--spacing", 1]))
        for name in ["absurd", "below"]:
            [line] = [line for line in text.splitlines() if line.startswith(f"{name}: image:")]
            assert {"absurd": "as far off as 1e30, 1 of them", "below": "as far off as -3e9, 1 of them"}[name] in line, line
        stored = {entry["id"]: read(store, entry) for entry in index(store)["subjects"]}
        expected, _, about = stored["plain"]
        for name in ["negative", "absurd", "below"]:
            found, _, text_of = stored[name]
            assert text_of["crop"] == about["crop"], name
            # The brightest voxel becomes the second brightest.
            numpy.testing.assert_allclose(found, expected, atol=0.2 if name == "absurd" else 2e-4, err_msg=name)


def test_slices_stay_slices(tmp_path):
    """2D files: one voxel deep, which a cube would repeat."""
    rng = numpy.random.default_rng(5)
    for n in range(3):
        image, _ = blob(rng, (20, 22, 5))
        save(image[:, :, 2], numpy.diag([-1.5, 1.5, 1, 1]), tmp_path / "data" / f"p{n}.nii.gz")
    text = preprocess(tmp_path / "data", tmp_path / "cube", "--size", 16, code=1)
    assert "a slice, of [20, 22, 1] voxels" in text and "--protocol modern" in text
    done = pretext3d("preprocess", "--data", tmp_path / "data", "--out", tmp_path / "s", "--protocol", "modern", "--spacing", 1.5)
    stored = [read(tmp_path / "s", entry)[0] for entry in index(tmp_path / "s")["subjects"]]
    assert all(image.shape[3] == 1 for image in stored) and "--slices axial" in done.stdout.splitlines()[-1]
    small = ["--epochs", 1, "--steps", 1, "--levels", 2, "--filters", 2, "--device", "cpu", "--out", tmp_path / "run", "--weights", tmp_path / "w"]
    pretext3d("pretrain", "--data", tmp_path / "s", "--task", "rot", "--slices", "axial", *small)


def test_disagreeing_files(tmp_path):
    rng = numpy.random.default_rng(3)
    image, inside = blob(rng, (20, 21, 22))
    affine = numpy.diag([1.0, 1, 1, 1])
    moved = affine.copy()
    moved[0, 3] = 2
    files = {"good": (image, affine), "shape": (image[1:], affine), "affine": (image, moved)}
    rows = ["subject,t1,t2,label"]
    for name, (second, second_affine) in files.items():
        save(image, affine, tmp_path / f"{name}_t1.nii.gz")
        save(second, second_affine, tmp_path / f"{name}_t2.nii.gz")
        save(inside.astype(numpy.uint8), affine, tmp_path / f"{name}_label.nii.gz")
        rows.append(f"{name},{name}_t1.nii.gz,{name}_t2.nii.gz,{name}_label.nii.gz")
    save(image, affine, tmp_path / "odd_t1.nii.gz")
    save(3 * inside.astype(numpy.int16), affine, tmp_path / "odd_label.nii.gz")
    rows.append("odd,odd_t1.nii.gz,good_t2.nii.gz,odd_label.nii.gz")
    save(inside[:, :-1].astype(numpy.uint8), affine, tmp_path / "short_label.nii.gz")
    rows.append("short,odd_t1.nii.gz,good_t2.nii.gz,short_label.nii.gz")
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")

    text = preprocess(tmp_path / "data.csv", tmp_path / "s", "--size", 16, code=1)
    assert "--labels 0,1" in text and "--no-labels" in text
    text = preprocess(tmp_path / "data.csv", tmp_path / "s", "--size", 16, "--labels", "0,1=organ", code=1)
    for name, reason in [
        ("odd_label.nii.gz", "label value 3, expected one of 0, 1"),
        ("short_label.nii.gz", "[20, 20, 22]"),
    ]:
        assert any(name in line and reason in line for line in text.splitlines()), (name, text)
    # Another grid is resampled (test_grids.py).
    assert "3 are done" in text


def test_usage_and_output_errors(decathlon, tmp_path):
    assert "--spacing goes with" in preprocess(decathlon, tmp_path / "s", "--spacing", 2, code=1)
    assert "0.01 to 1000" in preprocess(decathlon, tmp_path / "s", "--protocol", "modern", "--spacing", 0, code=1)
    assert "LO < HI" in preprocess(decathlon, tmp_path / "s", "--window", "5,5", code=1)
    preprocess(decathlon, tmp_path / "s", "--sise", 5, code=2)
    assert "nowhere" in preprocess(tmp_path / "nowhere", tmp_path / "s", code=1)
    (tmp_path / "file").write_text("")
    assert "file" in preprocess(decathlon, tmp_path / "file", code=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    assert "thesis.txt" in preprocess(decathlon, tmp_path / "full", code=1)


def test_interrupted_and_killed(tmp_path):
    rng = numpy.random.default_rng(4)
    data, store = tmp_path / "data", tmp_path / "s"
    image, _ = blob(rng, (64, 64, 64))
    for n in range(24):
        save(numpy.roll(image, n, 0), numpy.eye(4), data / f"scan{n:02}.nii.gz")
    command = [BINARY, "preprocess", "--data", data, "--out", store, "--size", "96", "--threads", "1"]

    def interrupted(signum):
        before = len(list(store.glob("*.safetensors")))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while process.poll() is None and len(list(store.glob("*.safetensors"))) < before + 3:
            time.sleep(0.002)
        process.send_signal(signum)
        text = process.communicate()[0]
        return process.returncode, text

    code, text = interrupted(signal.SIGKILL)
    assert code == -signal.SIGKILL and not index(store)["complete"]
    code, text = interrupted(signal.SIGINT)
    assert code == 1 and "interrupted" in text and "same command" in text
    done = len(list(store.glob("*.safetensors")))
    assert 6 <= done < 24
    assert f"({done} kept)" in preprocess(data, store, "--size", 96)
    preprocess(data, tmp_path / "t", "--size", 96, "--threads", 2)
    assert index(store)["fingerprint"] == index(tmp_path / "t")["fingerprint"]


def test_a_scan_is_known_again_whatever_the_preprocessing(tmp_path):
    rng = numpy.random.default_rng(5)
    shape, affine = (20, 22, 18), numpy.diag([-1, 1.5, 2, 1.0])
    scans = {(n, c): blob(rng, shape)[0].round().astype(numpy.int16) for n in "pq" for c in ("t1", "t2")}
    label = (scans["p", "t1"] > 100).astype(numpy.uint8)
    for (n, c), scan in scans.items():
        save(scan, affine, tmp_path / f"data/{n}_{c}.nii.gz")
        # The same values in another type, order of axes and format, in one file.
        turned = nibabel.Nifti1Image(scan.astype(numpy.float32), affine).as_reoriented([[1, 1], [0, -1], [2, -1]])
        (tmp_path / "turned").mkdir(exist_ok=True)
        nibabel.save(turned, tmp_path / f"turned/{n}_{c}.nii")
    for n in "pq":
        save(label, affine, tmp_path / f"data/{n}_seg.nii.gz")
        save(numpy.stack([scans[n, "t1"], scans[n, "t2"]], -1), affine, tmp_path / f"stacked/{n}.nii.gz")

    def images(name, *flags, data="data"):
        preprocess(tmp_path / data, tmp_path / name, *flags)
        return [entry["images"] for entry in json.loads((tmp_path / name / "index.json").read_text())["subjects"]]

    first = images("a", "--size", 16, "--labels", "0,1")
    assert all(len(marks) == 2 for marks in first) and len({mark for marks in first for mark in marks}) == 4
    assert first == images("b", "--size", 12, "--no-labels", "--dtype", "f32")
    assert first == images("c", "--protocol", "modern", "--no-labels", "--window", "0,100", data="turned")
    assert first == images("d", "--size", 16, "--channels", "image_1", data="stacked")
    one = images("e", "--size", 16, "--channels", "t2", "--no-labels")
    assert one == [marks[1:] for marks in first]
    # A store of an earlier version is completed.
    written = tmp_path / "a" / "index.json"
    for path in (tmp_path / "a").glob("*.safetensors"):
        path.write_bytes(path.read_bytes().replace(b'"images"', b'"imagez"'))
    before = written.read_text()
    assert "(0 kept)" in preprocess(tmp_path / "data", tmp_path / "a", "--size", 16, "--labels", "0,1")
    assert written.read_text() == before
    # A copy is one in another format and without a label too.
    nibabel.save(nibabel.load(tmp_path / "turned/p_t2.nii"), tmp_path / "data/copy_t2.nii")
    save(scans["q", "t1"] + 1, affine, tmp_path / "data/copy_t1.nii.gz")
    text = preprocess(tmp_path / "data", tmp_path / "f", "--size", 16, "--labels", "0,1")
    assert "warning: 2 subjects hold the same scan: copy, p; --skip-duplicates" in text
    # Whichever of the two is held out, the other is not trained on.
    small = ["--task", "rot", "--filters", 2, "--levels", 2, "--epochs", 1, "--steps", 1, "--batch-size", 2, "--device", "cpu"]
    twins, apart = {"copy", "p"}, 0
    for seed in range(4):
        run = tmp_path / f"run{seed}"
        command = [BINARY, "pretrain", "--data", tmp_path / "f", *small, "--val-fraction", 0.34, "--seed", seed, "--out", run]
        subprocess.run([str(part) for part in command], check=True, capture_output=True, cwd=tmp_path)
        split = json.loads((run / "split.json").read_text())
        assert not twins & set(split["val"]) or not twins & set(split["train"])
        apart += bool(twins & set(split["val"]))
    assert apart


def test_a_person_is_on_one_side(tmp_path):
    rng = numpy.random.default_rng(5)
    data, store, run = tmp_path / "data", tmp_path / "s", tmp_path / "r"
    for person in range(5):
        for visit in (1, 2):
            save(blob(rng, (16, 16, 16))[0], numpy.eye(4), data / f"patient{person:02}" / f"visit{visit}_t1.nii.gz")
    text = preprocess(data, store, "--size", 8)
    assert "people: 10 scans of 5, e.g. `patient00` of patient00/visit1_t1.nii.gz and patient00/visit2_t1.nii.gz; if" in text
    small = ["--epochs", "1", "--steps", "1", "--batch-size", "2", "--levels", "2", "--filters", "2", "--device", "cpu"]
    command = [BINARY, "pretrain", "--data", store, "--task", "rot", *small, "--out", run]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    split = json.loads((run / "split.json").read_text())
    assert sorted(split["train"] + split["val"] + split["test"]) == [f"patient{n:02}" for n in range(5)] and split["val"]

    # The user may say it in another way; a pattern that says nothing is refused.
    text = preprocess(data, tmp_path / "v", "--size", 8, "--subject-pattern", "(visit[0-9])_")
    assert "people: 10 scans of 2, e.g. `visit1` of patient00/visit1_t1.nii.gz" in text
    assert {entry["id"].split("/")[0] for entry in index(tmp_path / "v")["subjects"]} == {"visit1", "visit2"}
    text = preprocess(data, tmp_path / "x", "--subject-pattern", "(visit1)", code=1)
    assert "finds no person in 5 of 10 names, the first patient00/visit2_t1.nii.gz" in text
    assert "no group in it" in preprocess(data, tmp_path / "x", "--subject-pattern", "patient..", code=2)
    assert "unclosed" in preprocess(data, tmp_path / "x", "--subject-pattern", "(", code=2)


def test_labels_by_their_names_and_scans_that_look_like_labels(tmp_path):
    rng = numpy.random.default_rng(6)
    data = tmp_path / "data"
    for n in range(2):
        image, inside = blob(rng, (16, 16, 16))
        label = inside.astype(numpy.uint8) + (image > 110)
        save(image, numpy.eye(4), data / f"volume-{n}.nii")
        save(label, numpy.eye(4), data / f"segmentation-{n}.nii")
    text = preprocess(data, tmp_path / "s", "--size", 8, "--labels", "0,1,2")
    assert "2 scans (2 with labels)" in text and "warning" not in text
    for n in range(2):
        (data / f"segmentation-{n}.nii").rename(data / f"volume-{n}_by_ann.nii")
    # A parcellation has too many values to be a few; an image of 8 bits has whole numbers too.
    regions = numpy.kron(rng.permutation(64).reshape(4, 4, 4) * 17, numpy.ones((4, 4, 4), int))
    save(regions.astype(numpy.int16), numpy.eye(4), data / "volume-1_parc.nii")
    save(rng.integers(0, 255, (16, 16, 16), numpy.uint8), numpy.eye(4), data / "volume-1_bytes.nii")
    doubted = ["volume-0_by_ann", "volume-1_by_ann", "volume-1_parc"]
    text = preprocess(data, tmp_path / "t", "--size", 8, code=1)
    for name in doubted:
        assert f"{name}: whole numbers as a label's, on the grid of {name[:8]}" in text
    assert "3 scans cannot be used" in text and "3 left out" in preprocess(data, tmp_path / "t", "--size", 8, "--skip-bad")
    # Where no labels are wanted that is no fault; the same when they are kept.
    for kept in ["0 kept", "3 kept"]:
        text = preprocess(data, tmp_path / "n", "--size", 8, "--no-labels")
        assert "3 left out" in text and kept in text and "warning" not in text
    assert [entry["id"] for entry in index(tmp_path / "n")["subjects"]] == ["volume-0", "volume-1", "volume-1_bytes"]
    # On another grid, or without an image beside them, they are taken for scans, and doubted.
    save(regions.astype(numpy.int16), numpy.diag([2, 2, 2, 1]), data / "volume-1_parc.nii")
    for name in doubted[:2]:
        (data / f"{name}.nii").unlink()
    warning = "warning: 1 of 4 scans hold whole numbers as labels do, the first volume-1_parc (0, 17, 34,"
    assert warning in preprocess(data, tmp_path / "w", "--size", 8)
    assert "4 kept" in (again := preprocess(data, tmp_path / "w", "--size", 8)) and warning in again


def test_what_is_not_asked_for_fails_no_run(tmp_path):
    rng = numpy.random.default_rng(7)
    data = tmp_path / "data"
    for n in range(2):
        image, inside = blob(rng, (16, 16, 16))
        save(image, numpy.eye(4), data / "imagesTr" / f"c{n}_0000.nii.gz")
        save(inside.astype(numpy.uint8), numpy.eye(4), data / "labelsTr" / f"c{n}.nii.gz")
    save(inside.astype(numpy.uint8), numpy.eye(4), data / "labelsTr" / "stranger.nii.gz")
    description = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "whole": [1, 2], "core": 2}, "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(description))
    text = preprocess(data, tmp_path / "s", code=1)
    assert "no `regions_class_order`" in text and "--no-labels" in text
    text = preprocess(data, tmp_path / "s", "--size", 8, "--no-labels")
    assert "ignored: " in text and "stranger.nii.gz: label without a scan" in text
    (data / "labelsTr" / "stranger.nii.gz").unlink()
    preprocess(data, tmp_path / "t", "--size", 8, "--labels", "0,1=whole,2=core")
    assert all(entry["label"] for entry in index(tmp_path / "t")["subjects"])


def test_channels_of_one_name(tmp_path):
    rng = numpy.random.default_rng(8)
    data = tmp_path / "data"
    for n in range(3):
        save(blob(rng, (12, 12, 12))[0], numpy.eye(4), data / "imagesTr" / f"a_{n:04}.nii.gz")
    description = {"channel_names": {"0": "noNorm", "1": "T2", "2": "noNorm"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(description))
    preprocess(data, tmp_path / "s", "--size", 8, "--channels", "noNorm,noNorm,T2", "--dtype", "f32")
    preprocess(data, tmp_path / "t", "--size", 8, "--dtype", "f32")
    images = [read(tmp_path / store, index(tmp_path / store)["subjects"][0])[0] for store in "st"]
    numpy.testing.assert_array_equal(images[0], images[1][[0, 2, 1]])
    text = preprocess(data, tmp_path / "x", "--channels", "noNorm", code=1)
    assert "`noNorm` is the name of 2 channels" in text
    assert "named 2 times" in preprocess(data, tmp_path / "x", "--channels", "T2,T2", code=1)
