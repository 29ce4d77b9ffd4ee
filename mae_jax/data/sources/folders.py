"""Pictures in folders, one file each."""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_jax.data.sources.records import check_split

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")


@dataclass(frozen=True)
class Folder:
    """Files, relative to `root`; `load` makes of their path what an example holds."""

    root: Path
    files: tuple[str, ...]
    labels: tuple[Any, ...]
    classes: tuple[str, ...]
    load: Callable[[Path], Any] = Path.read_bytes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.load(self.root / self.files[i]), "label": self.labels[i]}

    def name(self, i: int) -> str:
        return self.files[i]


PARTS = {  # split -> the sub-folders that may hold it, best first
    "train": ("train",),
    "test": ("test", "val", "validation"),
    "validation": ("validation", "val", "test"),
}
HELD_OUT = 0.1


def folder(path: str, split: str) -> Folder:
    """Pictures under `path`, by relative path; the sub-folder that holds a picture is its class.

    With sub-folders `train` and `test` (or `val`, `validation`) these are the splits, and the
    classes are the sub-folders of all of them. Otherwise one file in ten is held out, by the CRC-32
    of its relative path, so that no file changes sides as others come and go. A `train` beside
    sub-folders of other names is a class like them. Hidden files and looping links are skipped.

    Raises:
      FileNotFoundError: no such folder, or no pictures in it.
      ValueError: unknown split, or a folder for one split but none for the one asked for.
    """
    return Folder(*listed(path, split, EXTENSIONS, f"folder:{path}", "pictures"))


def listed(
    path: str,
    split: str,
    extensions: tuple[str, ...],
    spec: str,
    noun: str,
    find: Callable[[Path, str, tuple[str, ...]], Iterable[str]] | None = None,
) -> tuple[Path, tuple[str, ...], tuple[int, ...], tuple[str, ...]]:
    """Root, files, labels and classes of the files with these extensions, as `folder` says.

    Args:
      spec, noun: what the user asked for, and what such files are called, for messages.
      find: what to list instead of the files: `find(root, part, extensions)` gives paths relative
        to `root` of what is below `root/part`.
    """
    root, find = Path(path).expanduser(), find or _files
    check_split(spec, split, (*PARTS, "all"))
    if not root.is_dir():
        raise FileNotFoundError(f"data {spec!r}: there is no folder {str(root)!r}")
    parts = _split_folders(root)
    chosen = parts or [""]
    if parts and split != "all":
        chosen = [part for part in PARTS[split] if part in parts][:1]
        if not chosen:
            raise ValueError(
                f"data {spec!r} has {' and '.join(parts)} but no {' or '.join(PARTS[split])} for "
                f"split {split!r}: add it, or hold out a tenth with '{spec}/{parts[0]}'"
            )
    files = sorted(file for part in chosen for file in find(root, part, extensions))
    if not files:
        raise FileNotFoundError(
            f"data {spec!r}: no {noun} in {str(root / chosen[0])!r}, "
            f"where files would end in {', '.join(extensions)}"
        )
    if parts:
        names = {
            name
            for part in parts
            for name in _children(root / part)
            if any(find(root, f"{part}/{name}", extensions))  # one is enough
        }
    else:
        names = {file.split("/")[0] for file in files if "/" in file}
        files = hold_out(files, split)
    if not files:
        raise ValueError(f"data {spec!r} has too few {noun} for split {split!r}: use 'all'")
    number = {name: label for label, name in enumerate(sorted(names))}
    # reports are UTF-8 and have a line for each class
    classes = tuple(name if name.isprintable() else repr(name)[1:-1] for name in number)
    steps = (file.split("/")[1 if parts else 0 :] for file in files)
    labels = tuple(number[step[0]] if len(step) > 1 else -1 for step in steps)
    return root, tuple(files), labels, classes


def _split_folders(root: Path) -> list[str]:
    children = _children(root)
    parts = [name for name in children if name in ("train", *PARTS["test"])]
    return parts if parts != ["train"] or children == ["train"] else []


def _children(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if _true(e.is_dir) and not e.name.startswith("."))


def _true(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself is nothing
        return False


def _files(
    root: Path, part: str, extensions: tuple[str, ...], above: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Paths relative to `root` of such files under `root/part`, in the order of the disk."""
    above |= {os.path.realpath(root), os.path.realpath(root / part)}
    with os.scandir(root / part) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{part}/{entry.name}" if part else entry.name
            if _true(entry.is_dir):
                if os.path.realpath(entry.path) not in above:  # else a link back to where we are
                    yield from _files(root, name, extensions, above)
            elif entry.name.rpartition(".")[2].lower() in extensions and _true(entry.is_file):
                yield name


def hold_out(files: list[str], split: str) -> list[str]:
    if split == "all":
        return files
    draw = {file: zlib.crc32(os.fsencode(file)) / 2**32 for file in files}
    ranked = sorted(files, key=lambda file: draw[file])
    # two pictures are enough for one on each side
    held = {f for f in files if draw[f] < HELD_OUT} | set(ranked[: len(files) > 1])
    held -= set(ranked[-1:])
    return [file for file in files if (file in held) != (split == "train")]
