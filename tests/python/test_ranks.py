"""Several processes train as one: the same losses, one voice, and an end that all share, whatever happens to one of them."""
import os
import resource
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from helpers import command, pretext3d, read_json, rows, tensors
from test_resume import TIMING, assert_same, wait_for_epoch

# float32: bfloat16 would round what ranks sum.
SMALL = ["--levels", 2, "--filters", 2, "--device", "cpu", "--precision", "fp32", "--threads", 1]
# 20 steps. Five samples a step: no number of ranks here has equal shares of them.
STEPS = ["--steps", 5, "--epochs", 4, "--batch-size", 5, "--val-fraction", 0.34]
ROT = ["pretrain", "--task", "rot", "--rot-head", "gap", "--norm", "batch", "--dropout", 0.2, *SMALL, *STEPS]


@pytest.fixture(scope="module")
def data(brains, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "brains"
    pretext3d("preprocess", "--data", brains, "--out", folder, "--size", 16)
    return folder


def ranks(n, *args, limit=60, each=lambda rank: {}):
    """Starts `n` processes as torchrun does; `each`: further options of a rank's."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(n):
        env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "MASTER_ADDR": "localhost",
                            "MASTER_PORT": str(port), "PRETEXT3D_GROUP_LIMIT": str(limit), "OMP_NUM_THREADS": "1"}
        options = {"env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | each(rank)
        processes.append(subprocess.Popen(command(*args), **options))
    return processes


def ended(processes, code, speaks=0):
    """Waits for all; each must exit with `code`, and only one may have said anything: what it said."""
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), said
    assert all(text == ("", "") for rank, text in enumerate(said) if rank != speaks), said
    assert "panicked" not in said[speaks][1]
    return said[speaks][1]


def once(message, *parts):
    """Each part must be in the message, which must hold one error at most."""
    assert message.count("error: ") == (1 if parts else 0), message
    for part in parts:
        assert part in message, message


def run(n, folder, *args):
    """A finished run on `n` processes, which writes to `folder`/run."""
    args = [*args, "--out", folder / "run", *(["--weights", folder / "w"] if args[0] == "pretrain" else [])]
    if n == 1:
        pretext3d(*args)
    else:
        once(ended(ranks(n, *args), 0))
    return folder / "run"


def numbers(run):
    """What a run computed in each epoch, and at its end."""
    metrics = {name: [float(row[name]) for row in rows(run / "metrics.csv")] for name in rows(run / "metrics.csv")[0]}
    result = read_json(run / "result.json")
    metrics["score"] = [float(result.get("score", result.get("value")) or 0)]
    return {name: values for name, values in metrics.items() if name not in TIMING}


def assert_close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """Runs of rot by the number of processes, none of which was stopped."""
    folder = tmp_path_factory.mktemp("straight")
    return {n: run(n, folder / str(n), *ROT, "--data", data) for n in (1, 2, 4)}


def test_the_number_of_processes_changes_the_order_of_sums_alone(straight):
    one = numbers(straight[1])
    for n in (2, 4):
        found = numbers(straight[n])
        assert_close(found, one)
        # Loss, accuracy and norm of the gradient of the steps, and those of the validation.
        assert len(one["train/loss"]) == 4 and {"train/gradient_norm", "val/loss", "val/rot.accuracy"} <= one.keys()
        weights, wanted = (tensors(run / "last.safetensors")[0] for run in (straight[n], straight[1]))
        assert all(np.allclose(weights[name], value, rtol=1e-3, atol=1e-5) for name, value in wanted.items())


@pytest.mark.parametrize("args", [
    ["pretrain", "--task", "cpc,simclr,mae", "--cpc-grid", 3, "--simclr-crop", 8, "--mae-block", 4, "--accumulate", 2],
    ["finetune", "--task", "segmentation", "--weights", "none", "--patch", 8, "--deep-supervision", "--norm", "batch",
     "--class-weights", "1,2,3,4"],
], ids=["joint", "segmentation"])
def test_joint_tasks_accumulated_steps_and_tests_are_those_of_one_process(data, tmp_path, args):
    # Adam would make steps of the rounding in the gradient of a bias before a normalisation, which is 0.
    args = [*args, "--data", data, *SMALL, *STEPS, "--steps", 3, "--epochs", 2, "--optimizer", "sgd", "--lr", 0.01]
    found, wanted = (numbers(run(n, tmp_path / str(n), *args)) for n in (3, 1))
    assert_close(found, wanted)


def test_a_signal_to_one_stops_all_and_any_number_goes_on(data, straight, tmp_path):
    processes = ranks(2, *ROT, "--data", data, "--out", tmp_path / "run", "--weights", tmp_path / "w")
    wait_for_epoch(processes[0], tmp_path / "run", 1)
    processes[1].send_signal(signal.SIGTERM)
    assert "continue with" in ended(processes, 130)
    assert len(rows(tmp_path / "run/metrics.csv")) < 4, "the run was over before the signal came"
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    once(ended(ranks(2, "pretrain", "--resume", tmp_path / "run"), 0))
    assert_same(tmp_path / "run", straight[2])
    once(ended(ranks(3, "pretrain", "--resume", tmp_path / "other"), 0))
    assert_close(numbers(tmp_path / "other"), numbers(straight[1]))


@pytest.mark.parametrize("number, rank, limit", [(signal.SIGKILL, 1, 60), (signal.SIGKILL, 0, 60), (signal.SIGSTOP, 1, 3)])
def test_a_rank_that_is_gone_ends_the_others(data, straight, tmp_path, number, rank, limit):
    run = tmp_path / "run"
    processes = ranks(2, *ROT, "--data", data, "--out", run, "--weights", tmp_path / "w", limit=limit)
    wait_for_epoch(processes[0], run, 1)
    processes[rank].send_signal(number)
    started = time.monotonic()
    message = processes[1 - rank].communicate(timeout=60)[1]
    assert processes[1 - rank].returncode == 1 and time.monotonic() - started < 40
    once(message, f"rank {rank} does not answer")
    processes[rank].send_signal(signal.SIGCONT)
    processes[rank].communicate(timeout=60)
    assert processes[rank].returncode == (1 if number == signal.SIGSTOP else -number)
    if rank == 1:
        # Rank 0 saved the last whole step.
        assert "saved after" in message
        once(ended(ranks(2, "pretrain", "--resume", run), 0))
        assert_same(run, straight[2])


def test_a_full_disk_ends_all_with_one_message(data, straight, tmp_path):
    run = shutil.copytree(straight[2], tmp_path / "run")
    before = (run / "last.safetensors").read_bytes()

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2,) * 2)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    each = lambda rank: {"preexec_fn": small_disk, "restore_signals": False} if rank == 0 else {}
    once(ended(ranks(2, "pretrain", "--resume", run, "--epochs", 6, each=each), 1), "writing")
    assert (run / "last.safetensors").read_bytes() == before


def test_what_fails_on_one_rank_is_said_once(data, tmp_path):
    """A scan that is cut off in what rank 1 sees, and a step that no rank survives."""
    for rank in range(2):
        shutil.copytree(data, tmp_path / f"{rank}/store")
    for scan in (tmp_path / "1/store").glob("*.safetensors"):
        os.truncate(scan, scan.stat().st_size // 2)
    each = lambda rank: {"cwd": tmp_path / str(rank)}
    args = [*ROT, "--data", "store", "--out", tmp_path / "run", "--weights", tmp_path / "w"]
    once(ended(ranks(2, *args, each=each), 1), "rank 1: ")
    once(ended(ranks(2, *ROT, "--data", data, "--lr", 1e30, "--clip", 0, "--out", tmp_path / "nan"), 1), "its scans: brain")


def test_what_is_refused_is_refused_once(data, brains, tmp_path):
    once(ended(ranks(2, *ROT, "--data", tmp_path / "none"), 1), "no such folder")
    once(ended(ranks(2, *ROT, "--data", data, "--dropout", 2), 1), "--dropout must be")
    assert "--no-such-flag" in ended(ranks(2, *ROT, "--data", data, "--no-such-flag"), 2)
    once(ended(ranks(3, *ROT, "--data", data, "--batch-size", 2, "--out", tmp_path / "run"), 1), "--batch-size 2", "3 processes")
    # Two processes with different scans are not one run.
    shutil.copytree(data, tmp_path / "0/store")
    pretext3d("preprocess", "--data", brains, "--out", tmp_path / "1/store", "--size", 12)
    each = lambda rank: {"cwd": tmp_path / str(rank)}
    once(ended(ranks(2, *ROT, "--data", "store", "--out", tmp_path / "run", each=each), 1), "rank 1: --data is not that of rank 0")
    assert not (tmp_path / "run").exists()
    for args in (["sweep", "--config", tmp_path / "sweep.toml"], ["preprocess", "--data", data, "--out", tmp_path / "out"]):
        once(ended(ranks(2, *args), 1), "2 processes", "--shard")
