"""Clocks that jump while a command runs, and files whose times are none that a clock would give; `clock.c` moves a command's clock alone."""
import mmap
import os
import struct
import subprocess
import time
from pathlib import Path

import fault_works as works
from fault_cases import Fault, compare, end, kill, start
from fault_works import files

HOUR, YEAR = 3600, 365 * 86400
# After this a signed number of 32 bits is too small for the seconds since 1970.
END_OF_32_BITS = 2**31
# By how many seconds a clock is ahead after a jump of each kind.
JUMPS = {
    "hours ahead": lambda dice: dice.uniform(1, 12) * HOUR,
    "hours back": lambda dice: -dice.uniform(1, 12) * HOUR,
    "past 2038": lambda dice: END_OF_32_BITS - time.time() + dice.uniform(0, 50) * YEAR,
    "years back": lambda dice: -dice.uniform(1, 20) * YEAR,
    "to 1970": lambda dice: dice.uniform(0, HOUR) - time.time(),
}
# Their number and that of the kinds of jumps have no common factor, so that each work meets each kind.
DISTURBED = [*works.TRAININGS, works.PREPROCESS, works.THE_SWEEP, works.PREDICT, works.REPORT, works.EXPORTS[1]]
# Seconds for which a record of a moment may lie beside it.
NEAR = HOUR / 4


class Clock:
    """The clock of the commands that are started with its `environment`."""

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        library, path = folder / "clock.so", folder / "clock"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        path.write_bytes(bytes(16))
        with open(path, "r+b") as file:
            self.shared = mmap.mmap(file.fileno(), 0)
        self.environment = {**os.environ, "LD_PRELOAD": str(library), "CLOCK_FILE": str(path)}

    def set(self, ahead):
        self.ahead = int(ahead)
        self.shared[:] = struct.pack("=qq", self.ahead, 0)

    def reads(self):
        """How often a command has read the clock since it was set to another time than the machine's."""
        return struct.unpack("=qq", self.shared)[1]

    def now(self):
        return time.time() + self.ahead


def event_files(folder):
    return set(folder.rglob("events.*"))


def event_times(path):
    """The time of each event of a TensorBoard file, its first field: a record is its length, 12 bytes, a field's number, the time."""
    data, at, times = path.read_bytes(), 0, []
    while at + 21 <= len(data):
        times += struct.unpack_from("<d", data, at + 13)
        at += 16 + struct.unpack_from("<Q", data, at)[0]
    return times


def clock(bench, times):
    """Each trial's clock jumps at a random moment. Half of the commands then run to their end; the others are killed and taken up, some after
    another jump. What a command then begins to write the time into must show the new one."""
    clock = Clock(bench.folder.parent)
    while bench.trials < times:
        work, kind = bench.next(DISTURBED), bench.next(list(JUMPS))
        known = bench.undisturbed(work)
        work.place(bench.inputs, bench.folder)
        def jump(kind):
            clock.set(JUMPS[kind](bench.dice))
            bench.disturbed(f"jumps {kind}")
        clock.set(0)
        before, right = event_files(bench.folder), [time.time]
        process = start(work.first, bench.folder, env=clock.environment)
        time.sleep(bench.dice.uniform(0, 0.8) * known.seconds)
        with bench.trial(f"{work.name}, clock {kind}"):
            if process.poll() is not None:
                end(process)
                continue
            jump(kind)
            right.append(clock.now)
            if bench.dice.random() < 0.5:
                time.sleep(bench.dice.uniform(0, 0.2) * known.seconds)
                killed = kill(process)
                read, before, right = clock.reads(), event_files(bench.folder), [clock.now]
                if bench.dice.random() < 0.5:
                    bench.counts["of these read by the command"] += read > 0
                    jump(bench.dice.choice(list(JUMPS)))
                bench.counts["of these before it was taken up"] += killed
                process = None if work.ended(bench.folder) else start(work.arguments(bench.folder), bench.folder, env=clock.environment)
            if process:
                end(process)
            bench.counts["of these read by the command"] += clock.reads() > 0
            found = [at for path in event_files(bench.folder) - before for at in event_times(path)]
            if wrong := [at for at in found if all(abs(at - now()) > NEAR for now in right)]:
                raise Fault(f"the clock shows {clock.now()}, an event file {wrong[0]}")
            bench.counts["of these found in its event files"] += any(abs(at - clock.now()) < NEAR for at in found)
            compare(work, bench.folder, known.state)
    if not bench.counts["of these found in its event files"]:
        raise SystemExit("error: no jump reached a command")


# What a file's time may be: of no clock at all, of a disk that was written elsewhere, of a machine whose clock was wrong.
TIMES = {
    "of 1969": lambda dice: -dice.randrange(1, 10 * HOUR),
    "of 1970": lambda dice: 0,
    "of the last second of 32 bits": lambda dice: END_OF_32_BITS - 1,
    "past 2038": lambda dice: END_OF_32_BITS + dice.randrange(50 * YEAR),
    "some years old": lambda dice: int(time.time()) - dice.randrange(20 * YEAR),
    "hours ahead": lambda dice: int(time.time()) + dice.randrange(12 * HOUR),
}


def date(folder, paths, when):
    for path in paths:
        at = when()
        os.utime(folder / path, (at, at))
        if int((folder / path).stat().st_mtime) != at:
            raise SystemExit(f"error: {folder} is on a file system that cannot hold the time {at}")


def dated(bench, times):
    """What a command reads, and after a kill what it has written, locks too, is given other times of its last change."""
    while bench.trials < times:
        work = bench.next(DISTURBED)
        known = bench.undisturbed(work)
        work.place(bench.inputs, bench.folder)
        # The time of a scan belongs to what is recorded of it in a store.
        scans = work is works.PREPROCESS
        with bench.trial(f"{work.name}, times of files"):
            for killed in (False, True):
                paths = [path for path in files(bench.folder) if not (scans and path.parts[0] == "scans")]
                kind = bench.dice.choice([*TIMES, "each another"])
                date(bench.folder, paths, lambda: TIMES[kind if kind in TIMES else bench.dice.choice(list(TIMES))](bench.dice))
                bench.disturbed("times given to all files")
                process = start(work.arguments(bench.folder), bench.folder)
                if not killed:
                    time.sleep(bench.dice.uniform(0.2, 0.9) * known.seconds)
                    bench.counts["of these before it was taken up"] += kill(process)
                    if work.ended(bench.folder):
                        break
                else:
                    end(process)
            compare(work, bench.folder, known.state)
