"""Files in folders, one example each: pictures, videos and folders of frames."""

import collections
import dataclasses
import functools
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mae_jax.data import notices
from mae_jax.data.modalities import video
from mae_jax.data.sources import splits, tables
from mae_jax.data.sources.labels import Labels, labelled, printable
from mae_jax.data.sources.source import Examples, check_split

_log = logging.getLogger(__name__)
PICTURES = (  # of the formats that `image_io.decode` opens
    *"jpg jpeg png webp bmp gif tif tiff ppm jpe jfif jp2 j2k j2c jpc jpf jpx".split(),
    *"avif avifs apng dib pgm pbm pnm pfm".split(),
)
VIDEOS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ogv", "gif")
_SHOWN = 3  # names in a message


class Listing(NamedTuple):
    """The files of a split."""

    root: Path
    files: tuple[str, ...]  # relative to the root
    labels: Labels


def pictures(path: str, split: str) -> Examples:
    """Open the pictures under `path`, sorted by path; the sub-folder of a picture is its class.

    Sub-folders `train` and `test` (or `val`, `validation`) are the splits, and the classes are the
    sub-folders of all of them. Without such folders one file in ten is held out, by the CRC-32 of
    its relative path, so that no file changes sides when others are added or removed. Hidden files
    and looping links are skipped, and files with other endings are counted in the log.

    A table `labels.csv` in `path`, see `tables.read_csv`, names files relative to `path`: its
    labels replace those of the folders, its splits too if it has any, and files that it does not
    name are left out. `PATH::COLUMN` chooses one of several columns of labels.

    Raises:
      FileNotFoundError: the folder does not exist, or holds no pictures.
      ValueError: the split is unknown, or the folder has one split but not the requested one.
    """
    listing = list_files(path, split, PICTURES, f"folder:{path}", "pictures")
    return from_listing(listing, Path.read_bytes)


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
    return from_listing(listing, frames_in_order)


def _find_frame_folders(root: Path, part: str, extensions: tuple[str, ...]) -> set[str]:
    return {file.rpartition("/")[0] for file in find_files(root, part, extensions)} - {part}


def is_picture(file: str | os.PathLike[str]) -> bool:
    """Return whether a file ends as those of formats that `image_io.decode` opens."""
    return str(file).lower().endswith(tuple(f".{extension}" for extension in PICTURES))


def frames_in_order(folder: Path) -> tuple[str, ...]:
    """Return the paths of the pictures in `folder`, with numbers compared as numbers."""
    names = filter(is_picture, os.listdir(folder))
    steps = lambda name: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", name)]
    shown = (name for name in names if not name.startswith("."))
    return tuple(str(folder / name) for name in sorted(shown, key=lambda n: (steps(n), n)))


def from_listing(listing: Listing, load: Callable[[Path], Any]) -> Examples:
    """Return the source of the listed files; `load` turns a path into what an example holds."""
    root, files, labels = listing
    return labelled(functools.partial(_load, root, files, load), labels, files)


def _load(root: Path, files: tuple[str, ...], load: Callable[[Path], Any], i: int) -> Any:
    return load(root / files[i])


def list_files(
    path: str,
    split: str,
    extensions: tuple[str, ...],
    spec: str,
    noun: str,
    find: Callable[[Path, str, tuple[str, ...]], Iterable[str]] | None = None,
    group_of: Callable[[str], str] | None = None,
) -> Listing:
    """Return the files with these extensions of a split, with their labels, as in `pictures`.

    `spec` and `noun` name the source and such files in messages; `find` replaces `find_files`. A
    tenth of the groups of `group_of` is held out, where it is given and no table has groups.
    """
    (root, column), left_out = tables.split_place(path), []
    find = find or functools.partial(find_files, left_out=left_out)
    if not root.is_dir():
        raise FileNotFoundError(f"data {spec!r}: there is no folder {str(root)!r}")
    if not (table := tables.beside(root)) and column:
        raise ValueError(
            f"data {spec!r} names a column, but there is no labels.csv in {str(root)!r}"
        )
    parts, by_table = _split_folders(root), table is not None and table.decides(split)
    chosen = parts or [""] if by_table else _choose_parts(parts, split, spec)
    searched = parts or [""] if table else chosen  # a table names files of all splits
    is_table = lambda file: table is not None and file == tables.BESIDE
    found = (file for part in searched for file in find(root, part, extensions))
    files = sorted(itertools.filterfalse(is_table, found))
    _tell_left_out([*itertools.filterfalse(is_table, left_out)], spec)
    if not files:
        raise FileNotFoundError(
            f"data {spec!r}: no {noun} in {str(root / chosen[0])!r}, "
            f"where files would end in {', '.join(extensions)}"
        )
    classes = _class_names(root, files, parts, functools.partial(find, extensions=extensions))
    if not table:
        groups = [*map(group_of, files)] if group_of else files
        rows = range(len(files)) if parts else splits.held_out(groups, split, spec)
        files = [files[row] for row in rows]
        if not files:
            raise ValueError(f"data {spec!r} has too few {noun} for split {split!r}: use 'all'")
        return Listing(root, tuple(files), _folder_labels(files, classes, bool(parts)))
    table = _named_files(table, files, spec, noun)
    if group_of and "group" not in table.columns:
        groups = [*map(group_of, table.names)]
        table = dataclasses.replace(table, columns={**table.columns, "group": groups})
    rows = table.rows(split) if by_table or not parts else _rows_in(chosen, table)
    files = [table.names[row] for row in rows]
    if not files:
        raise ValueError(f"data {spec!r}: labels.csv names no {noun} of split {split!r}: use 'all'")
    of_table = table.read_labels(column)
    labels = of_table.of(rows) if of_table else _folder_labels(files, classes, bool(parts))
    return Listing(root, tuple(files), labels)


def _choose_parts(parts: list[str], split: str, spec: str) -> list[str]:
    """Return which of the folders of splits hold a split; without such folders, the root."""
    check_split(spec, split, splits.SPLITS)
    if not parts or split == "all":
        return parts or [""]
    chosen = [part for part in splits.STORED[split] if part in parts][:1]
    if not chosen:
        raise ValueError(
            f"data {spec!r} has {' and '.join(parts)} but no "
            f"{' or '.join(splits.STORED[split])} for split {split!r}: add it, or hold out a "
            f"tenth with '{spec}/{parts[0]}'"
        )
    return chosen


def _class_names(
    root: Path, files: list[str], parts: list[str], find: Callable[[Path, str], Iterable[str]]
) -> list[str]:
    """Return the names of the folders that are classes, sorted."""
    if not parts:
        return sorted({file.split("/")[0] for file in files if "/" in file})
    children = ((part, name) for part in parts for name in _children(root / part))
    # One file is enough to make a class.
    return sorted({name for part, name in children if any(find(root, f"{part}/{name}"))})


def _folder_labels(files: list[str], classes: list[str], below_parts: bool) -> Labels:
    """Return the number of the folder of each file, or -1 for a file in none of them."""
    number = {name: label for label, name in enumerate(classes)}
    paths = (file.split("/")[below_parts:] for file in files)
    values = tuple(number[path[0]] if len(path) > 1 else -1 for path in paths)
    return Labels(values, classes=tuple(map(printable, classes)))


def _named_files(table: tables.Table, files: list[str], spec: str, noun: str) -> tables.Table:
    """Return the rows of a table in the order of the files, each of which it names or not."""
    row = {name: i for i, name in enumerate(table.names)}
    if missing := sorted(row.keys() - set(files)):
        rest = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"data {spec!r}: labels.csv names {missing[0]!r}{rest}, but there is no such file "
            f"among the {noun}: correct the name or drop its line"
        )
    if unnamed := [file for file in files if file not in row]:
        notices.once(
            _log.warning,
            f"data {spec!r}: {len(unnamed):,} of {len(files):,} files are left out, which "
            f"labels.csv does not name, such as {unnamed[0]!r}",
        )
    return table.of([row[file] for file in files if file in row])


def _rows_in(parts: list[str], table: tables.Table) -> list[int]:
    """Return the rows of the files below the folders of a split."""
    part_of = [file.split("/")[0] for file in table.names]
    if groups := table.columns.get("group"):
        splits.check_groups(groups, part_of, table.title)
    return [row for row, part in enumerate(part_of) if part in parts]


def _tell_left_out(files: Sequence[str], spec: str) -> None:
    """Name in the log, by their endings, the files that no reader of this source knows."""
    if files:
        kinds = collections.Counter(
            os.path.splitext(file)[1].lower() or "no ending" for file in files
        )
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(_SHOWN))
        dots = ", ..." if len(kinds) > _SHOWN else ""
        are = "file is" if len(files) == 1 else "files are"
        notices.once(
            _log.warning,
            f"data {spec!r}: {len(files):,} {are} left out ({counts}{dots}), such as "
            f"{', '.join(map(repr, sorted(files)[:_SHOWN]))}",
        )


def find_files(
    root: Path, part: str, extensions: tuple[str, ...], left_out: list[str] | None = None
) -> Iterator[str]:
    """Yield files under `root/part` with these extensions, relative to `root`, in any order.

    The other files are appended to `left_out`.
    """
    ends = tuple(f".{extension}" for extension in extensions)
    for file in walk(root, part):
        if file.lower().endswith(ends):
            yield file
        elif left_out is not None:
            left_out.append(file)


def walk(root: Path, part: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield the files under `root/part` that are not hidden, of which a Zarr store is one.

    `above` are the real paths of the folders that contain `part`; links to them are not followed.
    """
    above |= {os.path.realpath(root), os.path.realpath(root / part)}
    with os.scandir(root / part) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{part}/{entry.name}" if part else entry.name
            if entry.name.lower().endswith(".zarr"):
                yield name
            elif _holds(entry.is_dir):
                if os.path.realpath(entry.path) not in above:
                    yield from walk(root, name, above)
            elif _holds(entry.is_file):
                yield name


def _split_folders(root: Path) -> list[str]:
    children = _children(root)
    parts = [name for name in children if name in ("train", *splits.STORED["test"])]
    return parts if parts != ["train"] or children == ["train"] else []


def _children(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if _holds(e.is_dir) and not e.name.startswith("."))


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself is neither a file nor a folder
        return False
