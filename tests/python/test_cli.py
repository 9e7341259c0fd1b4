"""Bad input, end to end: every mistake is refused with a message that names the place, what was expected and what was found."""
import gzip
import json
import os
import shlex
import struct
import subprocess

import nibabel
import numpy as np
import pytest
from conftest import SMALL
from helpers import BINARY, pretext3d, read_json, refused

SHAPE = (20, 22, 18)


def scan(path, seed=0, shape=SHAPE, edit=None):
    """Writes a scan: a bright ellipsoid with texture on a dark background."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    image = (100 + 20 * rng.random(shape)) * (sum((x / 0.8) ** 2 for x in grid) < 1)
    image = image.astype(np.float32)
    if edit:
        edit(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), path)
    return path


def scans(folder, count):
    for i in range(count):
        scan(folder / f"case{i}.nii.gz", seed=i)
    return folder


def preprocess(data, out):
    return ["preprocess", "--data", data, "--out", out, "--size", 16]


@pytest.fixture(scope="module")
def small_store(tmp_path_factory):
    """Five scans of 16^3."""
    folder = tmp_path_factory.mktemp("small")
    pretext3d(*preprocess(scans(folder / "scans", 5), folder / "store"))
    return folder / "store"


def pretrain(store, *more):
    return ["pretrain", "--data", store, "--task", "rot", "--epochs", 1, "--rot-head", "gap", *SMALL, *more]


# Broken scans: what is done to a good file's bytes, and what the message must say beside its path.
def uncompressed(change):
    return lambda raw: gzip.compress(change(bytearray(gzip.decompress(raw))))


def header(offset, kind, *values):
    def change(raw):
        struct.pack_into("<" + kind, raw, offset, *values)
        return bytes(raw)

    return uncompressed(change)


BROKEN = {
    "text renamed": (lambda raw: b"This is a letter, not a scan.\n" * 40, []),
    "empty file": (lambda raw: b"", []),
    "truncated gzip": (lambda raw: raw[: len(raw) // 2], []),
    "data shorter than the header says": (uncompressed(lambda raw: bytes(raw[:-5000])), []),
    "header larger than the data": (header(40, "8h", 3, 40, 22, 18, 1, 1, 1, 1), ["40"]),
    "terabytes": (header(40, "8h", 3, 32000, 32000, 32000, 1, 1, 1, 1), ["32000"]),
    "negative dimension": (header(40, "8h", 3, -20, 22, 18, 1, 1, 1, 1), ["-20"]),
    "2D": (header(40, "8h", 2, 20, 22 * 18, 1, 1, 1, 1, 1), []),
    "5D": (header(40, "8h", 5, 20, 22, 3, 3, 2, 1, 1), ["5"]),
    "unknown data type": (header(70, "h", 77), ["77"]),
}
VOXELS = {
    "NaN": (lambda image: image.__setitem__((3, 4, 5), np.nan), ["NaN"]),
    "infinite": (lambda image: image.__setitem__((3, 4, 5), np.inf), ["inf"]),
    "constant": (lambda image: image.fill(7), ["7"]),
}


def check_broken(folder, out, name, says):
    """One broken scan among good ones: refused and named, the good ones done; `--skip-bad` goes on without it."""
    message = refused(*preprocess(folder, out), says=[name, "--skip-bad", *says])
    assert "case0" not in message
    # Only once the user accepts the loss is the store complete, and it says what it lacks.
    done = pretext3d(*preprocess(folder, out), "--skip-bad")
    assert name in done.stdout + done.stderr
    index = read_json(out / "index.json")
    assert [entry["id"] for entry in index["subjects"]] == ["case0", "case1"]
    assert [entry["id"] for entry in index["left_out"]] == ["broken"]


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file(tmp_path, kind):
    change, says = BROKEN[kind]
    folder = scans(tmp_path / "scans", 2)
    good = scan(tmp_path / "good.nii.gz", seed=9).read_bytes()
    (folder / "broken.nii.gz").write_bytes(change(good))
    check_broken(folder, tmp_path / "store", "broken", says)


@pytest.mark.parametrize("kind", VOXELS)
def test_broken_voxels(tmp_path, kind):
    edit, says = VOXELS[kind]
    folder = scans(tmp_path / "scans", 2)
    scan(folder / "broken.nii.gz", edit=edit)
    check_broken(folder, tmp_path / "store", "broken", says)


def test_zero_spacing(tmp_path):
    folder = scans(tmp_path / "scans", 2)
    raw = bytearray(gzip.decompress(scan(tmp_path / "good.nii.gz").read_bytes()))
    struct.pack_into("<8f", raw, 76, 1, 0, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<12f", raw, 280, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    (folder / "broken.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    check_broken(folder, tmp_path / "store", "broken", [])


def test_folders_without_scans(tmp_path):
    out = tmp_path / "store"
    refused(*preprocess(tmp_path / "nowhere", out), says=[tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    refused(*preprocess(tmp_path / "empty", out), says=[tmp_path / "empty"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/readme.txt").write_text("no scans here")
    refused(*preprocess(tmp_path / "notes", out), says=[tmp_path / "notes"])
    assert not (out / "index.json").exists()


def test_contrasts_of_different_shapes(tmp_path):
    folder = tmp_path / "brats"
    for subject in ("s0", "s1"):
        for contrast in ("t1", "t1ce", "t2", "flair"):
            shape = (20, 22, 17) if (subject, contrast) == ("s1", "t2") else SHAPE
            scan(folder / subject / f"{subject}_{contrast}.nii.gz", shape=shape)
    done = pretext3d(*preprocess(folder, tmp_path / "store"))
    assert "t2 of 1 scans lay on other grids than t1 and were resampled onto it: s1" in done.stderr


def test_duplicate_subjects(tmp_path):
    scans(tmp_path / "scans", 2)
    manifest = tmp_path / "list.csv"
    manifest.write_text("subject,t1\na,scans/case0.nii.gz\nb,scans/case1.nii.gz\na,scans/case1.nii.gz\n")
    refused(*preprocess(manifest, tmp_path / "store"), says=[manifest, "a"])


def test_unwritable_output(small_store, tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    refused(*preprocess(scans(tmp_path / "scans", 2), file / "store"), says=[file / "store"])
    refused(*pretrain(small_store, "--out", file / "run"), says=[file / "run"])
    refused("phantom", "--kind", "brain", "--subjects", 1, "--size", 32, "--out", file / "data", says=[file / "data"])


def test_one_subject_only(tmp_path):
    pretext3d(*preprocess(scans(tmp_path / "scans", 1), tmp_path / "store"))
    refused(*pretrain(tmp_path / "store", "--out", tmp_path / "run"), says=["1", "subject"])


def test_batch_larger_than_the_set(small_store, tmp_path):
    refused(*pretrain(small_store, "--out", tmp_path / "run", "--batch-size", 64, "--draws", 1), says=["--batch-size", 64, 4])
    assert not (tmp_path / "run").exists()


def test_volume_smaller_than_the_patch(small_store, tmp_path):
    refused(*pretrain(small_store, "--out", tmp_path / "run", "--window", 48), says=["--window", 48, 16])
    refused(*pretrain(small_store, "--out", tmp_path / "run", "--task", "jig", "--levels", 5, "--norm", "batch"), says=["jig", "16"])
    assert not (tmp_path / "run").exists()


def test_what_is_no_store(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(*pretrain(tmp_path / "empty"), says=[tmp_path / "empty", "preprocess"])
    refused(*pretrain(tmp_path / "nowhere"), says=[tmp_path / "nowhere"])


def test_damaged_store(small_store, tmp_path):
    entry = read_json(small_store / "index.json")["subjects"][0]
    copy = tmp_path / "store"
    copy.mkdir()
    for path in small_store.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / entry["file"]).write_bytes((small_store / entry["file"]).read_bytes()[:-100])
    refused(*pretrain(copy, "--out", tmp_path / "run"), says=[entry["file"]])
    (copy / entry["file"]).unlink()
    refused(*pretrain(copy, "--out", tmp_path / "run"), says=[entry["file"]])


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--epoch", 3], ["--epoch"]),
        (["--lr", "fast"], ["--lr", "fast"]),
        (["--task", "rotate"], ["rotate", "rot", "rpl", "jig", "cpc", "exe", "vf", "simclr", "mae"]),
        (["--precision", "fp8"], ["fp8", "bf16"]),
        (["--device", "gpu"], ["gpu", "cuda"]),
    ],
)
def test_usage(small_store, flags, says):
    refused(*pretrain(small_store), *flags, says=says, code=2)


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--epochs", 0], ["--epochs"]),
        (["--lr", "nan"], ["--lr"]),
        (["--val-fraction", 1.5], ["--val-fraction", 1.5]),
        (["--fraction", 0], ["--fraction"]),
        (["--dropout", 1], ["--dropout"]),
        (["--task", "rot"], ["--task", "twice"]),
        (["--task", "rpl", "--task-weights", "1,2,3"], ["--task-weights", "3", "2"]),
    ],
)
def test_values_out_of_range(small_store, tmp_path, flags, says):
    refused(*pretrain(small_store, "--out", tmp_path / "run"), *flags, says=says)
    assert not (tmp_path / "run").exists()


def test_cuda_that_is_not_there(small_store, tmp_path):
    import torch

    if torch.cuda.is_available():
        refused(*pretrain(small_store, "--out", tmp_path / "run", "--device", "cuda:99"), says=["cuda:99"])
    else:
        refused(*pretrain(small_store, "--out", tmp_path / "run", "--device", "cuda"), says=["--device cuda"])


def test_configuration_files(small_store, tmp_path):
    def with_config(name, text, **kwargs):
        path = tmp_path / name
        path.write_text(text)
        return refused("pretrain", "--config", path, "--data", small_store, "--task", "rot", says=[path, *kwargs["says"]])

    with_config("typo.toml", "learning-rate = 0.1\n", says=["learning-rate"])
    with_config("typo.json", json.dumps({"rot": {"haed": "gap"}}), says=["rot-haed"])
    with_config("broken.toml", "lr = = 1\n", says=["TOML"])
    with_config("broken.json", "{", says=["JSON"])
    with_config("list.json", "[1]", says=["table"])
    with_config("settings.yaml", "lr: 1", says=[".toml"])
    refused("pretrain", "--config", tmp_path / "nowhere.toml", says=[tmp_path / "nowhere.toml"])


def test_flags_win_over_the_configuration(small_store, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(f'data = "{small_store}"\ntask = ["rpl", "jig"]\nlr = 0.5\nfilters = 8\n[rot]\nhead = "gap"\n')
    args = ["--task", "rot", "--epochs", 1, *SMALL, "--out", tmp_path / "run", "--weights", tmp_path / "w"]
    pretext3d("pretrain", "--config", config, *args)
    record = read_json(tmp_path / "run/config.json")
    assert record["settings"]["lr"] == 0.5 and record["settings"]["rot-head"] == "gap" and record["settings"]["filters"] == 4
    assert record["settings"]["task"] == ["rot"]
    assert "--config" in record["command_line"] and record["versions"]["libtorch"].startswith("2.11.0")


def test_the_next_command_can_be_copied_into_a_shell(brains, tmp_path):
    store = tmp_path / "it's a store"
    printed = pretext3d("preprocess", "--data", brains, "--out", store, "--size", 16).stdout
    following = printed.split("next: ")[1].strip()
    run = [*SMALL, "--epochs", 1, "--out", tmp_path / "run", "--weights", tmp_path / "w"]
    done = subprocess.run(["sh", "-c", f"{following} {shlex.join(map(str, run))}"], capture_output=True, text=True)
    assert done.returncode == 0 and read_json(tmp_path / "run/config.json")["settings"]["data"] == str(store), done.stderr


def test_resume_wants_a_run_of_its_command(trained, tmp_path):
    says = [trained.run, "run of `pretrain`", "not of `finetune`", f"{BINARY} pretrain --resume {trained.run}"]
    refused("finetune", "--resume", trained.run, says=says)
    refused("pretrain", "--resume", tmp_path, says=[tmp_path, "not a run's folder"])


def test_a_patch_too_small_for_the_encoder_says_what_to_change(small_store, tmp_path):
    args = ["pretrain", "--data", small_store, "--task", "rpl", "--norm", "batch", "--out", tmp_path / "run"]
    message = refused(*args, says=["patches have 4 voxels in a window of 16", "need about 16: give --window 51", "--rpl-grid", "pools by 16;", "--levels"])
    assert message.count("task rpl") == 1, message


def test_a_path_that_is_not_text_is_refused_before_the_run(small_store, tmp_path):
    odd = os.fsdecode(bytes(tmp_path) + b"/\xff")
    os.symlink(small_store, odd)
    refused(*pretrain(odd, "--out", tmp_path / "run"), says=["expected UTF-8"], errors="replace")
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(small_store, tmp_path):
    args = pretrain(small_store, "--out", tmp_path / "run", "--weights", tmp_path / "w")
    pretext3d(*args)
    before = (tmp_path / "run/last.safetensors").read_bytes()
    refused(*args, says=[tmp_path / "run", "--resume"])
    assert (tmp_path / "run/last.safetensors").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not weights", b"\xff" * 64, struct.pack("<Q", 1 << 60) + b"{}"])
def test_weights_that_are_none(small_store, tmp_path, content):
    for name in ("w.safetensors", "w.pt"):
        (tmp_path / name).write_bytes(content)
        refused(*pretrain(small_store, "--init", tmp_path / name, "--out", tmp_path / "run"), says=[tmp_path / name])


def test_weights_of_another_network(small_store, tmp_path):
    pretext3d(*pretrain(small_store, "--out", tmp_path / "run", "--weights", tmp_path / "w"))
    for suffix in (".safetensors", ".pt"):
        wider = pretrain(small_store, "--init", tmp_path / f"w{suffix}", "--out", tmp_path / "other", "--filters", 8)
        refused(*wider, says=[tmp_path / f"w{suffix}", "--filters 8", "has 4"])
        deeper = pretrain(small_store, "--init", tmp_path / f"w{suffix}", "--out", tmp_path / "other", "--levels", 4)
        refused(*deeper, says=[tmp_path / f"w{suffix}", "--levels 4", "has 3"])


def test_a_command_that_there_is_not():
    assert "Usage: pretext3d" in pretext3d(fails=2).stderr
    refused("pretrian", says=["pretrian", "pretrain"], code=2)
