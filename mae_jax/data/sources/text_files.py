"""Texts as bytes: files cut into pieces, and the sources of Python's standard library."""

import functools
import itertools
import os
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from mae_jax.data.sources import folders
from mae_jax.data.sources.source import Example, Examples, check_split

EXTENSIONS = (
    *"txt md rst tex log csv tsv json jsonl xml html yaml yml toml ini fasta fa fna faa".split(),
    *"py c h cc cpp hpp cu rs go java js ts css sh sql r jl lua rb pl".split(),
)
PIECE = 1 << 16  # bytes of the longest example; a longer file becomes several examples
_NO_SOURCE = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}

Span = tuple[str, int, int, int]  # file relative to the root, first byte, end, label


def texts(path: str, split: str) -> Examples:
    """Open the bytes of the text file `path`, or of the text files under the folder `path`.

    An example is a file, or an equal part of a file that has more than 64 KiB. The splits and
    classes of a folder are those of `folders.pictures`; empty files are left out. Of a single file,
    "train" is the first nine tenths, and "test" or "validation" is the rest.

    Raises:
      FileNotFoundError: the path does not exist, or holds no texts.
      ValueError: the split is unknown or has no files, or all files are empty.
    """
    spec, place = f"text:{path}", Path(path).expanduser()
    if place.is_file():
        check_split(spec, split, folders.SPLITS)
        size = place.stat().st_size
        cut = size - int(size * folders.HELD_OUT)
        start, stop = {"train": (0, cut), "all": (0, size)}.get(split, (cut, size))
        spans = [(place.name, start, stop, -1)]
        root, classes = place.parent, ()
    else:
        root, names, labels, classes = folders.list_files(path, split, EXTENSIONS, spec, "texts")
        sizes = (os.path.getsize(root / name) for name in names)
        spans = [(name, 0, n, k) for name, n, k in zip(names, sizes, labels, strict=True)]
    source = _cut_into_pieces(root, spans, classes)
    if not source.count:
        raise ValueError(f"data {spec!r} has no bytes for split {split!r}: add longer files")
    return source


def stdlib(split: str) -> Examples:
    """Open this Python's standard library: `.py` files of 512 bytes or more, without tests.

    A tenth of the files is held out by name, as in `folders.pictures`. There are no classes.

    Raises:
      FileNotFoundError: this Python has no sources on the disk.
    """
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
    return _cut_into_pieces(root, ((name, 0, sizes[name], -1) for name in chosen), ())


def _cut_into_pieces(root: Path, spans: Iterable[Span], classes: tuple[str, ...]) -> Examples:
    """Cut each span into the fewest equal pieces allowed, which are the examples."""
    pieces = []
    for name, start, stop, label in spans:
        count = -(-(stop - start) // PIECE)
        edges = [start + (stop - start) * k // max(1, count) for k in range(count + 1)]
        pieces += [(name, *ends, label) for ends in itertools.pairwise(edges)]
    names = [f"{name}[{start}:{stop}]" for name, start, stop, _ in pieces]
    load, labels = functools.partial(_read, root, pieces), tuple(piece[3] for piece in pieces)
    return Examples(len(pieces), load, classes, names=names, labels=labels)


def _read(root: Path, pieces: list[Span], i: int) -> Example:
    name, start, stop, label = pieces[i]
    with open(root / name, "rb") as file:
        file.seek(start)
        return {"image": file.read(stop - start), "label": label}
