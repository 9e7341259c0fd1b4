"""Batch and instance normalisation: what a network has, what it inherits, and that exports say and do the same."""
import json

import pytest
import torch
from conftest import SMALL
from helpers import pretext3d, read_json, refused, tensors
from pretext3d import build
from test_finetune import Decoder

INSTANCE = ["--norm", "instance"]
QUICK = ["--epochs", 1, "--steps", 2, *SMALL]


@pytest.fixture(scope="module")
def instance(store, tmp_path_factory):
    """Prefix of an encoder with instance normalisation."""
    folder = tmp_path_factory.mktemp("instance")
    args = ["--data", store, "--task", "rot", *QUICK, "--val-draws", 1, *INSTANCE]
    pretext3d("pretrain", *args, "--out", folder / "run", "--weights", folder / "rot")
    return folder / "rot"


def loaded(weights):
    return torch.jit.load(weights.with_suffix(".pt")), read_json(weights.with_suffix(".json"))


@torch.no_grad()
def test_an_exported_encoder_is_the_plain_module_and_the_same_in_training(instance):
    module, description = loaded(instance)
    assert description["network"]["norm"] == "instance" and description["settings"]["norm"] == "instance"
    state, _ = tensors(instance.with_suffix(".safetensors"))
    assert set(module.state_dict()) == set(state) and not any("running" in name for name in state)
    plain = build(description)
    plain.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in state.items()})
    x = torch.randn(2, description["network"]["in_channels"], 24, 16, 20)
    for train in (True, False):
        for found, alone, wanted in zip(module.train(train)(x), module(x[:1]), plain.train(train)(x)):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(alone, found[:1], rtol=1e-4, atol=1e-4)
            # Averages over a map, which heads read, tell samples apart.
            assert (found.mean((2, 3, 4))[0] - found.mean((2, 3, 4))[1]).abs().max() > 1e-4


@torch.no_grad()
def test_finetuning_has_the_norm_of_its_weights(instance, store, tmp_path):
    run = tmp_path / "run"
    finetune = ["finetune", "--data", store, *QUICK]
    pretext3d(*finetune, "--weights", instance.with_suffix(".pt"), "--arm", "full", "--out", run)
    pretext3d("export", "--run", run, "--out", tmp_path / "network")
    module, description = loaded(tmp_path / "network")
    assert description["network"]["norm"] == "instance"
    state, _ = tensors(tmp_path / "network.safetensors")
    assert not any("running" in name for name in state)
    encoder = build(description)
    classes = len(description["downstream"]["labels"])
    decoder = Decoder([level["channels"] for level in description["levels"]], classes, "instance")
    for part, name in ((encoder, "encoder."), (decoder, "decoder.")):
        part.load_state_dict({key.removeprefix(name): tensor for key, tensor in state.items() if key.startswith(name)})
    x = torch.randn(2, description["network"]["in_channels"], 16, 16, 16)
    torch.testing.assert_close(module.eval()(x), decoder.eval()(encoder.eval()(x)), rtol=1e-5, atol=1e-5)

    # A state dict that says nothing of itself is known by its tensors.
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes(instance.with_suffix(".safetensors").read_bytes())
    for weights in (instance.with_suffix(".pt"), instance.parent / "run", bare):
        says = ["--norm batch", "has instance"]
        refused(*finetune, "--weights", weights, "--norm", "batch", "--out", tmp_path / "no", says=says)
    assert not (tmp_path / "no").exists()


def test_weights_with_batch_norm_stay_so(trained, store, tmp_path):
    description = read_json(trained.weights.with_suffix(".json"))
    assert description["network"]["norm"] == "batch"
    # As versions wrote it that had no other.
    del description["network"]["norm"]
    for suffix in (".json", ".safetensors"):
        (tmp_path / "old").with_suffix(suffix).write_bytes(trained.weights.with_suffix(suffix).read_bytes())
    (tmp_path / "old.json").write_text(json.dumps(description))
    finetune = ["finetune", "--data", store, "--weights", tmp_path / "old.safetensors", *QUICK]
    refused(*finetune, *INSTANCE, "--out", tmp_path / "no", says=["--norm instance", "has batch"])
    pretext3d(*finetune, "--arm", "full", "--out", tmp_path / "run")
    assert read_json(tmp_path / "run/config.json")["network"]["norm"] == "batch"


def test_densenet_has_batch_norm(store, tmp_path):
    flags = ["--data", store, "--slices", "axial", "--encoder", "densenet121", *INSTANCE, "--out", tmp_path / "run"]
    refused("pretrain", "--task", "rot", *flags, says=["--norm instance", "densenet121", "torchvision", "BatchNorm"])
    refused("finetune", "--weights", "none", *flags, says=["--norm instance", "densenet121", "torchvision", "BatchNorm"])


def test_networks_are_as_deep_as_instance_norm_allows(store, tmp_path):
    """Patches of 9 voxels: of a deepest map of one voxel, nothing but 0 would be left."""
    jig = ["--jig-permutations", 4, "--jig-shuffles", 2, "--jig-head", "gap", "--val-draws", 1]
    flags = ["--data", store, "--filters", 2, "--epochs", 1, "--steps", 1, "--device", "cpu", *INSTANCE]
    pretrain = ["pretrain", "--task", "jig", *jig, *flags, "--weights", tmp_path / "jig"]
    done = pretext3d(*pretrain, "--out", tmp_path / "jig-run")
    assert "--levels 3: " in done.stderr
    assert read_json(tmp_path / "jig.json")["network"]["levels"] == 3
    says = ["task jig", "one voxel", "--levels 3", "16 voxels a side"]
    refused(*pretrain, "--levels", 4, "--out", tmp_path / "no", says=says)
    # What a pretraining was given decides for its weights.
    patch = ["--patch", 8, "--levels", 4]
    says = ["task segmentation", "one voxel", "--levels 3", "--patch"]
    refused("finetune", "--weights", "none", *flags, *patch, "--out", tmp_path / "no", says=says)
    pretext3d("finetune", "--weights", "none", *flags, *patch[:2], "--out", tmp_path / "scratch")
    assert read_json(tmp_path / "scratch/config.json")["network"]["levels"] == 3
    assert not (tmp_path / "no").exists()
    # A sweep would compare networks of different depths.
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(f"""
name = "depths"
data = "{store}"
tasks = ["jig"]
arms = ["scratch", "full"]
fractions = [1.0]
seeds = [0]
val_fraction = 0.2
test_fraction = 0.2
[pretrain]
norm = "instance"
[finetune]
norm = "instance"
""")
    says = ["has 5 levels, pretraining jig 3", "`levels` in [pretrain] and [finetune]"]
    refused("sweep", "--config", sweep, "--out", tmp_path / "sweep", says=says)
    assert not (tmp_path / "sweep").exists()
