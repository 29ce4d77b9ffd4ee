"""Training that goes wrong, and data that cannot be read; for chaos.py."""

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from chaos_runs import (
    NO_PROBE,
    PLAIN,
    Case,
    Kind,
    Process,
    arrays,
    at,
    check,
    committed,
    events,
    expect,
    finish,
    kind,
    reached,
    records,
    same,
)
from PIL import Image

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


def counted(found: list[str]) -> str:
    """`7 skipped, 1 rewound`, of events."""
    return ", ".join(f"{found.count(name)} {name}" for name in dict.fromkeys(found))


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
    return f"status 0; {counted(found)}", None


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
    return f"status 2 with a report; {counted(found)}; step {step} is the last saved", None


REPORT = (r"step \d+", r"(?i)learning.rate", r"(?i)gradient", r"encoder", r"(?i)batch|examples")


def absurd_rate(place):
    run = PLAIN.start(place, "--config.optimizer.base_learning_rate=1e30")
    expect(run, 2, *REPORT, r"synthetic train\[\d+\]")
    for step in committed(place):
        finite(place, step)
    found = events(place)
    return (
        f"status 2 with a report; {counted(found)}; saved steps {committed(place)} are finite",
        None,
    )


def spike(place):
    bad = numbers("spike", place, lambda step: 1e4 if step == 33 else 1)
    run = bad.start(place / "run", "--config.recovery.spike=10")
    expect(run, 0)
    found = events(place / "run")
    check("skipped" in found, f"events {found}")
    later = [r["loss"] for r in records(place / "run") if r.get("loss") and r["step"] > 40]
    check(max(later) < 10, f"a loss of {max(later)} later")
    return f"the update is left out and recorded: {counted(found)}", None


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
    lost = reached(place / "run") - committed(place / "run")[-1]
    check(lost <= 2, f"{lost} steps are not saved")
    return f"status 2: {run.last[:120]}", max(0, lost)


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


def cases() -> list[Case]:
    found = [
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
    timed = [
        ("data that never come", stall),
        ("SIGTERM while data never come", stalled_and_terminated),
    ]
    return [Case(*case) for case in found] + [Case(*case, alone=True) for case in timed]
