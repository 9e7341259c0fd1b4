"""`preprocess --shard I/N`: stores that several processes fill, and stores of many scans."""
import fcntl
import shutil
import signal
import subprocess
import time

import nibabel
import numpy
import pytest
from helpers import command, pretext3d, read_json, refused

PEOPLE = 7
FLAGS = ("--size", 8, "--skip-bad", "--skip-duplicates", "--column", "age")


def scan(seed):
    rng = numpy.random.default_rng(seed)
    image = numpy.zeros((12, 13, 14), numpy.int16)
    image[2:-2, 2:-2, 2:-2] = rng.normal(400, 90, (8, 9, 10)).clip(1, 900)
    return image


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven people with two sessions each, ages, an atlas that passes for a scan, a copy of another's scan, and one that cannot be read."""
    root = tmp_path_factory.mktemp("people")
    for person in range(PEOPLE):
        for session in (1, 2):
            path = root / f"sub-{person}/ses-{session}/sub-{person}_ses-{session}_T1w.nii"
            path.parent.mkdir(parents=True)
            seed = 0 if (person, session) == (5, 2) else 1 + 2 * person + session
            nibabel.save(nibabel.Nifti1Image(scan(2 if seed == 0 else seed), numpy.diag([1.0, 2, 1, 1])), path)
    atlas = numpy.zeros((12, 13, 14), numpy.int16)
    atlas[3:9, 3:6, 3:9], atlas[3:9, 6:9, 3:9] = 2, 5
    nibabel.save(nibabel.Nifti1Image(atlas, numpy.diag([1.0, 2, 1, 1])), root / "sub-3/ses-1/sub-3_ses-1_regions.nii")
    (root / "sub-6/ses-1/sub-6_ses-1_T1w.nii").write_bytes(b"no scan" * 100)
    table = [f"sub-{person}\t{30 + 3 * person}" for person in range(PEOPLE)]
    (root / "participants.tsv").write_text("\n".join(["participant_id\tage", *table]) + "\n")
    return root


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The store that one process makes."""
    store = tmp_path_factory.mktemp("alone") / "store"
    pretext3d("preprocess", "--data", data, "--out", store, *FLAGS)
    return store


def shard(data, store, which, *flags):
    return ("preprocess", "--data", data, "--out", store, "--shard", which, *(flags or FLAGS))


def contents(store):
    """All but the hidden files that say who is at work and which shards are done."""
    return {path.name: path.read_bytes() for path in store.iterdir() if not path.name.startswith(".")}


def opened(store):
    return ("inspect", "--data", store, "--task", "rot", "--window", 8, "--n", 1, "--out", store.parent / "inspect")


def test_shards_make_what_one_process_makes(data, alone, tmp_path):
    store = tmp_path / "store"
    said = pretext3d(*shard(data, store, "2/3")).stdout
    assert "2 of 3 shards are not done: 1/3, 3/3" in said, said
    people = [{path.name.split("_")[0] for path in store.glob("*.safetensors")}]
    refused(*opened(store), says=["not complete", "1/3, 3/3;", "--shard 1/3", "without --shard"])

    # At the same time: neither takes away what the other is writing.
    others = [subprocess.Popen(command(*shard(data, store, which)), stdout=subprocess.PIPE, text=True) for which in ("1/3", "3/3")]
    said = [process.communicate(timeout=120)[0] for process in others]
    assert [process.returncode for process in others] == [0, 0], said
    assert sum("next: " in text for text in said) == 1, "one of them makes the store whole"
    assert contents(store) == contents(alone)
    assert not list(store.glob(".*.tmp"))
    index = read_json(store / "index.json")
    # The broken one, the atlas, and a copy with its original, as the ages differ.
    assert index["complete"] and len(index["subjects"]) == 2 * PEOPLE + 1 - 4 and len(index["left_out"]) == 4
    pretext3d(*opened(store))

    # Each person's scans lie in one shard.
    for which in ("1/3", "3/3"):
        part = tmp_path / which[0]
        pretext3d(*shard(data, part, which))
        people.append({path.name.split("_")[0] for path in part.glob("*.safetensors")})
    assert sorted(map(len, people)) == [2, 2, 3] and len(set.union(*people)) == PEOPLE

    # Run again, one of the shards or the whole: nothing changes.
    assert "(4 kept" in pretext3d(*shard(data, store, "2/3")).stdout
    assert contents(store) == contents(alone)
    pretext3d("preprocess", "--data", data, "--out", store, *FLAGS)
    assert contents(store) == contents(alone)


def test_killed_and_never_joined(data, alone, tmp_path):
    store = tmp_path / "store"
    process = subprocess.Popen(command(*shard(data, store, "1/2", "--threads", 1, *FLAGS)), stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(store.glob("*.safetensors")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    names = [entry["file"] for entry in read_json(alone / "index.json")["subjects"]]
    left, of_other = [store / f".{next(name for name in names if name.startswith(who))}.9-0123abcd.tmp" for who in ("sub-0", "sub-1")]
    left.write_bytes(b"half")
    of_other.write_bytes(b"half, of a shard at work")
    with open(store / ".lock", "r+") as lock:
        # As a shard at work has it.
        fcntl.flock(lock, fcntl.LOCK_SH)
        pretext3d(*shard(data, store, "1/2"))
        assert not left.exists() and of_other.exists()
        assert "all shards are done" in pretext3d(*shard(data, store, "2/2")).stdout
        refused(*opened(store), says=["all 2 shards are done", "joined"])
        refused("preprocess", "--data", data, "--out", store, *FLAGS, says=["another process is at work here"])
    pretext3d(*shard(data, store, "2/2"))
    assert contents(store) == contents(alone) and not list(store.glob(".*.tmp"))


def test_shards_that_do_not_fit_are_refused(data, tmp_path):
    store = tmp_path / "store"
    pretext3d(*shard(data, store, "1/4"))
    before = contents(store)
    refused(*shard(data, store, "2/5"), says=["--shard is I/4 there, I/5 was asked for", "--overwrite"])
    refused(*shard(data, store, "2/4", "--size", 9, *FLAGS[2:]), says=["grid.side is 8 there, 9 was asked for"])
    refused(*shard(data, store, "2/4", *FLAGS[:2], *FLAGS[3:]), says=["--skip-bad is true there, false was asked for"])
    refused(*shard(data, store, "2/4", *FLAGS[:4]), says=["columns is"])
    fewer = tmp_path / "fewer"
    shutil.copytree(data, fewer, ignore=shutil.ignore_patterns("sub-4"))
    refused(*shard(fewer, store, "2/4"), says=["number of subjects is 15 there, 13 was asked for"])
    assert contents(store) == before
    for wrong in ("0/4", "5/4", "3", "/4", "a/b"):
        refused(*shard(data, store, wrong), code=2, says=["expected I/N with I from 1 to N", "--array=1-N"])

    with open(store / ".lock-2-of-4", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 on elsewhere")
        lock.flush()
        refused(*shard(data, store, "2/4"), says=["shard 2/4", "process 7 on elsewhere"])
        pretext3d(*shard(data, store, "3/4"))
    # Another number of shards, begun anew; what is there is kept.
    assert "kept" in pretext3d(*shard(data, store, "1/2", "--overwrite", *FLAGS)).stdout
    refused(*opened(store), says=["of 2 shards 1 are not done: 2/2"])
    refused(*shard(data, store, "3/4"), says=["--shard is I/2 there"])

    # A scan that cannot be used is the shard's own affair; the store is made without it by whoever says so.
    store = tmp_path / "strict"
    strict = FLAGS[:2]
    pretext3d(*shard(data, store, "2/2", *strict))
    refused(*shard(data, store, "1/2", *strict), says=["1 scans of shard 1/2 cannot be used", "--skip-bad", "without --shard"])
    refused(*opened(store), says=["of 2 shards 1 are not done: 1/2"])
    pretext3d("preprocess", "--data", data, "--out", store, *strict, "--skip-bad")
    pretext3d(*opened(store))


def test_more_shards_than_people(data, alone, tmp_path):
    store = tmp_path / "store"
    for number in range(9, 0, -1):
        said = pretext3d(*shard(data, store, f"{number}/9")).stdout
        assert number < 8 or "0 of all" in said, said
    assert contents(store) == contents(alone)


def test_checksums(alone, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(alone, store)
    assert "all as they were written" in pretext3d("doctor", "--data", store).stdout
    entry = read_json(store / "index.json")["subjects"][3]
    path = store / entry["file"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused("doctor", "--data", store, says=[entry["file"], "other voxels", "1 files of 11"])
    path.unlink()
    refused("doctor", "--data", store, says=[entry["file"], "1 files of 11"])
