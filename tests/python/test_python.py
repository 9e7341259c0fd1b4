"""The Python package: encoders as ordinary modules, stores as datasets, both against the binary and its TorchScript."""
import copy
import json
import pickle
import shutil

import pytest
import torch
from helpers import pretext3d, read_json, tensors
from pretext3d import Label, Store, build, load
from torch.utils.data import DataLoader

QUICK = ["--epochs", 1, "--steps", 1, "--batch-size", 2, "--device", "cpu", "--precision", "fp32", "--threads", 1, "--val-draws", 1]
SLICES = ["--slices", "axial"]
THICK = ["--features", "3,4,6", "--kernels", "3x3x1,1x3x3", "--strides", "1x1x1,2x2x1,1x2x2"]
# With dropout where there is a generator to follow, and with decoders.
CASES = {
    "unet": ["--task", "mae", "--levels", 3, "--filters", 2, "--norm", "batch", "--dropout", 0.2],
    "unet2d": [*SLICES, "--task", "rot", "--levels", 2, "--filters", 2],
    "densenet": [*SLICES, "--encoder", "densenet121", "--task", "mae", "--dropout", 0.1],
    "plainconv": ["--encoder", "plainconv", "--task", "vf", *THICK, "--blocks", "1,2,2", "--val-fraction", 0.4],
    "resenc": ["--encoder", "resenc-l", "--task", "mae", *THICK, "--blocks", "1,2,2", "--dropout", 0.2],
    # Without a change of channels a strided block has no projection.
    "resenc2d": [*SLICES, "--encoder", "resenc-s", "--task", "gen", "--features", "3,3,4", "--blocks", "1,1,2"],
}


@pytest.fixture(scope="module", params=CASES)
def exported(request, store, tmp_path_factory):
    """Prefix of an export; its run lies beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    args = ["--data", store, *CASES[request.param], *QUICK, "--window", 32]
    pretext3d("pretrain", *args, "--out", folder / "run", "--weights", folder / "w")
    return folder / "w"


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * max(1, wanted.abs().max().item()))


def test_an_encoder_is_its_torchscript(exported):
    script, description = torch.jit.load(exported.with_suffix(".pt")), read_json(exported.with_suffix(".json"))
    state, _ = tensors(exported.with_suffix(".safetensors"))
    names = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
    for path in (exported, str(exported.with_suffix(".safetensors")), exported.with_suffix(".pt")):
        encoder = load(path)
        assert encoder.state_dict().keys() == names.keys() and encoder.description == description
        assert all(torch.equal(tensor, names[name]) for name, tensor in encoder.state_dict().items())
        assert len(list(encoder.parameters())) == len(list(script.parameters()))
        assert all(p.requires_grad and p.is_leaf for p in encoder.parameters())
    rank, described = description["network"].get("rank", 2), description["levels"]
    each = [level["reduction"] if isinstance(level["reduction"], list) else [level["reduction"]] * rank for level in described]
    assert [level.channels for level in encoder.levels] == [level["channels"] for level in described]
    assert [list(level.reduction) for level in encoder.levels] == each and encoder.rank == rank
    assert (encoder.decoder is not None) == ("decoder" in description)

    raw = torch.randn(2, encoder.in_channels, 64, 34, 32, generator=torch.Generator().manual_seed(0)) * 50 - 20
    x = encoder.preprocess(raw)
    assert torch.equal(x, script.preprocess(raw)) and torch.equal(encoder.preprocess(raw[0].double()), script.preprocess(raw[0]))
    x = x if rank == 3 else x[:, :, 0]
    for function, wrong in ((encoder, x[0]), (encoder, x[None]), (encoder.preprocess, raw[0, 0]), (encoder.preprocess, raw[None])):
        with pytest.raises(ValueError, match="spatial axes, found"):
            function(wrong)
    even = x[..., :32, :]
    again = pickle.loads(pickle.dumps(copy.deepcopy(encoder)))
    for train in (False, True):
        for inputs in (x, even):
            pyramids = []
            for module in (script, encoder, again):
                # The same dropout.
                torch.manual_seed(1)
                pyramids.append(module.train(train)(inputs))
            for wanted, *ours in zip(*pyramids, strict=True):
                [close(level, wanted) for level in ours]
        if encoder.decoder is not None:
            close(again.decoder(pyramids[2]), script.decoder(pyramids[0]))
    statistics = script.state_dict()
    for name, tensor in again.named_buffers():
        inner = name if name.startswith("decoder.") else f"encoder.{name}"
        close(tensor, statistics[inner])
        assert not torch.equal(tensor, names[name])
    outputs = encoder(even) if encoder.decoder is None else [*encoder(even), encoder.decoder(encoder(even))]
    sum(output.square().mean() for output in outputs).backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert build(description).state_dict().keys() == {name for name in names if not name.startswith("decoder.")}
    encoder.decoder = None
    assert encoder.new_decoder(5)(encoder(even)).shape == (2, 5, *even.shape[2:])


@torch.no_grad()
def test_features_are_those_that_embed_writes(exported, store):
    encoder, scans = load(exported).eval(), Store(store)
    pretext3d("embed", "--weights", exported.with_suffix(".pt"), "--input", store, "--out", exported.parent / "f", "--device", "cpu", "--precision", "fp32")
    found, metadata = tensors(exported.parent / "f.safetensors")
    assert json.loads(metadata["ids"]) == scans.ids
    for i, scan in enumerate(scans):
        image = scan["image"]
        x = image[None] if encoder.rank == 3 else image.permute(3, 0, 1, 2)
        for level, features in enumerate(encoder(x)):
            mean = features.flatten(2).mean((0, 2))
            torch.testing.assert_close(found[f"level{level}"][i], mean, rtol=1e-3, atol=1e-4)


def test_a_folder_for_hugging_face_is_read_too(trained, tmp_path):
    pretext3d("export", "--run", trained.run, "--to", "huggingface", "--out", tmp_path / "out")
    ours, theirs = load(trained.weights), load(tmp_path / "out")
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())
    # A run's folder of the same name is not in the way.
    shutil.copy(trained.weights.with_suffix(".pt"), tmp_path / "run.pt")
    (tmp_path / "run").mkdir()
    assert load(tmp_path / "run").levels == ours.levels
    raw = torch.rand(4, 16, 16, 16)
    assert torch.equal(ours.preprocess(raw), theirs.preprocess(raw)) and ours.levels == theirs.levels


def test_what_is_no_encoder_is_refused_with_the_files_name(trained, store, tmp_path):
    def refused(path, *says, error=ValueError):
        with pytest.raises(error) as raised:
            load(path)
        assert all(part in str(raised.value) for part in (path.name, *says)), raised.value

    def files(name, **changes):
        description = {**read_json(trained.weights.with_suffix(".json")), **changes}
        (tmp_path / f"{name}.json").write_text(json.dumps(description))
        return shutil.copy(trained.weights.with_suffix(".safetensors"), tmp_path / f"{name}.safetensors")

    refused(tmp_path / "none.pt", "--to huggingface", error=FileNotFoundError)
    refused(tmp_path, "model.safetensors", error=FileNotFoundError)
    refused(trained.run / "best.safetensors", "best.json", "pretext3d export", error=FileNotFoundError)
    network = read_json(trained.weights.with_suffix(".json"))["network"]
    refused(files("newer", version=2), "newer version (2")
    refused(files("strings", version="2"), "version is '2'")
    refused(files("flat", network={**network, "levels": 0}), "do not fit")
    refused(files("tuned", format="pretext3d-network"), "pretext3d-network", "torch.jit.load")
    refused(files("deeper", network={**network, "levels": 9, "filters": 1 << 20}), "level8")
    refused(files("wider", network={**network, "filters": 1 << 20}), "size mismatch")
    refused(files("other", network={**network, "architecture": "vgg"}), "'vgg'", "densenet121")
    refused(files("strange", network={**network, "growth": 1}), "growth")
    for name, half in (("cut.safetensors", files("cut")), ("cut.pt", trained.weights.with_suffix(".pt"))):
        (tmp_path / name).write_bytes(half.read_bytes()[: half.stat().st_size // 2])
        refused(tmp_path / name, "damaged")
    for name in ("bytes", "empty"):
        files(name)
    (tmp_path / "bytes.json").write_bytes(b"\xff")
    refused(tmp_path / "bytes", "bytes.json: not JSON")
    (tmp_path / "empty.pt").touch()
    refused(tmp_path / "empty.pt", "not a TorchScript file")
    for network in ({"growth": 1}, {"architecture": "plainconv"}):
        with pytest.raises(ValueError, match="not its settings"):
            build({"network": {"rank": 3, "in_channels": 1, **network}})
    (tmp_path / "other.json").write_text("{")
    refused(tmp_path / "other.json", "damaged")
    with pytest.raises(ValueError, match="other.json: not JSON"):
        load(tmp_path / "other")


def test_a_store_is_a_dataset(store):
    index, scans = read_json(store / "index.json"), Store(store)
    assert len(scans) == len(index["subjects"]) == 6 and scans.ids == [entry["id"] for entry in index["subjects"]]
    assert scans.channels == index["channels"] and scans.classes is None and scans.rank == 3
    assert scans.labels == [Label(label["value"], label["name"]) for label in index["labels"]]
    assert scans.spacing == [tuple(entry["spacing"]) for entry in index["subjects"]]
    stored = Store(store, dtype=None)
    for entry, scan, raw in zip(index["subjects"], scans, stored, strict=True):
        file, _ = tensors(store / entry["file"])
        assert scan.keys() == {"id", "subject", "image", "label"} and scan["subject"] == scan["id"] == entry["id"]
        assert scan["image"].dtype == torch.float32 and torch.equal(scan["image"], file["image"].float())
        assert raw["image"].dtype == torch.float16 and torch.equal(raw["image"], file["image"])
        assert scan["label"].dtype == torch.uint8 and torch.equal(scan["label"], file["label"])
    some = Store(store, subjects=[scans.ids[4], scans.ids[1]])
    assert some.ids == [scans.ids[1], scans.ids[4]] and torch.equal(some[-1]["image"], scans[4]["image"])
    batches = list(DataLoader(some, batch_size=2, num_workers=1, multiprocessing_context="spawn"))
    assert len(batches) == 1 and batches[0]["id"] == some.ids and torch.equal(batches[0]["image"][1], scans[4]["image"])
    assert Store(store, subjects=scans.ids[2]).ids == [scans.ids[2]]
    with pytest.raises(TypeError, match="slice"):
        scans[:2]
    with pytest.raises(ValueError, match="no subject 'nobody'"):
        Store(store, subjects=["nobody"])
    with pytest.raises(ValueError, match="side 'test'"):
        Store(store, split="test")


def test_a_person_may_have_several_scans_of_one_contrast_each(brains, tmp_path):
    pretext3d("preprocess", "--data", brains, "--out", tmp_path / "store", "--size", 16, "--channels-as-scans")
    index, scans = read_json(tmp_path / "store/index.json"), Store(tmp_path / "store", subjects=["brain_0001"])
    entries = [entry for entry in index["subjects"] if entry["id"].startswith("brain_0001/")]
    assert scans.ids == [entry["id"] for entry in entries] and len(scans) == 4
    assert [scan["contrast"] for scan in scans] == [entry["contrast"] for entry in entries]
    assert {scan["subject"] for scan in scans} == {"brain_0001"} and scans[0]["image"].shape == (1, 16, 16, 16)


def test_photographs_have_two_axes_and_classes(tmp_path):
    pretext3d("phantom", "--kind", "fundus", "--subjects", 4, "--size", 48, "--out", tmp_path / "fundus")
    pretext3d("preprocess", "--data", tmp_path / "fundus", "--out", tmp_path / "store", "--size", 32)
    index, images = read_json(tmp_path / "store/index.json"), Store(tmp_path / "store", labelled=True)
    assert images.classes == index["classes"] and images.labels is None and images.rank == 2
    assert all(len(spacing) == 2 for spacing in images.spacing)
    for entry, image in zip(index["subjects"], images, strict=True):
        assert torch.equal(image["image"], tensors(tmp_path / "store" / entry["file"])[0]["image"][:, 0].float())
        assert image["class"] == entry["class"] and "label" not in image


def test_a_damaged_store_names_what_is_wrong_as_the_binary_does(store, tmp_path):
    def damage(name, change):
        folder = shutil.copytree(store, tmp_path / name)
        change(folder)
        return folder

    def text(old, new):
        def change(folder):
            index = (folder / "index.json").read_text()
            assert old in index
            (folder / "index.json").write_text(index.replace(old, new, 1))

        return change

    first = read_json(store / "index.json")["subjects"][0]["file"]
    cases = [
        (damage("newer", text('"version": 1', '"version": 9')), "version 9"),
        (damage("half", text('"complete": true', '"complete": false')), "not complete"),
        (damage("other", text('"pretext3d-store"', '"other"')), "pretext3d-store"),
        (damage("keys", text('"channels"', '"Channels"')), "hannels"),
        (damage("missing", lambda folder: (folder / first).unlink()), first),
        (damage("cut", lambda folder: (folder / first).write_bytes((folder / first).read_bytes()[:-3])), first),
        (tmp_path, "not a store"),
    ]
    for folder, says in cases:
        with pytest.raises((OSError, ValueError)) as raised:
            Store(folder)
        assert says in str(raised.value) and str(folder) in str(raised.value), raised.value
        done = pretext3d("pretrain", "--data", folder, "--task", "rot", "--out", tmp_path / "no", fails=1)
        assert says in done.stderr, done.stderr
    # Of the same length: found when it is read.
    for name, old, new in (("name", b'"image"', b'"imaGe"'), ("header", b'{', b'[')):
        folder = damage(name, lambda folder: (folder / first).write_bytes((folder / first).read_bytes().replace(old, new, 1)))
        with pytest.raises(ValueError, match=first):
            Store(folder)[0]
