"""The parts of a collection: named ones, folds, and a tenth held out by name or by group."""

import os
import re
import zlib
from collections.abc import Sequence

from mae_jax.data.sources.source import check_split

STORED = {  # split: the names that it may have in folders and tables, best first
    "train": ("train",),
    "test": ("test", "val", "validation"),
    "validation": ("validation", "val", "test"),
}
SPLITS = (*STORED, "all")
HELD_OUT = 0.1
_FOLDS = re.compile(r"(not_)?fold:(.+)")


def hold_out(names: Sequence[str], split: str) -> list[str]:
    """Return the names of `split` if a tenth of them is held out by their CRC-32."""
    if split == "all":
        return [*names]
    draw = {name: zlib.crc32(os.fsencode(name)) / 2**32 for name in names}
    ranked = sorted(names, key=lambda name: draw[name])
    # Of two or more names, each side has at least one.
    held = {name for name in names if draw[name] < HELD_OUT} | set(ranked[: len(names) > 1])
    held -= set(ranked[-1:])
    return [name for name in names if (name in held) != (split == "train")]


def is_folds(split: str) -> bool:
    """Return whether a split consists of folds: `fold:2`, or `not_fold:2` for the others."""
    return bool(_FOLDS.fullmatch(split))


def of_folds(folds: Sequence[str | None], split: str, spec: str) -> list[int]:
    """Return which examples are in a split such as `fold:2`, `not_fold:2` or `fold:1,2`.

    An example whose fold is None is in no fold, and in no split of folds.

    Raises:
      ValueError: there is no such fold; the message begins with `spec`.
    """
    others, _, names = split.partition("fold:")
    wanted, known = set(names.split(",")), {fold for fold in folds if fold is not None}
    if missing := sorted(wanted - known):
        raise ValueError(
            f"{spec} has no fold {missing[0]!r} for split {split!r}: its folds are "
            f"{', '.join(sorted(known))}"
        )
    chosen = known - wanted if others else wanted
    return [i for i, fold in enumerate(folds) if fold in chosen]


def of_names(names: Sequence[str], split: str, spec: str) -> list[int]:
    """Return which examples are in a split, from the name of the split of each.

    Raises:
      ValueError: there is no such split; the message begins with `spec`.
    """
    if split == "all":
        return [*range(len(names))]
    chosen = next((name for name in STORED.get(split, (split,)) if name in set(names)), None)
    if chosen is None:
        raise ValueError(
            f"{spec} has no split {split!r}: its splits are {', '.join(sorted(set(names)))} and all"
        )
    return [i for i, name in enumerate(names) if name == chosen]


def held_out(groups: Sequence[str], split: str, spec: str) -> list[int]:
    """Return which examples are in a split if a tenth of their groups is held out."""
    check_split(spec, split, SPLITS)
    chosen = set(hold_out(sorted(set(groups)), split))
    return [i for i, group in enumerate(groups) if group in chosen]


def check_groups(groups: Sequence[str], sides: Sequence[str | None], spec: str) -> None:
    """Raise ValueError if the examples of a group are on different sides."""
    side_of: dict[str, str | None] = {}
    for group, side in zip(groups, sides, strict=True):
        if side_of.setdefault(group, side) != side:
            raise ValueError(
                f"{spec} has group {group!r} in {side_of[group]!r} and in {side!r}: put a group on "
                "one side, or remove the column group"
            )
