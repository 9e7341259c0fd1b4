"""Channels as scans of their own: stores of mixed collections, encoders of any contrast, and who is known again."""
import json
import shutil
import zipfile
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import pretext3d, read_json, refused, renamed, tensors

FAST = ["--device", "cpu", "--precision", "fp32", "--threads", 1]
QUICK = ["--epochs", 1, "--steps", 1, "--batch-size", 2, *FAST]
FIRST = "encoder.level0.conv0.weight"
MISSING = {"brain_0000": ["t1ce", "t2"], "brain_0001": ["t1", "t1ce", "t2"]}


def stored(folder, data, *flags, size=16):
    """A store, and what was said."""
    return folder, pretext3d("preprocess", "--data", data, "--out", folder, "--size", size, *flags).stderr


def ids(store):
    return {entry["id"] for entry in read_json(store / "index.json")["subjects"]}


def image(store, name):
    entry = next(entry for entry in read_json(store / "index.json")["subjects"] if entry["id"] == name)
    return tensors(store / entry["file"])[0]["image"]


def pretrained(folder, store):
    args = ["--data", store, "--task", "mae", "--val-draws", 1, "--levels", 2, "--filters", 2, *QUICK]
    pretext3d("pretrain", *args, "--out", folder / "run", "--weights", folder / "any")
    return folder / "any.pt"


@pytest.fixture(scope="module")
def mixed(brains, tmp_path_factory):
    """Brains of which two lack contrasts, the store of their channels as scans, and an encoder that was pretrained on it."""
    folder = tmp_path_factory.mktemp("mixed")
    brats = renamed(brains, folder / "brats", "brain")
    for subject, contrasts in MISSING.items():
        for contrast in contrasts:
            (brats / subject / f"{subject}_{contrast}.nii.gz").unlink()
    refused("preprocess", "--data", brats, "--out", folder / "no", "--size", 16, "--no-labels", says=["brain_0000: no _t1ce, _t2"])
    store, said = stored(folder / "store", brats, "--channels-as-scans", "--no-labels")
    return SimpleNamespace(brats=brats, store=store, said=said, run=folder / "run", weights=pretrained(folder, store))


def test_every_channel_is_a_scan_of_its_person(mixed, brains, tmp_path):
    contrasts = ("flair", "t1", "t1ce", "t2")
    there = {f"brain_{n:04}/{c}" for n in range(6) for c in contrasts if c not in MISSING.get(f"brain_{n:04}", [])}
    index = read_json(mixed.store / "index.json")
    assert ids(mixed.store) == there and index["channels"] == ["image"] and "flair 6, t1 5, t1ce 4, t2 4" in mixed.said
    assert all(entry["contrast"] == entry["id"].split("/")[1] for entry in index["subjects"]) and "19 scans of 6" in mixed.said
    # Each as if it were the only channel.
    alone, _ = stored(tmp_path / "alone", brains, "--channels", "flair", "--no-labels")
    for name in ("brain_0001", "brain_0004"):
        assert torch.equal(image(mixed.store, f"{name}/flair"), image(alone, name))
    # Sides are of people; the description says what the channel may be.
    split = read_json(mixed.run / "split.json")
    assert sorted(split["train"] + split["val"]) == [f"brain_{n:04}" for n in range(6)]
    described = read_json(mixed.weights.with_suffix(".json"))
    assert described["input"]["channels"] == ["image"] and described["input"]["contrasts"] == list(contrasts)
    assert described["network"]["in_channels"] == 1
    # Some of them; more may be added to the store, and a store of the other kind is not mixed with it.
    some, said = stored(tmp_path / "some", mixed.brats, "--channels-as-scans", "--channels", "t1,flair", "--no-labels")
    assert {name.split("/")[1] for name in ids(some)} == {"t1", "flair"} and len(ids(some)) == 11
    again = stored(tmp_path / "some", mixed.brats, "--channels-as-scans", "--no-labels")[1]
    assert ids(some) == there and "flair 6, t1 5, t1ce 4" in again
    common = ["preprocess", "--size", 16, "--no-labels"]
    refused(*common, "--data", brains, "--out", some, says=["holds a store of other settings", "channels"])
    refused(*common, "--data", mixed.brats, "--out", tmp_path / "x", "--channels-as-scans", "--channels", "t3", says=["`t3`", "flair, t1"])
    pretext3d("inspect", "--task", "mae", "--data", mixed.store, "--n", 1, "--out", tmp_path / "look", "--weights", mixed.run)


def test_fine_tuning_takes_it_for_all_channels_and_knows_the_people_again(mixed, brains, tmp_path):
    def tune(store, name, weights=mixed.weights, *flags):
        args = ["finetune", "--data", store, "--weights", weights, "--arm", "full", "--patch", 8, "--lr", 0, *QUICK, *flags]
        pretext3d(*args, "--out", tmp_path / name)
        return (tmp_path / name / "load.txt").read_text()

    own = tensors(mixed.weights.with_suffix(".safetensors"))[0][FIRST]
    both, _ = stored(tmp_path / "both", brains, "--channels", "t1,flair")
    flair, _ = stored(tmp_path / "flair", renamed(brains, tmp_path / "twins", "twin"), "--channels", "flair")
    for store, channels in ((both, 2), (flair, 1)):
        report = tune(store, f"of-{channels}")
        assert (f"{FIRST}: 1 input channels to 2" in report) == (channels == 2) and "trained on" not in report.split("scans of")[0]
        # By their images, whatever the channels beside them and whatever they are called.
        assert "scans of 1 of the 1 test subjects were pretrained on" in report and "ids" not in report
        kernel = tensors(tmp_path / f"of-{channels}/best.safetensors")[0][f"model.{FIRST}"]
        torch.testing.assert_close(kernel, own.expand(-1, channels, -1, -1, -1) / channels)
    # A contrast of theirs that was not pretrained on: by the person's id.
    t1, _ = stored(tmp_path / "t1", brains, "--channels-as-scans", "--channels", "t1", "--no-labels")
    report = tune(stored(tmp_path / "own", brains, "--channels", "flair")[0], "ids", pretrained(tmp_path, t1))
    assert "have the ids of subjects that were pretrained on" in report
    # The fine-tuned network predicts from its own channels.
    pretext3d("predict", "--weights", tmp_path / "of-2", "--input", brains, "--output", tmp_path / "out", "--device", "cpu")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 6
    # One of a channel of any contrast takes each scan's only one, with a label for each.
    each, _ = stored(tmp_path / "each", brains, "--channels-as-scans", "--channels", "t1,flair")
    tune(each, "each")
    predict = ["predict", "--weights", tmp_path / "each", "--device", "cpu", "--input"]
    pretext3d(*predict, each, "--output", tmp_path / "of-store")
    pretext3d(*predict, brains / "brain_0002/brain_0002_t1.nii.gz", "--output", tmp_path / "of-file")
    [found] = tmp_path.glob("of-file/*.nii.gz")
    expected = tmp_path / "of-store/brain_0002/t1.nii.gz"
    np.testing.assert_array_equal(nib.load(found).get_fdata(), nib.load(expected).get_fdata())
    refused(*predict, brains, "--output", tmp_path / "no", says=["takes one channel", "t1ce"])
    # A sweep knows them again as well.
    (tmp_path / "a.toml").write_text(f"""name = "a"
data = "{both}"
unlabelled = "{mixed.store}"
tasks = ["rot"]
arms = ["scratch", "full"]
fractions = [1.0]
seeds = [0]
val_fraction = 0.2
test_fraction = 0.2
other_people = true
""")
    refused("sweep", "--config", tmp_path / "a.toml", "--out", tmp_path / "sweep", says=["are held out", "is tested on"])


def test_embeddings_of_any_channels(mixed, brains, tmp_path):
    both, _ = stored(tmp_path / "both", brains, "--channels", "t1,t2")
    pair = tmp_path / "pair"
    pair.mkdir()
    files = [shutil.copy(brains / f"brain_0003/brain_0003_{name}.nii.gz", pair) for name in ("t1", "t2")]

    def embedded(source, name):
        done = pretext3d("embed", "--weights", mixed.weights, "--input", source, "--out", tmp_path / name, *FAST)
        assert "trained on" not in done.stderr
        return tensors(tmp_path / f"{name}.safetensors")[0]["level1"]

    whole = embedded(both, "store")
    assert torch.equal(embedded(pair, "folder")[0], whole[3]) and torch.equal(embedded(",".join(map(str, files)), "files")[0], whole[3])
    assert embedded(files[0], "one").shape == (1, 4) and len(embedded(mixed.store, "scans")) == 19


def scan(path, seed, channels=1, planes=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(100, 20, (12, 12, planes, channels))
    nib.save(nib.Nifti1Image(voxels[..., 0] if channels == 1 else voxels, np.eye(4)), path)
    return path


def folder(root):
    """Also on grids of their own."""
    for n, name in enumerate(("p1_t1", "p1_flair", "p2_t1", "p3_adc", "p3_t1", "sub/p4", "p5_t1")):
        scan(root / f"{name}.nii.gz", n, planes=6 if name == "p1_flair" else 12)
    return {"p1/t1", "p1/flair", "p2/t1", "p3/adc", "p3/t1", "p4/image", "p5/t1"}


def nnunet(root):
    for n, name in enumerate(("a_0000", "a_0001", "b_0001", "c_0000")):
        scan(root / f"imagesTr/{name}.nii.gz", n)
    described = {"channel_names": {"0": "T1", "1": "PD/T2"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(described))
    return {"a/T1", "a/PD_T2", "b/PD_T2", "c/T1"}


def decathlon(root):
    """Files of three, two and one channels; and equal names."""
    for n in (3, 2, 1):
        scan(root / f"imagesTr/case_{n}.nii.gz", n, n)
    listed = [{"image": f"./imagesTr/case_{n}.nii.gz", "label": f"./labelsTr/case_{n}.nii.gz"} for n in (3, 2, 1)]
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "T1", "1": "T2", "2": "T1"}, "labels": {"0": "none", "1": "x"}, "training": listed}))
    return {"case_3/T1_0", "case_3/T2", "case_3/T1_2", "case_2/image_0", "case_2/image_1", "case_1/image"}


def manifest(root):
    rows = ["subject,t1,flair", "p01/v1,a.nii.gz,b.nii.gz", "p01/v2,,c.nii.gz", "p02,d.nii.gz,"]
    for n, name in enumerate("abcd"):
        scan(root / f"{name}.nii.gz", n, 2 if name == "d" else 1)
    (root / "scans.csv").write_text("\n".join(rows))
    return {"p01/v1/t1", "p01/v1/flair", "p01/v2/flair", "p02/t1_0", "p02/t1_1"}


def ukb(root):
    for n, members in enumerate((["T1", "T2_FLAIR"], ["T2_FLAIR"], ["T1"])):
        path = scan(root / "unpacked.nii.gz", n)
        with zipfile.ZipFile(root / f"100000{n}_20252_2_0.zip", "w") as archive:
            for member in members:
                archive.write(path if member == "T1" else scan(root / "other.nii.gz", 50 + n), f"{member}/{member}.nii.gz")
    return {"1000000/2/T1", "1000000/2/T2_FLAIR", "1000001/2/T2_FLAIR", "1000002/2/T1"}


@pytest.mark.parametrize("layout", [folder, nnunet, decathlon, manifest, ukb], ids=lambda layout: layout.__name__)
def test_scans_need_not_have_the_same_channels(tmp_path, layout):
    expected = layout(tmp_path / "data")
    data = tmp_path / "data/scans.csv" if layout is manifest else tmp_path / "data"
    flags = ["--layout", layout.__name__, "--channels-as-scans", "--no-labels"]
    store, said = stored(tmp_path / "store", data, *flags, size=12)
    assert ids(store) == expected and "bad:" not in said
    if layout is decathlon:
        # The right channel of the file, by which the scan is known again.
        voxels = np.asarray(nib.load(tmp_path / "data/imagesTr/case_3.nii.gz").dataobj)
        nib.save(nib.Nifti1Image(voxels[..., 1], np.eye(4)), tmp_path / "second.nii.gz")
        (tmp_path / "second.csv").write_text("subject,x\np,second.nii.gz\n")
        alone, _ = stored(tmp_path / "alone", tmp_path / "second.csv", "--no-labels", size=12)
        assert torch.equal(image(store, "case_3/T2"), image(alone, "p"))
        marks = [entry["images"] for entry in read_json(store / "index.json")["subjects"] if entry["id"] == "case_3/T2"]
        assert marks == [read_json(alone / "index.json")["subjects"][0]["images"]]


def test_colours_are_no_scans(tmp_path):
    pretext3d("phantom", "--kind", "fundus", "--subjects", 2, "--size", 32, "--out", tmp_path / "fundus")
    refused("preprocess", "--data", tmp_path / "fundus", "--out", tmp_path / "x", "--channels-as-scans", says=["photographs", "colours"])
