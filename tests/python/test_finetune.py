"""Fine-tuning end to end: what each arm does to the encoder, resuming, independent test scores, and bad input."""
import json
import resource
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import pretext3d, read_json, refused, rows, tensors
from pretext3d.unet import Stage, UNet
from safetensors.torch import save_file
from test_resume import assert_same, start, wait_for_epoch
from torch import nn

SHAPE = ["--filters", 4, "--levels", 3, "--norm", "batch"]
FAST = ["--device", "cpu", "--precision", "fp32", "--threads", 1]
# Seconds a run: 24^3 voxels, 3 epochs of 2 steps.
SETTINGS = ["--epochs", 3, "--steps", 2, "--lr", 3e-3, *FAST]
# The same rate in every step.
EVEN = ["--schedule", "constant", "--warmup-epochs", 0]
# Nothing is learnt, so that the last checkpoint holds the first weights.
STILL = ["--epochs", 2, "--steps", 1, "--lr", 0]
ENCODER, DECODER = "model.encoder.", "model.segmentation.decoder."
STATISTICS = ("running_mean", "running_var")


def finetune(store, out, weights, *more):
    return ["finetune", "--data", store, "--weights", weights, *SETTINGS, *more, "--out", out]


def part(run, prefix, which="last"):
    """Tensors of a checkpoint below a prefix."""
    state, _ = tensors(run / f"{which}.safetensors")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def equal(a, b):
    assert a.keys() == b.keys() and a
    return [name for name in a if torch.equal(a[name], b[name])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve labelled brains as stores of four channels and of one, without labels, and of slices."""
    folder = tmp_path_factory.mktemp("finetune")
    pretext3d("phantom", "--kind", "brain", "--subjects", 12, "--size", 32, "--seed", 3, "--out", folder / "brats")
    for name, flags in (("four", []), ("one", ["--channels", "t1"]), ("bare", ["--no-labels"])):
        pretext3d("preprocess", "--data", folder / "brats", "--out", folder / name, "--size", 24, *flags)
    return folder


def pretrained(folder, name):
    run, weights = folder / f"rot-{name}", folder / "weights" / f"rot-{name}"
    pretext3d("pretrain", "--data", folder / name, "--task", "rot", "--rot-head", "gap", *SHAPE, "--epochs", 1, "--steps", 4,
              "--batch-size", 2, *FAST, "--out", run, "--weights", weights)
    state, _ = tensors(weights.with_suffix(".safetensors"))
    encoder = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
    pt, safetensors = weights.with_suffix(".pt"), weights.with_suffix(".safetensors")
    return SimpleNamespace(run=run, pt=pt, safetensors=safetensors, encoder=encoder)


@pytest.fixture(scope="module")
def four(folder):
    """An encoder pretrained on the four channels."""
    return pretrained(folder, "four")


@pytest.fixture(scope="module")
def one(folder):
    """An encoder pretrained on one channel."""
    return pretrained(folder, "one")


@pytest.fixture(scope="module")
def arms(folder, four):
    """A run of every arm, `random` being the frozen one without weights."""
    flags = {
        "scratch": ["none", *SHAPE],
        "random": ["none", "--arm", "frozen", *SHAPE],
        "frozen": [four.pt, "--arm", "frozen"],
        "warmup": [four.pt, "--frozen-epochs", 2, "--unfreeze-warmup-epochs", 0],
        "full": [four.pt, "--arm", "full"],
    }
    runs = {}
    for arm, (weights, *more) in flags.items():
        pretext3d(*finetune(folder / "four", folder / arm, weights, *more, *EVEN))
        runs[arm] = folder / arm
    return runs


def validation(run):
    return [float(row["val/segmentation.dice"]) for row in rows(run / "metrics.csv")]


def test_a_frozen_encoder_keeps_every_bit(arms, four):
    learned = {name for name in four.encoder if not name.endswith(STATISTICS)}
    assert len(learned) < len(four.encoder)
    first, last = (part(arms["frozen"], ENCODER, which) for which in ("best", "last"))
    # The statistics are those of the training samples, from before the first step on (test_calibrate.py).
    assert len(equal(first, last)) == len(last)
    assert set(equal(last, four.encoder)) == learned
    # The decoder learns meanwhile.
    state, _ = tensors(arms["frozen"] / "last.safetensors")
    assert not equal(part(arms["frozen"], DECODER), part(arms["random"], DECODER))
    assert any(name.startswith("optimizer.") and "decoder" in name and tensor.any() for name, tensor in state.items())
    assert not any(name.startswith("optimizer.") and ".encoder." in name and tensor.any() for name, tensor in state.items())


def test_warmup_is_frozen_until_its_end_and_then_learns(arms, four):
    frozen, warmup = rows(arms["frozen"] / "metrics.csv"), rows(arms["warmup"] / "metrics.csv")
    computed = [column for column in frozen[0] if column not in ("seconds", "samples_per_s", "wait_share")]
    same = [all(a[column] == b[column] for column in computed) for a, b in zip(frozen, warmup)]
    # Samples, losses and validation to the last digit, until the encoder moves.
    assert same == [True, True, False]
    assert equal(part(arms["warmup"], ENCODER), four.encoder) == []
    assert read_json(arms["warmup"] / "config.json")["settings"]["frozen-epochs"] == 2


def test_scratch_shares_nothing_with_the_weights_and_full_leaves_them(arms, four):
    for arm in ("scratch", "full"):
        assert equal(part(arms[arm], ENCODER), four.encoder) == [], arm
    assert not any("conv" in name and name.endswith("weight") for name in equal(part(arms["random"], ENCODER), four.encoder))


def test_equal_seeds_give_every_arm_the_same_start(folder, four, arms, tmp_path):
    split = (arms["scratch"] / "split.json").read_bytes()
    assert all((run / "split.json").read_bytes() == split for run in arms.values())
    weights = {"scratch": ["none", *SHAPE], "full": [four.pt, "--arm", "full"], "seed": ["none", *SHAPE, "--seed", 1]}
    for name, (file, *more) in weights.items():
        pretext3d(*finetune(folder / "four", tmp_path / name, file, *more, *STILL))
    decoders = {name: part(tmp_path / name, DECODER) for name in weights}
    learned = [name for name in decoders["full"] if not name.endswith(STATISTICS)]
    assert set(learned) <= set(equal(decoders["scratch"], decoders["full"]))
    assert not any(name.endswith("conv0.weight") for name in equal(decoders["scratch"], decoders["seed"]))
    # The encoder that scratch starts from is the one that `random` keeps; `full` starts from the weights.
    for run, start_ in ((part(tmp_path / "scratch", ENCODER), part(arms["random"], ENCODER)),
                        (part(tmp_path / "full", ENCODER), four.encoder)):
        assert {name for name in start_ if not name.endswith(STATISTICS)} <= set(equal(run, start_))


def test_one_channel_to_four_from_every_kind_of_file(folder, one, tmp_path):
    prints = []
    for file in (one.pt, one.safetensors, one.run / "best.safetensors"):
        out = tmp_path / file.name
        done = pretext3d(*finetune(folder / "four", out, file, *STILL, "--arm", "frozen"))
        encoder = part(out, ENCODER)
        first = encoder.pop("level0.conv0.weight")
        spread = one.encoder["level0.conv0.weight"].sum(1, keepdim=True) / 4
        assert torch.equal(first, spread.expand_as(first))
        # The statistics are those of the training samples (test_calibrate.py).
        assert all(torch.equal(tensor, one.encoder[name]) for name, tensor in encoder.items() if not name.endswith(STATISTICS))
        report = (out / "load.txt").read_text()
        assert report in done.stderr and "encoder.level0.conv0.weight: 1 input channels to 4" in report
        assert f"{len(encoder)} tensors loaded, 1 adapted" in report and str(file) in report
        assert ("left out rot." in report) == (file.name == "best.safetensors")
        result = read_json(out / "result.json")
        assert (result["pretext"], result["arm"], result["weights"]) == ("rot", "frozen", str(file))
        prints.append(result["weights_fingerprint"])
    # An export has other statistics than its checkpoint.
    assert prints[0] == prints[1] != prints[2]


def test_records(arms, folder):
    split = read_json(arms["full"] / "split.json")
    assert [len(split[side]) for side in ("train", "val", "test")] == [8, 2, 2]
    names = {"scratch": ("scratch", "scratch"), "random": ("random", "frozen"), "full": ("rot", "full")}
    fingerprints = set()
    for arm, run in arms.items():
        result, curve = read_json(run / "result.json"), validation(run)
        assert (result["pretext"], result["arm"]) == names.get(arm, ("rot", arm))
        assert (result["fraction"], result["seed"], result["rank"], result["epochs"]) == (1, 0, 3, 3)
        assert [result[f"{side}_subjects"] for side in ("train", "val", "test")] == [8, 2, 2]
        assert sorted(case["id"] for case in result["cases"]) == split["test"]
        # The best epoch is the one that was tested.
        assert result["best_epoch"] == 1 + int(np.argmax(curve))
        progress = json.loads(tensors(run / "best.safetensors")[1]["progress"])
        assert progress["best"] == [result["best_epoch"] - 1, max(curve)]
        assert result["data_fingerprint"] == read_json(folder / "four/index.json")["fingerprint"]
        assert (result["weights_fingerprint"] is None) == (arm in ("scratch", "random"))
        fingerprints.add(result["split_fingerprint"])
    assert len(fingerprints) == 1


def test_fractions_keep_validation_and_test(folder, tmp_path):
    for fraction, subjects in ((0.125, 1), (0.5, 4)):
        out = tmp_path / str(fraction)
        pretext3d(*finetune(folder / "four", out, "none", *SHAPE, *STILL, "--fraction", fraction))
        result = read_json(out / "result.json")
        assert [result[f"{side}_subjects"] for side in ("train", "val", "test")] == [subjects, 2, 2]
        # As many steps as with all labels.
        assert [row["step"] for row in rows(out / "metrics.csv")] == ["1", "2"]
    splits = [(tmp_path / fraction / "split.json").read_bytes() for fraction in ("0.125", "0.5")]
    assert splits[0] == splits[1]


def test_folds_test_every_subject_once(folder, tmp_path):
    from sklearn.model_selection import KFold

    tested, prints, store = [], set(), folder / "four"
    for fold in range(3):
        out = tmp_path / str(fold)
        pretext3d(*finetune(store, out, "none", *SHAPE, *STILL, "--folds", 3, "--fold", fold))
        split, result = read_json(out / "split.json"), read_json(out / "result.json")
        assert result["fold"] == fold and split["fold"] == {"number": fold, "of": 3}
        # Sizes as scikit-learn's; a fifth of the others for validation.
        train, test = list(KFold(3).split(range(12)))[fold]
        assert [result[f"{side}_subjects"] for side in ("train", "val", "test")] == [len(train) - 2, 2, len(test)]
        assert sorted(case["id"] for case in result["cases"]) == split["test"]
        tested += split["test"]
        prints.add(result["split_fingerprint"])
    assert sorted(tested) == [entry["id"] for entry in read_json(store / "index.json")["subjects"]] and len(prints) == 3
    # The split that was drawn is used as any other, and keeps its fold.
    again = tmp_path / "again"
    pretext3d(*finetune(store, again, "none", *SHAPE, *STILL, "--split", tmp_path / "2/split.json"))
    assert read_json(again / "result.json")["fold"] == 2

    def bad(*more, says, **options):
        refused(*finetune(store, tmp_path / "bad", "none", *SHAPE, *more), says=says, **options)

    bad("--folds", 3, "--fold", 3, says=["--fold must be from 0 to 2, found 3"])
    bad("--folds", 1, "--fold", 0, says=["--folds must be at least 2"])
    bad("--folds", 13, "--fold", 0, says=[store, "13 folds", "found 12"])


def test_the_best_epoch_is_chosen_by_what_is_tested(folder, tmp_path):
    """Of two runs that train alike, one validates what the other tests: by regions, both find the same scores."""
    store = folder / "four"
    ids = [entry["id"] for entry in read_json(store / "index.json")["subjects"]]
    records = []
    for n, (val, test) in enumerate([(ids[0], ids[1]), (ids[1], ids[0])]):
        split = {"seed": 0, "train": sorted(ids[2:]), "val": [val], "test": [test]}
        (tmp_path / f"{n}.json").write_text(json.dumps(split))
        more = ["--split", tmp_path / f"{n}.json", "--regions", "brats", *SHAPE, "--epochs", 1, "--steps", 2]
        pretext3d(*finetune(store, tmp_path / f"{n}", "none", *more))
        (row,) = [json.loads(line) for line in (tmp_path / f"{n}/metrics.jsonl").read_text().splitlines()]
        records.append((row, read_json(tmp_path / f"{n}/result.json")))
    (row, result), (_, other) = records
    metric = f"val/{result['validation_metric']}"
    assert row[metric] == pytest.approx(other["score"], abs=1e-9)
    regions = {name.split(".")[-1]: value for name, value in row.items() if name.startswith(f"{metric}.")}
    assert set(regions) == {"WT", "TC", "ET"}
    assert regions == pytest.approx({name: other["scores"][f"dice.{name}"] for name in regions}, abs=1e-9, nan_ok=True)


class Decoder(nn.Module):
    """The decoder in plain PyTorch: a pyramid, finest first, to logits."""

    def __init__(self, channels, classes, norm="batch"):
        super().__init__()
        for i, (coarse, fine) in enumerate(zip(channels[:0:-1], channels[-2::-1])):
            self.add_module(f"step{i}_up", nn.ConvTranspose3d(coarse, fine, 2, stride=2))
            self.add_module(f"step{i}", Stage(3, 2 * fine, fine, norm))
        self.output = nn.Conv3d(channels[0], classes, 1)

    def forward(self, pyramid):
        *skips, x = pyramid
        for i, skip in enumerate(skips[::-1]):
            x = self.get_submodule(f"step{i}")(torch.cat([skip, self.get_submodule(f"step{i}_up")(x)], 1))
        return self.output(x)


def plain_network(run, channels, classes):
    encoder, decoder = UNet(3, 4, channels[0], len(channels), norm="batch"), Decoder(channels, classes)
    encoder.load_state_dict(part(run, ENCODER, "best"))
    decoder.load_state_dict(part(run, DECODER, "best"))
    return nn.Sequential(encoder, decoder).eval()


@torch.no_grad()
def test_scores_equal_those_of_the_network_in_plain_pytorch(folder, tmp_path):
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

    run = tmp_path / "run"
    more = ["--steps", 15, "--epochs", 2, *EVEN, "--foreground-share", 1, "--lr", 1e-2, "--aug-off", *SHAPE]
    pretext3d(*finetune(folder / "four", run, "none", *more))
    pretext3d("export", "--run", run, "--out", tmp_path / "network")
    exported = torch.jit.load(tmp_path / "network.pt").eval()
    network = plain_network(run, [4, 8, 16], 4)
    index = read_json(folder / "four/index.json")
    names = [label["name"] for label in index["labels"]]
    entries = {entry["id"]: entry for entry in index["subjects"]}
    table = {(row["case"], row["group"]): row for row in rows(run / "test/scores.csv")}
    result = read_json(run / "result.json")
    assert len(table) == 3 * len(result["cases"]) == 6
    defined, dice_of = 0, {name: [] for name in names[1:]}
    for case in result["cases"]:
        entry = entries[case["id"]]
        scan, _ = tensors(folder / "four" / entry["file"])
        x = scan["image"].float()[None]
        logits = network(x)
        assert torch.allclose(logits, exported(x), atol=1e-4)
        # A patch as large as the scan: a single window.
        predicted, truth = (nn.functional.one_hot(c.long(), 4).movedim(-1, 1) for c in (logits.argmax(1), scan["label"][None]))
        dice, jaccard = (f(predicted, truth, include_background=False)[0] for f in (compute_dice, compute_iou))
        hd95 = compute_hausdorff_distance(predicted, truth, percentile=95, spacing=entry["spacing"])[0]
        scores = []
        for k, name in enumerate(names[1:]):
            row = table[case["id"], name]
            if predicted[:, k + 1].any() and truth[:, k + 1].any():
                defined += 1
                assert float(row["dice"]) == pytest.approx(float(dice[k]), abs=1e-3)
                assert float(row["jaccard"]) == pytest.approx(float(jaccard[k]), abs=1e-3)
                assert float(row["hd95_mm"]) == pytest.approx(float(hd95[k]), rel=0.05)
            if row["dice"]:
                scores.append(float(row["dice"]))
                dice_of[name].append(float(row["dice"]))
        assert case["score"] == pytest.approx(np.mean(scores))
    assert defined >= 2, "the network predicts nothing"
    assert result["score"] > 0 and result["score"] == pytest.approx(np.mean([case["score"] for case in result["cases"]]))
    for name, values in dice_of.items():
        assert result["scores"][f"dice.{name}"] == pytest.approx(np.mean(values))


@pytest.fixture(scope="module")
def straight(folder, four, tmp_path_factory):
    """A run with dropout and warm-up that never stopped."""
    run = tmp_path_factory.mktemp("straight") / "run"
    pretext3d(*finetune(folder / "four", run, four.pt, "--epochs", 4, "--dropout", 0.1))
    return run


def assert_same_run(run, straight):
    assert_same(run, straight)
    assert (run / "test/scores.csv").read_bytes() == (straight / "test/scores.csv").read_bytes()
    timing = {"seconds", "peak_memory_mib"}
    found, wanted = (
        {key: value for key, value in read_json(path / "result.json").items() if key not in timing} for path in (run, straight)
    )
    assert found == wanted


def test_interrupted_and_resumed_equals_straight(folder, four, straight, tmp_path):
    run = tmp_path / "run"
    process = start(*finetune(folder / "four", run, four.pt, "--epochs", 4, "--dropout", 0.1))
    wait_for_epoch(process, run, 1)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130 and "finetune --resume" in message and "panicked" not in message
    assert len(rows(run / "metrics.csv")) < 4 and not (run / "result.json").exists()
    pretext3d("finetune", "--resume", run)
    assert_same_run(run, straight)


def test_killed_before_the_first_checkpoint(folder, four, straight, tmp_path):
    """The weights are loaded again: they are in no checkpoint yet."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "split.json"):
        shutil.copy(straight / name, run)
    done = pretext3d("finetune", "--resume", run)
    assert "tensors loaded" in done.stderr
    assert_same_run(run, straight)

    again = tmp_path / "again"
    again.mkdir()
    record = read_json(straight / "config.json")
    record["pretrained"]["fingerprint"] = "0" * 64
    (again / "config.json").write_text(json.dumps(record))
    shutil.copy(straight / "split.json", again)
    refused("finetune", "--resume", again, says=[four.pt, again, "started with"])


def test_pretraining_killed_before_its_first_checkpoint_keeps_its_start(folder, four, tmp_path):
    args = ["--data", folder / "four", "--task", "rot", "--rot-head", "gap", *SHAPE, "--init", four.pt, "--epochs", 1,
            "--steps", 1, *FAST]
    pretext3d("pretrain", *args, "--out", tmp_path / "straight", "--weights", tmp_path / "w")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "split.json"):
        shutil.copy(tmp_path / "straight" / name, run)
    pretext3d("pretrain", "--resume", run)
    assert_same(run, tmp_path / "straight")


def test_more_epochs_later_leave_the_warmup_as_it_was(folder, four, tmp_path):
    """A fifth of 4 epochs is 1, of 10 it is 2."""
    run = tmp_path / "run"
    more = ["--epochs", 4, "--steps", 1, "--schedule", "constant"]
    pretext3d(*finetune(folder / "four", run, four.pt, *more))
    pretext3d("finetune", "--resume", run, "--epochs", 5)
    settings = read_json(run / "config.json")["settings"]
    assert (settings["epochs"], settings["frozen-epochs"]) == (5, 1)
    before = (run / "result.json").stat().st_mtime_ns
    assert "finished before, 5 epochs" in pretext3d("finetune", "--resume", run).stderr
    assert (run / "result.json").stat().st_mtime_ns == before, "tested again"


# Bad input: what is refused, and what the message says. `None` stands for the pretrained weights.
REFUSED = {
    "scratch with weights": (None, ["--arm", "scratch"], ["--arm scratch", "--weights none"]),
    "warm-up without weights": ("none", ["--arm", "warmup"], ["--weights none", "need weights"]),
    "frozen epochs of another arm": (None, ["--arm", "full", "--frozen-epochs", 1], ["--frozen-epochs", "warmup"]),
    "warm-up to the end": (None, ["--frozen-epochs", 3], ["--frozen-epochs 3", "3 epochs"]),
    "another width": (None, ["--filters", 8], ["--filters 8", "has 4"]),
    "another depth": (None, ["--levels", 4], ["--levels 4", "has 3"]),
    "no subject": ("none", ["--fraction", 0.01], ["--fraction 0.01", "no subject of 8"]),
    "a patch that does not pool": ("none", [*SHAPE, "--patch", 22], ["--patch", "22", "multiple of 4"]),
    "a patch of padding": ("none", [*SHAPE, "--patch", 52], ["--patch 52", "no scan has more than 24", "brain_", "at most 48"]),
    "a single voxel to normalise": ("none", [*SHAPE, "--patch", 4, "--batch-size", 1], ["--batch-size 1", "[4, 4, 4]"]),
    "two numbers for three axes": ("none", [*SHAPE, "--patch", "16,16"], ["--patch has 2 numbers", "3"]),
    "weights for three of four classes": ("none", [*SHAPE, "--class-weights", "1,1,1"], ["--class-weights", "3 numbers", "expected 4: one a class"]),
    "weight on the background alone": ("none", [*SHAPE, "--class-weights", "1,0,0,0"], ["--class-weights"]),
    "no such file": ("nowhere.pt", [], ["nowhere.pt"]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(folder, four, tmp_path, kind):
    weights, more, says = REFUSED[kind]
    refused(*finetune(folder / "four", tmp_path / "run", weights or four.pt, *more), says=says)
    assert not (tmp_path / "run").exists()


def test_unknown_setting(folder, tmp_path):
    config = tmp_path / "typo.toml"
    config.write_text("frozen-epoch = 2\n")
    refused(*finetune(folder / "four", tmp_path / "run", "none", "--config", config), says=[config, "frozen-epoch"])
    refused(*finetune(folder / "four", tmp_path / "run", "none"), "--frozen-epoch", 2, says=["--frozen-epoch"], code=2)
    assert not (tmp_path / "run").exists()


def broken_weights(folder, four):
    """Files that are no weights for these scans, each with what the message must say."""
    state, metadata = tensors(four.safetensors)

    def written(name, state, version="1"):
        save_file(state, folder / name, {**metadata, "version": version})

    written("newer.safetensors", state, "99")
    written("missing.safetensors", {name: t for name, t in state.items() if name != "encoder.level1.norm0.running_var"})
    written("strange.safetensors", state | {"encoder.level1.attention": torch.zeros(3)})
    written("flat.safetensors", {name: t[:, :, 0].contiguous() if t.dim() == 5 else t for name, t in state.items()})
    written("other.safetensors", {"backbone.weight": torch.zeros(3)})
    for file in (four.pt, four.safetensors):
        (folder / f"short{file.suffix}").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return {
        "newer.safetensors": ["newer version", "99"],
        "missing.safetensors": ["encoder.level1.norm0.running_var", "missing"],
        "strange.safetensors": ["another architecture", "encoder.level1.attention"],
        "flat.safetensors": ["2D", "3D"],
        "other.safetensors": ["another architecture"],
        "short.pt": ["no whole zip archive"],
        "short.safetensors": ["whole safetensors file"],
    }


def test_weights_that_do_not_fit(folder, four, tmp_path):
    for name, says in broken_weights(tmp_path, four).items():
        refused(*finetune(folder / "four", tmp_path / "run", tmp_path / name), says=[tmp_path / name, *says])
    assert not (tmp_path / "run").exists()


def test_labels_that_do_not_fit(folder, arms, tmp_path):
    out = tmp_path / "run"
    refused(*finetune(folder / "bare", out, "none", *SHAPE), says=[folder / "bare", "no labels"])
    # A value that the task does not have is refused when the label is preprocessed.
    refused("preprocess", "--data", folder / "brats", "--out", tmp_path / "bad", "--size", 24, "--labels", "0,1,2", says=["4"])
    # Test subjects that are trained on.
    split = read_json(arms["full"] / "split.json")
    split["train"].append(split["test"][0])
    (tmp_path / "split.json").write_text(json.dumps(split))
    args = finetune(folder / "four", out, "none", *SHAPE, "--split", tmp_path / "split.json")
    refused(*args, says=[tmp_path / "split.json", split["test"][0], "`train`", "`test`"])
    # Sides that are missing.
    for side, word in (("test", "test"), ("val", "validation")):
        (tmp_path / "split.json").write_text(json.dumps(read_json(arms["full"] / "split.json") | {side: []}))
        refused(*args, says=[f"no {word} subjects"])
    assert not out.exists()


def test_no_foreground(folder, tmp_path):
    """Labels that are background everywhere, as of a fraction without tumour."""
    import nibabel

    shutil.copytree(folder / "brats", tmp_path / "brats")
    for path in (tmp_path / "brats").glob("*/*_seg.nii.gz"):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    pretext3d("preprocess", "--data", tmp_path / "brats", "--out", tmp_path / "store", "--size", 24)
    refused(*finetune(tmp_path / "store", tmp_path / "run", "none", *SHAPE), says=[tmp_path / "store", "no foreground"])
    assert not (tmp_path / "run").exists()


def test_where_it_cannot_write(folder, arms, tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    refused(*finetune(folder / "four", file / "run", "none", *SHAPE), says=[file / "run"])
    before = (arms["scratch"] / "last.safetensors").read_bytes()
    refused(*finetune(folder / "four", arms["scratch"], "none", *SHAPE), says=[arms["scratch"], "--resume"])
    assert (arms["scratch"] / "last.safetensors").read_bytes() == before

    # A limit on the size of files stands for a full disk.
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    run = tmp_path / "run"
    args = finetune(folder / "four", run, "none", *SHAPE, *EVEN)
    refused(*args, says=[run, ".safetensors"], preexec_fn=small_disk, restore_signals=False)
    pretext3d("finetune", "--resume", run)
    assert_same(run, arms["scratch"])
