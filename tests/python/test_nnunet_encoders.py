"""nnU-Net's encoders and decoder against dynamic-network-architectures: names, outputs, gradients, initialisation; every task on them."""
import math
import re
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from helpers import ROOT, pretext3d, read_json, refused, tensors
from safetensors.torch import save_file
from torch import nn

QUICK = ["--epochs", 1, "--steps", 1, "--batch-size", 2, "--device", "cpu", "--precision", "fp32", "--threads", 1]
CLASSES = 4
CHANNELS = 4


def peer(description, classes, deep=False):
    """The network of dynamic-network-architectures that an export's description says."""
    config = description["network"]
    plain, flat = config["architecture"] == "plainconv", config["rank"] == 2
    blocks, decoder = ("n_conv_per_stage", 2) if plain else ("n_blocks_per_stage", 1)
    return (PlainConvUNet if plain else ResidualEncoderUNet)(
        input_channels=config["in_channels"], n_stages=len(config["features"]), features_per_stage=config["features"],
        conv_op=nn.Conv2d if flat else nn.Conv3d, kernel_sizes=config["kernels"], strides=config["strides"],
        **{blocks: config["blocks"]}, num_classes=classes, n_conv_per_stage_decoder=decoder, conv_bias=True,
        norm_op=nn.InstanceNorm2d if flat else nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=deep,
    )


def own_names(network):
    """A peer's tensors, each by the one name that exports have."""
    state = network.state_dict()
    return {name: t for name, t in state.items() if ".all_modules." not in name and not name.startswith("decoder.encoder.")}


def load(network, state, unused=()):
    """Fills a peer with an export's tensors: every one of them, and every one of its own but for those of `unused`."""
    names = set(own_names(network))
    assert set(state) <= names and all(name.startswith(tuple(unused)) for name in names - set(state)), names ^ set(state)
    network.load_state_dict(state, strict=False)
    return network


def description(architecture, features, blocks, kernels, strides):
    network = {"architecture": architecture, "rank": len(kernels[0]), "in_channels": CHANNELS, "features": features}
    return {"network": {**network, "blocks": blocks, "kernels": kernels, "strides": strides}}


CASES = {
    "plain": description("plainconv", [3, 5, 6], [1, 2, 3], [[3] * 3] * 3, [[1] * 3, [2] * 3, [2] * 3]),
    "plain2d": description("plainconv", [3, 5, 5], [2, 2, 1], [[3] * 2] * 3, [[1] * 2, [2] * 2, [2] * 2]),
    # Without a change of channels a strided block has no projection.
    "residual": description("resenc-l", [3, 5, 5], [1, 3, 2], [[3] * 3] * 3, [[1] * 3, [2] * 3, [2] * 3]),
    "residual2d": description("resenc-l", [3, 5, 6], [2, 1, 2], [[3] * 2] * 3, [[1] * 2, [2] * 2, [2] * 2]),
    "thick": description("plainconv", [3, 4, 6], [2, 2, 2], [[3, 3, 1], [3, 3, 1], [3] * 3], [[1] * 3, [2, 2, 1], [2, 2, 1]]),
    "thick-residual": description("resenc-l", [3, 4, 6], [1, 2, 2], [[1, 3, 3], [3] * 3, [3] * 3], [[1] * 3, [1, 2, 2], [2] * 3]),
}


@pytest.fixture(scope="module", params=CASES)
def finetuned(request, store, tmp_path_factory):
    """A fine-tuning that learns nothing, from random weights of a peer as a bare state dict: the peer, and the network's export."""
    folder = tmp_path_factory.mktemp(request.param)
    case = CASES[request.param]
    torch.manual_seed(0)
    network = peer(case, CLASSES)
    for tensor in own_names(network).values():
        tensor.normal_(1 if tensor.ndim == 1 else 0, 0.3)
    save_file({name: tensor.clone() for name, tensor in own_names(network).items()}, folder / "theirs.safetensors")
    flags = ["--slices", "axial"] if case["network"]["rank"] == 2 else []
    args = ["--data", store, *flags, "--weights", folder / "theirs.safetensors", "--transfer", "all", "--deep-supervision"]
    done = pretext3d("finetune", *args, *QUICK, "--patch", 16, "--arm", "full", "--lr", 0, "--out", folder / "run")
    total = len(own_names(network)) - 2 * len(network.decoder.seg_layers)
    assert f"{total} tensors loaded, the decoder of unknown among them, 0 adapted" in done.stderr
    pretext3d("export", "--run", folder / "run", "--out", folder / "ours")
    return network, folder / "ours"


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("train", [False, True])
def test_the_same_weights_give_the_same_outputs(finetuned, train):
    theirs, ours = finetuned
    module, state = torch.jit.load(ours.with_suffix(".pt")), tensors(ours.with_suffix(".safetensors"))[0]
    exported = read_json(ours.with_suffix(".json"))
    # TorchScript computes the logits of full resolution alone.
    last = f"decoder.seg_layers.{len(theirs.decoder.seg_layers) - 1}."
    assert {n for n in state if "seg_layers" not in n or n.startswith(last)} == set(module.state_dict())
    for name, tensor in own_names(theirs).items():
        assert "seg_layers" in name or torch.equal(state[name], tensor), name
    # By its own description, the names that the file has.
    network = load(peer(exported, CLASSES), state).train(train)
    module.train(train)
    sides = [16, 24, 32][-exported["network"]["rank"] :]
    inputs = [torch.randn(2, CHANNELS, *sides, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    for found, expected, level in zip(module.encoder(inputs[0]), network.encoder(inputs[1]), exported["levels"], strict=True):
        close(found, expected)
        reduction = level["reduction"] if isinstance(level["reduction"], list) else [level["reduction"]] * len(sides)
        assert list(found.shape[1:]) == [level["channels"], *(side // by for side, by in zip(sides, reduction))]
    outputs = [module(inputs[0]), network(inputs[1])]
    close(*outputs)
    weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(2))
    [(output * weights).sum().backward() for output in outputs]
    close(inputs[0].grad, inputs[1].grad)
    own = dict(network.named_parameters())
    for name, found in module.named_parameters():
        torch.testing.assert_close(found.grad, own[name].grad, rtol=1e-3, atol=1e-4 * own[name].grad.abs().max().item() + 1e-3)


def assert_initialised_as(state, description, decoder_outputs):
    """Against what nnU-Net's own initialisation gives, both with the numbers that it draws from."""
    network = peer(description, decoder_outputs)
    network.apply(network.initialize)
    theirs = own_names(network)
    for name, found in state.items():
        expected = theirs[name]
        if found.ndim == 1:
            assert torch.equal(found, expected), name
            continue
        fan_in = found[0].numel()
        for tensor in (found, expected):
            deviation, n = math.sqrt(2 / ((1 + 0.01**2) * fan_in)), tensor.numel()
            assert abs(tensor.std().item() / deviation - 1) < 5 / math.sqrt(2 * n), name
            assert abs(tensor.mean().item()) < 5 * deviation / math.sqrt(n), name


@pytest.mark.parametrize("encoder", ["plainconv", "resenc-l"])
def test_weights_begin_as_theirs(store, tmp_path, encoder):
    args = ["--data", store, "--task", "vf", "--encoder", encoder, "--levels", 3, "--filters", 8, *QUICK, "--lr", 0, "--val-draws", 1, "--val-fraction", 0.4]
    pretext3d("pretrain", *args, "--window", 16, "--out", tmp_path / "run", "--weights", tmp_path / "w")
    state, _ = tensors(tmp_path / "w.safetensors")
    description = read_json(tmp_path / "w.json")
    unused = [f"decoder.seg_layers.{i}." for i in range(len(description["network"]["features"]) - 2)]
    load(peer(description, 5), state, unused)
    assert_initialised_as(state, description, 5)


BLOCKS = {"plainconv": [2, 2], "resenc-s": [1, 2], "resenc-l": [1, 3]}
ALL = "rot,rpl,jig,cpc,exe,mae,gen,vf,simclr"


@pytest.mark.parametrize("encoder, flags", [("plainconv", []), ("resenc-s", []), ("resenc-l", ["--slices", "axial"])])
def test_every_task_takes_a_step_and_its_weights_serve(brains, store, tmp_path, encoder, flags):
    """All tasks jointly; then the decoder in a fine-tuning and a prediction, features, pictures of what the network makes of a sample."""
    small = ["--encoder", encoder, "--levels", 2, "--filters", 2, "--window", 32]
    args = ["--data", store, *flags, "--task", ALL, *small, *QUICK, "--val-draws", 1, "--val-fraction", 0.4, "--jig-permutations", 4]
    args += ["--jig-shuffles", 2]
    pretext3d("pretrain", *args, "--out", tmp_path / "run", "--weights", tmp_path / "w")
    exported = read_json(tmp_path / "w.json")
    assert exported["architecture"] == exported["network"]["architecture"] == encoder
    assert exported["network"]["features"] == [2, 4] and exported["network"]["blocks"] == BLOCKS[encoder]
    weights = tmp_path / "w.pt"
    finetune = ["finetune", "--data", store, *flags, "--weights", weights, "--transfer", "all", *QUICK[2:], "--patch", 16]
    done = pretext3d(*finetune, "--arm", "warmup", "--epochs", 2, "--out", tmp_path / "segmentation")
    assert "the decoder of mae among them, 0 adapted" in done.stderr
    predict = ["predict", "--weights", tmp_path / "segmentation", "--input", brains / "brain_0000", "--device", "cpu"]
    pretext3d(*predict, "--output", tmp_path / "predicted")
    assert len(list((tmp_path / "predicted").glob("*.nii.gz"))) == 1
    pretext3d("embed", "--weights", weights, "--input", store, "--out", tmp_path / "features", "--device", "cpu")
    assert [t.shape[1] for name, t in sorted(tensors(tmp_path / "features.safetensors")[0].items()) if "level" in name] == [2, 4]
    script = [sys.executable, ROOT / "scripts/finetune_pytorch.py", weights, store, "--train", "3", "--steps", "1", "--crop", "16"]
    done = subprocess.run(script, capture_output=True, text=True)
    if flags:
        assert done.returncode == 1 and "expected an encoder of volumes" in done.stderr, done.stderr
    else:
        assert done.returncode == 0 and "Dice on 3 held-out subjects" in done.stdout, done.stderr
    look = ["inspect", "--data", store, *flags, "--task", "gen", "--n", 1, "--window", 32, "--weights", tmp_path / "run"]
    pretext3d(*look, "--out", tmp_path / "pictures")
    assert "prediction" in tensors(tmp_path / "pictures/gen.safetensors")[0]


def test_a_resumed_run_is_the_same_and_so_is_one_that_computes_again(store, tmp_path):
    args = ["pretrain", "--data", store, "--task", "mae", "--encoder", "resenc-s", "--levels", 2, "--filters", 2, *QUICK[2:]]
    args += ["--val-draws", 1, "--schedule", "constant", "--warmup-epochs", 0]
    for name in ("whole", "parts", "again"):
        epochs = 2 if name == "whole" else 1
        pretext3d(*args, "--epochs", epochs, "--out", tmp_path / name, "--weights", tmp_path / f"w-{name}")
    pretext3d("pretrain", "--resume", tmp_path / "parts", "--epochs", 2)
    pretext3d("pretrain", "--resume", tmp_path / "again", "--epochs", 2, "--checkpointing")
    whole, parts, again = (tensors(tmp_path / f"w-{name}.safetensors")[0] for name in ("whole", "parts", "again"))
    assert whole.keys() == parts.keys() == again.keys()
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor)
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=1e-5)
    batch = ["--task", "rot", "--norm", "batch", *QUICK]
    refused("pretrain", "--data", store, *batch, "--checkpointing", "--out", tmp_path / "no", says=["--checkpointing", "instance normalisation"])


def test_thick_slices(brains, tmp_path):
    """A run says what nnU-Net would take for them, and takes it where asked."""
    for store, thickness in (("store", 3), ("thicker", 90)):
        for path in sorted(brains.glob("brain_*/*.nii.gz")):
            target = tmp_path / f"of-{store}" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            nibabel.Nifti1Image(nibabel.load(path).get_fdata(dtype="float32"), np.diag([1, 1, thickness, 1])).to_filename(target)
        pretext3d("preprocess", "--data", tmp_path / f"of-{store}", "--out", tmp_path / store, "--size", 16)
    args = ["pretrain", "--data", tmp_path / "store", "--task", "mae", "--encoder", "resenc-s", "--filters", 2, "--levels", 3, *QUICK]
    args += ["--val-draws", 1, "--weights", tmp_path / "w"]
    flags = ["--kernels", "3x3x1", "--strides", "1x1x1,2x2x1"]
    done = pretext3d(*args, "--out", tmp_path / "cubes")
    assert " ".join(flags) in done.stderr
    # No more levels than fit the patches, of which it names each.
    scratch = ["--weights", "none", "--encoder", "resenc-s", "--filters", 2, *QUICK]
    done = pretext3d("finetune", "--data", tmp_path / "thicker", *scratch, "--out", tmp_path / "scratch")
    levels = int(re.search(r"--levels (\d)", done.stderr)[1])
    assert f"nnU-Net takes --kernels {','.join(['3x3x1'] * levels)} --strides" in done.stderr and levels < 6
    done = pretext3d(*args, *flags, "--out", tmp_path / "thick")
    assert "nnU-Net takes" not in done.stderr
    described = read_json(tmp_path / "w.json")
    assert described["settings"]["kernels"] == ["3x3x1"] and described["settings"]["strides"] == ["1x1x1", "2x2x1"]
    assert [level["reduction"] for level in described["levels"]] == [1, [2, 2, 1], [4, 4, 2]]
    finetune = ["finetune", "--data", tmp_path / "store", "--weights", tmp_path / "w.pt", "--transfer", "all", *QUICK, "--arm", "full"]
    done = pretext3d(*finetune, "--patch", "8,12,6", "--deep-supervision", "--out", tmp_path / "segmentation")
    assert "the decoder of mae among them, 0 adapted" in done.stderr and "nnU-Net takes" not in done.stderr
    kernels = read_json(tmp_path / "segmentation/config.json")["network"]["kernels"]
    assert kernels == [[3, 3, 1], [3, 3, 3], [3, 3, 3]]
    refused(*finetune, "--kernels", "1x3x3", "--out", tmp_path / "no", says=["--kernels 1x3x3,3x3x3,3x3x3", "has 3x3x1,3x3x3,3x3x3"])


def test_what_does_not_fit_is_refused_with_what_does(store, tmp_path):
    out = ["--device", "cpu", "--out", tmp_path / "no"]
    pretrain = ["pretrain", "--data", store, "--task", "mae", *out, "--encoder", "resenc-s", "--filters", 2]
    for flags, says in [
        (["--window", 24, "--levels", 5], ["--window", "24 voxels", "multiple of 16", "16 or 32", "--levels"]),
        (["--levels", 6], ["[32, 32, 32]", "6 levels", "one voxel", "--levels 5", "64 voxels a side"]),
        (["--norm", "batch"], ["--norm batch", "instance normalisation"]),
        (["--kernels", "3x3", "--levels", 2], ["--kernels 3x3", "3 numbers a level", "3x3x3"]),
        (["--kernels", "3x2x3"], ["3x2x3", "odd"]),
        (["--strides", "2x2x2"], ["--strides 2x2x2", "1x1x1"]),
        (["--strides", "1x1x1,2x2x2,2x2x2", "--levels", 2], ["--strides names 3 levels", "has 2"]),
        (["--levels", 1], ["one level", "decoder", "--levels 2"]),
        (["--blocks", "1,2,2", "--levels", 2], ["--blocks has 3 numbers", "2 levels"]),
    ]:
        refused(*pretrain, *flags, says=says)
    for task, encoder in [("gen", "unet"), ("mae", "plainconv")]:
        one = ["--task", task, "--encoder", encoder, "--levels", 1, "--window", 16]
        refused("pretrain", "--data", store, *out, *one, says=["one level", "decoder", "--levels 2"])
    refused(*pretrain, "--strides", "1x1", says=["--strides 1x1", "3 numbers"])
    refused(*pretrain, "--kernels", "3y3", says=["3x3x1"], code=2)
    refused("pretrain", "--data", store, "--task", "mae", *out, "--blocks", "1,2", says=["--blocks goes with", "resenc-l"])
    thick = ["--levels", 3, "--strides", "1x1x1,1x2x2", "--kernels", "1x3x3"]
    finetune = ["finetune", "--data", store, "--weights", "none", "--encoder", "resenc-s", "--filters", 2, *out, *thick]
    refused(*finetune, "--patch", "15,16,16", says=["--patch", "axis 0", "multiple of 2"])
    refused(*finetune, "--patch", "16,18,16", says=["--patch", "axis 1", "multiple of 4"])
