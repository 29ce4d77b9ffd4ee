"""Texts as bytes: files cut into pieces, and windows [length, 1] of a piece."""

import itertools
import os
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mae_jax.data.sources import folders
from mae_jax.data.sources.records import check_split
from mae_jax.data.unreadable import Unreadable

EXTENSIONS = (
    *"txt md rst tex log csv tsv json jsonl xml html yaml yml toml ini fasta fa fna faa".split(),
    *"py c h cc cpp hpp cu rs go java js ts css sh sql r jl lua rb pl".split(),
)
_PIECE = 1 << 16  # bytes: an example is no longer, so that a long file counts as many
Span = tuple[str, int, int, int]  # file, first byte, byte behind the last, label
_NO_SOURCE = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


@dataclass(frozen=True)
class Texts:
    """Parts of files: `pieces` are (file relative to `root`, first byte, byte behind the last)."""

    root: Path
    pieces: tuple[tuple[str, int, int], ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, i: int) -> dict[str, Any]:
        name, start, stop = self.pieces[i]
        with open(self.root / name, "rb") as file:
            file.seek(start)
            return {"image": file.read(stop - start), "label": self.labels[i]}

    def name(self, i: int) -> str:
        name, start, stop = self.pieces[i]
        return f"{name}[{start}:{stop}]"


def files(path: str, split: str) -> Texts:
    """The bytes of the text file `path`, or of those under the folder `path`.

    An example is a file, or an equal part of one where it has more than 64 KiB. In a folder, splits
    and classes follow the rules of `folders.folder`; empty files are left out. Of a single file,
    "train" is the first nine tenths, "test" or "validation" the rest.

    Raises:
      FileNotFoundError: no such place, or no texts in it.
      ValueError: unknown split, one without files, or nothing but empty files.
    """
    spec, place = f"text:{path}", Path(path).expanduser()
    if place.is_file():
        check_split(spec, split, (*folders.PARTS, "all"))
        size = place.stat().st_size
        cut = size - int(size * folders.HELD_OUT)
        start, stop = {"train": (0, cut), "all": (0, size)}.get(split, (cut, size))
        spans = [(place.name, start, stop, -1)]
        root, classes = place.parent, ()
    else:
        root, names, labels, classes = folders.listed(path, split, EXTENSIONS, spec, "texts")
        sizes = (os.path.getsize(root / name) for name in names)
        spans = [(name, 0, n, k) for name, n, k in zip(names, sizes, labels, strict=True)]
    found = _pieces(root, spans, classes)
    if not found.pieces:
        raise ValueError(f"data {spec!r} has no bytes for split {split!r}: add longer files")
    return found


def stdlib(split: str) -> Texts:
    """The sources of this Python's standard library: `.py` files of 512 bytes or more, no tests.

    A tenth of the files is held out by name, as in `folders.folder`. There are no classes, and a
    Python without sources on the disk is a FileNotFoundError.
    """
    check_split("stdlib", split, ("train", "test", "all"))
    root, sizes = Path(sysconfig.get_path("stdlib")), {}
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in _NO_SOURCE]
        for name in names:
            file = Path(folder, name)
            if file.suffix == ".py" and (size := file.stat().st_size) >= 512:
                sizes[file.relative_to(root).as_posix()] = size
    if not sizes:
        raise FileNotFoundError(f"data 'stdlib': this Python has no .py files in {str(root)!r}")
    chosen = folders.hold_out(sorted(sizes), split)
    return _pieces(root, ((name, 0, sizes[name], -1) for name in chosen))


def train(data: bytes, rng: np.random.Generator, *, size: tuple[int]) -> np.ndarray:
    """A random window of `data`: uint8 [length, 1], with zeros behind its end; or Unreadable."""
    return _window(data, rng.integers(0, max(0, len(data) - size[0]), endpoint=True), size)


def test(data: bytes, *, size: tuple[int]) -> np.ndarray:
    """The middle window of `data`; else as `train`."""
    return _window(data, max(0, len(data) - size[0]) // 2, size)


test.__test__ = False  # pytest would collect it in every module that imports it


def _window(data: bytes, start: Any, size: tuple[int]) -> np.ndarray:
    if not data:
        raise Unreadable("an empty text: remove the file")
    cut = data[start : start + size[0]]
    return np.frombuffer(cut.ljust(size[0], b"\0"), np.uint8).reshape(-1, 1).copy()


def _pieces(root: Path, spans: Iterable[Span], classes: tuple[str, ...] = ()) -> Texts:
    """Cut the spans into the fewest equal pieces of at most `_PIECE`."""
    pieces, labels = [], []
    for name, start, stop, label in spans:
        count = -(-(stop - start) // _PIECE)
        edges = [start + (stop - start) * k // max(1, count) for k in range(count + 1)]
        pieces += [(name, *ends) for ends in itertools.pairwise(edges)]
        labels += [label] * count
    return Texts(root, tuple(pieces), tuple(labels), classes)
