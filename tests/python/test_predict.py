"""`predict`: windows against MONAI's, the way back into the scan's own space, headers against nibabel, and bad input."""

import json
import os
import shutil
import signal
import subprocess
import time
from itertools import combinations
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import command, pretext3d, read_json, refused, tensors
from monai.inferers import sliding_window_inference
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

CHANNELS = ["t1", "t1ce", "t2", "flair"]
CPU = ["--device", "cpu", "--precision", "fp32"]
PATCH = 16

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tuned(brains, tmp_path_factory):
    """A fine-tuned run, its network in Python, and its store, whose grid is that of the scans."""
    folder = tmp_path_factory.mktemp("tuned")
    zooms = nib.as_closest_canonical(nib.load(files_of(brains, subjects(brains)[0])[0])).header.get_zooms()
    store, run = folder / "store", folder / "run"
    spacing = ",".join(str(float(mm)) for mm in zooms)
    pretext3d("preprocess", "--data", brains, "--out", store, "--protocol", "modern", "--spacing", spacing)
    small = ["--filters", 4, "--levels", 2, "--patch", PATCH, "--batch-size", 2, "--steps", 20, "--lr", 0.01, "--device", "cpu", "--norm", "batch"]
    pretext3d("finetune", "--data", store, "--weights", "none", "--epochs", 2, *small, "--out", run)
    return SimpleNamespace(run=run, store=store, network=network(tensors(run / "best.safetensors")[0]))


def network(state):
    """The run's U-Net of two levels in PyTorch, in evaluation mode and double precision."""
    state = {name.removeprefix("model."): tensor.double() for name, tensor in state.items() if name.startswith("model.")}

    def layer(function, name, x, **options):
        return function(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def stage(name, x):
        for n in range(2):
            x = F.relu(layer(F.conv3d, f"{name}.conv{n}", x, padding=1))
            norm = [state[f"{name}.norm{n}.{part}"] for part in ["running_mean", "running_var", "weight", "bias"]]
            x = F.batch_norm(x, *norm)
        return x

    def forward(x):
        fine = stage("encoder.level0", x)
        coarse = stage("encoder.level1", F.max_pool3d(fine, 2))
        up = layer(F.conv_transpose3d, "segmentation.decoder.step0_up", coarse, stride=2)
        return layer(F.conv3d, "segmentation.decoder.output", stage("segmentation.decoder.step0", torch.cat([fine, up], 1)))

    return forward


def subjects(brains):
    return sorted(path.name for path in brains.iterdir() if path.is_dir())


def files_of(brains, subject):
    """The files of a subject's channels."""
    return [brains / subject / f"{subject}_{channel}.nii.gz" for channel in CHANNELS]


def listed(files):
    return ",".join(map(str, files))


def predict(tuned, source, out, *flags, **kwargs):
    return pretext3d("predict", "--weights", tuned.run, "--input", source, "--output", out, *CPU, *flags, **kwargs)


def ras(path):
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)


def stored(tuned, subject):
    """The subject's image on the stored grid, and the box of the RAS+ scan that it covers."""
    entry = next(s for s in read_json(tuned.store / "index.json")["subjects"] if s["id"] == subject)
    arrays, metadata = tensors(tuned.store / entry["file"])
    crop = json.loads(metadata["crop"])
    assert list(arrays["image"].shape[1:]) == crop["size"], "the stored grid is the box"
    return arrays["image"].double(), tuple(slice(a, a + n) for a, n in zip(crop["start"], crop["size"]))


@pytest.mark.parametrize("overlap, batch, flips", [(0, 3, False), (0.25, 1, False), (0.5, 4, False), (0.8, 2, False), (0.5, 1, True)])
def test_windows_and_weights_are_monais(tuned, brains, tmp_path, overlap, batch, flips):
    subject = subjects(brains)[0]
    flags = ["--overlap", overlap, "--batch-size", batch, "--probabilities", *(["--flips"] if flips else [])]
    predict(tuned, listed(files_of(brains, subject)), tmp_path, *flags)
    stem = f"{subject}_t1"
    label, probabilities = ras(tmp_path / f"{stem}.nii.gz"), ras(tmp_path / f"{stem}.probabilities.nii.gz")

    image, box = stored(tuned, subject)
    axes = [a for n in range(4 if flips else 1) for a in combinations((2, 3, 4), n)]
    mean = lambda x: sum(tuned.network(x.flip(a)).softmax(1).flip(a) for a in axes) / len(axes)
    window = dict(roi_size=[PATCH] * 3, sw_batch_size=batch, overlap=overlap, mode="gaussian", sigma_scale=0.125)
    with torch.no_grad():
        expected = sliding_window_inference(image[None], predictor=mean, **window)[0].numpy()
    np.testing.assert_allclose(np.moveaxis(probabilities[box], 3, 0), expected, rtol=0, atol=3e-5)
    outside = np.ones(label.shape, bool)
    outside[box] = False
    assert outside.any() and not label[outside].any() and (probabilities[outside] == [1, 0, 0, 0]).all()
    np.testing.assert_array_equal(label, np.array([0, 1, 2, 4])[probabilities.argmax(3)])
    assert len(np.unique(label)) > 1, "a label without classes shows nothing"


def test_weights_are_nnunets_but_for_half_a_voxel(tuned, brains, tmp_path):
    """nnU-Net centres the weights of an even window on voxel n / 2, ours and MONAI's lie in its middle."""
    centre = np.arange(PATCH) - PATCH // 2
    along = np.exp(-0.5 * (centre / (PATCH / 8)) ** 2)
    nnunet = compute_gaussian((PATCH,) * 3, sigma_scale=1 / 8, value_scaling_factor=1, dtype=torch.float64, device=torch.device("cpu"))
    np.testing.assert_allclose(nnunet, along[:, None, None] * along[:, None] * along, rtol=0, atol=1e-9)
    subject = subjects(brains)[0]
    predict(tuned, listed(files_of(brains, subject)), tmp_path, "--probabilities")
    image, box = stored(tuned, subject)
    window = dict(roi_size=[PATCH] * 3, sw_batch_size=1, overlap=0.5, mode="gaussian", roi_weight_map=nnunet)
    with torch.no_grad():
        expected = sliding_window_inference(image[None], predictor=lambda x: tuned.network(x).softmax(1), **window)[0].numpy()
    found = np.moveaxis(ras(tmp_path / f"{subject}_t1.probabilities.nii.gz")[box], 3, 0)
    assert np.abs(found - expected).mean() < 0.03 and (found.argmax(0) == expected.argmax(0)).mean() > 0.95


def test_memory_grows_with_the_scan_and_not_with_its_classes_too(tmp_path):
    """A long thin scan and 60 classes: their probabilities for all of its voxels alone take 94 MiB, and each copy as much again."""
    random = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for n in range(4):
        image = random.normal(100, 10, (16, 16, 16)).astype(np.float32)
        for name, voxels in [(f"s{n}", image), (f"s{n}_seg", random.integers(0, 60, image.shape).astype(np.uint8))]:
            nib.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / f"data/{name}.nii.gz")
    values = ",".join(map(str, range(60)))
    grid = ["--protocol", "modern", "--spacing", "1,1,1", "--foreground=-1e4", "--labels", values]
    pretext3d("preprocess", "--data", tmp_path / "data", "--out", tmp_path / "store", *grid)
    tiny = ["--levels", 2, "--filters", 2, "--patch", PATCH, "--batch-size", 1, "--epochs", 1, "--steps", 1, "--device", "cpu"]
    pretext3d("finetune", "--data", tmp_path / "store", "--weights", "none", *tiny, "--out", tmp_path / "run")

    def peak(scan, *flags):
        """MiB, and the folder of the predictions."""
        out = tmp_path / f"{scan.name}{len(flags)}"
        arguments = ["predict", "--weights", tmp_path / "run", "--input", scan, "--output", out, *CPU, "--overlap", 0, *flags]
        process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        return usage.ru_maxrss / 1024, out

    image = random.normal(100, 10, (32, 400, 32)).astype(np.float32)
    nib.Nifti1Image(image, np.eye(4)).to_filename(tmp_path / "long.nii.gz")
    small, _ = peak(tmp_path / "data" / "s0.nii.gz")
    large, out = peak(tmp_path / "long.nii.gz", "--probabilities")
    assert large - small < 100, (small, large)
    probabilities = np.asarray(nib.load(out / "long.probabilities.nii.gz").dataobj)
    assert probabilities.shape == (*image.shape, 60)
    np.testing.assert_allclose(probabilities.sum(3), 1, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(nib.load(out / "long.nii.gz").dataobj), probabilities.argmax(3))
    assert sorted(path.name for path in out.iterdir()) == ["long.nii.gz", "long.probabilities.nii.gz"]


def test_files_folders_manifests_and_stores_agree(tuned, brains, tmp_path):
    ids = subjects(brains)
    predict(tuned, brains, tmp_path / "folder")
    predict(tuned, tuned.store, tmp_path / "store")
    manifest = tmp_path / "scans.csv"
    # Columns in another order, and one that the network does not take.
    columns = ["flair", "t1", "other", "t2", "t1ce"]
    rows = [[f"p/{i}", *(brains / i / f"{i}_{'t1' if c == 'other' else c}.nii.gz" for c in columns)] for i in ids[:2]]
    manifest.write_text("\n".join(",".join(map(str, row)) for row in [["subject", *columns], *rows]))
    predict(tuned, manifest, tmp_path / "manifest")
    # A store whose scans were deleted since.
    copy = tmp_path / "brains"
    shutil.copytree(brains, copy)
    zooms = nib.as_closest_canonical(nib.load(files_of(brains, ids[0])[0])).header.get_zooms()
    spacing = ",".join(str(float(mm)) for mm in zooms)
    pretext3d("preprocess", "--data", copy, "--out", tmp_path / "orphaned", "--protocol", "modern", "--spacing", spacing)
    shutil.rmtree(copy)
    done = predict(tuned, tmp_path / "orphaned", tmp_path / "of_orphans")
    assert done.stderr.count("not there any more") == len(ids)
    for n, subject in enumerate(ids):
        first = nib.load(tmp_path / "folder" / f"{subject}.nii.gz")
        others = [tmp_path / "store" / f"{subject}.nii.gz", tmp_path / "of_orphans" / f"{subject}.nii.gz"]
        for path in [*others, *([tmp_path / "manifest" / "p" / f"{subject}.nii.gz"] if n < 2 else [])]:
            other = nib.load(path)
            np.testing.assert_array_equal(np.asarray(other.dataobj), np.asarray(first.dataobj), err_msg=str(path))
            np.testing.assert_allclose(other.affine, first.affine, rtol=1e-6, atol=1e-5)
        assert nib.load(others[0]).header == first.header == like(files_of(brains, subject)[0], first)


def like(path, found):
    """The header of a scan with what describes the voxels of a label."""
    header = nib.load(path).header.copy()
    header.set_data_dtype(found.get_data_dtype())
    header.set_data_shape(found.shape)
    header["cal_max"] = header["cal_min"] = 0
    header["intent_code"] = header["intent_p1"] = header["intent_p2"] = header["intent_p3"] = 0
    header["intent_name"] = b""
    header["vox_offset"] = found.header["vox_offset"]
    header["scl_slope"], header["scl_inter"] = found.header["scl_slope"], found.header["scl_inter"]
    header["magic"] = found.header["magic"]
    return header


@pytest.mark.parametrize("codes", ["LAS", "LPS", "PIR", "SRA"])
def test_any_orientation_and_format_comes_back_to_its_own_space(tuned, brains, tmp_path, codes):
    subject = subjects(brains)[1]
    predict(tuned, listed(files_of(brains, subject)), tmp_path / "plain")
    expected = ras(tmp_path / "plain" / f"{subject}_t1.nii.gz")
    parts = []
    for path in files_of(brains, subject):
        image = nib.as_closest_canonical(nib.load(path))
        target = nib.orientations.axcodes2ornt(codes)
        parts.append(image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), target)))
    data = [np.asarray(p.dataobj) for p in parts]
    # Oblique: 10 degrees about an arbitrary axis leave the closest axes as they are.
    turn = nib.quaternions.angle_axis2mat(np.deg2rad(10), [0.48, 0.6, 0.64])
    oblique = nib.affines.from_matvec(turn) @ parts[0].affine

    def written(name, array, affine, kind, endianness="<"):
        header = kind.header_class(endianness=endianness)
        header.set_data_dtype(array.dtype)
        image = kind(array, affine, header)
        image.header.set_xyzt_units("mm", "sec")
        image.header["descrip"] = b"written by a test"
        image.header["aux_file"] = b"aux"
        image.header["cal_max"] = 77
        image.header["slice_duration"] = 0.25
        image.set_sform(affine, code=2)
        image.set_qform(affine, code=3)
        nib.save(image, tmp_path / name)
        return tmp_path / name

    one = written("one.nii.gz", np.stack(data, -1), parts[0].affine, nib.Nifti1Image)
    turned = written("turned.nii", np.stack(data, -1), oblique, nib.Nifti2Image)
    big = [written(f"big{n}.nii", d, oblique, nib.Nifti1Image, ">") for n, d in enumerate(data)]
    for source, first in [(one, one), (turned, turned), (listed(big), big[0])]:
        predict(tuned, source, tmp_path / "out")
        found = nib.load(tmp_path / "out" / f"{first.name.split('.')[0]}.nii.gz")
        before = nib.load(first)
        assert type(found) is type(before) and found.shape == before.shape[:3] and found.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(found.affine, before.affine)
        assert nib.aff2axcodes(found.affine) == tuple(codes)
        assert found.header == like(first, found)
        same = np.asarray(nib.as_closest_canonical(found).dataobj) == expected
        # An oblique affine's spacing differs in its last digits, so that its voxels are interpolated by as much, rounded to
        # float16, and near ties between classes fall the other way.
        assert same.all() if source is one else same.mean() > 0.998, f"{source}: {same.mean()}"


def test_bad_scans_are_named_and_the_others_done(tuned, brains, tmp_path):
    copy = tmp_path / "brains"
    shutil.copytree(brains, copy)
    ids = subjects(copy)
    path = files_of(copy, ids[1])[2]
    path.write_bytes(path.read_bytes()[:-900])
    files_of(copy, ids[2])[0].unlink()
    message = refused(
        "predict", "--weights", tuned.run, "--input", copy, "--output", tmp_path / "out", *CPU,
        says=[path.name, ids[1], "no _t1", ids[2], "2 scans cannot be used", f"{len(ids) - 2} predictions are in"],
    )
    assert message.count("bad:") == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{i}.nii.gz" for i in ids if i not in ids[1:3]]


def test_bad_input_is_refused_before_any_work(tuned, trained, store, brains, tmp_path):
    subject = subjects(brains)[0]
    scan = files_of(brains, subject)[0]
    out = tmp_path / "out"

    def bad(source, *says, weights=tuned.run, output=out, flags=(), code=1):
        arguments = ["predict", "--weights", weights, "--input", source, "--output", output, *CPU, *flags]
        refused(*arguments, says=says, code=code)

    bad(brains, "pretrained", "finetune", weights=trained.run)
    bad(brains, "nowhere", weights=tmp_path / "nowhere")
    cut = tmp_path / "cut"
    shutil.copytree(tuned.run, cut)
    (cut / "best.safetensors").write_bytes((tuned.run / "best.safetensors").read_bytes()[:-100])
    bad(brains, "best.safetensors", weights=cut)
    bad(scan, scan.name, "1 channels, expected 4")
    bad(listed(files_of(brains, subject)[:3]), "3 files", "one for each: t1, t1ce, t2, flair")
    bad(store, "preprocessed with", "cube")
    bad(tmp_path / "nowhere.csv", "nowhere.csv")
    bad(tmp_path / "nothing", "nothing")
    only = tmp_path / "only.csv"
    only.write_text(f"subject,t1,flair\np,{scan},{files_of(brains, subject)[3]}\n")
    bad(only, "only.csv", "no channel `t1ce`", "found t1, flair")
    (tmp_path / "file").write_text("")
    bad(brains, "--output", "cannot be written", output=tmp_path / "file" / "out")
    for overlap in ["1", "-0.1", "nan"]:
        bad(brains, "overlap", flags=[f"--overlap={overlap}"])
    bad(brains, "batch-size", flags=["--batch-size", 0], code=2)
    bad(scan, "--layout", flags=["--layout", "brats"])
    assert not out.exists()

    # Predictions beside the scans must not replace them.
    beside = tmp_path / "beside"
    shutil.copytree(brains, beside)
    first = files_of(beside, subject)[0]
    before = first.read_bytes()
    for flags in [(), ("--overwrite",)]:
        bad(listed(files_of(beside, subject)), "would replace", output=first.parent, flags=flags)
    assert first.read_bytes() == before


def test_predictions_are_not_replaced_unasked(tuned, brains, tmp_path):
    scan = listed(files_of(brains, subjects(brains)[0]))
    predict(tuned, scan, tmp_path)
    file = next(tmp_path.iterdir())
    before = file.read_bytes()
    file.write_bytes(b"kept")
    refused("predict", "--weights", tuned.run, "--input", scan, "--output", tmp_path, *CPU, says=[file, "--overwrite"])
    assert file.read_bytes() == b"kept"
    predict(tuned, scan, tmp_path, "--overwrite")
    assert file.read_bytes() == before


def test_an_interruption_leaves_whole_files_only(tuned, brains, tmp_path):
    out = tmp_path / "out"
    slow = ["--overlap", 0.25, "--flips", *CPU]
    run = subprocess.Popen(
        command("predict", "--weights", tuned.run, "--input", brains, "--output", out, *slow),
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    deadline = time.monotonic() + 200
    while not list(out.glob("*.nii.gz")):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    done = sorted(p.name for p in out.iterdir())
    assert 0 < len(done) < len(subjects(brains)) and f"interrupted: {len(done)} of" in errors, errors
    for name in done:
        assert name.endswith(".nii.gz")
        np.asarray(nib.load(out / name).dataobj)
