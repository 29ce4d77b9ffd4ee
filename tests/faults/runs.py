"""Training processes that are disturbed, and how to tell what became of them."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds in which a run of this size ends, also on a busy machine
TERM, KILL, INT = signal.SIGTERM, signal.SIGKILL, signal.SIGINT
STARTED: list["Process"] = []  # processes that the current case has started
NO_PROBES = ("--noconfig.evaluators.knn", "--noconfig.evaluators.linear")
NO_EVALUATORS = (*NO_PROBES, "--noconfig.evaluators.reconstruction")
COMPARED = ("loss", "gradient_norm", "learning_rate", "test_loss", "accuracy", "test_accuracy")


def cases(names: str, table: dict[str, Any]) -> Any:
    """Parametrise a test by a table whose keys are the titles of the rows."""
    return pytest.mark.parametrize(names, table.values(), ids=table)


@contextlib.contextmanager
def locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    with path.open("w") as f:
        fcntl.flock(f, how)
        yield


def until(true: Callable[[], Any], what: str, seconds: float = LIMIT) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.001)


def environment(devices: int, **more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return clean | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


class Process:
    """A training process that a case started, and what it says."""

    def __init__(self, arguments: list[str], workdir: Path, log: Path, env: dict[str, str]):
        self.workdir, self.log = workdir, log
        command = [sys.executable, "-m", "mae_jax.train", *arguments, f"--workdir={workdir}"]
        with log.open("w") as f:
            pipes: Any = dict(stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT)
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, **pipes)
        STARTED.append(self)

    @property
    def text(self) -> str:
        """All lines so far."""
        return self.log.read_text(errors="replace").rpartition("\n")[0]

    @property
    def last(self) -> str:
        """The last line, after the error that the process names."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        errors = [line for line in lines if re.search("error: |^Traceback", line)]
        return " ... ".join(dict.fromkeys([*errors[-1:], *lines[-1:]]))[:400]

    def wait(self, pattern: str, seconds: float = LIMIT) -> re.Match:
        """Wait until a line has the pattern."""
        look = lambda: re.search(pattern, self.text, re.MULTILINE)
        over = lambda: self.process.poll() is not None
        until(lambda: look() or over(), f"{pattern!r} after {self.last!r}", seconds)
        found = look()
        assert found, f"the process ended without {pattern!r}: {self.last}"
        return found

    def at(self, step: int) -> None:
        """Wait for the line of a step."""
        self.wait(rf"\bstep {step}/\d+ +loss")

    def saved(self, step: int) -> None:
        """Wait for the checkpoint of a step."""
        until((self.workdir / "checkpoints" / str(step)).exists, f"step {step} is saved")

    def listening(self) -> None:
        """Wait until the process, which may still import modules, handles SIGTERM itself."""
        status = Path(f"/proc/{self.process.pid}/status")
        handled = lambda: int(status.read_text().partition("SigCgt:")[2].split()[0], 16)
        until(lambda: handled() >> (TERM - 1) & 1, "the process handles SIGTERM")

    @property
    def start(self) -> int:
        """The step that a run continues from, 0 if it begins."""
        return int(self.wait(r"continuing from step (\d+)|(?<!from step)\b\d+ steps$")[1] or 0)

    def send(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ended(self, seconds: float = LIMIT) -> int:
        """The exit status of a process that ends by itself."""
        until(lambda: self.process.poll() is not None, f"the end, after {self.last!r}", seconds)
        return self.process.returncode

    def ends(self, status: int, *patterns: str, seconds: float = LIMIT) -> None:
        """Expect this exit status, these words, and no traceback."""
        found = self.ended(seconds)
        assert found == status, f"status {found} instead of {status}: {self.last}"
        if status:  # a run that goes on may have logged a traceback of a thread
            assert "Traceback (most recent" not in self.text, f"a traceback: {self.last}"
        if status == 2:
            assert re.search(r"\berror: \S", self.text), f"no sentence: {self.last}"
        for pattern in patterns:
            assert re.search(pattern, self.text), f"does not say {pattern!r}: {self.last}"


@dataclasses.dataclass
class Command:
    """`python -m mae_jax.train` with a small config, and the same run undisturbed."""

    shared: Path  # where the undisturbed run is, for all workers
    name: str
    config: str
    changes: tuple[str, ...]
    steps: int
    save_every: int
    steps_per_epoch: int = 8

    @property
    def arguments(self) -> list[str]:
        values = dict(epochs=self.steps // self.steps_per_epoch, save_every=self.save_every)
        values |= dict(log_every=1, keep=3)
        changes = [f"--config.{name}={value}" for name, value in values.items()]
        return [f"--config=configs/{self.config}.py:debug", *changes, *self.changes]

    def run(self, workdir: Path, *more: str, devices: int = 1, **variables: str) -> Process:
        log = self.shared / f"{uuid.uuid4().hex}.log"
        return Process([*self.arguments, *more], workdir, log, environment(devices, **variables))

    @functools.cached_property
    def undisturbed(self) -> Path:
        """The work directory of the run that all others are compared with."""
        place = self.shared / self.name
        with locked(self.shared / f"{self.name}.lock"):
            if not (place / "report.txt").exists():
                self.run(place).ends(0)
        return place

    def halfway(self, workdir: Path) -> Path:
        """Make a run that died some steps after its last checkpoint but one; its checkpoints."""
        shutil.copytree(self.undisturbed, workdir)
        shutil.rmtree(workdir / "checkpoints" / str(self.steps))
        (workdir / "report.txt").unlink()
        return workdir / "checkpoints"

    def finish(self, workdir: Path, *more: str, devices: int = 1) -> int:
        """Run the same command to its end; the step that it continued from."""
        run = self.run(workdir, *more, devices=devices)
        run.ends(0)
        return run.start

    def went_on(self, run: Process, status: int, most: int = 2) -> tuple[str, int]:
        """Expect of a run that was asked to stop that it saves, ends and can be continued."""
        run.ends(status)
        done = reached(run.workdir)
        start = self.finish(run.workdir)
        assert done - start <= most, f"{done} steps were done, {start} saved"
        self.same(run.workdir)
        return f"status {status}; went on from step {start} to the same bits", max(0, done - start)

    def went_back(self, workdir: Path, step: int) -> int:
        """Expect that a run goes on from this step to the same bits; the steps that were lost."""
        done, start = reached(workdir), self.finish(workdir)
        assert start == step
        self.same(workdir)
        return max(0, done - start)

    def recovered(self, workdir: Path) -> tuple[str, int]:
        """Expect of a run that was killed that it goes on from the last save that was finished."""
        done, begun = reached(workdir), [name.partition(".")[0] for name in unfinished(workdir)]
        good = max(committed(workdir), default=0)
        start = self.finish(workdir)
        assert start >= good, f"went on from step {start}, but {good} was saved"
        assert min([done, *map(int, begun)]) - start <= self.save_every
        self.same(workdir)
        more = f" ({', '.join(begun)} was half written)" if begun else ""
        return f"killed; went on from step {start} to the same bits{more}", max(0, done - start)

    def same(self, workdir: Path) -> None:
        """Expect that a run has become what it would have been undisturbed, bit for bit."""
        ours, theirs = metrics(workdir), metrics(self.undisturbed)
        different = [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]]
        assert not different, f"other metrics than undisturbed: {different[:1]}"
        assert len(ours) == len(theirs), f"{len(ours)} metrics, undisturbed {len(theirs)}"
        ours, theirs = arrays(workdir, self.steps), arrays(self.undisturbed, self.steps)
        assert ours.keys() == theirs.keys()
        for name, x in ours.items():
            y = theirs[name]
            assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), f"{name} has other bits"
        assert not unfinished(workdir)

    def close(self, workdir: Path) -> str:
        """Expect the undisturbed losses but for rounding; the largest relative difference."""
        ours, theirs = losses(workdir), losses(self.undisturbed)
        assert ours.keys() == theirs.keys()
        most = max(abs(x - theirs[step]) / abs(theirs[step]) for step, x in ours.items())
        assert most <= 1e-5
        return f"losses differ by {most:.0e} at most"


# --- what a run left behind ---


def records(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl, but for one that was being written when a run died."""
    path, found = workdir / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def metrics(workdir: Path) -> list[tuple]:
    """All that was computed: step, name and value, in order."""
    plain = [record for record in records(workdir) if "event" not in record]
    return [(r["step"], name, r[name]) for r in plain for name in COMPARED if name in r]


def losses(workdir: Path) -> dict[int, float]:
    return {step: value for step, name, value in metrics(workdir) if name == "loss"}


def events(workdir: Path) -> list[str]:
    return [record["event"] for record in records(workdir) if "event" in record]


def highest(workdir: Path, name: str) -> float:
    return max((r.get(name) or 0 for r in records(workdir)), default=0)


def reached(workdir: Path) -> int:
    """The last step that is recorded."""
    return max(losses(workdir), default=0)


def committed(workdir: Path) -> list[int]:
    """Steps of the checkpoints that were written to their end."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def unfinished(workdir: Path) -> list[str]:
    """Temporary directories of saves."""
    return [path.name for path in (workdir / "checkpoints").glob("*orbax-checkpoint-tmp*")]


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by name, as it lies on the disk."""
    place = workdir / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree: Any = checkpointer.metadata(place).item_metadata.tree
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        tree = checkpointer.restore(place, restore_args=whole)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def finite(workdir: Path, step: int) -> None:
    """Expect that a checkpoint has no NaN and no infinity."""
    for name, x in arrays(workdir, step).items():
        assert np.isfinite(x.astype(np.float64)).all(), name


def digest(place: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}
