"""BatchNorm statistics fit what an encoder meets after its pretraining: in a frozen phase, and as exported."""
import pytest
import torch
from helpers import pretext3d, read_json, refused, tensors
from pretext3d import build
from test_finetune import Decoder

# Patches of 9 voxels, of which the deepest map has one: nothing of a whole scan's.
SHAPE = ["--filters", 4, "--levels", 4, "--norm", "batch"]
FAST = ["--device", "cpu", "--precision", "fp32", "--threads", 1]
JIG = ["--jig-permutations", 4, "--jig-shuffles", 4, "--jig-head", "gap", "--val-draws", 1]


@pytest.fixture(scope="module")
def jig(store, tmp_path_factory):
    """A jigsaw run; its export lies beside it."""
    folder = tmp_path_factory.mktemp("jig")
    args = ["--data", store, "--task", "jig", *JIG, *SHAPE, *FAST, "--epochs", 1, "--steps", 25]
    done = pretext3d("pretrain", *args, "--out", folder / "run", "--weights", folder / "jig")
    assert "on 32 windows of 32 voxels" in done.stderr
    return folder


def loaded(module, file, prefix):
    """A module in evaluation mode with the tensors of an export or a checkpoint that lie below a prefix."""
    state, _ = tensors(file)
    state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    module.load_state_dict({name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)})
    return module.eval()


def encoder_of(file, description):
    return loaded(build(description), file, "encoder.")


@torch.no_grad()
def most_off(network, store, subjects):
    """How many standard deviations the mean of a channel, as some layer meets it on whole scans, is from its running mean."""
    off = []

    def look(norm, inputs):
        values = inputs[0].movedim(1, 0).flatten(1)
        off.append(((values.mean(1) - norm.running_mean).abs() / values.std(1).clamp_min(1e-3)).max().item())

    hooks = [m.register_forward_pre_hook(look) for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    entries = {entry["id"]: entry for entry in read_json(store / "index.json")["subjects"]}
    network(torch.stack([tensors(store / entries[subject]["file"])[0]["image"].float() for subject in subjects]))
    [hook.remove() for hook in hooks]
    return max(off)


def test_an_export_fits_whole_windows(jig, store, tmp_path):
    description = read_json(jig / "jig.json")
    train = read_json(jig / "run/split.json")["train"]
    assert most_off(encoder_of(jig / "jig.safetensors", description), store, train) < 0.5
    assert most_off(encoder_of(jig / "run/best.safetensors", description), store, train) > 0.5
    exported, trained = tensors(jig / "jig.safetensors")[0], tensors(jig / "run/best.safetensors")[0]
    for name, tensor in exported.items():
        assert torch.equal(tensor, trained[f"model.{name}"]) == ("running" not in name), name

    # By hand it is the same; the scans may have moved, or be gone.
    moved = tmp_path / "moved"
    moved.symlink_to(store)
    for name, flags in (("again", []), ("moved", ["--data", moved]), ("kept", ["--keep-statistics"])):
        pretext3d("export", "--run", jig / "run", "--out", tmp_path / name, *flags)
    for name in ("again", "moved"):
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (jig / "jig.safetensors").read_bytes()
    assert all(torch.equal(t, trained[f"model.{name}"]) for name, t in tensors(tmp_path / "kept.safetensors")[0].items())
    says = ["BatchNorm", "--data", "--keep-statistics", tmp_path / "gone"]
    refused("export", "--run", jig / "run", "--out", tmp_path / "no", "--data", tmp_path / "gone", says=says)


def test_a_joint_export_fits_whole_windows(store, tmp_path):
    args = ["--data", store, "--task", "rot,jig", *JIG, "--rot-head", "gap", *SHAPE, *FAST, "--epochs", 1, "--steps", 15]
    pretext3d("pretrain", *args, "--out", tmp_path / "run", "--weights", tmp_path / "joint")
    train = read_json(tmp_path / "run/split.json")["train"]
    assert most_off(encoder_of(tmp_path / "joint.safetensors", read_json(tmp_path / "joint.json")), store, train) < 0.5


@pytest.mark.parametrize("arm", ["frozen", "random", "warmup"])
def test_a_frozen_phase_has_statistics_of_what_it_trains_on(arm, jig, store, tmp_path):
    """Dropout, which evaluation does not have, is not in them."""
    weights = ["none", "--arm", "frozen", *SHAPE] if arm == "random" else [jig / "run/best.safetensors", "--arm", arm]
    settings = ["--epochs", 2, "--steps", 1, "--aug-off", "--dropout", 0.5, *FAST, *(["--lr", 0] if arm == "warmup" else [])]
    done = pretext3d("finetune", "--data", store, "--weights", *weights, *settings, "--out", tmp_path / "run")
    assert "on 32 training samples" in done.stderr
    description = {**read_json(jig / "jig.json"), "network": read_json(tmp_path / "run/config.json")["network"]}
    train = read_json(tmp_path / "run/split.json")["train"]
    which = "best" if arm == "warmup" else "last"
    assert most_off(encoder_of(tmp_path / f"run/{which}.safetensors", description), store, train) < 0.5
    if arm == "frozen":
        state = [tensors(tmp_path / f"run/{which}.safetensors")[0] for which in ("last", "best")]
        assert all(torch.equal(a, state[1][name]) for name, a in state[0].items() if "encoder" in name and "running" in name)


def test_a_decoder_that_travels_has_them_too(store, tmp_path):
    """It is fixed with the encoder; trained for two steps, it has next to none of its own."""
    args = ["--data", store, "--task", "mae", *SHAPE, *FAST, "--epochs", 1, "--steps", 2, "--val-draws", 1]
    pretext3d("pretrain", *args, "--out", tmp_path / "mae-run", "--weights", tmp_path / "mae")
    checkpoint = tmp_path / "mae-run/best.safetensors"
    weights = ["--weights", checkpoint, "--transfer", "all", "--arm", "frozen"]
    settings = ["--epochs", 1, "--steps", 1, "--aug-off", *FAST]
    pretext3d("finetune", "--data", store, *weights, *settings, "--out", tmp_path / "run")
    description = read_json(tmp_path / "mae.json")
    channels = [level["channels"] for level in description["levels"]]
    last, train = tmp_path / "run/last.safetensors", read_json(tmp_path / "run/split.json")["train"]
    classes = len(read_json(tmp_path / "run/config.json")["downstream"]["labels"])
    encoder, decoder = encoder_of(last, description), loaded(Decoder(channels, classes), last, "segmentation.decoder.")
    assert most_off(torch.nn.Sequential(encoder, decoder), store, train) < 0.5
    pretrained = {name.removeprefix("model.mae.decoder."): t for name, t in tensors(checkpoint)[0].items()}
    state = decoder.state_dict()
    state.update({name: pretrained[name] for name in state if "running" in name})
    decoder.load_state_dict(state)
    assert most_off(torch.nn.Sequential(encoder, decoder), store, train) > 0.5
