"""Weights of other programs in files of torch.save: nnU-Net's and nnssl's checkpoints, torchvision's state dicts, and what is refused."""
import copy
import inspect
import json
import os
import re
import subprocess
import zipfile

import pytest
import torch
import torchvision
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from helpers import pretext3d, read_json, refused, tensors
from safetensors.torch import save_file
from torch import nn

FAST = ["--device", "cpu", "--precision", "fp32", "--threads", 1]
QUICK = ["--epochs", 1, "--steps", 1, "--batch-size", 2, "--lr", 0, *FAST]


@pytest.fixture(scope="module")
def scans(brains, tmp_path_factory):
    """The brains as cubes of 16 voxels, two channels of them."""
    folder = tmp_path_factory.mktemp("published") / "store"
    pretext3d("preprocess", "--data", brains, "--out", folder, "--size", 16, "--channels", "t1,flair")
    return folder


def network(plain=False, flat=False, channels=2):
    """nnU-Net's network for thick slices: kernels and strides that differ along the axes, [z, y, x]."""
    torch.manual_seed(0)
    blocks, cls = ("n_conv_per_stage", PlainConvUNet) if plain else ("n_blocks_per_stage", ResidualEncoderUNet)
    n = 2 if flat else 3
    kernels, strides = [[1, 3, 3], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2], [2, 2, 1]]
    if flat:
        kernels, strides = [[3, 3]] * 3, [[1, 1], [2, 2], [2, 2]]
    made = {"n_stages": 3, "features_per_stage": [4, 6, 8], "kernel_sizes": kernels, "strides": strides, blocks: [1, 2, 1],
            "n_conv_per_stage_decoder": [2 if plain else 1] * 2, "conv_bias": True, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin_kwargs": {"inplace": True}}
    classes = {"conv_op": [nn.Conv2d, nn.Conv3d][n - 2], "norm_op": [nn.InstanceNorm2d, nn.InstanceNorm3d][n - 2], "nonlin": nn.LeakyReLU}
    net = cls(input_channels=channels, num_classes=4, deep_supervision=False, **made, **classes)
    for tensor in net.state_dict().values():
        tensor.normal_(1 if tensor.ndim == 1 else 0, 0.3)
    named = {key: f"{cls.__module__}.{cls.__name__}" for key, cls in classes.items()}
    return net.eval(), {**made, **named}


def nnunet(net, settings, **changes):
    """What nnU-Net saves at the end of a training, as far as it matters."""
    configuration = {"spacing": [3.0, 1.0, 1.0], "patch_size": [8, 16, 32], "normalization_schemes": ["RescaleTo01Normalization"] * 2,
                     "architecture": {"network_class_name": "ResidualEncoderUNet", "arch_kwargs": settings}, **changes}
    plans = {"transpose_forward": [0, 1, 2], "configurations": {"3d_fullres": configuration, "3d_cascade": {"inherits_from": "3d_fullres"}}}
    dataset = {"channel_names": {"0": "t1", "1": "flair"}}
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    return {"network_weights": net.state_dict(), "optimizer_state": optimizer.state_dict(), "grad_scaler_state": None,
            "init_args": {"plans": plans, "configuration": "3d_cascade", "fold": 0, "dataset_json": dataset, "device": torch.device("cpu")},
            "trainer_name": "nnUNetTrainer", "current_epoch": 1, "inference_allowed_mirroring_axes": (0, 1, 2)}


def embedded(weights, data, out, *flags):
    """Averages of each level over the scans, and what was said."""
    done = pretext3d("embed", "--weights", weights, "--input", data, "--out", out, *FAST, *flags)
    levels = tensors(out.with_suffix(".safetensors"))[0]
    return [levels[name] for name in sorted(levels) if name.startswith("level")], done.stderr


def images(data):
    """A store's scans, [1, C, x, y, z]."""
    return [tensors(data / entry["file"])[0]["image"].float()[None] for entry in read_json(data / "index.json")["subjects"]]


def expected(net, data, turn=(0, 1, 4, 3, 2)):
    """What nnU-Net's encoder makes of the scans in the order of its axes."""
    with torch.no_grad():
        pyramids = [net.encoder(x.permute(turn).contiguous()) for x in images(data)]
    return [torch.cat([pyramid[i].mean((2, 3, 4)) for pyramid in pyramids]) for i in range(3)]


def close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("plain", [False, True], ids=["residual", "plain"])
def test_checkpoints_of_nnunet_give_its_features(scans, tmp_path, plain):
    net, settings = network(plain)
    torch.save(nnunet(net, settings), tmp_path / "checkpoint_final.pth")
    found, said = embedded(tmp_path / "checkpoint_final.pth", scans, tmp_path / "f")
    close(found, expected(net, scans))
    assert "trained on voxels of 1.00 x 1.00 x 3.00 mm" in said
    assert "channels" not in said and "intensities" not in said and "axes" not in said
    # The same encoder in a wrapper's state dict, with the copies that the decoder holds, and without any copies or plan.
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in net.state_dict().items()}}, tmp_path / "wrapped.ckpt")
    said = embedded(tmp_path / "wrapped.ckpt", scans, tmp_path / "wrapped")[1]
    assert read_json(tmp_path / "wrapped.json")["fingerprint"] == read_json(tmp_path / "f.json")["fingerprint"]
    assert "does not say its strides" in said
    torch.save({name: t for name, t in net.encoder.state_dict().items() if ".all_modules." not in name}, tmp_path / "bare.pth")
    said = embedded(tmp_path / "bare.pth", scans, tmp_path / "bare")[1]
    assert "neither its axes, taken for ours" in said and "nor its strides, taken for" in said and "whole checkpoint" in said
    # The plan's own order of axes, x first, and the same channels the other way about.
    changed = nnunet(net, settings)
    changed["init_args"]["plans"]["transpose_forward"] = [2, 0, 1]
    changed["init_args"]["plans"]["configurations"]["3d_cascade"]["normalization_schemes"] = ["ZScoreNormalization"] * 2
    changed["init_args"]["dataset_json"]["channel_names"] = {"0": "flair", "1": "t1"}
    torch.save(changed, tmp_path / "changed.pth")
    found, said = embedded(tmp_path / "changed.pth", scans, tmp_path / "g")
    turned = copy.deepcopy(net)
    first = turned.encoder.stages[0][0].convs[0].conv if plain else turned.encoder.stem.convs[0].conv
    first.weight.data = first.weight.data.flip(1)
    close(found, expected(turned, scans, (0, 1, 2, 4, 3)))
    # The plan's axes are z, y, x from here to there, so that its first one is our x.
    assert "trained on voxels of 3.00 x 1.00 x 1.00 mm" in said and "ZScoreNormalization, ZScoreNormalization, those of" in said


def test_checkpoints_of_nnssl_and_what_a_fine_tuning_says_of_them(scans, tmp_path):
    net, _ = network(channels=1)
    # nnssl's plans name an encoder by its preset, and say nothing of strides, which are 2 there.
    for stage in net.encoder.stages:
        block = stage.blocks[0]
        block.conv1.conv.stride = (1, 1, 1) if stage is net.encoder.stages[0] else (2, 2, 2)
        if isinstance(block.skip, nn.Sequential) and isinstance(block.skip[0], nn.AvgPool3d):
            block.skip[0] = nn.AvgPool3d(2, 2)
    weights = {f"module._orig_mod.model.{name}": tensor.half() for name, tensor in net.state_dict().items() if name.startswith("encoder.")}
    configuration = {"spacing": None, "patch_size": [160, 160, 160], "normalization_schemes": ["CTNormalization"]}
    plan = {"architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": None},
            "pretrain_plan": {"configurations": {"one": configuration}}, "key_to_encoder": "model.encoder.stages"}
    head = {"module._orig_mod.head.weight": torch.ones(3)}
    kept = {"network_weights": weights | head, "nnssl_adaptation_plan": plan, "citations": []}
    torch.save(kept, tmp_path / "openmind.pth")
    out = tmp_path / "run"
    done = pretext3d("finetune", "--data", scans, "--weights", tmp_path / "openmind.pth", "--arm", "full", "--patch", 8, *QUICK, "--out", out)
    report = (out / "load.txt").read_text()
    assert report in done.stderr and "  left out head.weight" in report and "encoder.stem.convs.0.conv.weight: 1 input channels to 2" in report
    own = [name for name in net.encoder.state_dict() if ".all_modules." not in name]
    assert f"{len(own) - 1} tensors loaded, 1 adapted, 1 left out, {len(net.encoder.state_dict()) - len(own)} further names" in report
    for says in ["patches of 160x160x160 voxels, these are of 8x8x8", "CTNormalization", "does not say whom"]:
        assert any(says in warning for warning in read_json(out / "result.json")["warnings"]), says
    # The shape was read off the tensors; the kernels of a stage of one voxel along z lie along our last axis.
    config = read_json(out / "config.json")["network"]
    assert config["architecture"] == "resenc-l" and config["features"] == [4, 6, 8] and config["kernels"][0] == [3, 3, 1]
    run = tensors(out / "best.safetensors")[0]
    kernel = net.state_dict()["encoder.stages.1.blocks.0.conv1.conv.weight"].half().float()
    assert torch.equal(run["model.encoder.stages.1.blocks.0.conv1.conv.weight"], kernel.permute(0, 1, 4, 3, 2))


def test_slices_and_decoders_of_nnunet(scans, tmp_path):
    net, settings = network(flat=True)
    checkpoint = nnunet(net, settings, spacing=[1.0, 1.0], patch_size=[8, 16])
    # In a wrapper, beside which there is another decoder.
    wrapped = {f"model._orig_mod.{name}": tensor for name, tensor in checkpoint["network_weights"].items()}
    checkpoint["network_weights"] = {**wrapped, "aux.decoder.stages.0.convs.0.conv.weight": torch.zeros(3)}
    torch.save(checkpoint, tmp_path / "2d.pth")
    store = ["--data", scans, "--slices", "axial", "--patch", 16]
    args = ["finetune", *store, "--weights", tmp_path / "2d.pth", "--transfer", "all", "--arm", "full", *QUICK]
    said = pretext3d(*args, "--out", tmp_path / "run").stderr
    assert "the decoder of 2d among them, 0 adapted, 5 left out" in said and "trained on patches of 8x16 voxels, these are of 16x16" in said
    pretext3d("export", "--run", tmp_path / "run", "--out", tmp_path / "ours")
    # Ours has rows along x, nnU-Net along y.
    ours, x = torch.jit.load(tmp_path / "ours.pt").eval(), torch.randn(1, 2, 16, 32)
    with torch.no_grad():
        for a, b in zip(ours.encoder(x), net.encoder(x.transpose(2, 3)), strict=True):
            torch.testing.assert_close(a, b.transpose(2, 3), rtol=1e-4, atol=1e-4)
    state = tensors(tmp_path / "ours.safetensors")[0]
    name = "decoder.stages.0.convs.0.conv.weight"
    assert torch.equal(next(t for key, t in state.items() if key.endswith(name)), net.state_dict()[name].transpose(2, 3))


def test_torchvisions_file_in_every_form(tmp_path):
    """The encoder is the same, whatever the file is, as the hash of what is loaded shows."""
    pretext3d("phantom", "--kind", "fundus", "--subjects", 2, "--size", 32, "--out", tmp_path / "fundus")
    pretext3d("preprocess", "--data", tmp_path / "fundus", "--out", tmp_path / "store", "--size", 32)
    torch.manual_seed(0)
    state = torchvision.models.densenet121().state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    downloaded = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): tensor for name, tensor in state.items()}
    # Beside them what is not read, whose bytes lie among theirs.
    downloaded = {"spectrum": [torch.ones(n, dtype=t) for t in (torch.complex64, torch.complex128) for n in (1, 3)], "state_dict": downloaded}
    torch.save(downloaded, tmp_path / "downloaded.pth", _use_new_zipfile_serialization=False)
    name = "features.conv0.weight"
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    wrapped[f"module.{name}"] = nn.Parameter(state[name].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0))
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "wrapped.tar")
    fingerprints = []
    for file in ["plain.safetensors", "downloaded.pth", "wrapped.tar"]:
        said = embedded(tmp_path / file, tmp_path / "store", tmp_path / f"of-{file[:5]}")[1]
        fingerprints.append(read_json(tmp_path / f"of-{file[:5]}.json")["fingerprint"])
        assert "does not say what scans" in said
    assert len(set(fingerprints)) == 1


class Hostile:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def test_hostile_and_other_files_are_refused_by_name(scans, tmp_path):
    net, settings = network()
    touched = tmp_path / "touched"
    good = nnunet(net, settings)

    def check(name, content, *says):
        file = tmp_path / name
        content(file) if inspect.isfunction(content) else torch.save(content, file)
        args = ["finetune", "--data", scans, "--weights", file, "--arm", "full", "--patch", 8, *QUICK, "--out", tmp_path / "run"]
        # Named once.
        assert refused(*args, says=[name, *says]).count(str(file)) == 1
        assert not touched.exists() and not (tmp_path / "run").exists()

    for i, (call, arguments, named) in enumerate([
        (os.system, [f"touch {touched}"], "system"), (eval, [f"open({str(touched)!r}, 'w')"], "eval"), (exec, ["import os"], "exec"),
        (subprocess.Popen, [["touch", str(touched)]], "Popen"), (open, [str(touched), "w"], "open"),
        (getattr, [dict, "fromkeys"], "getattr"), (torch.load, [str(touched)], "torch.serialization.load"),
    ]):
        evil = Hostile(call, *arguments)
        for protocol in (2, 4):
            check(f"evil-{i}-{protocol}.pth", lambda file: torch.save({**good, "x": evil}, file, pickle_protocol=protocol), named, "nothing was run")
    weights = {**net.state_dict(), "encoder.stem.convs.0.conv.weight": Hostile(os.system, f"touch {touched}")}
    check("weight.pth", {"network_weights": weights}, "system")

    check("whole.pth", nn.Linear(2, 2), "Linear", "state_dict()")
    check("medicalnet.pth", {"state_dict": {f"module.{k}": v for k, v in torchvision.models.resnet18().state_dict().items()}}, "ResNet")
    primus = {"network_weights": {"eva.blocks.0.weight": torch.ones(2)},
              "nnssl_adaptation_plan": {"architecture_plans": {"arch_class_name": "PrimusM"}}}
    check("primus.pth", primus, "PrimusM", "ResidualEncoderUNet")
    check("batch.pth", nnunet(net, {**settings, "norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}), "BatchNorm3d", "InstanceNorm")
    check("strides.pth", nnunet(net, {**settings, "strides": [[1, 1, 1]]}), "strides", "1 stages", "3")
    two = {f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in net.encoder.state_dict().items()}
    check("two.pth", two, "student., teacher.")
    lacks = {name: t for name, t in net.state_dict().items() if "stages.1.blocks.1.conv2.norm.bias" not in name}
    check("lacks.pth", {"network_weights": lacks}, "stages.1.blocks.1.conv2.norm.bias is missing")
    differs = {**net.state_dict(), "encoder.stem.convs.0.all_modules.0.weight": torch.zeros(4, 2, 1, 3, 3)}
    check("differs.pth", {"network_weights": differs}, "all_modules.0.weight", "differ")
    check("empty.pth", {"epoch": 1}, "no tensors")
    first = "encoder.stem.convs.0.conv.bias"
    check("twice.pth", {**net.state_dict(), f"module.{first}": torch.zeros(4)}, f"{first} is in it twice")
    check("name.pth", {**net.state_dict(), "n" * 2000: torch.zeros(1)}, "a name of 2000 bytes")
    repeats = {f"mask{i}": torch.ones(1).half().expand(2 ** 24) for i in range(2)}
    check("repeats.pth", {**net.state_dict(), **repeats}, "some repeat theirs", "clone()")

    torch.save(good, tmp_path / "good.pth")
    whole = (tmp_path / "good.pth").read_bytes()
    check("short.pth", lambda file: file.write_bytes(whole[:-100]), "cut off")
    check("text.pth", lambda file: file.write_text("hello"), "text.pth")

    def packed(file):
        with zipfile.ZipFile(tmp_path / "good.pth") as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))

    check("packed.pth", packed, "compressed")
    assert json.loads((scans / "index.json").read_text())["channels"] == ["t1", "flair"]
