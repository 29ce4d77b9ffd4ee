"""Odd data, read as training reads them: a folder of seven good pictures and an odd one."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from mae_jax.data import bad_examples, pipeline, sources
from mae_jax.data.modalities import transforms

SIDE = 32
MEGABYTES = 1000  # that a case may take
IMAGE = dict(modality="image", size=(SIDE, SIDE), channels=3, crop_scale=(1, 1), crop_ratio=(1, 1))
COLOURS = [(20 + 30 * i, 200 - 25 * i, 40 * (i % 3)) for i in range(7)]
REPLACED = "another takes its place, counted and named"
Check = Callable[[Path], str]  # takes an empty folder, and returns what happened


class Batch(NamedTuple):
    image: np.ndarray
    label: np.ndarray
    replaced: list[str]  # the lines of unreadable.txt
    share: float  # of the examples that were replaced


def opened(spec: str, split: str = "all", modality: str = "image") -> Any:
    return sources.open_source(spec, split, modality)


def read(source, place: Path, data: dict, threads: int = 0, at_most: float = 1.0) -> Batch:
    """Every example of a source once, in one batch, by the reader that training uses."""
    path = place / f"unreadable_{time.monotonic_ns()}.txt"
    bad = bad_examples.BadExamples(source, at_most, path)
    transform = transforms.train_transform({"repeats": 1} | data)
    options: Any = dict(threads=threads, bad_examples=bad)
    order = pipeline.Order(len(source), seed=0)
    batches: Any = pipeline.training_batches(source, transform, order, **options)
    with within_memory(), contextlib.closing(batches):
        batch = next(batches)
    lines = path.read_text(errors="surrogateescape").splitlines() if path.exists() else []
    return Batch(batch["image"], batch["label"], lines, float(bad.share))


@contextlib.contextmanager
def within_memory() -> Iterator[None]:
    """Expect that the process does not become much larger inside, not even for a moment."""

    def megabytes(field: str) -> float:
        found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = megabytes("VmRSS")
    yield
    grown = megabytes("VmHWM") - before
    assert grown < MEGABYTES


def write(folder: Path, name: str, data: Callable[[], bytes] | bytes) -> None:
    (folder / name).write_bytes(data if isinstance(data, bytes) else data())


def pictures(place: Path, make: Callable[[Path], Any]) -> Path:
    """A folder of seven pictures of one color each, of class "good", and an odd one."""
    (place / "good").mkdir(parents=True)
    (place / "odd").mkdir()
    for i, color in enumerate(COLOURS):
        Image.new("RGB", (SIDE, SIDE), color).save(place / "good" / f"{i}.png")
    make(place / "odd")
    return place


def apart(batch: Batch) -> np.ndarray:
    """The rows that are no good picture as it is; all good ones must be there."""
    flat = batch.image.reshape(len(batch.image), -1, 3)
    known = np.array(COLOURS)
    match = (flat == flat[:, :1]).all((1, 2)) & (flat[:, :1] == known).all(2).any(1)
    assert {tuple(row) for row in flat[match][:, 0].tolist()} == set(COLOURS)
    return batch.image[~match]


# --- what is expected of the odd one ---


def converted(make: Callable[[Path], Any], expected: Any, tolerance: int = 0) -> Check:
    """The odd picture becomes this one, and nothing is replaced."""

    def check(place):
        batch = read(opened(f"folder:{pictures(place / 'p', make)}"), place, IMAGE)
        assert not batch.replaced
        rows = batch.image[batch.label == 1]
        assert len(rows) == 1 and len(batch.image) == 8
        wanted = np.asarray(expected() if callable(expected) else expected)
        worst = np.abs(rows[0].astype(int) - np.broadcast_to(wanted, rows[0].shape)).max()
        assert worst <= tolerance
        return f"converted, off by {worst:.0f} of 255 at most"

    return check


def replaced(make: Callable[[Path], Any], after: Callable[[Path], Any] | None = None) -> Check:
    """A good picture takes the place of the odd one, which is counted and named.

    Args:
      after: what happens to the folder when its files have been listed.
    """

    def check(place):
        folder = pictures(place / "p", make)
        source = opened(f"folder:{folder}")
        if after:
            after(folder / "odd")
        batch = read(source, place, IMAGE)
        assert len(batch.image) == 8
        assert not len(apart(batch)), "it was taken for a picture"
        assert (batch.label == 0).all(), "the substitute has the label of what it replaces"
        assert len(batch.replaced) == 1 and "odd/" in batch.replaced[0]
        assert abs(batch.share - 1 / 8) < 1e-6
        again = read(source, place, IMAGE, threads=2)
        assert (again.image == batch.image).all(), "another substitute the second time"
        return REPLACED

    return check


def left_out(make: Callable[[Path], Any]) -> Check:
    """The odd one is no example at all."""

    def check(place):
        source = opened(f"folder:{pictures(place / 'p', make)}")
        assert len(source) == 7
        batch = read(source, place, IMAGE)
        assert not batch.replaced and not len(apart(batch))
        assert "odd" not in source.classes, "an empty class counts as one"
        return "left out"

    return check


def either(*checks: Check) -> Check:
    """One of these."""

    def check(place):
        problems = []
        for i, one in enumerate(checks):
            (place / str(i)).mkdir()
            try:
                return one(place / str(i))
            except AssertionError as error:
                problems.append(str(error))
        pytest.fail(" and ".join(problems))

    return check


def says(open_it: Callable[[Path], Any], *patterns: str) -> Check:
    """One sentence instead of a source."""

    def check(place):
        with pytest.raises((ValueError, OSError, ImportError)) as raised:
            open_it(place)
        text = str(raised.value)
        assert text and "\n" not in text, f"not one sentence: {text!r}"
        for pattern in patterns:
            assert re.search(pattern, text), f"does not say {pattern!r}: {text}"
        return text

    return check
