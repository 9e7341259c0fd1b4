"""`pretext3d doctor` against what Python finds out about the same machine."""

import json
import os
import subprocess
from pathlib import Path

import torch
from helpers import BINARY

ROOT = Path(__file__).resolve().parents[2]


def doctor(*flags, **environment):
    done = subprocess.run(
        [BINARY, "doctor", *flags], capture_output=True, text=True, env={**os.environ, **environment}, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_doctor_agrees_with_python():
    report = json.loads(doctor("--json", OMP_NUM_THREADS="1"))
    release = torch.__version__.split("+")[0]
    assert report["libtorch"]["running"].split("+")[0] == release
    assert report["libtorch"]["compiled_with"].split("+")[0] == release
    assert report["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert report["cpu"]["threads"] == 1
    assert report["cpu"]["capability"] == torch.backends.cpu.get_cpu_capability()
    # PyTorch's own detection covers the x86 instructions.
    if torch.cpu._is_avx512_bf16_supported():
        assert report["cpu"]["bfloat16"] in ("avx512_bf16", "amx_bf16")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert report["memory"]["total"] == total
    assert 0 < report["memory"]["available"] <= total
    disk = os.statvfs(ROOT)
    assert abs(report["disk_free"] - disk.f_bavail * disk.f_frsize) < 1 << 30
    assert report["broken"] == []

    cuda = report["cuda"]
    assert cuda["libraries_loaded"] == torch.backends.cuda.is_built()
    assert cuda["devices"] == torch.cuda.device_count()
    if cuda["devices"]:
        for i, gpu in enumerate(cuda["gpus"]):
            properties = torch.cuda.get_device_properties(i)
            assert gpu["name"] == properties.name
            assert gpu["compute_capability"] == [properties.major, properties.minor]
    else:
        assert cuda["reason"].startswith("none: ")
    # `make` fetches the headers of both.
    assert report["backends"]["gloo"] is None
    assert (report["backends"]["nccl"] is None) == torch.backends.cuda.is_built()


def test_doctor_says_every_topic_in_words():
    lines = doctor().splitlines()
    for topic in ["pretext3d", "libtorch", "CPU", "CPU bfloat16", "threads", "memory", "disk", "GPU", "Gloo", "NCCL"]:
        assert any(line.startswith(topic) and len(line[14:].strip()) > 2 for line in lines), topic
