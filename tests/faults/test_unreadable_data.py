"""Data that cannot be read, or that change or stay away while a run reads them."""

import contextlib
import os
import shutil
import threading
import time

import numpy as np
import pytest
import runs
from PIL import Image
from runs import highest, reached

pytestmark = pytest.mark.faults("fault")
MEASURED = ("--config.data.mean=auto", "--config.data.std=auto")


@pytest.fixture
def pictures(tmp_path):
    """300 small pictures in two classes."""
    rng, files = np.random.default_rng(1), []
    for i in range(300):
        folder = tmp_path / "pictures" / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{i:03}.png")
        pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((72, 72)).save(files[-1])
    return files


@pytest.fixture
def on_pictures(tmp_path, pictures):
    """Make a command of two epochs, 74 steps, on these pictures."""

    source = f"--config.data.train.source=folder:{tmp_path / 'pictures'}"
    given = (source, *runs.NO_EVALUATORS)

    def make(*changes) -> runs.Command:
        more = (*given, *changes)
        return runs.Command(tmp_path, "undisturbed", "vit_base", more, 74, 10, steps_per_epoch=37)

    return make


def named(workdir, *files):
    """Expect these files in the list of what could not be read."""
    names = (workdir / "unreadable.txt").read_text()
    for file in files:
        assert file.name in names


def test_few_broken(on_pictures, pictures, workdir, happened):
    """a few broken pictures"""
    pictures[17].write_bytes(b"")
    pictures[100].write_bytes(pictures[100].read_bytes()[:500])
    broken = on_pictures(*MEASURED)
    named(broken.undisturbed, pictures[17], pictures[100])
    share = highest(broken.undisturbed, "unreadable")
    assert share > 0
    run = broken.run(workdir)
    run.at(47)
    run.send(runs.KILL)
    run.ended()
    done, start = reached(workdir), broken.finish(workdir)
    broken.same(workdir)
    text = f"others take their places ({share:.1%}), named; the same after SIGKILL"
    happened(text, done - start)


def test_many_broken(on_pictures, pictures, workdir, happened):
    """a fifth of the pictures broken"""
    for file in pictures[::5]:
        file.write_bytes(file.read_bytes()[:300])
    run = on_pictures(*MEASURED).run(workdir)
    run.ends(2, "unreadable|cannot be read|max_bad_fraction")
    happened(f"status 2: {run.last}")


def test_all_broken(on_pictures, pictures, workdir, happened):
    """no picture can be read"""
    for file in pictures:
        file.write_bytes(b"<html>404</html>")
    run = on_pictures("--config.data.max_bad_fraction=1.0").run(workdir)
    run.ends(2, "can be read|cannot be read")
    happened(f"status 2: {run.last}")


def test_changing(on_pictures, pictures, workdir, happened):
    """pictures change during the run"""
    run = on_pictures("--config.data.max_bad_fraction=.05").run(workdir)
    run.at(10)
    pictures[3].unlink()
    pictures[50].write_bytes(b"rubbish")
    pictures[77].unlink()
    pictures[77].mkdir()
    shutil.copy(pictures[0], pictures[0].with_name("new.png"))
    run.ends(0)
    named(workdir, pictures[3], pictures[50], pictures[77])
    share = highest(workdir, "unreadable")
    happened(f"status 0; the three are named, {share:.1%} substituted", 0)


def test_folder_goes(on_pictures, tmp_path, workdir, happened):
    """the folder goes during the run"""
    run = on_pictures("--config.epochs=200").run(workdir)
    run.at(10)
    (tmp_path / "pictures").rename(tmp_path / "gone")  # as an unmounted disk does
    run.ends(2)
    lost = reached(workdir) - runs.committed(workdir)[-1]
    assert lost <= 2
    happened(f"status 2: {run.last}", max(0, lost))


def test_without_permission(on_pictures, pictures, workdir, happened):
    """a picture without permission"""
    pictures[9].chmod(0)
    on_pictures().run(workdir).ends(0)
    named(workdir, pictures[9])
    happened("another takes its place; named", 0)


def block(run, pictures, kept):
    """Make pipes that nobody writes to of some of the files that a run reads."""
    run.at(5)
    kept.mkdir()
    for file in pictures[::7]:
        file.rename(kept / file.name)
        os.mkfifo(file)


@contextlib.contextmanager
def feeding(pictures, kept):
    """Inside, the pipes that are being read from have the data of their files."""
    ended = threading.Event()

    def feed():
        while not ended.wait(0.01):
            for pipe in pictures[::7]:
                try:
                    handle = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
                except OSError:  # nobody reads it now
                    continue
                with os.fdopen(handle, "wb") as f:
                    os.set_blocking(handle, True)
                    f.write((kept / pipe.name).read_bytes())

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    yield
    ended.set()
    feeder.join()


@pytest.mark.faults("fault", alone=True)
def test_stall(on_pictures, pictures, tmp_path, workdir, happened):
    """data that never come"""
    run, kept = on_pictures("--config.recovery.stall_timeout=4").run(workdir), tmp_path / "kept"
    block(run, pictures, kept)
    began = time.monotonic()
    run.wait(r"File \".*\", line \d+", 60)
    seconds = time.monotonic() - began
    with feeding(pictures, kept):
        run.ends(0)
    happened(f"after {seconds:.0f} s the stacks of all threads; then it went on", 0)


@pytest.mark.faults("fault", alone=True)
def test_stalled_and_terminated(on_pictures, pictures, tmp_path, workdir, happened):
    """SIGTERM while data never come"""
    run = on_pictures().run(workdir)
    block(run, pictures, tmp_path / "kept")
    time.sleep(1)
    began = time.monotonic()
    run.send(runs.TERM)
    run.ends(42, seconds=45)
    seconds = time.monotonic() - began
    done = reached(workdir)
    assert done - max(runs.committed(workdir), default=0) <= 2
    happened(f"status 42 after {seconds:.1f} s, step {done} saved", 0)
