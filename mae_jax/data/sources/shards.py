"""The files of a data set that is stored in several files, with the splits that their names say."""

import glob
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mae_jax.data import notices
from mae_jax.data.sources import folders, splits

_log = logging.getLogger(__name__)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NAMES = tuple(dict.fromkeys(itertools.chain(*splits.STORED.values())))


def find(place: str, split: str, ending: str, spec: str) -> dict[str, str]:
    """Return the files of all splits in order, each with the name of its split, or else "".

    `place` is a file, a folder whose files with the ending are taken, or a pattern with `*` or
    ranges such as `{000..009}`. In a pattern `{split}` stands for the split. Otherwise, if each
    file or its folder has one name of a split, and they have at least two, then those are theirs.

    Raises:
      FileNotFoundError: there are no such files, or some of a range are missing.
    """
    place = os.path.expanduser(place)
    if "{split}" in place:
        patterns = {name: place.replace("{split}", name) for name in (*_NAMES, split)}
        found = {f: name for name, pattern in patterns.items() for f in _match(pattern, ending)}
    else:
        found = _by_names([*_match(place, ending)], spec)
    if not found:
        raise FileNotFoundError(
            f"data {spec!r}: there is no file {place!r}, or no file in it that ends in .{ending}"
        )
    return found


def short_names(files: Iterable[str]) -> list[str]:
    """Return the files relative to the folder that holds all of them."""
    files = [*files]
    root = os.path.commonpath([*map(os.path.dirname, files)]) if files else ""
    return [os.path.relpath(file, root or ".") for file in files]


def _match(pattern: str, ending: str) -> Iterator[str]:
    if os.path.isdir(pattern):
        root = Path(pattern)
        yield from (str(root / file) for file in sorted(folders.find_files(root, "", (ending,))))
        return
    missing = []
    for place in _expand(pattern):
        files = sorted(glob.glob(place, recursive=True))
        missing += [] if files or place == pattern else [place]
        yield from files
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the files {pattern!r} are missing, such as {missing[0]!r}: bring "
            "them, or give another range"
        )


def _expand(pattern: str) -> Iterator[str]:
    """Yield the patterns for the numbers of each range, with leading zeros as in the first one."""
    if not (found := _RANGE.search(pattern)):
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        middle = str(number).zfill(len(first))
        yield from _expand(pattern[: found.start()] + middle + pattern[found.end() :])


def _by_names(files: list[str], spec: str) -> dict[str, str]:
    """Return the files with the splits that their names and those of their folders say."""
    names = [_split_of(name) for name in short_names(files)]
    if len(set(names)) < 2 or None in names:
        return dict.fromkeys(files, "")
    notices.once(
        _log.warning, f"data {spec!r}: the names of its files say their splits, {_counts(names)}"
    )
    return dict(zip(files, map(str, names), strict=True))


def _split_of(file: str) -> str | None:
    said = {word for word in re.split(r"[^a-z]+", file.lower()) if word in _NAMES}
    return said.pop() if len(said) == 1 else None


def _counts(names: Iterable[str | None]) -> str:
    names = [*names]
    return ", ".join(f"{name} of {names.count(name)}" for name in dict.fromkeys(names))
