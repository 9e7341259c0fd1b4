#!/usr/bin/env python3
"""What a fault costs: commands on tiny generated data are killed, run out of disk, find read-only folders, clocks that jump and stores that
are damaged or changed under them, and are taken up again as a user would; what they leave is compared with an undisturbed run's, to the bit.

Writes a row a case into `benches/results/faults.json`, and `docs/faults.md` from all rows. Exits with 1 if anything was lost or differs."""
import argparse
import contextlib
import datetime
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import fault_cases as cases
import fault_clock as clocks
import fault_shared as shared
import fault_works as works
from common import ROOT, machine

RECORD = ROOT / "benches/results/faults.json"
PAGE = ROOT / "docs/faults.md"
COMPARED = ("every file that the command writes, byte by byte, but for seconds, memory, logs, locks and TensorBoard's event files: checkpoints, "
            "exported weights, metrics, stores, results, predictions, reports")

CASES = {
    "pretrain": (cases.kills(works.TRAININGS[0]), 40, "SIGKILL while `pretrain` runs, with a checkpoint after every step"),
    "finetune": (cases.kills(works.TRAININGS[1]), 40, "SIGKILL while `finetune` trains, tests and writes its record"),
    "preprocess": (cases.kills(works.PREPROCESS), 30, "SIGKILL while `preprocess` fills a store"),
    "export": (cases.kills(*works.EXPORTS), 40, "SIGKILL while `export` writes an encoder, and folders for nnU-Net, MONAI and Hugging Face"),
    "sweep": (cases.kills(works.THE_SWEEP), 30, "SIGKILL of a `sweep`, whose cells then end by themselves, or of its cells"),
    "predict": (cases.kills(works.PREDICT, works.PROBABILITIES), 30, "SIGKILL while `predict` writes labels and probabilities"),
    "report": (cases.kills(works.REPORT), 20, "SIGKILL while `report` draws"),
    "full-disk": (cases.full_disk, 30, "a file system without room for all that a command writes (ENOSPC)"),
    "read-only": (cases.read_only, len(cases.WORKS), "read-only folders, to write into and to read from"),
    "clock": (clocks.clock, 70, "the clock set hours or years back or ahead, past 2038 or to 1970 while a command runs or before it is taken up"),
    "times": (clocks.dated, 21, "files, locks too, whose times of change lie in 1969, 1970, past 2038 or ahead of the clock"),
    "truncated": (cases.truncated_store, 20, "a file of the store cut off before it is read"),
    "truncated-during": (cases.changed_store(cases.truncate, "truncations"), 30, "a file of the store cut off while it is read"),
    "replaced": (cases.changed_store(cases.replace, "replaced files"), 20, "a file of the store replaced by another scan's while it is read"),
    "rewritten": (cases.changed_store(cases.rewrite, "rewritten files"), 30, "voxels of a store's file written over while they are read"),
    "rebuilt": (cases.changed_store(cases.rebuild, "rebuilt stores"), 20, "the store made anew with other intensities while it is read"),
    "shared-sweep": (shared.shared_sweep, 24, "two processes in a sweep's folder, one or both of which are killed or stand still for a time"),
    "without-locks": (shared.sweep_without_locks, 10, "two processes in a sweep's folder on a file system that keeps no locks"),
    "two-mounts": (shared.two_mounts, 12, "two processes in two mounts of a sweep's folder, with locks in common (bindfs) and each its own (sshfs)"),
}


class Bench:
    """A case under way."""

    def __init__(self, folder, seed):
        self.dice, self.folder = random.Random(seed), folder / "place/work"
        self.inputs, self.known = folder / "inputs", {}

    def begin(self):
        self.counts, self.faults, self.begun, self.trials = Counter(), [], 0, 0

    def next(self, choice):
        """By turns, from trial to trial, disturbed or not."""
        return choice[self.begun % len(choice)]

    def undisturbed(self, work, rebuilt=False):
        if (work.name, rebuilt) not in self.known:
            self.known[work.name, rebuilt] = cases.Undisturbed(work, self.inputs, self.folder, rebuilt)
        return self.known[work.name, rebuilt]

    @contextlib.contextmanager
    def trial(self, what):
        """A trial, which counts, and with it what is counted in it, if a command was `disturbed` in it or something was found."""
        counts, self.hit = self.counts.copy(), False
        self.begun += 1
        try:
            yield
        except (cases.Fault, subprocess.TimeoutExpired) as fault:
            self.faults.append(f"{what}: {fault}")
            print(f"FAULT: {what}: {fault}", flush=True)
            self.hit = True
        self.trials += self.hit
        if not self.hit:
            self.counts = counts

    def disturbed(self, how):
        self.counts[how] += 1
        self.hit = True


def page(record):
    """The table for readers."""
    rows = []
    for row in (record["cases"][name] for name in CASES if name in record["cases"]):
        # What was done first, then what came of it.
        counts = sorted(((name, n) for name, n in row["counts"].items() if n), key=lambda count: count[0].startswith(("of the", "hidden")))
        tried = ", ".join(f"{n} {name}" for name, n in counts)
        rows.append(f"| {row['what']} | {tried} | {row['trials'] - row['faults']} of {row['trials']} | {row['date']}, {row['commit']} |")
    kills = sum(row["counts"].get("kills", 0) for row in record["cases"].values())
    return TEXT.format(kills=kills, rows="\n".join(rows), cpu=record["machine"]["cpu"])


TEXT = """# Faults

What `benches/faults.py` tried, on tiny generated data (volumes of 16^3, networks of two levels), and what came of it.
A case is a number of trials: a command is disturbed, then taken up again as a user would (the same command,
`--resume`, `predict --overwrite`), and what it leaves is compared with what the same command leaves undisturbed, file
by file and to the bit: checkpoints, exported weights, metrics, stores, results, predictions, reports; but for seconds,
memory, logs and the event files of TensorBoard. After every kill each file that is there must be whole, and nothing
that was done may be gone. {kills} kills in all: at moments drawn at random, as soon as a temporary file is seen, and
right before one of the calls by which a file is written safely (fsync, rename, link, flock). A trial in which nothing
was disturbed, since the command had ended before, opened the store only afterwards, or had a disk that was large
enough, does not count; `benches/results/faults.json` has the number of these.

| what happens | tried | equal, and nothing lost | when |
| --- | --- | --- | --- |
{rows}

{cpu}, one core for each command. `python3 benches/faults.py` repeats it; `--help` says how.

"Named": the run ended with an error that names the file or the store, and went on to the same bits once the store was
as it had been. "Not affected": it ended as if nothing had happened, since a file that is replaced stays readable as
it was, or since nobody read the file any more.

The clock that jumps is the calendar's, as the command sees it (`benches/clock.c`), not the one by which seconds are
measured. A trial is a command and one kind of jump. Commands that write the time down, into TensorBoard's event files,
wrote the new one. "Read": the command asked for the time after the jump. Of the others only the times of files may
change, which have a row of their own. Measured seconds are left out of every comparison, in the tables of a report as
well.

## What a fault may still cost

- `predict` does not go on after a kill: `--overwrite` does all scans again. `report` and `export` begin anew, too.
- Hidden files `.NAME.*.tmp` may stay beside what was being written. They may be deleted; in a run's folder and in a
  store's the next start does so.
- On file systems that keep no locks two processes can begin the same run. That is said at the start; each may fail,
  and the same command, run once more alone, mends it.
- The same goes for network file systems whose mounts keep locks apart, as those of sshfs do; there nothing is said.
- Voxels that were written over in place are noticed by the time of the file's last change, when it lies after that of
  `index.json` or changes while a run reads it. What a disk returns wrongly without an error `doctor --data` finds, and
  what was written over on a machine whose clock had been set back.
- Power cuts were not tried. Files and their folders are synced (fsync) before and after they are renamed.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), help="some cases alone")
    parser.add_argument("--times", type=int, help="how often each is tried (default: 10 to 70, by the case)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: %(default)s)")
    parser.add_argument("--no-record", action="store_true", help="print what happens, write no file")
    args = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.seed)
        works.make_inputs(bench.inputs)
        for name in args.case:
            case, times, what = CASES[name]
            bench.begin()
            case(bench, args.times or times)
            faults += len(bench.faults)
            description = machine()
            row = {"what": what, "counts": dict(bench.counts), "trials": bench.trials, "faults": len(bench.faults),
                   "not_disturbed": bench.begun - bench.trials, "date": str(datetime.date.today()), "commit": description["commit"]}
            print(f"{name}: {row}", flush=True)
            if not args.no_record:
                # Read again, as another case may have been run meanwhile.
                rows = json.loads(RECORD.read_text())["cases"] if RECORD.exists() else {}
                record = {"machine": description, "compared": COMPARED, "cases": {**rows, name: row}}
                RECORD.write_text(json.dumps(record, indent=1) + "\n")
                PAGE.write_text(page(record))
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
