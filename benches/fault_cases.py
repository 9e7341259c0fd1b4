"""The faults of `faults.py`: how a command is killed, runs out of disk or finds another store, and what must hold then."""
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import fault_works as works
from fault_works import command, files

# Seconds that no command here takes on a busy machine either.
PATIENCE = 300
CALLS = "fsync,rename,linkat,flock,unlink,mkdir"


class Fault(Exception):
    """Something was lost, half written, or differs."""


def start(arguments, folder, before=(), **more):
    return subprocess.Popen([*map(str, before), *command(*arguments)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            **more)


def end(process, fails=False):
    """Output of a process that must end by itself, well or (`fails`) with an error and no panic."""
    text = process.communicate(timeout=PATIENCE)[0]
    check_exit(process, text, fails)
    return text


def check_exit(process, text, fails=False):
    if "panicked" in text or (process.returncode != 0 if not fails else process.returncode != 1 or "error" not in text):
        raise Fault(f"exit {process.returncode}:\n{text}")


def was_killed(process):
    """Whether a process was killed, or one that it started and then named; otherwise it must have ended well."""
    text = process.communicate(timeout=PATIENCE)[0]
    if process.returncode == -signal.SIGKILL or (process.returncode == 1 and f"killed by signal {int(signal.SIGKILL)}" in text):
        return True
    check_exit(process, text)
    return False


def check_whole(work, folder, before):
    """Every file is whole, and nothing that was done is lost."""
    try:
        state = work.state(folder)
    except Exception as error:
        raise Fault(f"half written: {error}") from error
    if (now := work.progress(folder)) < before:
        raise Fault(f"progress fell from {before} to {now}")
    return state


def compare(work, folder, reference):
    found = check_whole(work, folder, 0)
    differ = sorted(name for name in found.keys() | reference.keys() if found.get(name) != reference.get(name))
    if differ:
        raise Fault(f"differ from the undisturbed run's: {', '.join(differ[:5])} ({len(differ)} of {len(reference)} files)")
    left = work.leftovers(folder)
    if own := [path for path in left if work.tidies and path.parts[0] == work.out]:
        raise Fault(f"left behind: {own[0]}")
    return len(left)


class Undisturbed:
    """What a work leaves, how long it takes, and how often it makes the calls that a file's writing consists of."""

    def __init__(self, work, inputs, folder, rebuilt):
        work.place(inputs, folder)
        if rebuilt:
            make_store_anew(folder)
        began = time.monotonic()
        end(start(work.first, folder))
        self.seconds = time.monotonic() - began
        self.state = work.state(folder)
        self.bytes = sum((folder / path).stat().st_size for path in files(folder) if path not in work.before)
        self.calls = 0
        if shutil.which("strace") and not rebuilt:
            work.place(inputs, folder)
            end(start(work.first, folder, before=["strace", "-f", "-qq", "--seccomp-bpf", f"--trace={CALLS}", "--output=calls"]))
            by_thread = Counter(line.split()[0] for line in (folder / "calls").read_text().splitlines())
            self.calls = max(by_thread.values())


# Moments of a kill. Each gives whether it came before the process had ended.

def at_random(work, folder, known, dice):
    process = start(work.arguments(folder), folder)
    time.sleep(dice.uniform(0, known.seconds))
    return kill(process)


def as_a_file_is_written(work, folder, known, dice):
    """As soon as a temporary file is seen that was not there, after so many others."""
    seen, wanted = set(work.leftovers(folder)), dice.randint(1, 12)
    process = start(work.arguments(folder), folder)
    while process.poll() is None:
        new = set(work.leftovers(folder)) - seen
        seen |= new
        wanted -= len(new)
        if wanted <= 0:
            break
    return kill(process)


def at_a_call(work, folder, known, dice):
    """Before the n-th of the calls that write files safely is made."""
    n = dice.randint(1, max(1, known.calls))
    inject = f"inject={CALLS}:signal=SIGKILL:when={n}"
    process = start(work.arguments(folder), folder, before=["strace", "-f", "-qq", "--seccomp-bpf", "-e", inject, "-o", "/dev/null"])
    return was_killed(process)


MOMENTS = {"at random": at_random, "as a file is written": as_a_file_is_written, "call": at_a_call}


def kill(process):
    """Kills the process alone, as the system does for want of memory; its children, a sweep's cells, are told and end by themselves."""
    children = []
    if process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    killed = was_killed(process)
    while any(alive(child) for child in children):
        time.sleep(0.01)
    return killed


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def kills(*disturbed):
    """A case: each trial kills a command once to six times and then lets it end."""
    def case(bench, times):
        while bench.counts["kills"] < times:
            work = bench.next(disturbed)
            known = bench.undisturbed(work)
            moment = bench.dice.choice([name for name in MOMENTS if name != "call" or known.calls])
            work.place(bench.inputs, bench.folder)
            with bench.trial(f"{work.name}, killed {moment}"):
                before = 0
                for _ in range(bench.dice.randint(1, 6)):
                    if work.ended(bench.folder) or not MOMENTS[moment](work, bench.folder, known, bench.dice):
                        break
                    bench.disturbed("kills")
                    check_whole(work, bench.folder, before)
                    before = work.progress(bench.folder)
                if not work.ended(bench.folder):
                    end(start(work.arguments(bench.folder), bench.folder))
                bench.counts["hidden temporary files left"] += compare(work, bench.folder, known.state)
    return case


# Disks and folders, in a user and mount namespace of their own, which needs no rights.

def in_namespace(script, folder, *arguments):
    """Runs a shell script that may mount; $1 and so on are the arguments."""
    return subprocess.Popen(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *map(str, arguments)],
                            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


FULL = """mkdir disk && mount -t tmpfs -o size=$1 tmpfs disk && cp -a work/. disk && cd disk && shift || exit 99
"$@"; code=$?; cd .. && rm -rf work && cp -a disk work; exit $code"""
# From the system, and from `predict --probabilities`, which asks before it begins.
NO_ROOM = ["No space left", "KiB on disk until they are written, found"]


def full_disk(bench, times):
    """A disk that holds the inputs and a part of what the work needs: it fails, and goes on once there is room. If it does not fail, there was room,
    and nothing is missing."""
    outer, inner = bench.folder.parent / "outer", bench.folder.parent / "outer/work"
    while bench.counts["full disks"] < times:
        work = bench.next(WORKS)
        known = bench.undisturbed(work)
        shutil.rmtree(outer, ignore_errors=True)
        work.place(bench.inputs, inner)
        # A tmpfs counts the whole pages of files, and no folders.
        held = sum(-(-(inner / path).stat().st_size // 4096) * 4096 for path in files(inner))
        size = held + int(bench.dice.uniform(0.02, 1) * known.bytes)
        with bench.trial(f"{work.name}, full disk"):
            process = in_namespace(FULL, outer, size, *command(*work.first))
            text = process.communicate(timeout=PATIENCE)[0]
            if process.returncode == 0:
                compare(work, inner, known.state)
                continue
            bench.disturbed("full disks")
            check_exit(process, text, fails=True)
            if not any(says in text for says in NO_ROOM):
                raise Fault(text)
            check_whole(work, inner, 0)
            if left := work.leftovers(inner):
                raise Fault(f"left behind: {left[0]}")
            shutil.rmtree(bench.folder, ignore_errors=True)
            shutil.move(inner, bench.folder)
            end(start(work.arguments(bench.folder), bench.folder))
            compare(work, bench.folder, known.state)


READ_ONLY = 'mkdir -p "$1" && mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && "$@"'


def read_only(bench, times):
    """Where a command would write: an error at once that names the folder. What it reads may be read-only."""
    for _ in range(times):
        work = bench.next(WORKS)
        known = bench.undisturbed(work)
        work.place(bench.inputs, bench.folder)
        with bench.trial(f"{work.name}, read-only"):
            text = end(in_namespace(READ_ONLY, bench.folder, work.out, *command(*work.first)), fails=True)
            if "Read-only file system" not in text or work.out not in text:
                raise Fault(text)
            if work.state(bench.folder):
                raise Fault("wrote elsewhere")
            bench.disturbed("folders to write")
            shutil.rmtree(bench.folder / work.out)
            inputs = [name for name in ("scans", "store", *work.needs) if (bench.folder / name).is_dir()]
            for name in inputs:
                end(in_namespace(READ_ONLY, bench.folder, name, *command(*work.first)))
                compare(work, bench.folder, known.state)
                work.place(bench.inputs, bench.folder)
                bench.disturbed("folders to read")


# Stores that are damaged, or change while they are read.

def victim(folder, dice):
    return dice.choice(sorted((folder / "store").glob("*.safetensors")))


def truncate(path, dice):
    os.truncate(path, dice.randrange(path.stat().st_size))


def replace(path, dice):
    """Another scan of the same shape takes the file's place, by renaming, as our own program writes."""
    other = dice.choice([other for other in sorted(path.parent.glob("*.safetensors")) if other != path])
    shutil.copy2(other, path.with_name("new"))
    os.replace(path.with_name("new"), path)


def rewrite(path, dice):
    """Other voxels in the same file, as `cp` and `rsync --inplace` write."""
    with open(path, "r+b") as file:
        file.seek(-path.stat().st_size // 2, os.SEEK_END)
        file.write(dice.randbytes(path.stat().st_size // 2) if dice.random() < 0.5 else bytes(path.stat().st_size // 2))


def make_store_anew(folder):
    """With other intensities."""
    works.run("preprocess", "--data", "scans", "--out", "store", "--size", 16, "--intensity", "z-score", "--overwrite", folder=folder)


def rebuild(path, dice):
    make_store_anew(path.parent.parent)


def truncated_store(bench, times):
    """A file cut off before a command reads it: an error that names it. Once it is whole again, the command runs."""
    for _ in range(times):
        work = bench.next(READERS)
        known = bench.undisturbed(work)
        work.place(bench.inputs, bench.folder)
        path = victim(bench.folder, bench.dice)
        with bench.trial(f"{work.name}, truncated store"):
            whole = path.read_bytes()
            truncate(path, bench.dice)
            text = end(start(work.first, bench.folder), fails=True)
            if path.name not in text:
                raise Fault(text)
            bench.disturbed("truncated files")
            path.write_bytes(whole)
            end(start(work.arguments(bench.folder), bench.folder))
            compare(work, bench.folder, known.state)


def changed_store(change, counted):
    """A case: the store changes at a random moment. Either the run is not affected at all, or it ends with an error that names the store's file;
    taken up with the store as it was, it is equal. A store made anew may have been opened afterwards; then all is of the new one."""
    def case(bench, times):
        while bench.counts[counted] < times:
            work = bench.next(READERS)
            known = bench.undisturbed(work)
            # `predict` refuses other intensities than it was trained on.
            other = bench.undisturbed(work, rebuilt=True) if change is rebuild and work is not works.PREDICT_STORE else None
            work.place(bench.inputs, bench.folder)
            with bench.trial(f"{work.name}, {counted}"):
                path = victim(bench.folder, bench.dice)
                shutil.copytree(path.parent, bench.folder.parent / "as it was", dirs_exist_ok=True)
                process = start(work.first, bench.folder)
                time.sleep(bench.dice.uniform(0.2, 1) * known.seconds)
                if process.poll() is not None:
                    end(process)
                    continue
                change(path, bench.dice)
                text = process.communicate(timeout=PATIENCE)[0]
                if other and process.returncode == 0 and work.state(bench.folder) == other.state:
                    continue
                bench.disturbed(counted)
                if process.returncode == 0:
                    bench.counts["of these not affected"] += 1
                elif process.returncode != 1 or "panicked" in text or "store" not in text:
                    raise Fault(f"exit {process.returncode}:\n{text}")
                else:
                    bench.counts["of these named"] += 1
                shutil.rmtree(path.parent)
                shutil.move(bench.folder.parent / "as it was", path.parent)
                if process.returncode:
                    end(start(work.arguments(bench.folder), bench.folder))
                compare(work, bench.folder, known.state)
    return case


WORKS = [*works.TRAININGS, works.PREPROCESS, *works.EXPORTS, works.THE_SWEEP, works.PREDICT, works.PROBABILITIES, works.REPORT]
READERS = [*works.TRAININGS, works.THE_SWEEP, works.PREDICT_STORE]
