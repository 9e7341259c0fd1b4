"""Artefacts of magnetic resonance against TorchIO's and MONAI's, with the same numbers (examples/mr_change.rs), and their flags."""
import json
import os
import subprocess

import numpy as np
import pytest
import torch
import torchio as tio
from helpers import ROOT, pretext3d, refused, tensors
from monai.transforms import GibbsNoise
from scipy.ndimage import gaussian_filter

CHANGE = os.environ.get("MR_CHANGE", str(ROOT / "target/debug/examples/mr_change"))
SHAPES = [(16, 20, 18), (15, 13, 17), (1, 24, 21)]


def volume(shape, seed=0):
    """Smooth blobs on an empty ground that is three voxels wide at every end."""
    random = np.random.default_rng(seed)
    image = np.zeros(shape, np.float32)
    inside = tuple(slice(3, -3) if n > 1 else slice(None) for n in shape)
    noise = gaussian_filter(random.random(shape), [1.5 if n > 1 else 0 for n in shape])
    image[inside] = (10 * noise)[inside]
    return image


def changed(image, out, *changes):
    """What each change makes of an image."""
    (out / "in.f32").write_bytes(image.tobytes())
    sides = ",".join(map(str, image.shape))
    subprocess.run([CHANGE, out, sides, out / "in.f32", *map(json.dumps, changes)], check=True, timeout=60)
    return [np.fromfile(out / f"{n}.f32", np.float32).reshape(image.shape) for n in range(len(changes))]


def torchio(transform, image):
    """The world's origin is the image's centre, since TorchIO's motion turns about the former; its axes are SimpleITK's."""
    affine = np.diag([-1.0, -1, 1, 1])
    affine[:3, 3] = np.array([1, 1, -1]) * (np.array(image.shape) - 1) / 2
    scalar = tio.ScalarImage(tensor=torch.from_numpy(image.copy())[None], affine=affine)
    return transform(scalar).data[0].numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_like_torchio_and_monai(shape, tmp_path):
    image = volume(shape)
    random = np.random.default_rng(1)
    coefficients = random.uniform(-0.5, 0.5, 20).tolist()
    sigma = [1.7, 0.6, 2.0] if shape[0] > 1 else [0, 0.6, 2.0]
    axes = [a for a in range(3) if shape[a] > 1]
    alphas = [0.3, 0.55, 0.7]
    ghosts = [(axis, ghosts, intensity) for axis in axes for ghosts, intensity in [(4, 1.0), (7, 0.6)]]
    found = changed(
        image, tmp_path,
        {"bias-field": {"coefficients": coefficients}},
        {"blur": {"sigma": sigma}},
        *({"gibbs": {"alpha": alpha}} for alpha in alphas),
        *({"ghosting": {"axis": axis, "ghosts": n, "intensity": intensity}} for axis, n, intensity in ghosts),
    )
    expected = [
        torchio(tio.BiasField(coefficients, order=3), image),
        torchio(tio.Blur(sigma), image),
        *(GibbsNoise(alpha)(image[None] if shape[0] > 1 else image)[:].numpy().reshape(shape) for alpha in alphas),
        *(torchio(tio.Ghosting(n, axis, intensity, None), image) for axis, n, intensity in ghosts),
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(theirs - image).max() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_motion_like_torchio(shape, tmp_path):
    # K-space's last axis is the one along which TorchIO's motion happens.
    image = volume(shape, 2)
    flat = shape[0] == 1
    degrees = np.array([[7, -4, 9], [-8, 6, 3]], float) * ([1, 0, 0] if flat else [1, 1, 1])
    translation = np.array([[1.5, -2, 0.7], [-0.4, 1.2, 2.5]], float) * ([0, 1, 1] if flat else [1, 1, 1])
    # The centre of k-space is taken before, between and after the movements.
    for times in ([0.3, 0.7], [0.6, 0.8], [0.2, 0.4]):
        movements = [
            {"time": t, "degrees": d.tolist(), "translation": s.tolist()} for t, d, s in zip(times, degrees, translation)
        ]
        [ours] = changed(image, tmp_path, {"motion": {"axis": 2, "movements": movements}})
        theirs = torchio(tio.Motion(degrees, translation, np.array(times), "linear"), image)
        assert np.abs(theirs - image).max() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=str(times))


@pytest.mark.parametrize("shape", SHAPES)
def test_low_resolution_like_torchio(shape, tmp_path):
    image = np.random.default_rng(3).random(shape).astype(np.float32) + 1
    cases = [(axis, thickness) for axis in range(3) if shape[axis] > 1 for thickness in (1.6, 2.3, 4.7)]
    found = changed(image, tmp_path, *({"low-resolution": {"axis": axis, "thickness": t}} for axis, t in cases))
    for (axis, thickness), ours in zip(cases, found, strict=True):
        theirs = torchio(tio.RandomAnisotropy(axis, (thickness, thickness)), image)
        # Beyond the outermost slices TorchIO writes 0, where here the last slice goes on.
        known = theirs > 0
        assert known.mean() > 0.6
        np.testing.assert_allclose(ours[known], theirs[known], atol=1e-5, err_msg=f"{axis} {thickness}")
        assert ours.min() >= 1


@pytest.mark.parametrize("task", ["simclr", "vf", "mae"])
def test_flags_of_pretraining(task, store, tmp_path):
    """Each artefact in every view, as volumes and as slices; none by default."""

    def samples(name, *flags):
        out = tmp_path / name
        pretext3d("inspect", "--data", store, "--task", task, "--window", 16, "--n", 2, "--out", out, *flags)
        found, metadata = tensors(out / f"{task}.safetensors")
        return found["views"].numpy(), json.loads(metadata["inspect"])["samples"]

    def channels(sample):
        params = sample["params"]
        parts = {"simclr": lambda: params["crops"], "vf": lambda: [params["front"], params["back"]], "mae": lambda: [params]}
        return [channel for part in parts[task]() for channel in part["augmentation"]["channels"]]

    for name, flags in [("volumes", []), ("slices", ["--slices", "axial"])]:
        views, drawn = samples(name, *flags, f"--{task}-mr", 1)
        assert np.isfinite(views).all()
        for channel in (channel for sample in drawn for channel in channels(sample)):
            kinds = [next(iter(change)) for change in channel["mr"]]
            assert kinds == ["bias-field", "motion", "ghosting", "gibbs", "low-resolution", "blur"]
    assert not any("mr" in channel for sample in samples("plain")[1] for channel in channels(sample))
    refused("inspect", "--data", store, "--task", task, "--out", tmp_path / "bad", f"--{task}-mr", 1.5,
            says=[f"--{task}-mr is a probability, 0 to 1, found 1.5"])
