"""Files in folders, one example each: pictures, arrays, videos and folders of frames."""

import functools
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mae_jax.data.modalities import video
from mae_jax.data.sources.source import Example, Examples, check_split

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")
VIDEOS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ogv", "gif")
SPLIT_FOLDERS = {  # split: the sub-folders that may hold it, best first
    "train": ("train",),
    "test": ("test", "val", "validation"),
    "validation": ("validation", "val", "test"),
}
SPLITS = (*SPLIT_FOLDERS, "all")
HELD_OUT = 0.1

Listing = tuple[Path, tuple[str, ...], tuple[Any, ...], tuple[str, ...]]  # see `list_files`


def pictures(path: str, split: str) -> Examples:
    """Open the pictures under `path`, sorted by path; the sub-folder of a picture is its class.

    Sub-folders `train` and `test` (or `val`, `validation`) are the splits, and the classes are the
    sub-folders of all of them. Without such folders one file in ten is held out, by the CRC-32 of
    its relative path, so that no file changes sides when others are added or removed. Hidden files
    and looping links are skipped.

    Raises:
      FileNotFoundError: the folder does not exist, or holds no pictures.
      ValueError: the split is unknown, or the folder has one split but not the requested one.
    """
    listing = list_files(path, split, PICTURES, f"folder:{path}", "pictures")
    return from_listing(listing, Path.read_bytes)


def arrays(path: str, split: str) -> Examples:
    """Open the `.npy` and `.npz` files under `path`, as in `pictures`; an example has the path."""
    return from_listing(list_files(path, split, ("npy", "npz"), f"arrays:{path}", "arrays"), str)


def videos(path: str, split: str) -> Examples:
    """Open the video files under `path`, as in `pictures`; an example has the path of a file."""
    video.import_av()
    return from_listing(list_files(path, split, VIDEOS, f"video:{path}", "videos"), str)


def frames(path: str, split: str) -> Examples:
    """Open the folders of frames under `path`, as in `pictures`.

    A folder below `path` that itself holds pictures is one clip, in the role of a file. An example
    has the paths of its pictures in natural order: frame2 comes before frame10.
    """
    spec, noun = f"frames:{path}", "folders of frames"
    listing = list_files(path, split, PICTURES, spec, noun, _find_frame_folders)
    return from_listing(listing, _frames_in_order)


def _find_frame_folders(root: Path, part: str, extensions: tuple[str, ...]) -> set[str]:
    return {file.rpartition("/")[0] for file in find_files(root, part, extensions)} - {part}


def _frames_in_order(folder: Path) -> tuple[str, ...]:
    """Return the paths of the pictures in `folder`, with numbers compared as numbers."""
    ends = tuple(f".{extension}" for extension in PICTURES)
    names = [name for name in os.listdir(folder) if name.lower().endswith(ends)]
    steps = lambda name: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", name)]
    shown = (name for name in names if not name.startswith("."))
    return tuple(str(folder / name) for name in sorted(shown, key=lambda n: (steps(n), n)))


def from_listing(listing: Listing, load: Callable[[Path], Any]) -> Examples:
    """Return the source of the listed files; `load` turns a path into what an example holds."""
    root, files, labels, classes = listing
    read = functools.partial(_read, root, files, labels, load)
    return Examples(len(files), read, classes, names=files, labels=labels)


def _read(root: Path, files: tuple[str, ...], labels: tuple, load: Callable, i: int) -> Example:
    return {"image": load(root / files[i]), "label": labels[i]}


def list_files(
    path: str,
    split: str,
    extensions: tuple[str, ...],
    spec: str,
    noun: str,
    find: Callable[[Path, str, tuple[str, ...]], Iterable[str]] | None = None,
) -> Listing:
    """Return root, files, labels and classes of the files with these extensions, as in `pictures`.

    `spec` and `noun` name the source and such files in messages; `find` replaces `find_files`.
    """
    root, find = Path(path).expanduser(), find or find_files
    check_split(spec, split, SPLITS)
    if not root.is_dir():
        raise FileNotFoundError(f"data {spec!r}: there is no folder {str(root)!r}")
    parts = _split_folders(root)
    chosen = parts or [""]
    if parts and split != "all":
        chosen = [part for part in SPLIT_FOLDERS[split] if part in parts][:1]
        if not chosen:
            raise ValueError(
                f"data {spec!r} has {' and '.join(parts)} but no "
                f"{' or '.join(SPLIT_FOLDERS[split])} for split {split!r}: add it, or hold out a "
                f"tenth with '{spec}/{parts[0]}'"
            )
    files = sorted(file for part in chosen for file in find(root, part, extensions))
    if not files:
        raise FileNotFoundError(
            f"data {spec!r}: no {noun} in {str(root / chosen[0])!r}, "
            f"where files would end in {', '.join(extensions)}"
        )
    if parts:
        children = ((part, name) for part in parts for name in _children(root / part))
        # One file is enough to make a class.
        names = {name for part, name in children if any(find(root, f"{part}/{name}", extensions))}
    else:
        names = {file.split("/")[0] for file in files if "/" in file}
        files = hold_out(files, split)
    if not files:
        raise ValueError(f"data {spec!r} has too few {noun} for split {split!r}: use 'all'")
    number = {name: label for label, name in enumerate(sorted(names))}
    # Reports are UTF-8 and have one line for each class.
    classes = tuple(name if name.isprintable() else repr(name)[1:-1] for name in number)
    paths = (file.split("/")[1 if parts else 0 :] for file in files)
    labels = tuple(number[path[0]] if len(path) > 1 else -1 for path in paths)
    return root, tuple(files), labels, classes


def find_files(
    root: Path, part: str, extensions: tuple[str, ...], above: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield files under `root/part` with these extensions, relative to `root`, in any order.

    `above` are the real paths of the folders that contain `part`; links to them are not followed.
    """
    above |= {os.path.realpath(root), os.path.realpath(root / part)}
    with os.scandir(root / part) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{part}/{entry.name}" if part else entry.name
            if _holds(entry.is_dir):
                if os.path.realpath(entry.path) not in above:
                    yield from find_files(root, name, extensions, above)
            elif entry.name.rpartition(".")[2].lower() in extensions and _holds(entry.is_file):
                yield name


def hold_out(files: list[str], split: str) -> list[str]:
    """Return the files of `split` if a tenth of them is held out by the CRC-32 of their names."""
    if split == "all":
        return files
    draw = {file: zlib.crc32(os.fsencode(file)) / 2**32 for file in files}
    ranked = sorted(files, key=lambda file: draw[file])
    # Of two or more files, each side has at least one.
    held = {f for f in files if draw[f] < HELD_OUT} | set(ranked[: len(files) > 1])
    held -= set(ranked[-1:])
    return [file for file in files if (file in held) != (split == "train")]


def _split_folders(root: Path) -> list[str]:
    children = _children(root)
    parts = [name for name in children if name in ("train", *SPLIT_FOLDERS["test"])]
    return parts if parts != ["train"] or children == ["train"] else []


def _children(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if _holds(e.is_dir) and not e.name.startswith("."))


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself is neither a file nor a folder
        return False
