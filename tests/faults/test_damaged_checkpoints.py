"""Damaged checkpoints, and work directories that are not as the run left them."""

import os
import random
import re
import shutil
import signal

import pytest
import runs
from runs import digest

pytestmark = pytest.mark.faults("fault")


def largest(place):
    return max((p for p in place.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def halve(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(checkpoints):
    for file in (checkpoints / "90").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def delete_metadata(checkpoints):
    (checkpoints / "90" / "state" / "_METADATA").unlink()


def flip_a_bit(checkpoints, seed):
    draw, file = random.Random(seed), largest(checkpoints / "90")
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data) // 4, len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def rename_the_older(checkpoints):
    shutil.rmtree(checkpoints / "90")
    shutil.copytree(checkpoints / "60", checkpoints / "90")


def add_half_a_save(checkpoints):
    place = checkpoints / "100.orbax-checkpoint-tmp-1234"
    shutil.copytree(checkpoints / "90", place)
    largest(place).unlink()


def tear_the_records(checkpoints):
    with (checkpoints.parent / "metrics.jsonl").open("a") as f:
        f.write('{"step": 91, "lo')


# what is done to the checkpoints of steps 60 and 90, where training goes on, and what it names
DAMAGE = {
    "a truncated file in the newest checkpoint": (lambda c: halve(largest(c / "90")), 60, 90),
    "empty files in the newest checkpoint": (empty, 60, 90),
    "a deleted file of the newest checkpoint": (lambda c: largest(c / "90").unlink(), 60, 90),
    "no _METADATA in the newest checkpoint": (
        lambda c: (c / "90/state/_METADATA").unlink(),
        60,
        90,
    ),
    "a bit of the newest checkpoint": (lambda c: flip_a_bit(c, 1), 60, 90),
    "another bit of the newest checkpoint": (lambda c: flip_a_bit(c, 2), 60, 90),
    "an old checkpoint named as a new one": (rename_the_older, 60, None),
    "a stray file among the checkpoints": (lambda c: (c / "x").write_text("x"), 90, None),
    "an empty step directory": (lambda c: (c / "100").mkdir(), 90, 100),
    "a directory whose name is no step": (lambda c: shutil.copytree(c / "90", c / "b"), 90, None),
    "a half-written checkpoint": (add_half_a_save, 90, None),
    "a torn line in metrics.jsonl": (tear_the_records, 90, None),
}
NAME = r"(checkpoints/|step ){}\b"  # of a checkpoint in a message


@runs.cases("hurt, expected, named", DAMAGE)
def test_damaged(pretraining, workdir, happened, hurt, expected, named):
    """Training goes on from the newest good checkpoint, and names a damaged one."""
    hurt(pretraining.halfway(workdir))
    run = pretraining.run(workdir)
    run.ends(0)
    assert run.start == expected
    before = re.split(r"\bstep \d+/", run.text)[0]
    assert named is None or re.search(NAME.format(named), before), f"not named: {before[-300:]}"
    pretraining.same(workdir)
    what = f"{named} is named, " if named else ""
    happened(f"{what}went on from step {expected} to the same bits", 90 - expected)


def test_all_damaged(pretraining, workdir, happened):
    """all checkpoints damaged"""
    checkpoints = pretraining.halfway(workdir)
    for step in runs.committed(workdir):
        halve(largest(checkpoints / str(step)))
    before = digest(workdir)
    pretraining.run(workdir).ends(2, NAME.format(60), NAME.format(90))
    assert not before.keys() - digest(workdir).keys()
    happened("status 2, names them, deletes nothing, does not start afresh")


def test_another_config(pretraining, workdir, happened):
    """the work directory of another config"""
    pretraining.halfway(workdir)
    before = digest(workdir)
    changes = ("--config.optimizer.clip=1.0", "--config.seed=7")
    pretraining.run(workdir, *changes).ends(2, r"optimizer\.clip", "seed")
    assert digest(workdir) == before
    happened("status 2, names both fields, changes nothing")


def test_damaged_config(pretraining, workdir, happened):
    """a damaged config.json"""
    pretraining.halfway(workdir)
    (workdir / "config.json").write_text("{")
    pretraining.run(workdir).ends(2, r"config\.json")
    happened("status 2, names the file")


def test_second_process(pretraining, workdir, happened):
    """a second process in the work directory"""
    run = pretraining.run(workdir)
    run.at(30)
    run.send(signal.SIGSTOP)  # it holds the directory, however long the second takes to start
    pretraining.run(workdir).ends(2)
    run.send(signal.SIGCONT)
    run.ends(0)
    pretraining.same(workdir)
    happened("status 2, in one sentence; the first is not disturbed", 0)
