"""A decoder that was pretrained: in exports, in PyTorch, and in a fine-tuning that takes it."""
import pytest
import torch
from helpers import pretext3d, read_json, refused, tensors

FAST = ["--batch-size", 2, "--device", "cpu", "--precision", "fp32", "--threads", 1]
SHAPE = ["--filters", 2, "--levels", 3]
STATISTICS = ("running_mean", "running_var")
ENCODER, DECODER = "model.encoder.", "model.segmentation.decoder."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labelled brains of 16^3 voxels; encoders with a decoder, jointly with another task, and without."""
    folder = tmp_path_factory.mktemp("decoder")
    pretext3d("phantom", "--kind", "brain", "--subjects", 8, "--size", 32, "--seed", 4, "--out", folder / "brats")
    pretext3d("preprocess", "--data", folder / "brats", "--out", folder / "store", "--size", 16, "--channels", "t1,flair")
    for name, task in (("mae", "mae"), ("joint", "rot,vf,mae"), ("rot", "rot")):
        pretext3d("pretrain", "--data", folder / "store", "--task", task, "--rot-head", "gap", *SHAPE, *FAST, "--epochs", 1,
                  "--steps", 3, "--norm", "batch", "--lr", 1e-2, "--warmup-epochs", 0, "--schedule", "constant", "--out", folder / name,
                  "--weights", folder / f"{name}-w")
    return folder


def finetune(folder, out, weights, *more):
    return ["finetune", "--data", folder / "store", "--weights", weights, "--patch", 8, *FAST, "--epochs", 1, "--steps", 2,
            "--out", out, *more]


def part(tensors, prefix, outputs=False):
    """Tensors below a prefix, without the output layer unless asked for."""
    named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in named.items() if outputs or "output" not in name}


def same(a, b):
    assert a.keys() == b.keys() and len(a) > 10
    return {name for name in a if torch.equal(a[name], b[name])}


def learned(names):
    return {name for name in names if not name.endswith(STATISTICS)}


@pytest.mark.parametrize("name,task,outputs", [("mae", "mae", 2), ("joint", "vf", 5)])
def test_an_export_holds_the_decoder_and_runs_in_pytorch(folder, name, task, outputs):
    checkpoint, _ = tensors(folder / name / "best.safetensors")
    exported, _ = tensors(folder / f"{name}-w.safetensors")
    decoder = part(exported, "decoder.", outputs=True)
    # But for the statistics, which are those of whole scans.
    assert same(decoder, part(checkpoint, f"model.{task}.decoder.", outputs=True)) == learned(decoder)
    assert {key.split(".")[0] for key in exported} == {"encoder", "decoder"}
    assert read_json(folder / f"{name}-w.json")["decoder"] == {"task": task, "outputs": outputs}

    module = torch.jit.load(folder / f"{name}-w.pt").eval()
    assert {key: value.shape for key, value in module.state_dict().items()} == {k: v.shape for k, v in exported.items()}
    x = torch.randn(1, 2, 16, 16, 16)
    with torch.no_grad():
        pyramid = module(x)
        assert [level.shape[1] for level in pyramid] == [2, 4, 8]
        # The same, step by step.
        y = pyramid[2]
        for i, skip in enumerate(pyramid[1::-1]):
            y = getattr(module.decoder, f"step{i}")(torch.cat([skip, getattr(module.decoder, f"step{i}_up")(y)], 1))
        out = module.decoder(pyramid)
        assert torch.equal(out, module.decoder.output(y)) and out.shape == (1, outputs, 16, 16, 16)


def test_a_task_without_a_decoder_exports_none(folder):
    assert "decoder" not in read_json(folder / "rot-w.json")
    assert not any("decoder" in name for name in tensors(folder / "rot-w.safetensors")[0])


def test_transfer_all_takes_every_tensor_but_the_output_from_every_kind_of_file(folder, tmp_path):
    given, _ = tensors(folder / "mae-w.safetensors")
    prints = []
    for i, weights in enumerate((folder / "mae-w.pt", folder / "mae-w.safetensors", folder / "mae", folder / "mae/last.safetensors")):
        run = tmp_path / str(i)
        # Nothing moves.
        pretext3d(*finetune(folder, run, weights, "--transfer", "all", "--arm", "full", "--lr", 0))
        state, _ = tensors(run / "last.safetensors")
        for ours, theirs in ((ENCODER, "encoder."), (DECODER, "decoder.")):
            assert same(part(state, ours), part(given, theirs)) >= learned(part(state, ours)), (weights, ours)
        assert state[f"{DECODER}output.weight"].shape[0] == 4
        report = (run / "load.txt").read_text()
        loaded = len(part(given, "encoder.")) + len(part(given, "decoder."))
        assert f"{loaded} tensors loaded, the decoder of mae among them" in report and "output.weight" in report
        assert "step0" not in report
        prints.append(read_json(run / "config.json")["pretrained"]["fingerprint"])
    # An export may have other statistics than its checkpoint.
    assert prints[0] == prints[1] and prints[2] == prints[3]
    # The encoder alone: the decoder is left out and new, and it is another set of weights.
    pretext3d(*finetune(folder, tmp_path / "encoder", folder / "mae-w.pt", "--arm", "full", "--lr", 0))
    state, _ = tensors(tmp_path / "encoder/last.safetensors")
    assert not any("conv" in name and name.endswith("weight") for name in same(part(state, DECODER), part(given, "decoder.")))
    assert "left out decoder.step0.conv0.weight" in (tmp_path / "encoder/load.txt").read_text()
    assert read_json(tmp_path / "encoder/config.json")["pretrained"]["fingerprint"] not in prints


def test_what_is_given_is_fixed_with_the_encoder_and_has_its_rate(folder, tmp_path):
    given, _ = tensors(folder / "mae-w.safetensors")

    def trained(name, *more):
        pretext3d(*finetune(folder, tmp_path / name, folder / "mae-w.pt", "--transfer", "all", "--lr", 1e-2, *more))
        return tensors(tmp_path / name / "last.safetensors")[0]

    still = trained("still", "--arm", "full", "--lr", 0)
    # A readout of the finest map. The statistics are those of the training samples, from before the first step on.
    state, longer = trained("frozen", "--arm", "frozen"), trained("longer", "--arm", "frozen", "--epochs", 3)
    assert same(part(state, DECODER), part(given, "decoder.")) == learned(part(state, DECODER))
    assert same(part(state, DECODER), part(longer, DECODER)) == part(state, DECODER).keys()
    assert not torch.equal(state[f"{DECODER}output.weight"], still[f"{DECODER}output.weight"])
    # After a frozen phase of one epoch all of it moves.
    state = trained("warmup", "--arm", "warmup", "--epochs", 2, "--frozen-epochs", 1)
    for ours, theirs in ((ENCODER, "encoder."), (DECODER, "decoder.")):
        assert not any("conv" in name for name in same(part(state, ours), part(given, theirs)))
    # A rate of 0 holds what is given, not the output.
    state = trained("rate", "--arm", "full", "--encoder-lr", 0)
    assert same(part(state, DECODER), part(given, "decoder.")) == learned(part(state, DECODER))
    assert not torch.equal(state[f"{DECODER}output.weight"], still[f"{DECODER}output.weight"])


def test_a_fine_tuned_decoder_travels_too(folder, tmp_path):
    pretext3d(*finetune(folder, tmp_path / "first", "none", *SHAPE))
    first, _ = tensors(tmp_path / "first/best.safetensors")
    pretext3d(*finetune(folder, tmp_path / "second", tmp_path / "first", "--transfer", "all", "--arm", "full", "--lr", 0))
    assert "the decoder of segmentation among them" in (tmp_path / "second/load.txt").read_text()
    second, _ = tensors(tmp_path / "second/last.safetensors")
    assert same(part(second, DECODER), part(first, DECODER)) >= learned(part(first, DECODER))
    assert not torch.equal(second[f"{DECODER}output.weight"], first[f"{DECODER}output.weight"])


def test_refused(folder, tmp_path):
    run = tmp_path / "run"
    everything = ["--transfer", "all", "--arm", "full"]
    refused(*finetune(folder, run, folder / "rot-w.pt", *everything), says=[folder / "rot-w.pt", "no decoder", "mae", "vf"])
    refused(*finetune(folder, run, "none", *everything[:2]), says=["--transfer all", "--weights none"])
    refused("finetune", "--data", folder / "store", "--weights", folder / "mae-w.pt", *everything, "--task", "classification", "--out", run,
            says=["class"])
    assert not run.exists()
