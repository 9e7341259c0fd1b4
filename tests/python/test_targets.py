"""Encoders for nnU-Net, MONAI and Hugging Face: what their programs make of the folders, and what cannot be handed over."""
import importlib
import json
import shutil

import pytest
import torch
from conftest import SMALL
from helpers import pretext3d, read_json, refused, tensors
from monai.bundle import load as load_bundle
from monai.networks.nets import DynUNet
from pretext3d import build

FAST = ["--epochs", 1, "--steps", 1, "--batch-size", 2, "--device", "cpu", "--precision", "fp32", "--threads", 1]
# Thick slices: what differs along the axes shows whether these are turned.
SHAPE = ["--features", "4,6,8", "--kernels", "3x3x1,3x1x3", "--strides", "1x1x1,2x2x1,1x2x2"]


@pytest.fixture(scope="module")
def trained(brains, tmp_path_factory):
    """Runs of nnU-Net's two encoders, their exports beside them, and their store."""
    folder = tmp_path_factory.mktemp("targets")
    pretext3d("preprocess", "--data", brains, "--out", folder / "store", "--size", 16, "--channels", "t1,flair")
    for encoder, blocks in (("resenc-l", "1,2,1"), ("plainconv", "2,2,2")):
        args = ["--data", folder / "store", "--task", "rot", "--rot-head", "gap", *FAST, "--encoder", encoder, *SHAPE, "--blocks", blocks]
        pretext3d("pretrain", *args, "--out", folder / encoder, "--weights", folder / f"{encoder}-w")
    return folder


def features(folder, encoder, x):
    """Our pyramid of `[1, 1, x, y, z]`, the same in both channels."""
    with torch.no_grad():
        return torch.jit.load(folder / f"{encoder}-w.pt").eval()(x.expand(-1, 2, -1, -1, -1))


def arguments(settings):
    """Of a plan, with its classes in place of their names."""
    def named(value):
        module, _, name = value.rpartition(".")
        return getattr(importlib.import_module(module), name)
    return {key: named(value) if key in ("conv_op", "norm_op", "nonlin") else value for key, value in settings.items()}


def peer(plan, channels):
    """The network of a plan of nnssl's."""
    unet = importlib.import_module("dynamic_network_architectures.architectures.unet")
    cls = getattr(unet, plan["arch_class_name"])
    return cls(input_channels=channels, num_classes=3, deep_supervision=False, **arguments(plan["arch_kwargs"])).eval()


def close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", ["resenc-l", "plainconv"])
def test_nnunet_takes_the_encoder_alone(trained, tmp_path, encoder):
    out = tmp_path / "nnunet"
    said = pretext3d("export", "--run", trained / encoder, "--to", "nnunet", "--out", out).stdout
    assert [line.rsplit("/", 1)[1] for line in said.split()] == ["checkpoint_final.pth", "adaptation_plan.json", "README.md", "config.json"]
    file = out / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    assert torch.load(file, weights_only=True, mmap=True)["citations"] == checkpoint["citations"]
    assert "Taleb" in checkpoint["citations"][0]["apa_citations"][0]
    plan, weights = checkpoint["nnssl_adaptation_plan"], checkpoint["network_weights"]
    assert plan == read_json(out / "adaptation_plan.json") and plan["pretrain_num_input_channels"] == 1
    configuration = plan["pretrain_plan"]["configurations"]["pretext3d"]
    assert configuration["spacing"] is None and configuration["patch_size"] == [16] * 3
    assert plan["recommended_downstream_patchsize"] == [64] * 3
    # As nnU-Net loads them: stem and stages, each strictly, and every tensor of theirs lies in the file once.
    net = peer(plan["architecture_plans"], 1)
    for key in {plan["key_to_encoder"], plan["key_to_stem"]}:
        part = {name.removeprefix(f"{key}."): tensor for name, tensor in weights.items() if name.startswith(f"{key}.")}
        net.get_submodule(key).load_state_dict(part, strict=True)
    assert all(f"{key}.weight" in weights for key in plan["keys_to_in_proj"])
    parameters = sum(p.numel() for p in net.encoder.parameters())
    assert 4 * parameters < file.stat().st_size < 4 * parameters + 400 * len(weights)
    assert len({t.data_ptr() for t in weights.values()}) == len(weights) - sum(".all_modules." in name for name in weights)
    x = torch.randn(1, 1, 8, 12, 16)
    with torch.no_grad():
        theirs = net.encoder(x.permute(0, 1, 4, 3, 2))
    close([level.permute(0, 1, 4, 3, 2) for level in theirs], features(trained, encoder, x))
    card = (out / "README.md").read_text()
    assert "library_name: nnunet" in card and "\nlicense:" not in card and encoder in card
    # The way back.
    args = ["--data", trained / "store", "--weights", file, "--arm", "full", "--patch", 8, "--lr", 0, *FAST]
    pretext3d("finetune", *args, "--out", tmp_path / "back")
    back, sent = tensors(tmp_path / "back/best.safetensors")[0], tensors(trained / f"{encoder}-w.safetensors")[0]
    inner = [name for name in sent if name.startswith("encoder.stages.1.")]
    assert inner and all(torch.equal(back[f"model.{name}"], sent[name]) for name in inner)


def plans(trained, tmp_path, encoder, stages, channels, axes=(0, 1, 2), **changes):
    """Plans of nnU-Net's for a dataset that the first stages of the encoder fit."""
    config = read_json(trained / f"{encoder}-w.json")["network"]
    turned = [[sides[2 - axis] for axis in axes] for sides in config["kernels"]], [[sides[2 - axis] for axis in axes] for sides in config["strides"]]
    plain = encoder == "plainconv"
    settings = {"n_stages": stages, "features_per_stage": config["features"][:stages], "kernel_sizes": turned[0][:stages],
                "strides": turned[1][:stages], "n_conv_per_stage" if plain else "n_blocks_per_stage": config["blocks"][:stages],
                "n_conv_per_stage_decoder": [2 if plain else 1] * (stages - 1), "conv_op": "torch.nn.modules.conv.Conv3d", "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True}, **changes}
    name = "dynamic_network_architectures.architectures.unet." + ("PlainConvUNet" if plain else "ResidualEncoderUNet")
    architecture = {"network_class_name": name, "arch_kwargs": settings, "_kw_requires_import": ["conv_op", "norm_op", "nonlin"]}
    configuration = {"architecture": architecture, "normalization_schemes": ["ZScoreNormalization"] * channels, "patch_size": [8, 8, 8]}
    made = {"plans_name": "ours", "transpose_forward": list(axes), "configurations": {"3d_fullres": configuration}}
    (tmp_path / "plans.json").write_text(json.dumps(made))
    return tmp_path / "plans.json", {"arch_class_name": name.rsplit(".")[-1], "arch_kwargs": settings}


@pytest.mark.parametrize("encoder,axes", [("resenc-l", (0, 1, 2)), ("plainconv", (2, 0, 1))])
def test_nnunet_takes_a_whole_network_of_its_plans(trained, tmp_path, encoder, axes):
    file, made = plans(trained, tmp_path, encoder, stages=2, channels=3, axes=axes)
    pretext3d("export", "--run", trained / encoder, "--to", "nnunet", "--plans", file, "--out", tmp_path / "out")
    assert "-p ours -pretrained_weights" in (tmp_path / "out/README.md").read_text()
    weights = torch.load(tmp_path / "out/checkpoint_final.pth", weights_only=True)["network_weights"]
    # As `-pretrained_weights`: every name but the output layers' has to be there, with the same shape.
    torch.manual_seed(0)
    net = peer(made, 3)
    state = net.apply(net.initialize).state_dict()
    assert {name: t.shape for name, t in weights.items()} == {name: t.shape for name, t in state.items() if ".seg_layers." not in name}
    kernel = "decoder.stages.0.convs.0.conv.weight"
    assert abs(weights[kernel].std() / state[kernel].std() - 1) < 0.2 and not weights[kernel.replace("weight", "bias")].any()
    net.load_state_dict({**state, **weights})
    x = torch.randn(1, 1, 8, 12, 16)
    # Our axes as the plans have them, and back.
    turn = [0, 1, *(4 - axis for axis in axes)]
    with torch.no_grad():
        theirs = net.encoder(x.expand(-1, 3, -1, -1, -1).permute(turn))
    close([level.permute([turn.index(axis) for axis in range(5)]) for level in theirs], features(trained, encoder, x)[:2])


def test_the_plan_says_over_what_intensities_were_normalised(brains, tmp_path):
    pretext3d("preprocess", "--data", brains, "--out", tmp_path / "store", "--size", 16, "--channels", "t1", "--intensity", "z-score")
    args = ["--data", tmp_path / "store", "--task", "rot", "--rot-head", "gap", *FAST, "--encoder", "plainconv", "--features", "2,4"]
    pretext3d("pretrain", *args, "--out", tmp_path / "run", "--weights", tmp_path / "w")
    pretext3d("export", "--run", tmp_path / "run", "--to", "nnunet", "--out", tmp_path / "out")

    def said(file):
        embed = ["embed", "--weights", file, "--input", tmp_path / "store", "--out", tmp_path / file.stem]
        return pretext3d(*embed, "--device", "cpu").stderr

    saved = torch.load(tmp_path / "out/checkpoint_final.pth", weights_only=True)
    [plan] = saved["nnssl_adaptation_plan"]["pretrain_plan"]["configurations"].values()
    assert (plan["normalization_schemes"], plan["use_mask_for_norm"]) == (["ZScoreNormalization"], [True])
    assert "normalised" not in said(tmp_path / "out/checkpoint_final.pth")
    plan["use_mask_for_norm"] = [False]
    torch.save(saved, tmp_path / "whole.pth")
    assert "normalised by ZScoreNormalization over the whole scan, those of these scans are by mean" in said(tmp_path / "whole.pth")


def test_monai_loads_a_bundle(trained, tmp_path):
    pretext3d("export", "--run", trained / "plainconv", "--to", "monai", "--out", tmp_path / "bundle")
    state = torch.load(tmp_path / "bundle/models/model.pt", weights_only=True)
    settings = read_json(tmp_path / "bundle/configs/train.json")["network_def"]
    assert settings.pop("_target_") == "DynUNet"
    net = DynUNet(**settings)
    missing = net.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith(("upsamples.", "output_block.", "skip_layers.")) for name in missing.missing_keys)
    loaded = load_bundle("bundle", bundle_dir=tmp_path, source="github")
    x = torch.randn(1, 1, 8, 12, 16)
    for net in (net.eval(), loaded.eval()):
        levels = [x.expand(-1, 2, -1, -1, -1)]
        with torch.no_grad():
            for block in (net.input_block, *net.downsamples, net.bottleneck):
                levels.append(block(levels[-1]))
        close(levels[1:], features(trained, "plainconv", x))


def test_a_file_is_known_by_what_it_holds(trained, tmp_path):
    """TorchScript under another ending, and our own state dict saved by torch, which keeps our axes."""
    shutil.copy(trained / "resenc-l-w.pt", tmp_path / "script.pth")
    torch.save(tensors(trained / "resenc-l-w.safetensors")[0], tmp_path / "state.pt")
    fingerprints = set()
    for file in (trained / "resenc-l-w.pt", tmp_path / "script.pth", tmp_path / "state.pt"):
        out = tmp_path / f"of-{file.stem}"
        pretext3d("embed", "--weights", file, "--input", trained / "store", "--out", out, "--device", "cpu", "--threads", 1)
        fingerprints.add(read_json(out.with_suffix(".json"))["fingerprint"])
    assert len(fingerprints) == 1


def test_huggingface_names_have_no_prefix(trained, store, tmp_path):
    unet = ["--data", store, "--task", "rot", *SMALL, "--norm", "batch", "--epochs", 1, "--steps", 1, "--seed", 3]
    pretext3d("pretrain", *unet, "--out", tmp_path / "run", "--weights", tmp_path / "w")
    for run, weights in ((tmp_path / "run", tmp_path / "w"), (trained / "resenc-l", trained / "resenc-l-w")):
        out = tmp_path / f"of-{run.name}"
        pretext3d("export", "--run", run, "--to", "huggingface", "--out", out)
        found, metadata = tensors(out / "model.safetensors")
        sent = tensors(weights.with_suffix(".safetensors"))[0]
        sent = {name.removeprefix("encoder."): t for name, t in sent.items() if name.startswith("encoder.")}
        assert metadata == {"format": "pt"} and found.keys() == sent.keys() and all(torch.equal(found[name], sent[name]) for name in found)
        config = read_json(out / "config.json")
        assert config["network"] == read_json(weights.with_suffix(".json"))["network"]
    build(read_json(tmp_path / "of-run/config.json")).load_state_dict(tensors(tmp_path / "of-run/model.safetensors")[0])


def test_what_a_target_cannot_express_is_refused(trained, store, tmp_path):
    def export(run, to, *more, says):
        refused("export", "--run", run, "--to", to, "--out", tmp_path / "out", *more, says=says)
        assert not (tmp_path / "out").exists()

    unet = ["--data", store, "--task", "rot", *SMALL, "--epochs", 1, "--steps", 1]
    pretext3d("pretrain", *unet, "--out", tmp_path / "unet", "--weights", tmp_path / "w")
    flat = ["--data", trained / "store", "--slices", "axial", "--task", "rot", "--encoder", "plainconv", "--features", "4,6,8", *FAST]
    pretext3d("pretrain", *flat, "--out", tmp_path / "flat", "--weights", tmp_path / "w")
    export(tmp_path / "unet", "nnunet", says=["--encoder resenc-l", "unet"])
    export(tmp_path / "unet", "monai", says=["--encoder plainconv"])
    export(trained / "resenc-l", "monai", says=["--encoder plainconv", "resenc-l"])
    export(tmp_path / "flat", "nnunet", says=["2D", "3D"])
    export(trained / "plainconv", "monai", "--plans", tmp_path / "none.json", says=["--plans goes with --to nnunet"])
    for encoder, stages, changes, says in [
        ("plainconv", 3, {}, ["ResidualEncoderUNet", "PlainConvUNet", "--encoder plainconv"]),
        ("resenc-l", 2, {"features_per_stage": [4, 8]}, ["[4, 8]", "[4, 6]", "--features"]),
        ("resenc-l", 2, {"kernel_sizes": [[3, 3, 3], [3, 3, 3]]}, ["3x3x3", "3x3x1", "--kernels"]),
        ("resenc-l", 2, {"features_per_stage": [4] * 4}, ["4 stages", "--levels 4"]),
        ("resenc-l", 2, {"norm_op": "torch.nn.BatchNorm3d"}, ["BatchNorm3d"]),
    ]:
        file = plans(trained, tmp_path, encoder, stages, 1, **changes)[0]
        export(trained / "resenc-l", "nnunet", "--plans", file, says=["plans.json", *says])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/README.md").write_text("mine")
    refused("export", "--run", trained / "resenc-l", "--to", "nnunet", "--out", tmp_path / "full", says=["new or empty folder"])
