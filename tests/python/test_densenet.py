"""DenseNet-121 against torchvision's: names, outputs, and loading of its state dicts."""
import re

import pytest
import torch
import torchvision
from conftest import SMALL
from helpers import pretext3d, read_json, refused, rows, tensors
from safetensors.torch import save_file

QUICK = ["--encoder", "densenet121", "--epochs", 1, "--batch-size", 2, "--steps", 1, "--val-draws", 1, "--device", "cpu"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A store of four photographs of 128 x 128 pixels, whose ninths the encoder does not pool away."""
    folder = tmp_path_factory.mktemp("images")
    pretext3d("phantom", "--kind", "fundus", "--subjects", 4, "--size", 128, "--out", folder / "fundus")
    pretext3d("preprocess", "--data", folder / "fundus", "--out", folder / "store", "--size", 128)
    return folder / "store"


@pytest.fixture(scope="module")
def random_net():
    """torchvision's network with random weights, its statistics included."""
    torch.manual_seed(0)
    net = torchvision.models.densenet121()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    return net.eval()


@pytest.fixture(scope="module")
def started(images, random_net, tmp_path_factory):
    """A run from torchvision's weights that learns nothing: its folder, its exported weights and its output."""
    folder = tmp_path_factory.mktemp("densenet")
    # As the files that torchvision downloads name the layers, which its own loader mends.
    names = {name: re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name) for name in random_net.state_dict()}
    assert any(".norm.1." in name for name in names.values())
    save_file({names[name]: tensor for name, tensor in random_net.state_dict().items()}, folder / "imagenet.safetensors")
    args = ["--data", images, "--task", "rot", *QUICK, "--lr", 0, "--init", folder / "imagenet.safetensors"]
    done = pretext3d("pretrain", *args, "--out", folder / "run", "--weights", folder / "weights")
    return folder, done.stderr


def plain(state):
    """torchvision's feature network with these weights, every name and shape matched."""
    net = torchvision.models.densenet121()
    counters = {name: tensor for name, tensor in net.state_dict().items() if name.endswith("num_batches_tracked")}
    named = {name.replace("encoder.", "features.", 1): tensor for name, tensor in state.items()}
    classifier = {name: tensor for name, tensor in net.state_dict().items() if name.startswith("classifier.")}
    net.load_state_dict(named | counters | classifier, strict=True)
    return net


def pyramid(net, x):
    """What torchvision computes at each level that is declared."""
    found = {}
    hooks = [
        getattr(net.features, name).register_forward_hook(lambda _, __, out, name=name: found.__setitem__(name, out.clone()))
        for name in ["relu0", "denseblock1", "denseblock2", "denseblock3", "norm5"]
    ]
    net.features(x)
    [hook.remove() for hook in hooks]
    return [*list(found.values())[:-1], torch.relu(found["norm5"])]


def test_a_torchvision_state_dict_loads_strictly(started, random_net):
    folder, output = started
    total = len(random_net.state_dict())
    counters = sum(name.endswith("num_batches_tracked") for name in random_net.state_dict())
    assert f"{total - counters - 2} tensors loaded, 0 adapted, 2 left out" in output
    assert "left out classifier.weight" in output
    state, _ = tensors(folder / "weights.safetensors")
    for name, tensor in random_net.features.named_parameters():
        assert torch.equal(state[f"encoder.{name}"], tensor), name
    description = read_json(folder / "weights.json")
    assert description["architecture"] == description["network"]["architecture"] == "densenet121"
    assert [level["channels"] for level in description["levels"]] == [64, 256, 512, 1024, 1024]
    assert [level["reduction"] for level in description["levels"]] == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("shape", [(2, 64, 96), (3, 75, 66)])
def test_outputs_equal_torchvisions(started, shape, train):
    folder, _ = started
    module = torch.jit.load(folder / "weights.pt").train(train)
    state, _ = tensors(folder / "weights.safetensors")
    assert set(module.state_dict()) == set(state)
    net = plain(state).train(train)
    x = torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for found, expected in zip(module(x), pyramid(net, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    # Training moves the statistics, and to the same values.
    statistics = dict(net.features.named_buffers())
    for name, found in module.named_buffers():
        torch.testing.assert_close(found, statistics[name.removeprefix("encoder.")], rtol=1e-4, atol=1e-5)
        assert torch.equal(found, state[name]) != train


def test_weights_that_lack_a_tensor_or_are_of_another_network_are_refused(images, random_net, tmp_path):
    state = random_net.state_dict()
    del state["features.denseblock2.denselayer3.conv2.weight"]
    save_file(state, tmp_path / "lacks.safetensors")
    args = ["--data", images, "--task", "rot", *QUICK, "--out", tmp_path / "run", "--weights", tmp_path / "w"]
    says = ["lacks.safetensors", "encoder.denseblock2.denselayer3.conv2.weight is missing"]
    refused("pretrain", *args, "--init", tmp_path / "lacks.safetensors", says=says)
    save_file(torchvision.models.densenet169().state_dict(), tmp_path / "larger.safetensors")
    refused("pretrain", *args, "--init", tmp_path / "larger.safetensors", says=["another architecture"])
    torch.save(state, tmp_path / "state.pth")
    refused("pretrain", *args, "--init", tmp_path / "state.pth", says=["state.pth", *says[1:]])


def test_flags_that_do_not_fit_are_refused(store, images, tmp_path):
    out = ["--out", tmp_path / "run", "--weights", tmp_path / "w"]
    refused("pretrain", "--data", store, "--task", "rot", *QUICK, *out, says=["densenet121 takes images", "3D"])
    args = ["--data", images, "--task", "rot", *QUICK, *out]
    refused("pretrain", *args, "--filters", 8, says=["--filters and --levels are not for --encoder densenet121"])
    finetune = ["--data", store, "--weights", "none", *SMALL[:4], "--encoder", "densenet121", "--out", tmp_path / "f"]
    refused("finetune", *finetune, says=["densenet121 takes images"])


def test_features_and_probes_of_torchvisions_weights(started, images, random_net, tmp_path):
    """Weights without a description, on scans of a store."""
    weights = ["--weights", started[0] / "imagenet.safetensors"]
    pretext3d("embed", *weights, "--input", images, "--out", tmp_path / "f", "--device", "cpu", "--precision", "fp32")
    found, _ = tensors(tmp_path / "f.safetensors")
    files = [entry["file"] for entry in read_json(images / "index.json")["subjects"]]
    x = torch.stack([tensors(images / file)[0]["image"].float()[:, 0] for file in files])
    with torch.no_grad():
        expected = random_net.features(x).relu().mean((2, 3))
    torch.testing.assert_close(found["level4"], expected, rtol=1e-3, atol=1e-4)
    out = ["--out", tmp_path / "run", "--weights", tmp_path / "w", "--epochs", 1, "--probe", images]
    pretext3d("pretrain", "--data", images, "--task", "rot", *QUICK, *out)
    assert -1 <= float(rows(tmp_path / "run/metrics.csv")[0]["val/probe.kappa"]) <= 1


@pytest.mark.slow
def test_every_task_trains_it(images, tmp_path):
    for task in ["rpl,jig", "cpc", "exe"]:
        out = ["--out", tmp_path / task, "--weights", tmp_path / f"w-{task}"]
        pretext3d("pretrain", "--data", images, "--task", task, *QUICK, "--val-fraction", 0.5, *out)
        assert read_json(tmp_path / f"w-{task}.json")["architecture"] == "densenet121"
