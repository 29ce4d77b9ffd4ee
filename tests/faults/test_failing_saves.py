"""Saves that fail, for a while or for ever."""

import contextlib
import resource
import shutil
import subprocess

import pytest
import runs

pytestmark = pytest.mark.faults("fault")


def largest_file(run, size):
    """No file of the process may grow beyond `size` bytes; -1: as large as it likes."""
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def small_files(run):
    largest_file(run, 200_000)
    return lambda: largest_file(run, -1)


def read_only(run):
    (run.workdir / "checkpoints").chmod(0o555)
    return lambda: (run.workdir / "checkpoints").chmod(0o755)


def a_file_instead(run):
    checkpoints, aside = run.workdir / "checkpoints", run.workdir / "aside"
    checkpoints.rename(aside)
    checkpoints.write_text("")

    def mend():
        if checkpoints.is_file():
            checkpoints.unlink()
        else:  # the run made it anew
            shutil.rmtree(checkpoints)
        aside.rename(checkpoints)

    return mend


def fill(disk):
    with open(disk / "ballast", "wb", buffering=0) as f, contextlib.suppress(OSError):
        while True:
            f.write(bytes(4096))
    return (disk / "ballast").unlink


def full_disk(run):
    return fill((run.workdir / "checkpoints").resolve().parent)


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("not possible here: mounting is not permitted")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


SPOILED = {
    "saves fail: files may not grow": small_files,
    "saves fail: a read-only directory": read_only,
    "saves fail: a file instead of the directory": a_file_instead,
    "saves fail: a full disk": full_disk,
}


@runs.cases("spoil", SPOILED)
def test_for_a_while(request, pretraining, workdir, happened, spoil):
    """A run counts saves that fail, and goes on."""
    if spoil == full_disk:
        workdir.mkdir()
        checkpoints = request.getfixturevalue("disk") / "checkpoints"
        checkpoints.mkdir()
        (workdir / "checkpoints").symlink_to(checkpoints)
    run = pretraining.run(workdir)
    run.at(35)
    run.saved(30)
    mend = spoil(run)
    run.at(95)
    good = runs.committed(workdir)
    mend()
    run.ends(0)
    assert spoil == a_file_instead or good == [30], "saves did not fail, or one is gone"
    counted = runs.highest(workdir, "failed_saves")
    assert counted >= 1, "failed saves are not counted in metrics.jsonl"
    pretraining.same(workdir)
    happened(f"{counted:.0f} failed saves counted; later saves good, same bits", 0)


def test_full_disk_for_all(pretraining, happened, disk):
    """a full disk for all of the work directory"""
    workdir = disk / "run"
    run = pretraining.run(workdir)
    run.at(35)
    run.saved(30)
    free = fill(disk)
    run.ends(2)
    assert runs.committed(workdir) == [30] and not runs.unfinished(workdir)
    free()
    lost = pretraining.went_back(workdir, 30)
    happened("status 2; went on from step 30 to the same bits", lost)


FOR_EVER = {  # where saves begin to fail, what is saved before, and a signal
    "saves fail for ever": (35, 30, None, "--config.save_every=10"),
    "the last save fails": (95, 90, None, "--config.save_every=30"),
    "SIGTERM where nothing can be saved": (35, 30, 35, "--config.save_every=30"),
    "SIGTERM during an evaluation whose save fails": (35, 30, 60, "--config.save_every=30"),
}


@runs.cases("step, good, sigterm_at, save_every", FOR_EVER)
def test_for_ever(pretraining, workdir, happened, step, good, sigterm_at, save_every):
    """A run ends with status 2, never 42 and never "saved", and its last good save stays."""
    run = pretraining.run(workdir, save_every)
    run.at(step)
    run.saved(good)
    before = runs.digest(workdir / "checkpoints" / str(good))
    largest_file(run, 200_000)
    if sigterm_at:
        run.at(sigterm_at)
        run.send(runs.TERM)
    run.ends(2, "sav")
    assert not sigterm_at or "is saved" not in run.text
    assert runs.digest(workdir / "checkpoints" / str(good)) == before
    assert not runs.unfinished(workdir)
    done = runs.reached(workdir)
    lost = pretraining.went_back(workdir, good)
    happened(f"status 2 at step {done}; went on from step {good} to the same bits", lost)


def test_work_directory_cannot_be_made(pretraining, tmp_path, happened):
    """a work directory that cannot be made"""
    (tmp_path / "read_only").mkdir(0o555)
    run = pretraining.run(tmp_path / "read_only" / "run")
    run.ends(2)
    happened(f"status 2: {run.last}")


def test_file_in_the_way(pretraining, workdir, happened):
    """a file in place of the work directory"""
    workdir.write_text("")
    run = pretraining.run(workdir)
    run.ends(2)
    assert workdir.is_file() and workdir.read_text() == ""
    happened(f"status 2: {run.last}")
