"""Odd data, read as training does, and what must become of them; for chaos_inputs.py."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported
ROOT = Path(__file__).resolve().parent.parent
SIDE = 32
SECONDS, MEGABYTES = 60, 1000  # that a case may take


class Failed(Exception):
    """What is not as it should be."""


class Case(NamedTuple):
    name: str
    act: Callable[[Path], str]  # working place -> what happened


def check(true: Any, otherwise: str) -> None:
    if not true:
        raise Failed(otherwise)


# --- reading as training does ---


class Batch(NamedTuple):
    image: np.ndarray
    label: np.ndarray
    replaced: list[str]  # lines of unreadable.txt
    share: float


IMAGE = dict(modality="image", size=(SIDE, SIDE), channels=3, crop_scale=(1, 1), crop_ratio=(1, 1))


def opened(spec: str, split: str = "all", modality: str = "image"):
    from mae_jax.data import sources

    return sources.open(spec, split, modality)


def epoch(source, place: Path, data: dict, threads: int = 0, at_most: float = 1.0) -> Batch:
    """Every example of a source once, in one batch, by the reader that training uses."""
    from mae_jax.data import bad_examples, pipeline
    from mae_jax.data.modalities import transforms

    path = place / f"unreadable_{time.monotonic_ns()}.txt"
    found = bad_examples.Damage(source, at_most, path)
    batches = pipeline.training_batches(
        source,
        transforms.train_transform({"repeats": 1} | data),
        batch_size=len(source),
        seed=0,
        threads=threads,
        damage=found,
    )
    closing: Any = contextlib.closing(batches)  # pyright: ignore[reportArgumentType]
    with within_memory(), closing:
        batch = next(batches)
    lines = path.read_text(errors="surrogateescape").splitlines() if path.exists() else []
    return Batch(batch["image"], batch["label"], lines, float(found.share))


def colours() -> list[tuple[int, int, int]]:
    return [(20 + 30 * i, 200 - 25 * i, 40 * (i % 3)) for i in range(7)]


def good(folder: Path) -> None:
    """Seven pictures of one colour each, of class "good"."""
    (folder / "good").mkdir(parents=True)
    (folder / "odd").mkdir()
    for i, colour in enumerate(colours()):
        Image.new("RGB", (SIDE, SIDE), colour).save(folder / "good" / f"{i}.png")


def apart(batch: Batch) -> np.ndarray:
    """The rows that are no good picture as it is; raises if a good one is missing."""
    flat = batch.image.reshape(len(batch.image), -1, 3)
    known = np.array(colours())
    match = (flat == flat[:, :1]).all((1, 2)) & (flat[:, :1] == known).all(2).any(1)
    seen = {tuple(row) for row in flat[match][:, 0].tolist()}
    check(seen == set(colours()), f"good pictures are missing: {len(seen)} of 7 are there")
    return batch.image[~match]


@contextlib.contextmanager
def within_seconds() -> Iterator[None]:
    def late(number, frame):
        raise Failed(f"not done after {SECONDS} s")

    handler = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def within_memory() -> Iterator[None]:
    """What happens inside does not make the process much larger, not even for a moment."""

    def megabytes(field: str) -> float:
        with contextlib.suppress(OSError):
            text = Path("/proc/self/status").read_text()
            if found := re.search(rf"{field}:\s+(\d+)", text):
                return int(found[1]) / 1024
        return 0.0

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = megabytes("VmRSS")
    yield
    grown = megabytes("VmHWM") - before
    check(grown < MEGABYTES, f"took {grown:.0f} MB")


# --- what an odd picture becomes ---


def becomes(expected: Callable[[], np.ndarray], tolerance: int, make: Callable[[Path], Any]):
    """Converted: the odd one is what is expected [32, 32, 3], and nothing is replaced."""

    def act(place: Path) -> str:
        good(place / "p")
        make(place / "p" / "odd")
        batch = epoch(opened(f"folder:{place / 'p'}"), place, IMAGE)
        check(not batch.replaced, f"replaced: {batch.replaced}")
        rows = batch.image[batch.label == 1]
        check(len(rows) == 1 and len(batch.image) == 8, f"{len(rows)} odd of {len(batch.image)}")
        want = expected()
        want = np.broadcast_to(want, (SIDE, SIDE, 3)).astype(int)
        worst = np.abs(rows[0].astype(int) - want).max()
        check(worst <= tolerance, f"off by {worst} of 255")
        return f"converted, off by {worst} of 255 at most"

    return act


def is_replaced(make: Callable[[Path], Any], after: Callable[[Path], Any] | None = None):
    """A good one takes its place, which is counted and named.

    Args:
      after: what happens to the folder when its files have been listed.
    """

    def act(place: Path) -> str:
        good(place / "p")
        make(place / "p" / "odd")
        source = opened(f"folder:{place / 'p'}")
        if after:
            after(place / "p" / "odd")
        batch = epoch(source, place, IMAGE)
        check(len(batch.image) == 8, f"{len(batch.image)} rows")
        odd = apart(batch)
        check(len(odd) == 0, "it was taken for a picture")
        check((batch.label == 0).all(), "the substitute has the label of what it replaces")
        check(len(batch.replaced) == 1, f"unreadable.txt has {batch.replaced}")
        check("odd/" in batch.replaced[0], f"not named: {batch.replaced}")
        check(abs(batch.share - 1 / 8) < 1e-6, f"share {batch.share} instead of 1/8")
        again = epoch(source, place, IMAGE, threads=2)
        check((again.image == batch.image).all(), "another substitute the second time")
        return "another takes its place, counted and named"

    return act


def is_left_out(make: Callable[[Path], Any]):
    """It is no example at all."""

    def act(place: Path) -> str:
        good(place / "p")
        make(place / "p" / "odd")
        source = opened(f"folder:{place / 'p'}")
        check(len(source) == 7, f"{len(source)} examples instead of 7")
        batch = epoch(source, place, IMAGE)
        check(not batch.replaced and not len(apart(batch)), "read")
        check("odd" not in source.classes, "an empty class counts as one")
        return "left out"

    return act


def either(*acts):
    """One of these."""

    def act(place: Path) -> str:
        problems = []
        for i, one in enumerate(acts):
            try:
                return one(place / str(i))
            except Failed as error:
                problems.append(str(error))
        raise Failed(" and ".join(problems))

    return act


def says(open_it: Callable[[Path], Any], *patterns: str):
    """One sentence instead of a source."""

    def act(place: Path) -> str:
        place.mkdir(parents=True, exist_ok=True)
        try:
            open_it(place)
        except (ValueError, OSError, ImportError) as error:
            text = str(error)
            check(text and "\n" not in text, f"not one sentence: {text!r}")
            for pattern in patterns:
                check(re.search(pattern, text), f"does not say {pattern!r}: {text}")
            return text
        raise Failed("opened without a word")

    return act


def write(name: str, data: Callable[[], bytes] | bytes):
    def make(folder: Path) -> None:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data())

    return make
