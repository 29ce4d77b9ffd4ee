"""Texts as bytes: files cut into pieces, and the sources of Python's standard library."""

import functools
import itertools
import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from mae_jax.data.sources import folders, labels, splits
from mae_jax.data.sources.source import Examples, check_split

EXTENSIONS = (
    *"txt md rst tex log csv tsv json jsonl xml html yaml yml toml ini fasta fa fna faa".split(),
    *"py c h cc cpp hpp cu rs go java js ts css sh sql r jl lua rb pl".split(),
)
PIECE = 1 << 16  # bytes of the longest example; a longer file becomes several examples
_NO_SOURCE = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}

Span = tuple[str, int, int]  # file relative to the root, first byte, end


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
        check_split(spec, split, splits.SPLITS)
        size = place.stat().st_size
        cut = size - int(size * splits.HELD_OUT)
        start, stop = {"train": (0, cut), "all": (0, size)}.get(split, (cut, size))
        root, spans, of_spans = place.parent, [(place.name, start, stop)], labels.none(1)
    else:
        root, names, of_spans = folders.list_files(path, split, EXTENSIONS, spec, "texts")
        spans = [(name, 0, os.path.getsize(root / name)) for name in names]
    source = _cut_into_pieces(root, spans, of_spans)
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
    chosen = splits.hold_out(sorted(sizes), split)
    spans = [(name, 0, sizes[name]) for name in chosen]
    return _cut_into_pieces(root, spans, labels.none(len(spans)))


def _cut_into_pieces(root: Path, spans: Sequence[Span], of_spans: labels.Labels) -> Examples:
    """Cut each span into the fewest equal pieces allowed, which are the examples."""
    pieces, rows = [], []
    for row, (name, start, stop) in enumerate(spans):
        count = -(-(stop - start) // PIECE)
        edges = [start + (stop - start) * k // max(1, count) for k in range(count + 1)]
        pieces += [(name, *ends) for ends in itertools.pairwise(edges)]
        rows += [row] * count
    names = [f"{name}[{start}:{stop}]" for name, start, stop in pieces]
    return labels.labelled(functools.partial(_read, root, pieces), of_spans.of(rows), names)


def _read(root: Path, pieces: list[Span], i: int) -> bytes:
    name, start, stop = pieces[i]
    with open(root / name, "rb") as file:
        file.seek(start)
        return file.read(stop - start)
