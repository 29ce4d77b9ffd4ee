"""Training processes that are disturbed, and how to tell what became of them; for chaos.py."""

import functools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TERM, KILL, INT, STOP = signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGSTOP
os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported
ROOT = Path(__file__).resolve().parent.parent
LIMIT = 150  # seconds in which a run of this size ends, also on a busy machine


class Failed(Exception):
    """What is not as it should be."""


class Impossible(Exception):
    """This machine does not allow the fault."""


class Case(NamedTuple):
    fault: str
    act: Callable[[Path], tuple[str, int | None]]  # working place -> what happened, steps lost
    kind: str = "fault"
    alone: bool = False  # nothing else may run: its time counts


class Outcome(NamedTuple):
    kind: str
    fault: str
    happened: str
    lost: int | None
    ok: bool | None  # None: not possible on this machine
    seconds: float


def check(true: Any, otherwise: str) -> None:
    if not true:
        raise Failed(otherwise)


# --- processes ---

# Root may write everywhere. A program without these capabilities may not, whoever starts it.
UNPRIVILEGED = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; 24: drop it for what is started
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
RUNNING: set[subprocess.Popen] = set()  # that this started


@functools.cache
def scratch() -> Path:
    """The temporary directory of everything."""
    return Path(tempfile.mkdtemp(prefix="mae_jax_chaos_"))


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return clean | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(scratch() / "compiled"),  # a start takes seconds
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


class Process:
    """A process that this started, and its lines as they come."""

    def __init__(self, arguments: Sequence[str], env: dict[str, str], privileged: bool = True):
        launch = [] if privileged else ["-c", UNPRIVILEGED]
        self.process = subprocess.Popen(
            [sys.executable, *launch, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=ROOT,
            env=env,
        )
        RUNNING.add(self.process)
        self.lines: list[str] = []
        self.news = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with self.news:
                self.lines.append(line.rstrip("\n"))
                self.news.notify_all()
        with self.news:
            self.lines.append("")
            self.news.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def last(self) -> str:
        """The last line, or the mistake that the process names."""
        mistakes = [line for line in self.lines if line.startswith(("error:", "Traceback"))]
        said = [line for line in self.lines if line.strip()]
        ends = said[-1:] if said[-1:] != mistakes[-1:] else []
        return " ... ".join([*mistakes[-1:], *ends])[:400]

    def wait(self, pattern: str, seconds: float = LIMIT) -> re.Match:
        """Until a line has the pattern."""
        until, seen = time.monotonic() + seconds, 0
        while True:
            with self.news:
                lines, ended = self.lines[seen:], not self.reader.is_alive()
                if not lines and not ended:
                    self.news.wait(0.5)
            for line in lines:
                if found := re.search(pattern, line):
                    return found
            seen += len(lines)
            check(
                not (ended and seen >= len(self.lines)), f"ended without {pattern!r}: {self.last}"
            )
            check(time.monotonic() < until, f"no {pattern!r} within {seconds} s: {self.last}")

    def send(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def end(self, seconds: float = LIMIT) -> int:
        """The exit status; a process that does not end by itself fails."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"did not end within {seconds:.0f} s: {self.last}") from None
        self.reader.join(10)
        RUNNING.discard(self.process)
        return status

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join(10)
        RUNNING.discard(self.process)


# --- what is run, and the same undisturbed ---


class Kind(NamedTuple):
    """A command: a config, its changes, and how many steps it has."""

    name: str
    arguments: tuple[str, ...]
    steps: int
    save: int
    devices: int = 1

    def start(self, workdir: Path, *more: str, devices: int = 0, **options) -> "Process":
        env = environment(devices or self.devices, **options.pop("variables", {}))
        arguments = ("-m", "mae_jax.train", *self.arguments, f"--workdir={workdir}", *more)
        return Process(arguments, env, **options)


NO_PROBE = ("--config.probe.train.source=", "--config.probe.test.source=")


def kind(name: str, config: str, epochs: int, save: int, *more: str, steps_per_epoch=8) -> Kind:
    every = (f"--config.save_every={save}", "--config.log_every=1", "--config.keep=3")
    arguments = (f"--config=configs/{config}.py:debug", f"--config.epochs={epochs}", *every, *more)
    return Kind(name, arguments, epochs * steps_per_epoch, save)


PLAIN = kind("pre-training", "vit_base", 15, 30, "--config.evaluate.every=60", *NO_PROBE)
END, NEWEST, OLDER = 120, 90, 60  # the last steps that it saves
# wide enough that fsdp cuts its parameters
WIDE = kind(
    "wide", "vit_base", 6, 12, "--config.evaluate.every=0", "--config.model.width=192", *NO_PROBE
)


@functools.cache
def started_from() -> tuple[Kind, Kind]:
    """Fine-tuning and linear probing of the undisturbed pre-training run."""
    init = f"--config.init.checkpoint={undisturbed(PLAIN)}"
    every = "--config.evaluate.every=24"
    tuned = kind("fine-tuning", "finetune_vit_base", 6, 12, init, every)
    return tuned, kind("linear probing", "linear_probe_vit_base", 6, 12, init, every)


LOCKS: dict[str, threading.Lock] = {}
GUARD = threading.Lock()


def once(make: Callable[..., None]) -> Callable[..., Path]:
    """Make a directory at the first call, for all cases that need it."""

    def made(*arguments) -> Path:
        name = "_".join([make.__name__, *(getattr(a, "name", str(a)) for a in arguments)])
        name = re.sub(r"\W+", "_", name)
        with GUARD:
            lock = LOCKS.setdefault(name, threading.Lock())
        place = scratch() / name
        with lock:
            if not (scratch() / f"{name}.made").exists():
                shutil.rmtree(place, ignore_errors=True)
                make(*arguments, place)
                (scratch() / f"{name}.made").touch()
        return place

    return made


@once
def undisturbed(kind: Kind, place: Path) -> None:
    """The run that all others are compared with."""
    run = kind.start(place)
    status = run.end(2 * LIMIT)
    check(status == 0, f"the undisturbed run ended with status {status}: {run.last}")


# --- looking at what a run left behind ---


def records(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl, but for one that was being written when a run died."""
    path, found = workdir / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


COMPARED = ("loss", "gradient_norm", "learning_rate", "test_loss", "accuracy")


def figures(workdir: Path) -> list[tuple]:
    """All that was computed: step, name and value, in order."""
    return [
        (record["step"], name, record[name])
        for record in records(workdir)
        for name in COMPARED
        if name in record and "event" not in record
    ]


def events(workdir: Path) -> list[str]:
    return [record["event"] for record in records(workdir) if "event" in record]


def reached(workdir: Path) -> int:
    return max((r["step"] for r in records(workdir) if "loss" in r), default=0)


def committed(workdir: Path) -> list[int]:
    """Steps of the checkpoints that were written to their end."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def unfinished(workdir: Path) -> list[str]:
    """Temporary directories of saves."""
    return [path.name for path in (workdir / "checkpoints").glob("*orbax-checkpoint-tmp*")]


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by name, as it lies on the disk."""
    import jax
    import orbax.checkpoint as ocp

    place = workdir / "checkpoints" / str(step) / "state"
    with LOADING, ocp.PyTreeCheckpointer() as checkpointer:
        tree: Any = checkpointer.metadata(place).item_metadata.tree
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        tree = checkpointer.restore(place, restore_args=whole)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


LOADING = threading.Lock()
logging.getLogger("absl").setLevel(logging.ERROR)  # orbax misses a file that it can do without


def same(workdir: Path, kind: Kind, reference: Path | None = None) -> None:
    """Raise unless the run is what it would have been, bit for bit."""
    reference = reference or undisturbed(kind)
    ours, theirs = figures(workdir), figures(reference)
    different = [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]]
    check(not different, f"other figures than undisturbed: {different[:1]}")
    check(len(ours) == len(theirs), f"{len(ours)} figures, undisturbed {len(theirs)}")
    check(kind.steps in committed(workdir), f"no checkpoint of step {kind.steps}")
    ours, theirs = arrays(workdir, kind.steps), arrays(reference, kind.steps)
    check(ours.keys() == theirs.keys(), "other arrays than undisturbed")
    for name, x in ours.items():
        y = theirs[name]
        check(x.dtype == y.dtype and x.tobytes() == y.tobytes(), f"{name} has other bits")
    check(not (left := unfinished(workdir)), f"temporary directories stay: {left}")


def close(workdir: Path, kind: Kind) -> float:
    """The largest relative difference of a loss; raise if it is above 1e-5."""
    ours = {r["step"]: r["loss"] for r in records(workdir) if "loss" in r}
    theirs = {r["step"]: r["loss"] for r in records(undisturbed(kind)) if "loss" in r}
    check(ours.keys() == theirs.keys(), f"{len(ours)} losses, undisturbed {len(theirs)}")
    most = max(abs(x - theirs[step]) / abs(theirs[step]) for step, x in ours.items())
    check(most <= 1e-5, f"a loss differs by {most:.1e}")
    return most


# --- parts of cases ---


def expect(run: Process, status: int, *patterns: str, seconds: float = LIMIT) -> None:
    """The process ends with this status, says these things, and shows no traceback."""
    found = run.end(seconds)
    check(found == status, f"status {found} instead of {status}: {run.last}")
    if status:  # where a run goes on, its log may have one of a thread
        check("Traceback (most recent" not in run.text, f"shows a traceback: {run.last}")
    if status == 2:
        check(re.search(r"(?m)^error: \S", run.text), f"no sentence: {run.last}")
    for pattern in patterns:
        check(re.search(pattern, run.text), f"does not say {pattern!r}: {run.last}")


def begin(run: Process) -> int:
    """The step that a run continues from, 0 if it starts."""
    found = run.wait(r"continuing from step (\d+)|(?<!from step)\b\d+ steps$")
    return int(found[1] or 0)


def finish(kind: Kind, place: Path, *more: str, devices: int = 0) -> int:
    """The same command again, to its end; the step it continued from."""
    run = kind.start(place, *more, devices=devices)
    expect(run, 0)
    return begin(run)


def interrupted(kind: Kind, place: Path, act: Callable[[Process], Any], status=42, most=2):
    """A run to which something happens, so that it saves and ends; then the same command."""
    run = kind.start(place)
    act(run)
    expect(run, status)
    so_far = reached(place)
    start = finish(kind, place)
    check(so_far - start <= most, f"{so_far - start} steps lost: {so_far} done, {start} saved")
    same(place, kind)
    return f"status {status}; went on from step {start} to the same bits", max(0, so_far - start)


def killed(kind: Kind, place: Path, act: Callable[[Process], Any]):
    """A run that is killed without a warning; then the same command."""
    run = kind.start(place)
    act(run)
    run.send(signal.SIGKILL)
    status = run.end()
    check(status == -signal.SIGKILL, f"ended before it was killed, with status {status}")
    return recovered(kind, place)


def recovered(kind: Kind, place: Path):
    """The same command, after a run that could save nothing."""
    so_far, good, begun = reached(place), max(committed(place), default=0), unfinished(place)
    # a save that is being written counts as not there, the one before must be
    until = min([so_far, *(int(name.partition(".")[0]) for name in begun)])
    start = finish(kind, place)
    check(start >= good, f"went on from step {start}, but {good} was saved")
    check(until - start <= kind.save, f"{until - start} steps lost, saved every {kind.save}")
    same(place, kind)
    happened = f"killed; went on from step {start} to the same bits"
    if begun:
        happened += f" ({', '.join(name.split('.')[0] for name in begun)} was half written)"
    return happened, max(0, so_far - start)


def at(step: int, number: int | None = None) -> Callable[[Process], None]:
    """Wait for a step, then send a signal."""

    def act(run: Process) -> None:
        run.wait(rf"^step {step}/")
        if number is not None:
            run.send(number)

    return act


def exists(path: Path, seconds: float = LIMIT) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        check(time.monotonic() < until, f"{path.name} did not appear within {seconds} s")
        time.sleep(0.002)


def digest(place: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}
