"""A run that was stopped, killed or ran out of disk, and then resumed, gives the same bits as one that never stopped."""
import random
import resource
import shlex
import signal
import subprocess
import time

import pytest
import torch
from helpers import BINARY, command, pretext3d, read_json, rows, tensors

EPOCHS = 6
# Dropout, so that libtorch's own generator counts; a cosine schedule, so that the position in it counts.
SETTINGS = ["--filters", 8, "--levels", 3, "--dropout", 0.1, "--rot-head", "gap", "--batch-size", 2, "--draws", 4,
            "--val-fraction", 0.34, "--epochs", EPOCHS, "--device", "cpu", "--threads", 2]
TIMING = {"seconds", "samples_per_s", "wait_share"}


def arguments(store, folder, task="rot", extra=()):
    return ["pretrain", "--data", store, "--task", task, *SETTINGS, *extra, "--out", folder / "run", "--weights", folder / "w"]


def start(*args, **kwargs):
    return subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def state(run):
    """Everything that a run computed: both checkpoints, and the metrics but for what depends on the clock."""
    checkpoints = {}
    for which in ("last", "best"):
        values, metadata = tensors(run / f"{which}.safetensors")
        checkpoints |= {f"{which}/{name}": tensor for name, tensor in values.items()}
        checkpoints[f"{which}/progress"] = metadata["progress"]
    metrics = [{name: value for name, value in row.items() if name not in TIMING} for row in rows(run / "metrics.csv")]
    assert metrics and len(metrics[0]) > 4
    return checkpoints, metrics


def assert_same(run, straight):
    (found, found_metrics), (wanted, wanted_metrics) = state(run), state(straight)
    assert found_metrics == wanted_metrics
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        assert same, f"{name} differs"


def wait_for_epoch(process, run, epoch):
    """Waits until the run has recorded an epoch."""
    deadline = time.monotonic() + 120
    while not ((run / "metrics.csv").exists() and len(rows(run / "metrics.csv")) >= epoch):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def straight(store, tmp_path_factory):
    """The folder of a run that never stopped, and the seconds it took."""
    folder = tmp_path_factory.mktemp("straight")
    started = time.monotonic()
    pretext3d(*arguments(store, folder))
    return folder / "run", time.monotonic() - started


def test_another_seed_is_another_run(store, straight, tmp_path):
    """The comparison that the other tests rest on can fail."""
    pretext3d(*arguments(store, tmp_path, extra=["--seed", 1]))
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "run", straight[0])


def test_threads_do_not_matter(store, straight, tmp_path):
    args = arguments(store, tmp_path)
    args[args.index("--threads") + 1] = 4
    pretext3d(*args, "--prefetch", 1)
    assert_same(tmp_path / "run", straight[0])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["rot", "rpl", "jig", "cpc", "exe", "mae", "gen", "vf", "simclr", "rot,exe", "mae,rot"])
def test_more_epochs_later_equal_all_at_once(store, tmp_path, task):
    """N epochs, then N more. The schedule is constant: a cosine's length would follow --epochs, and so would a warm-up of half of them."""
    (tmp_path / "once").mkdir()
    (tmp_path / "twice").mkdir()
    constant = ["--schedule", "constant", "--warmup-epochs", 0.5]
    once = arguments(store, tmp_path / "once", task, constant)
    twice = arguments(store, tmp_path / "twice", task, constant)
    once[once.index("--epochs") + 1], twice[twice.index("--epochs") + 1] = 4, 2
    pretext3d(*once)
    pretext3d(*twice)
    pretext3d("pretrain", "--resume", tmp_path / "twice/run", "--epochs", 4, "--threads", 1)
    assert_same(tmp_path / "twice/run", tmp_path / "once/run")


def test_a_finished_run_is_left_alone_until_it_is_given_more_epochs(store, tmp_path):
    """Its export may have been replaced by that of a later run."""
    run, weights = tmp_path / "run", tmp_path / "w.pt"
    pretext3d(*arguments(store, tmp_path, extra=["--schedule", "constant"]))
    weights.write_text("those of another run")
    done = pretext3d("pretrain", "--resume", run)
    epochs = len(rows(run / "metrics.csv"))
    assert f"finished before, {epochs} epochs" in done.stderr and f"export --run {run}" in done.stderr
    assert weights.read_text() == "those of another run"
    pretext3d("pretrain", "--resume", run, "--epochs", epochs + 1)
    assert len(rows(run / "metrics.csv")) == epochs + 1 and weights.read_bytes()[:2] == b"PK"
    # Killed after its last epoch: what follows it is not done yet.
    (run / "result.json").unlink()
    weights.unlink()
    pretext3d("pretrain", "--resume", run)
    assert weights.exists() and (run / "result.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_tells_how_to_resume(store, straight, tmp_path, number):
    process = start(*arguments(store, tmp_path))
    wait_for_epoch(process, tmp_path / "run", 1)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    assert "panicked" not in message
    assert len(rows(tmp_path / "run/metrics.csv")) < EPOCHS, "the run was over before the signal came"
    resume = shlex.split(next(line for line in message.splitlines() if "--resume" in line).split("with:")[1])
    assert resume[0] == str(BINARY), "the command as it was called, to be copied"
    pretext3d(*resume[1:])
    assert_same(tmp_path / "run", straight[0])


@pytest.mark.slow
def test_killed_at_random_moments(store, straight, tmp_path):
    run, (reference, seconds) = tmp_path / "run", straight
    moments = random.Random(5)
    killed = 0
    for _ in range(8):
        resume = ["pretrain", "--resume", run] if (run / "config.json").exists() else arguments(store, tmp_path)
        process = start(*resume)
        try:
            # Well below the whole time: the machine may be less busy now than when that was taken.
            process.communicate(timeout=moments.uniform(0.05, 0.3) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
        else:
            assert process.returncode == 0
    assert killed >= 1
    pretext3d("pretrain", "--resume", run)
    assert_same(run, reference)
    leftovers = [path.name for path in run.iterdir() if path.name.endswith(".tmp")]
    assert len(leftovers) <= killed


def test_full_disk_loses_no_checkpoint(store, straight, tmp_path):
    run = tmp_path / "run"
    process = start(*arguments(store, tmp_path))
    wait_for_epoch(process, run, 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    before = {which: (run / f"{which}.safetensors").read_bytes() for which in ("last", "best")}
    limit = len(before["last"]) // 2

    # A limit on the size of files stands for a full disk: writing beyond it fails (and would kill by default).
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    failed = pretext3d("pretrain", "--resume", run, fails=1, preexec_fn=small_disk, restore_signals=False)
    assert ".safetensors" in failed.stderr and str(run) in failed.stderr
    assert {which: (run / f"{which}.safetensors").read_bytes() for which in before} == before
    assert not [path for path in run.iterdir() if path.name.endswith(".tmp")]
    pretext3d("pretrain", "--resume", run)
    assert_same(run, straight[0])


def test_settings_that_change_results_cannot_change(store, straight):
    for flag, value in (("--lr", 0.5), ("--batch-size", 3), ("--seed", 9), ("--task", "exe")):
        failed = pretext3d("pretrain", "--resume", straight[0], flag, value, fails=1)
        assert flag in failed.stderr and str(straight[0]) in failed.stderr, failed.stderr


def test_the_same_run_from_its_own_configuration(store, straight, tmp_path):
    """`config.json` reproduces the run; so do the same settings as TOML."""
    settings = read_json(straight[0] / "config.json")["settings"]
    pretext3d("pretrain", "--config", straight[0] / "config.json", "--out", tmp_path / "json", "--weights", tmp_path / "w")
    assert_same(tmp_path / "json", straight[0])
    lines = [f"{name} = {toml(value)}" for name, value in settings.items() if name not in ("out", "weights")]
    (tmp_path / "run.toml").write_text("\n".join(lines))
    args = ["--config", tmp_path / "run.toml", "--out", tmp_path / "toml", "--weights", tmp_path / "w"]
    pretext3d("pretrain", *args)
    assert_same(tmp_path / "toml", straight[0])


def toml(value):
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, (int, float)) else '"' + str(value) + '"'
