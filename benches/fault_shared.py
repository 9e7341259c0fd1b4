"""Two processes in one sweep's folder, as two machines would share it: one dies or stands still, clocks are apart, locks are not kept, or the
folder is mounted twice."""
import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import fault_works as works
from fault_cases import PATIENCE, Fault, alive, check_whole, compare, end, start
from fault_clock import JUMPS, Clock

WORK = works.THE_SWEEP
# How the work is shared: by halves, and where one also does what is the other's, as when the number of machines was changed.
SHARES = [("1/2", "2/2"), ("1/1", "2/2"), ("1/2", "1/1")]


def shard(share, folder, **more):
    return start([*works.SWEEP_COMMAND, "--shard", share], folder, **more)


def tree(process):
    """The sweep and its cells."""
    return [process.pid, *map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())]


def send(pids, number):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def die(process, dice):
    """SIGKILL to the sweep alone, whose cell then saves and ends, or to both, as when a machine dies. Its output, if it had not ended before."""
    if process.poll() is not None:
        return None
    pids = tree(process)
    # A process that has just ended by itself keeps its number until its exit is read, so that nobody else's is killed.
    send(pids if dice.random() < 0.5 else pids[:1], signal.SIGKILL)
    text = process.communicate(timeout=PATIENCE)[0]
    while any(map(alive, pids)):
        time.sleep(0.01)
    return text if process.returncode == -signal.SIGKILL else None


def done_cells(text):
    return [line.split(":")[0] for line in text.splitlines() if line.endswith(" s") and (": dice " in line or ": pretrained" in line)]


def one_killed(bench, known, processes, again):
    """One is killed, and started again once the other has ended; what it did not do is done then."""
    unlucky = bench.dice.randrange(2)
    texts = [die(processes[unlucky], bench.dice)]
    if texts[0] is not None:
        bench.disturbed("of these with one killed")
    texts.append(end(processes[1 - unlucky]))
    return texts + [end(again(unlucky)) if texts[0] is not None else end(processes[unlucky])]


def both_killed(bench, known, processes, again):
    """Both, one soon after the other; both are started again."""
    texts, left = [], []
    for number in bench.dice.sample(range(2), 2):
        text = die(processes[number], bench.dice)
        texts.append(text)
        left.append(processes[number] if text is None else number)
        time.sleep(bench.dice.uniform(0, 0.2) * known.seconds)
    if any(text is not None for text in texts):
        bench.disturbed("of these with one killed" if None in texts else "of these with both killed")
    left = [again(one) if isinstance(one, int) else one for one in left]
    return texts + [end(process) for process in left]


def one_frozen(bench, known, processes, again, killed=False):
    """One stands still with its cell, in the middle of whatever it does, and then goes on or is killed, and started again."""
    slow = processes[bench.dice.randrange(2)]
    number, pids = processes.index(slow), []
    if slow.poll() is None:
        pids = tree(slow)
        send(pids, signal.SIGSTOP)
        bench.disturbed("of these with one frozen")
    time.sleep(bench.dice.uniform(0.2, 1.5) * known.seconds)
    text = die(slow, bench.dice) if killed else None
    send(pids[1:] if text is not None else pids if slow.poll() is None else [], signal.SIGCONT)
    if text is not None:
        bench.disturbed("of these with one killed")
    return [text, end(processes[1 - number]), end(slow if text is None else again(number))]


def frozen_and_killed(bench, known, processes, again):
    return one_frozen(bench, known, processes, again, killed=True)


FATES = [one_killed, one_frozen, both_killed, frozen_and_killed]


def finish(bench, known, texts):
    """Nothing was done twice. A process alone then writes the report, with which all is as if it had done everything."""
    done = [cell for text in texts if text is not None for cell in done_cells(text)]
    if len(done) != len(set(done)):
        raise Fault(f"done twice: {done}")
    check_whole(WORK, bench.folder, 0)
    end(start(WORK.first, bench.folder))
    compare(WORK, bench.folder, known.state)


def shared_sweep(bench, times):
    """Half of the pairs have clocks that are far apart, and find lock files that a dead machine left."""
    known, clock = bench.undisturbed(WORK), Clock(bench.folder.parent)
    while bench.trials < times:
        fate, shares = bench.next(FATES), bench.next(SHARES)
        WORK.place(bench.inputs, bench.folder)
        environments = [os.environ, os.environ]
        with bench.trial(f"sweeps of {' and '.join(shares)}, {fate.__name__}"):
            if bench.dice.random() < 0.5:
                clock.set(JUMPS[bench.dice.choice(list(JUMPS))](bench.dice))
                environments[bench.dice.randrange(2)] = clock.environment
                bench.counts["of these with clocks apart"] += 1
                for cell in ("cells/rot-warmup-f1-s0", "pretrain/rot"):
                    (bench.folder / "out" / cell).mkdir(parents=True)
                    for name in (".lock", ".cell-lock"):
                        (bench.folder / "out" / cell / name).write_text("process 1 on a machine long gone")

            def begin(number):
                return shard(shares[number], bench.folder, env=environments[number])
            processes = [begin(0), begin(1)]
            bench.counts["pairs"] += 1
            time.sleep(bench.dice.uniform(0.05, 1) * known.seconds)
            finish(bench, known, fate(bench, known, processes, begin))


def hindered(bench, known, processes, says=""):
    """Both may fail where no lock keeps them apart, with a message; the command, run once more alone, mends all."""
    for process in processes:
        text = process.communicate(timeout=PATIENCE)[0]
        if "panicked" in text or says not in text or process.returncode not in (0, 1):
            raise Fault(f"exit {process.returncode}:\n{text}")
        bench.counts["of their processes with a failed cell"] += process.returncode != 0
    end(start(WORK.first, bench.folder))
    compare(WORK, bench.folder, known.state)


def sweep_without_locks(bench, times):
    """A file system that keeps no locks (every flock fails with ENOLCK), which is said. Both begin all cells and get in each other's way."""
    known = bench.undisturbed(WORK)
    no_locks = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "inject=flock:error=ENOLCK", "-o", "/dev/null"]
    if not shutil.which("strace"):
        raise SystemExit("error: --case without-locks needs strace")
    for _ in range(times):
        WORK.place(bench.inputs, bench.folder)
        with bench.trial("two processes without locks"):
            processes = [start(WORK.first, bench.folder, before=no_locks) for _ in range(2)]
            bench.disturbed("pairs")
            hindered(bench, known, processes, says="cannot be locked")


# A folder mounted twice, each mount with what the system keeps of files and their locks for itself, as on two machines.

def bindfs(folder, at):
    """Hands the locks on to the folder's own file system, as NFS does to its server."""
    return subprocess.Popen(["bindfs", "-f", "--multithreaded", "--enable-lock-forwarding", folder, at])


def sshfs(folder, at):
    """As over a network, with the server's end of SSH on this machine; each mount keeps locks for itself."""
    server = next(path for path in ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server") if Path(path).exists())
    ours, theirs = [os.pipe() for _ in range(2)]
    subprocess.Popen([server], stdin=ours[0], stdout=theirs[1])
    mount = subprocess.Popen(["sshfs", f":{folder}", at, "-f", "-o", "passive"], stdin=theirs[0], stdout=ours[1])
    for pipe in (*ours, *theirs):
        os.close(pipe)
    return mount


@contextlib.contextmanager
def mounted(mount, folder, places):
    servers = []
    try:
        for place in places:
            place.mkdir(exist_ok=True)
            servers.append(mount(folder, place))
            deadline = time.monotonic() + PATIENCE
            while not place.is_mount():
                if servers[-1].poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"error: {mount.__name__} cannot mount {folder}; --case two-mounts needs FUSE")
                time.sleep(0.01)
        yield
    finally:
        for place, server in zip(places, servers):
            subprocess.run(["fusermount", "-u", "-z", place])
            server.wait()


def two_mounts(bench, times):
    """Each process works in its own mount of the folder, half of the times where the mounts share locks."""
    known = bench.undisturbed(WORK)
    places = [bench.folder.parent / name for name in ("one", "other")]
    for _ in range(times):
        mount = bench.next([bindfs, sshfs])
        if not shutil.which(mount.__name__):
            raise SystemExit(f"error: --case two-mounts needs {mount.__name__}")
        WORK.place(bench.inputs, bench.folder)
        with bench.trial(f"two mounts, {mount.__name__}"), mounted(mount, bench.folder, places):
            processes = [shard(share, place) for share, place in zip(bench.next(SHARES), places)]
            bench.disturbed("pairs")
            bench.counts[f"of these on {mount.__name__}"] += 1
            if mount is bindfs:
                time.sleep(bench.dice.uniform(0.05, 1) * known.seconds)
                fate = bench.next([one_killed, one_killed, one_frozen, one_frozen])
                finish(bench, known, fate(bench, known, processes, lambda number: shard(bench.next(SHARES)[number], places[number])))
            else:
                hindered(bench, known, processes)
