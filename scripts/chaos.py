"""What happens to a run when things go wrong: real training processes, really disturbed.

    python scripts/chaos.py                     # the whole table, two cases at a time
    python scripts/chaos.py --only='SIGKILL'    # the cases whose names match
    python scripts/chaos.py --list

Each case does one thing to a training process (a signal, a damaged checkpoint, a full disk, bad
data ...), runs the same command again where it should go on, and compares with a run that nobody
disturbed: the arrays of the last checkpoint and all losses, bit for bit on the same devices. One
line a case, with the steps that had to be computed again; then totals. Exit status 1 if any fails.
Steps take milliseconds here, so that a save may last longer than the thirty steps between two: what
is killed meanwhile loses the steps since the save before.
Bad inputs, bad configurations and bit flips are in chaos_inputs.py, which this starts.

All files are in a temporary directory that is removed, and only processes are ended that this
started. Nothing but the loopback interface is used. Linux.
"""

import argparse
import concurrent.futures
import functools
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
from PIL import Image

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


# --- signals ---


def while_importing(place):
    def act(run):
        time.sleep(0.7)  # Python is there, jax is being imported
        run.send(signal.SIGTERM)

    return interrupted(PLAIN, place, act, most=0)


def while_starting(place):
    def act(run):
        exists(place / "statistics.json")  # the data are open, nothing is compiled
        run.send(signal.SIGTERM)

    return interrupted(PLAIN, place, act, most=0)


def while_compiling(place):
    def act(run):
        run.wait(r"\d+ steps$")
        run.send(signal.SIGTERM)

    return interrupted(PLAIN, place, act)


def while_starting_again(place):
    halfway(place)
    run = PLAIN.start(place)
    time.sleep(1.5)
    run.send(signal.SIGTERM)
    expect(run, 42)
    start = finish(PLAIN, place)
    check(start >= NEWEST, f"went on from step {start}, but {NEWEST} was saved")
    same(place, PLAIN)
    return f"status 42; went on from step {start} to the same bits", 0


def in_evaluation(number: int, status: int):
    def act(place):
        for attempt in range(4):
            run = PLAIN.start(place / str(attempt))
            run.wait(r"^step 60/120  loss")
            time.sleep(0.1)
            run.send(number)
            hit = not re.search("step 60/120  test_loss", run.text)
            if number == signal.SIGKILL:
                run.end()
                result = recovered(PLAIN, place / str(attempt))
            else:
                began = time.monotonic()
                expect(run, status)
                seconds = time.monotonic() - began
                start = finish(PLAIN, place / str(attempt))
                check(start >= 60, f"went on from step {start}")
                same(place / str(attempt), PLAIN)
                result = f"status {status} after {seconds:.1f} s; to the same bits", 0
            if hit:
                return result
        raise Impossible("evaluations are over before a signal comes")

    return act


def twice(place):
    def act(run):
        at(70, signal.SIGTERM)(run)
        time.sleep(0.02)
        run.send(signal.SIGTERM)

    return interrupted(PLAIN, place, act)


def ctrl_c_twice(place):
    """The second one stops at once, without a save that was not begun."""
    run = PLAIN.start(place)
    at(70, signal.SIGINT)(run)
    time.sleep(0.02)
    run.send(signal.SIGINT)
    expect(run, 130)
    happened, lost = recovered(PLAIN, place)
    return happened.replace("killed", "status 130"), lost


def in_report(number: int, status: int):
    def act(place):
        run = PLAIN.start(place)
        run.wait(r"^step 120/120  loss")
        exists(place / "checkpoints" / str(END))
        time.sleep(0.05)
        hit = not (place / "report.txt").exists()
        run.send(number)
        found = run.end()
        if not hit:
            raise Impossible("the report is over before a signal comes")
        check(found == status, f"status {found} instead of {status}: {run.last}")
        start = finish(PLAIN, place)
        check(start == END, f"went on from step {start}")
        check((place / "report.txt").exists(), "no report")
        reports = [(p / "report.txt").read_text() for p in (place, undisturbed(PLAIN))]
        check(reports[0] == reports[1], "another report")
        same(place, PLAIN)
        return f"status {found}; the same command wrote the same report", 0

    return act


def in_a_save(number: int):
    def act(place):
        for attempt in range(5):
            workdir = place / str(attempt)
            run = PLAIN.start(workdir)
            step = 60 + 30 * (attempt % 2)
            exists(workdir / "checkpoints" / str(step - 30))
            until = time.monotonic() + LIMIT
            while not any(name.startswith(str(step)) for name in unfinished(workdir)):
                check(time.monotonic() < until, "no save begins")
                time.sleep(0.0005)
            time.sleep(0.02 * attempt)
            run.send(number)
            if number == signal.SIGTERM:
                expect(run, 42)
                so_far, start = reached(workdir), finish(PLAIN, workdir)
                check(so_far - start <= 2, f"{so_far - start} steps lost")
                same(workdir, PLAIN)
                return f"status 42; went on from step {start} to the same bits", so_far - start
            run.end()
            if unfinished(workdir):
                return recovered(PLAIN, workdir)
        raise Impossible("saves are over before a signal comes")

    return act


def three_times(place):
    """A machine that dies again and again: each time a little further."""
    starts = []
    for step in (40, 70, 100):
        run = PLAIN.start(place)
        starts.append(begin(run))
        at(step, signal.SIGKILL)(run)
        run.end()
    happened, lost = recovered(PLAIN, place)
    check(starts == sorted(starts), f"went on from {starts}")
    return f"starts at {starts}; then {happened.removeprefix('killed; ')}", lost


def frozen(place):
    run = PLAIN.start(place)
    at(50, signal.SIGSTOP)(run)
    time.sleep(4)
    run.send(signal.SIGCONT)
    expect(run, 0)
    same(place, PLAIN)
    return "went on to the same bits", 0


def finished_already(place):
    shutil.copytree(undisturbed(PLAIN), place)
    before = digest(place)
    run = PLAIN.start(place)
    expect(run, 0, "is finished")
    after = digest(place)
    changed = [name for name in before if after.get(name) != before[name] and name != "lock"]
    check(not changed, f"{changed} changed")
    return "status 0, says so, changes nothing", 0


def started(which: int, number: int):
    """Fine-tuning or probing."""

    def act(place):
        kind = started_from()[which]
        if number == signal.SIGKILL:
            return killed(kind, place, at(29))
        return interrupted(kind, place, at(29, number))

    return act


def stalled_and_terminated(place):
    """SIGTERM while the loop waits for data that never come."""
    run, pipe = stalled(place)
    time.sleep(1)
    began = time.monotonic()
    run.send(signal.SIGTERM)
    expect(run, 42, seconds=45)
    seconds = time.monotonic() - began
    so_far = reached(place / "run")
    check(so_far - max(committed(place / "run"), default=0) <= 2, "not saved")
    return f"status 42 after {seconds:.1f} s, step {so_far} saved", 0


# --- other devices, other processes ---


@once
def on_eight(place: Path) -> None:
    """A run on eight devices, preempted."""
    run = WIDE.start(place, devices=8)
    at(20, signal.SIGTERM)(run)
    expect(run, 42)


def elsewhere(devices: int, *more: str):
    def act(place):
        shutil.copytree(on_eight(), place)
        start = finish(WIDE, place, *more, devices=devices)
        lost = reached(on_eight()) - start
        check(lost <= 2, f"{lost} steps lost")
        most = close(place, WIDE)
        return f"went on from step {start}; losses differ by {most:.0e} at most", lost

    return act


def pair(kind: Kind, place: Path, *more: str) -> list[Process]:
    """The same command as two processes with two devices each, over loopback."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    variables = {
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    return [
        kind.start(place, *more, devices=2, variables=variables | {"JAX_PROCESS_ID": str(i)})
        for i in range(2)
    ]


def end_all(processes: Sequence[Process]) -> None:
    for process in processes:
        if process.process.poll() is None:
            process.kill()


def one_of_two_terminated(which: int):
    def act(place):
        processes = pair(WIDE, place)
        try:
            processes[0].wait(r"^step 20/")
            processes[which].send(signal.SIGTERM)
            statuses = [process.end(90) for process in processes]
        finally:
            end_all(processes)
        check(statuses == [42, 42], f"statuses {statuses}: {processes[0].last}")
        so_far = reached(place)
        if which:
            start, what = finish(WIDE, place, devices=4), "one process with four devices"
        else:
            again = pair(WIDE, place)
            statuses = [process.end() for process in again]
            check(statuses == [0, 0], f"statuses {statuses}: {again[0].last}")
            start, what = begin(again[0]), "two processes"
        most = close(place, WIDE)
        check(so_far - start <= 2, f"{so_far - start} steps lost")
        text = f"both 42 with step {start} saved; {what} went on, losses differ by {most:.0e}"
        return text, max(0, so_far - start)

    return act


def one_of_two(which: int, number: int, heartbeat: int = 0, margin: float = 20):
    """One is killed or frozen: the other ends soon, and both can be started again."""

    def act(place):
        more = [f"--config.recovery.heartbeat={heartbeat}"] if heartbeat else []
        processes = pair(WIDE, place, *more)
        other = processes[1 - which]
        try:
            processes[0].wait(r"^step 40/")
            began = time.monotonic()
            processes[which].send(number)
            status = other.end(heartbeat + margin)
            seconds = time.monotonic() - began
        finally:
            end_all(processes)
        check(status != 0, "the other ended with status 0")
        so_far, good = reached(place), max(committed(place), default=0)
        start = finish(WIDE, place, devices=4)
        check(start >= good, f"went on from step {start}, but {good} was saved")
        check(so_far - start <= 2 * WIDE.save, f"{so_far - start} steps lost")
        most = close(place, WIDE)
        text = f"the other ended with status {status} after {seconds:.0f} s; one process went on"
        return f"{text} from step {start}, losses differ by {most:.0e}", max(0, so_far - start)

    return act


def from_one_to_two(place):
    run = WIDE.start(place)
    at(20, signal.SIGTERM)(run)
    expect(run, 42)
    so_far = reached(place)
    processes = pair(WIDE, place)
    try:
        statuses = [process.end() for process in processes]
    finally:
        end_all(processes)
    check(statuses == [0, 0], f"statuses {statuses}: {processes[0].last}")
    start, most = begin(processes[0]), close(place, WIDE)
    return f"went on from step {start}; losses differ by {most:.0e} at most", max(0, so_far - start)


# --- checkpoints ---


def halfway(place: Path) -> Path:
    """A run that died some steps after a checkpoint, with an older one beside it."""
    shutil.copytree(undisturbed(PLAIN), place)
    shutil.rmtree(place / "checkpoints" / str(END))
    (place / "report.txt").unlink()
    return place / "checkpoints"


def largest(place: Path) -> Path:
    return max((p for p in place.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def damaged(hurt: Callable[[Path], Any], start: int = OLDER, named: str | None = None):
    """Something is wrong with the newest of two checkpoints, or beside it."""

    def act(place):
        hurt(halfway(place))
        run = PLAIN.start(place)
        expect(run, 0)
        found = begin(run)
        check(found == start, f"went on from step {found}, not {start}")
        if named:
            before = run.text.partition("\nstep ")[0]
            lines = [line for line in before.splitlines() if re.search(named, line)]
            check(lines, f"does not name it: {before[-300:]!r}")
        same(place, PLAIN)
        what = "named, " if named else ""
        return f"{what}went on from step {found} to the same bits", NEWEST - found

    return act


def truncated(checkpoints: Path) -> None:
    file = largest(checkpoints / str(NEWEST))
    os.truncate(file, file.stat().st_size // 2)


def flipped(seed: int):
    def hurt(checkpoints: Path) -> None:
        draw, file = random.Random(seed), largest(checkpoints / str(NEWEST))
        data = bytearray(file.read_bytes())
        data[draw.randrange(len(data) // 4, len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)

    return hurt


def emptied(checkpoints: Path) -> None:
    for file in (checkpoints / str(NEWEST)).rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def stray_step(checkpoints: Path) -> None:
    (checkpoints / "100").mkdir()


def half_written(checkpoints: Path) -> None:
    place = checkpoints / "100.orbax-checkpoint-tmp-1234"
    shutil.copytree(checkpoints / str(NEWEST), place)
    largest(place).unlink()


def wrong_name(checkpoints: Path) -> None:
    """An old checkpoint under the number of a new one."""
    shutil.rmtree(checkpoints / str(NEWEST))
    shutil.copytree(checkpoints / str(OLDER), checkpoints / str(NEWEST))


def all_bad(place):
    checkpoints = halfway(place)
    for step in committed(place):
        file = largest(checkpoints / str(step))
        os.truncate(file, file.stat().st_size // 2)
    before = digest(place)
    run = PLAIN.start(place)
    expect(run, 2)
    check(str(NEWEST) in run.text and str(OLDER) in run.text, f"does not name them: {run.last}")
    gone = [name for name in before if name not in digest(place)]
    check(not gone, f"deleted {gone[:3]}")
    return "status 2, names them, deletes nothing, does not start afresh", None


def another_config(place):
    halfway(place)
    before = digest(place)
    run = PLAIN.start(place, "--config.optimizer.clip=1.0", "--config.seed=7")
    expect(run, 2, r"optimizer\.clip", r"seed")
    check(digest(place) == before, "changed the work directory")
    return "status 2, names both fields, changes nothing", None


def damaged_config(place):
    halfway(place)
    (place / "config.json").write_text("{")
    run = PLAIN.start(place)
    expect(run, 2, r"config\.json")
    return "status 2, names the file", None


def torn_records(checkpoints: Path) -> None:
    with (checkpoints.parent / "metrics.jsonl").open("a") as f:
        f.write('{"step": 91, "lo')


def second_process(place):
    run = PLAIN.start(place)
    run.wait(r"^step 30/")
    second = PLAIN.start(place)
    expect(second, 2)
    check(run.process.poll() is None, "the first was over: nothing was tried")
    expect(run, 0)
    same(place, PLAIN)
    return f"status 2 ({second.last[:100]}); the first is not disturbed", 0


# --- saves that fail ---


def largest_file(run: Process, size: int) -> None:
    """No file of the process may grow beyond `size` bytes; -1: as large as it likes."""
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def saved_once(run: Process, place: Path) -> None:
    run.wait(r"^step 35/")
    exists(place / "checkpoints" / "30")


def failing(place: Path, run: Process, spoil: Callable[[], Any], mend: Callable[[], Any]):
    """Saves fail for a while: the run goes on."""
    saved_once(run, place)
    spoil()
    try:
        run.wait(r"^step 95/")
        good = committed(place)
    finally:
        mend()
    expect(run, 0)
    check(good == [30], f"saves did not fail, or one is gone: {good}")
    counted = max((r.get("failed_saves") or 0 for r in records(place)), default=0)
    check(counted >= 1, "failed saves are not counted in metrics.jsonl")
    same(place, PLAIN)
    return f"{counted:.0f} failed saves counted; later saves good, same bits", 0


def file_limit(place):
    run = PLAIN.start(place)
    limits = (lambda: largest_file(run, 200_000), lambda: largest_file(run, -1))
    return failing(place, run, *limits)


def read_only(place):
    run = PLAIN.start(place, privileged=False)
    mode = (place / "checkpoints").chmod
    return failing(place, run, lambda: mode(0o555), lambda: mode(0o755))


def replaced_by_a_file(place):
    run, checkpoints, aside = PLAIN.start(place), place / "checkpoints", place / "aside"

    def spoil():
        checkpoints.rename(aside)
        checkpoints.write_text("")

    def mend():
        if checkpoints.is_file():
            checkpoints.unlink()
        else:  # the run made it anew
            shutil.rmtree(checkpoints)
        aside.rename(checkpoints)

    saved_once(run, place)
    spoil()
    run.wait(r"^step 95/")
    mend()
    expect(run, 0)
    counted = max((r.get("failed_saves") or 0 for r in records(place)), default=0)
    check(counted >= 1, "failed saves are not counted in metrics.jsonl")
    same(place, PLAIN)
    return f"{counted:.0f} failed saves counted; later saves good, same bits", 0


class Disk:
    """A small file system of its own, in memory."""

    def __init__(self, place: Path, megabytes: int):
        place.mkdir(parents=True)
        self.place, self.ballast = place, place / "ballast"
        options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(place)]
        done = subprocess.run(["mount", *options], capture_output=True, check=False)
        if done.returncode:
            raise Impossible("mounting is not permitted")

    def fill(self) -> None:
        with open(self.ballast, "wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(4096))
            except OSError:
                pass

    def free(self) -> None:
        self.ballast.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", str(self.place)], check=False)


def full_disk(place):
    """Of the checkpoints alone."""
    with Disk(place / "disk", 40) as disk:
        workdir = place / "run"
        workdir.mkdir()
        (disk.place / "checkpoints").mkdir()
        (workdir / "checkpoints").symlink_to(disk.place / "checkpoints")
        return failing(workdir, PLAIN.start(workdir), disk.fill, disk.free)


def full_disk_for_all(place):
    """Of the whole work directory: records cannot be written either."""
    with Disk(place / "disk", 40) as disk:
        workdir = disk.place / "run"
        run = PLAIN.start(workdir)
        saved_once(run, workdir)
        disk.fill()
        status = run.end()
        check(status == 2, f"status {status} instead of 2: {run.last}")
        check("Traceback (most recent" not in run.text, f"shows a traceback: {run.last}")
        so_far, good = reached(workdir), committed(workdir)
        check(good == [30], f"the last good checkpoint is not there: {good}")
        check(not unfinished(workdir), f"temporary directories stay: {unfinished(workdir)}")
        disk.free()
        start = finish(PLAIN, workdir)
        check(start == 30, f"went on from step {start}")
        same(workdir, PLAIN)
        return "status 2; went on from step 30 to the same bits", max(0, so_far - start)


def failing_for_ever(place):
    run = PLAIN.start(place, "--config.save_every=10")
    saved_once(run, place)
    before = digest(place / "checkpoints" / "30")
    largest_file(run, 200_000)
    expect(run, 2, r"sav")
    so_far = reached(place)
    check(digest(place / "checkpoints" / "30") == before, "the last good checkpoint changed")
    check(not unfinished(place), f"temporary directories stay: {unfinished(place)}")
    check(so_far < END, f"ended at step {so_far}")
    start = finish(PLAIN, place)
    check(start == 30, f"went on from step {start}")
    same(place, PLAIN)
    return f"status 2 at step {so_far}; went on from step {start} to the same bits", so_far - start


def last_save_fails(place):
    run = PLAIN.start(place)
    run.wait(r"^step 95/")
    exists(place / "checkpoints" / str(NEWEST))
    largest_file(run, 200_000)
    expect(run, 2, r"sav")
    start = finish(PLAIN, place)
    check(start == NEWEST, f"went on from step {start}")
    same(place, PLAIN)
    return f"status 2; went on from step {start} to the same bits", END - start


def terminated_without_a_save(place):
    """SIGTERM where nothing can be saved: not the status that says that it was."""
    run = PLAIN.start(place)
    saved_once(run, place)
    largest_file(run, 200_000)
    run.send(signal.SIGTERM)
    expect(run, 2, r"sav")
    so_far, start = reached(place), finish(PLAIN, place)
    check(start == 30, f"went on from step {start}")
    same(place, PLAIN)
    return f"status 2; went on from step {start} to the same bits", so_far - start


def read_only_from_the_start(place):
    place.mkdir()
    place.chmod(0o555)
    run = PLAIN.start(place / "run", privileged=False)
    expect(run, 2)
    place.chmod(0o755)
    return f"status 2: {run.last[:100]}", None


def a_file_in_the_way(place):
    place.write_text("")
    run = PLAIN.start(place)
    expect(run, 2)
    check(place.read_text() == "" and place.is_file(), "the file changed")
    return f"status 2: {run.last[:100]}", None


# --- training that goes wrong ---

NUMBERS = 400  # examples of the runs on arrays: fifty steps


def numbers(name: str, place: Path, values: Callable[[int], float], *more: str) -> Kind:
    """A run on arrays of noise, those of step s times `values(s)`."""
    import grain

    folder = place / "numbers" / "train"
    folder.mkdir(parents=True)
    # the order of the run: a function of the seed and of the number of examples
    order: Any = grain.MapDataset.range(NUMBERS).seed(0).shuffle().repeat()
    rng = np.random.default_rng(0)
    for position in range(NUMBERS):
        scale = values(position // 8) if position % 8 == 3 else 1  # one example of a batch
        x = rng.normal(size=(40, 40, 1)).clip(-3, 3).astype(np.float32) * np.float32(scale)
        np.save(folder / f"{order[position]:04}.npy", x)
    data = (
        f"--config.data.train.source=arrays:{folder.parent}",
        "--config.data.test.source=",
        "--config.data.examples=0",
        "--config.data.channels=1",
        "--config.data.mean=(0.0,)",
        "--config.data.std=(1.0,)",
        "--config.model.groups=()",
        "--noconfig.model.norm_pix",
        "--config.evaluate.every=0",
    )
    made = kind(name, "multispectral_small", 1, 10, *data, *NO_PROBE, *more, steps_per_epoch=50)
    return made


HUGE = 1e38  # finite, its square is not


def finite(workdir: Path, step: int) -> None:
    for name, x in arrays(workdir, step).items():
        check(np.isfinite(x.astype(np.float64)).all(), f"{name} is not finite")


def one_bad_batch(place):
    bad = numbers("bad batch", place, lambda step: HUGE if step == 23 else 1)
    reference = place / "undisturbed"
    expect(bad.start(reference), 0)
    check("skipped" in events(reference), f"events {events(reference)}")
    finite(reference, bad.steps)
    run = bad.start(place / "run")
    at(27, signal.SIGKILL)(run)
    run.end()
    so_far, start = reached(place / "run"), finish(bad, place / "run")
    same(place / "run", bad, reference)
    check(events(place / "run") == events(reference), "other events after SIGKILL")
    return "the update is skipped and recorded; the same after SIGKILL", so_far - start


def many_bad_batches(place):
    bad = numbers("bad batches", place, lambda step: HUGE if 24 <= step < 29 else 1)
    run = bad.start(place / "run")
    expect(run, 0)
    found = events(place / "run")
    check("skipped" in found and "rewound" in found, f"events {found}")
    finite(place / "run", committed(place / "run")[-1])
    counts = {name: found.count(name) for name in dict.fromkeys(found)}
    return f"status 0; {counts}", None


def hopeless(place):
    """Everything is bad from a step on."""
    bad = numbers("hopeless", place, lambda step: HUGE if step >= 24 else 1)
    run = bad.start(place / "run")
    expect(run, 2, *REPORT)
    check(re.search(r"\d{4}\.npy", run.text), "the report does not name the examples")
    found = events(place / "run")
    check("rewound" in found and "stopped" in found, f"events {found}")
    step = committed(place / "run")[-1]
    finite(place / "run", step)
    counts = {name: found.count(name) for name in dict.fromkeys(found)}
    return f"status 2 with a report; {counts}; step {step} is the last saved", None


REPORT = (r"step \d+", r"(?i)learning.rate", r"(?i)gradient", r"encoder", r"(?i)batch|examples")


def absurd_rate(place):
    run = PLAIN.start(place, "--config.optimizer.base_learning_rate=1e30")
    expect(run, 2, *REPORT, r"synthetic train\[\d+\]")
    for step in committed(place):
        finite(place, step)
    found = events(place)
    counts = {name: found.count(name) for name in dict.fromkeys(found)}
    return f"status 2 with a report; {counts}; saved steps {committed(place)} are finite", None


def spike(place):
    bad = numbers("spike", place, lambda step: 1e4 if step == 33 else 1)
    run = bad.start(place / "run", "--config.recovery.spike=10")
    expect(run, 0)
    found = events(place / "run")
    check("skipped" in found, f"events {found}")
    later = [r["loss"] for r in records(place / "run") if r.get("loss") and r["step"] > 40]
    check(max(later) < 10, f"a loss of {max(later)} later")
    return f"the update is left out and recorded: events {found}", None


# --- data ---


def pictures(place: Path, count: int = 300) -> list[Path]:
    """A folder of small pictures in two classes."""
    rng, files = np.random.default_rng(1), []
    for i in range(count):
        folder = place / "pictures" / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{i:03}.png")
        pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((72, 72)).save(files[-1])
    return files


MEASURED = ("--config.data.mean=auto", "--config.data.std=auto")


def on_pictures(place: Path, *more: str, steps: int = 74) -> Kind:
    data = (
        f"--config.data.train.source=folder:{place / 'pictures'}",
        "--config.data.test.source=",
        "--config.evaluate.every=0",
    )
    made = kind("pictures", "vit_base", 2, 10, *data, *NO_PROBE, *more)
    return made._replace(steps=steps)


def share(workdir: Path) -> float:
    return max((r.get("unreadable") or 0 for r in records(workdir)), default=0)


def few_broken(place):
    files = pictures(place)
    files[17].write_bytes(b"")
    files[100].write_bytes(files[100].read_bytes()[:500])
    broken = on_pictures(place, *MEASURED)
    reference = place / "undisturbed"
    expect(broken.start(reference), 0)
    names = (reference / "unreadable.txt").read_text()
    check("017.png" in names and "100.png" in names, f"unreadable.txt has {names!r}")
    check(share(reference) > 0, "their share is not in metrics.jsonl")
    run = broken.start(place / "run")
    at(47, signal.SIGKILL)(run)
    run.end()
    so_far, start = reached(place / "run"), finish(broken, place / "run")
    same(place / "run", broken, reference)
    most = share(reference)
    return f"others take their places ({most:.1%}), named; the same after SIGKILL", so_far - start


def many_broken(place):
    for file in pictures(place)[::5]:
        file.write_bytes(file.read_bytes()[:300])
    run = on_pictures(place, *MEASURED).start(place / "run")
    expect(run, 2, r"unreadable|cannot be read|max_bad_fraction")
    return f"status 2: {run.last[:120]}", None


def all_broken(place):
    for file in pictures(place, 40):
        file.write_bytes(b"<html>404</html>")
    run = on_pictures(place, "--config.data.max_bad_fraction=1.0").start(place / "run")
    expect(run, 2, "can be read|cannot be read")
    return f"status 2: {run.last[:120]}", None


def changing(place):
    """Pictures go, turn to rubbish and come while the run reads them."""
    files = pictures(place)
    run = on_pictures(place, "--config.data.max_bad_fraction=.05").start(place / "run")
    run.wait(r"^step 10/")
    files[3].unlink()
    files[50].write_bytes(b"rubbish")
    files[77].unlink()
    files[77].mkdir()
    shutil.copy(files[0], files[0].with_name("new.png"))
    expect(run, 0)
    names = (place / "run" / "unreadable.txt").read_text()
    for name in ("003.png", "050.png", "077.png"):
        check(name in names, f"{name} is not in unreadable.txt: {names!r}")
    return f"status 0; the three are named, {share(place / 'run'):.1%} substituted", 0


def without_permission(place):
    files = pictures(place)
    files[9].chmod(0)
    run = on_pictures(place).start(place / "run", privileged=False)
    expect(run, 0)
    check("009.png" in (place / "run" / "unreadable.txt").read_text(), "not named")
    return "another takes its place; named", 0


def vanished_classes(place):
    """The whole folder goes while the run reads it, as an unmounted disk does."""
    pictures(place)
    run = on_pictures(place, "--config.epochs=200").start(place / "run")
    run.wait(r"^step 10/")
    (place / "pictures").rename(place / "gone")
    expect(run, 2)
    (place / "gone").rename(place / "pictures")
    return f"status 2: {run.last[:120]}", None


def stalled(place: Path, *more: str) -> tuple[Process, Path]:
    """A run whose input blocks: some of its files have become pipes that nobody writes to."""
    files = pictures(place)
    (place / "kept").mkdir()
    run = on_pictures(place, *more).start(place / "run")
    run.wait(r"^step 5/")
    for file in files[::7]:
        file.rename(place / "kept" / file.name)
        os.mkfifo(file)
    return run, place / "kept"


def stall(place):
    run, kept = stalled(place, "--config.recovery.stall=4")
    began = time.monotonic()
    found = run.wait(r"(?i)thread.*\b(0x)?[0-9a-f]+|stall|no step (for|since)", 60)
    seconds = time.monotonic() - began
    run.wait(r'File ".*", line \d+', 10)
    feeding = True

    def feed():
        """Write to every pipe that is being read from."""
        while feeding:
            for path in kept.iterdir():
                for pipe in (place / "pictures").rglob(path.name):
                    try:
                        handle = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
                    except OSError:  # nobody reads it now
                        continue
                    with os.fdopen(handle, "wb") as f:
                        os.set_blocking(handle, True)
                        f.write(path.read_bytes())
            time.sleep(0.01)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        status = run.end()
    finally:
        feeding = False
        feeder.join()
    check(status == 0, f"status {status} when the data came: {run.last}")
    return f"after {seconds:.0f} s: {found.string.strip()[:80]!r} and all stacks; then went on", 0


# --- inside one process: chaos_inputs.py ---


def inside(part: str, place: Path, report: Callable[[Outcome], None], only: str) -> None:
    """Run the cases of chaos_inputs.py, each of which prints a line of JSON."""
    place.mkdir()
    arguments = [str(ROOT / "scripts" / "chaos_inputs.py"), part, f"--place={place}"]
    arguments += [f"--only={only}"] if only else []
    if part == "flips":
        arguments += [f"--checkpoints={halfway(place / 'run')}", *PLAIN.arguments]
    run = Process(arguments, environment(devices=4 if part == "configs" else 1), privileged=False)
    seen, until = 0, time.monotonic() + LIMIT
    while time.monotonic() < until:
        ended = not run.reader.is_alive()
        for line in run.lines[seen:]:
            seen += 1
            if line.startswith('{"kind"'):
                report(Outcome(**json.JSONDecoder().raw_decode(line)[0]))
                until = time.monotonic() + LIMIT
        if ended:
            break
        time.sleep(0.05)
    else:
        run.kill()
    if status := run.end():
        text = f"status {status}: {run.last}"
        report(Outcome(part.removesuffix("s"), "what comes after", text, None, False, 0))


# --- the table ---

TERM, KILL, INT, STOP = signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGSTOP


def table(seed: int) -> list[Case]:
    draw = random.Random(seed)
    step = lambda: draw.randrange(35, 115)
    term, kill, early = step(), [step(), step()], draw.randrange(3, 18)
    cases = [
        (f"SIGTERM at step {term}", lambda p: interrupted(PLAIN, p, at(term, TERM))),
        ("SIGTERM while modules are imported", while_importing),
        ("SIGTERM during start-up, before compiling", while_starting),
        ("SIGTERM while the first step compiles", while_compiling),
        ("SIGTERM during the start of a resumed run", while_starting_again),
        ("SIGTERM during an evaluation", in_evaluation(TERM, 42)),
        ("SIGTERM during a save", in_a_save(TERM)),
        ("SIGTERM during the report", in_report(TERM, 42)),
        ("SIGTERM twice", twice),
        ("Ctrl-C", lambda p: interrupted(PLAIN, p, at(70, INT), status=130)),
        ("Ctrl-C twice", ctrl_c_twice),
        *((f"SIGKILL at step {k}", lambda p, k=k: killed(PLAIN, p, at(k))) for k in kill),
        (f"SIGKILL at step {early}, before a save", lambda p: killed(PLAIN, p, at(early))),
        ("SIGKILL during a save", in_a_save(KILL)),
        ("SIGKILL during an evaluation", in_evaluation(KILL, -KILL)),
        ("SIGKILL during the report", in_report(KILL, -KILL)),
        ("SIGKILL three times", three_times),
        ("SIGSTOP for four seconds", frozen),
        ("the command of a finished run", finished_already),
        ("SIGTERM while fine-tuning", started(0, TERM)),
        ("SIGKILL while fine-tuning", started(0, KILL)),
        ("SIGTERM while probing", started(1, TERM)),
        ("SIGKILL while probing", started(1, KILL)),
        ("8 devices, then 4", elsewhere(4)),
        ("8 devices, then 2", elsewhere(2)),
        ("8 devices, then 1", elsewhere(1)),
        ("8 devices: data, then fsdp", elsewhere(8, "--config.mesh.fsdp=8")),
        ("a truncated file in the newest checkpoint", damaged(truncated, named="90")),
        ("empty files in the newest checkpoint", damaged(emptied, named="90")),
        (
            "a deleted file of the newest checkpoint",
            damaged(lambda c: largest(c / "90").unlink(), named="90"),
        ),
        (
            "no _METADATA in the newest checkpoint",
            damaged(lambda c: (c / "90" / "state" / "_METADATA").unlink(), named="90"),
        ),
        ("a bit of the newest checkpoint", damaged(flipped(1), named="90")),
        ("another bit of the newest checkpoint", damaged(flipped(2), named="90")),
        ("an old checkpoint named as a new one", damaged(wrong_name)),
        (
            "a stray file among the checkpoints",
            damaged(lambda c: (c / "x").write_text("x"), NEWEST),
        ),
        ("an empty step directory", damaged(stray_step, NEWEST, "100")),
        (
            "a directory whose name is no step",
            damaged(lambda c: shutil.copytree(c / "90", c / "best"), NEWEST),
        ),
        ("a half-written checkpoint", damaged(half_written, NEWEST)),
        ("a torn line in metrics.jsonl", damaged(torn_records, NEWEST)),
        ("all checkpoints damaged", all_bad),
        ("the work directory of another config", another_config),
        ("a damaged config.json", damaged_config),
        ("a second process in the work directory", second_process),
        ("saves fail: files may not grow", file_limit),
        ("saves fail: a read-only directory", read_only),
        ("saves fail: a file instead of the directory", replaced_by_a_file),
        ("saves fail: a full disk", full_disk),
        ("a full disk for all of the work directory", full_disk_for_all),
        ("saves fail for ever", failing_for_ever),
        ("the last save fails", last_save_fails),
        ("SIGTERM where nothing can be saved", terminated_without_a_save),
        ("a work directory that cannot be made", read_only_from_the_start),
        ("a file in place of the work directory", a_file_in_the_way),
        ("a batch that overflows", one_bad_batch),
        ("five batches in a row that overflow", many_bad_batches),
        ("every batch overflows", hopeless),
        ("a learning rate of 1e30", absurd_rate),
        ("a spike of the loss", spike),
        ("a few broken pictures", few_broken),
        ("a fifth of the pictures broken", many_broken),
        ("no picture can be read", all_broken),
        ("pictures change during the run", changing),
        ("the folder goes during the run", vanished_classes),
        ("a picture without permission", without_permission),
    ]
    alone = [
        ("2 processes: SIGTERM to the first", one_of_two_terminated(0)),
        ("2 processes: SIGTERM to the second", one_of_two_terminated(1)),
        ("2 processes: SIGKILL of the first", one_of_two(0, KILL)),
        ("2 processes: SIGKILL of the second", one_of_two(1, KILL)),
        ("2 processes: SIGSTOP of the second", one_of_two(1, STOP, heartbeat=10)),
        ("1 process, then 2", from_one_to_two),
        ("data that never come", stall),
        ("SIGTERM while data never come", stalled_and_terminated),
    ]
    return [Case(name, act) for name, act in cases] + [
        Case(name, act, alone=True) for name, act in alone
    ]


def attempt(case: Case) -> Outcome:
    began, place = time.monotonic(), scratch() / re.sub(r"\W+", "_", case.fault)
    ok: bool | None = False
    lost: int | None = None
    try:
        happened, lost = case.act(place)
        ok = True
    except Failed as error:
        happened = str(error)
    except Impossible as error:
        happened, ok = f"not possible here: {error}", None
    except Exception as error:  # of the case itself: it is not proven
        happened = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    if not KEEP:
        shutil.rmtree(place, ignore_errors=True)
    happened = " ".join(happened.replace(f"{place}/", "").replace(str(place), "").split())
    return Outcome(case.kind, case.fault, happened, lost, ok, seconds)


KEEP = False
WORDS = {True: "pass", False: "FAIL", None: "skip"}


def show(outcome: Outcome) -> None:
    lost = "-" if outcome.lost is None else str(outcome.lost)
    text = f"{WORDS[outcome.ok]}  {outcome.kind:<6}  {outcome.fault:<46}  lost {lost:>3}"
    print(f"{text}  {outcome.seconds:5.1f} s  {outcome.happened}", flush=True)


def totals(outcomes: Sequence[Outcome], seconds: float) -> str:
    lines = []
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        of = [outcome for outcome in outcomes if outcome.kind == kind]
        passed, skipped = sum(o.ok is True for o in of), sum(o.ok is None for o in of)
        more = f", {skipped} not possible here" if skipped else ""
        if kind == "flip":
            silent = sum(o.happened.startswith("silent") for o in of)
            named = sum("named" in o.happened for o in of)
            more += f" ({named} named, {passed - named} carried nothing, {silent} silent)"
        lines.append(f"{kind}: {passed} of {len(of)} passed{more}")
    minutes, rest = divmod(round(seconds), 60)
    return "\n".join([*lines, f"{minutes}:{rest:02} minutes"])


def markdown(outcomes: Sequence[Outcome]) -> str:
    rows = ["| fault | what happens | steps lost |", "|---|---|---|"]
    for o in outcomes:
        if o.kind == "fault":
            lost = "" if o.lost is None else o.lost
            rows.append(f"| {o.fault} | {o.happened.replace('|', '/')} | {lost} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="regular expression over the names of faults")
    parser.add_argument("--list", action="store_true", help="the names alone")
    parser.add_argument("--seed", type=int, default=0, help="of the random steps")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--json", help="write the outcomes to this file")
    parser.add_argument("--markdown", help="write the table of faults to this file")
    parser.add_argument("--keep", action="store_true", help="keep the temporary directory")
    options = parser.parse_args()
    globals()["KEEP"] = options.keep

    chosen = [case for case in table(options.seed) if re.search(options.only, case.fault)]
    if options.list:
        print("\n".join(case.fault for case in chosen), flush=True)
        for part in ("inputs", "configs", "flips"):
            script = [sys.executable, str(ROOT / "scripts" / "chaos_inputs.py")]
            subprocess.run([*script, part, "--list", f"--only={options.only}"], check=True)
        return 0

    began, outcomes, lock = time.monotonic(), [], threading.Lock()

    def report(outcome: Outcome) -> None:
        with lock:
            outcomes.append(outcome)
            show(outcome)

    parts = [
        functools.partial(inside, part, scratch() / part, report, options.only)
        for part in ("inputs", "configs", "flips")
    ]
    pool = concurrent.futures.ThreadPoolExecutor(options.jobs)
    try:
        jobs = [pool.submit(part) for part in parts]
        jobs += [pool.submit(lambda c=c: report(attempt(c))) for c in chosen if not c.alone]
        for job in jobs:
            job.result()
        for case in chosen:
            if case.alone:
                report(attempt(case))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(RUNNING):
            process.kill()
        pool.shutdown()
        if not options.keep:
            shutil.rmtree(scratch(), ignore_errors=True)
    print("\n" + totals(outcomes, time.monotonic() - began), flush=True)
    if options.json:
        found = [outcome._asdict() for outcome in outcomes]
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")
    if options.markdown:
        Path(options.markdown).write_text(markdown(outcomes))
    return int(any(outcome.ok is False for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
