"""The progress of a run on a screen."""

import io
import logging
import sys

import pytest

from mae_jax.output import console
from mae_jax.training import progress as progress_module
from mae_jax.training.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only a test moves."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def test_progress_in_lines_without_a_terminal(clock, caplog):
    caplog.set_level(logging.INFO, "mae_jax")
    progress = Progress(start=10, total=100, examples=32, quiet=False)
    with progress.paused():
        clock.now += 50
    clock.now += 10
    assert progress.show(20, 0.5, 1e-3) == {"images_per_second": 32, "input_wait": 0}
    (line,) = caplog.messages
    assert line == "step 20/100  loss 0.5000  lr 1.00e-03  32 examples/s  0:01:20 left"


def test_progress_says_when_the_input_is_too_slow(clock, caplog):
    caplog.set_level(logging.INFO, "mae_jax")
    progress = Progress(start=0, total=100, examples=32, quiet=False)
    with progress.paused(), progress.waiting():  # while compiling nobody counts
        clock.now += 60
    with progress.waiting():
        clock.now += 3
    clock.now += 1
    assert progress.show(1, 0.5, 1e-3)["input_wait"] == 0.75
    assert "input-bound: the devices wait for data 75%" in caplog.text
    clock.now += 1
    assert progress.show(2, 0.5, 1e-3)["input_wait"] == 0


def test_a_quiet_one_says_nothing(clock, caplog):
    caplog.set_level(logging.INFO, "mae_jax")
    progress = Progress(start=0, total=100, examples=32, quiet=True)
    clock.now += 1
    progress.show(1, 0.5, 1e-3)
    assert not caplog.messages


@pytest.fixture
def logger():
    """The logger of the package as a command sets it up, and back."""
    logger = logging.getLogger("mae_jax")
    levels = {name: logging.getLogger(name).level for name in ("mae_jax", "absl", "asyncio")}
    console.install()
    yield logger
    logger.handlers, logger.propagate = [], True
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_a_screen_that_cannot_be_written_stops_nothing(logger, monkeypatch):
    with open("/dev/full", "wb", buffering=0) as raw:
        full = io.TextIOWrapper(raw, write_through=True)
        monkeypatch.setattr(sys, "stderr", full)
        monkeypatch.setattr(sys, "stdout", full)
        logger.info("lost")
        logger.error("lost")
        monkeypatch.undo()
        with pytest.raises(OSError):
            print("it is full", file=full, flush=True)


def test_warnings_are_on_stderr_and_all_else_on_stdout(logger, capsys):
    console.install()  # twice is once
    logger.info("step %d", 3)
    logger.warning("a disk is full")
    assert capsys.readouterr() == ("step 3\n", "a disk is full\n")
