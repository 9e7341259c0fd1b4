"""Threads of libtorch: as many as the process is given, and asleep soon after they have nothing to do."""
import json
import os
import re
from pathlib import Path

import pytest
from helpers import pretext3d

CPU_GROUP = Path("/sys/fs/cgroup/cpu")


def doctor(**environment):
    """Threads of one operation, and how often each start of OpenMP in this process let a thread look for work."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    env |= {"OMP_DISPLAY_ENV": "verbose", **environment}
    done = pretext3d("doctor", "--json", env=env)
    return json.loads(done.stdout)["cpu"]["threads"], [int(n) for n in re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)]


def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise():
    threads, spins = doctor()
    assert spins[-1] == 1000 < spins[0] and threads == len(os.sched_getaffinity(0))
    assert doctor(GOMP_SPINCOUNT="77")[1] == [77]
    assert len(doctor(OMP_WAIT_POLICY="active")[1]) == 1
    assert doctor(OMP_NUM_THREADS="1")[0] == 1


def test_a_quota_of_processor_time_limits_the_threads():
    group = CPU_GROUP / f"pretext3d-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError as reason:
        pytest.skip(f"no control group of processors can be made here: {reason}")
    own = [line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":cpu:" in line]
    tasks = "cgroup.procs"
    try:
        (group / tasks).write_text(str(os.getpid()))
        assert doctor()[0] == 1
        assert doctor(OMP_NUM_THREADS="2")[0] == 2
    finally:
        (CPU_GROUP / own[0].lstrip("/") / tasks).write_text(str(os.getpid()))
        group.rmdir()
