"""Texts as bytes: files cut into pieces, and the sources of Python's standard library."""

import itertools
import os
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mae_jax.data.sources import folders
from mae_jax.data.sources.source import Example, check_split

EXTENSIONS = (
    *"txt md rst tex log csv tsv json jsonl xml html yaml yml toml ini fasta fa fna faa".split(),
    *"py c h cc cpp hpp cu rs go java js ts css sh sql r jl lua rb pl".split(),
)
PIECE = 1 << 16  # bytes: the longest example, so that a long file counts as many
_NO_SOURCE = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


@dataclass(frozen=True)
class Texts:
    """Parts of files: `pieces` are (file relative to `root`, first byte, end)."""

    root: Path
    pieces: tuple[tuple[str, int, int], ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, i: int) -> Example:
        name, start, stop = self.pieces[i]
        with open(self.root / name, "rb") as file:
            file.seek(start)
            return {"image": file.read(stop - start), "label": self.labels[i]}

    def name(self, i: int) -> str:
        name, start, stop = self.pieces[i]
        return f"{name}[{start}:{stop}]"


def texts(path: str, split: str) -> Texts:
    """Open the bytes of the text file `path`, or of the text files under the folder `path`.

    An example is a file, or an equal part of a file that has more than 64 KiB. The splits and
    classes of a folder are those of `folders.folder`; empty files are left out. Of a single file,
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
    found = _cut_into_pieces(root, spans, classes)
    if not found.pieces:
        raise ValueError(f"data {spec!r} has no bytes for split {split!r}: add longer files")
    return found


def stdlib(split: str) -> Texts:
    """Open this Python's standard library: `.py` files of 512 bytes or more, without tests.

    A tenth of the files is held out by name, as in `folders.folder`. There are no classes.

    Raises:
      FileNotFoundError: this Python has no sources on the disk.
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
    return _cut_into_pieces(root, ((name, 0, sizes[name], -1) for name in chosen), ())


def _cut_into_pieces(
    root: Path, spans: Iterable[tuple[str, int, int, int]], classes: tuple[str, ...]
) -> Texts:
    """Cut each span (file, first byte, end, label) into the fewest equal pieces allowed."""
    pieces, labels = [], []
    for name, start, stop, label in spans:
        count = -(-(stop - start) // PIECE)
        edges = [start + (stop - start) * k // max(1, count) for k in range(count + 1)]
        pieces += [(name, *ends) for ends in itertools.pairwise(edges)]
        labels += [label] * count
    return Texts(root, tuple(pieces), tuple(labels), classes)
