"""The `.ts` files of the UCR and UEA archives of time series, of which `aeon` is the reference.

The reader is not aeon's: with what it needs that package takes 600 MB, and it also reads files that
do not agree with their headers. Where aeon is installed, a test compares both readers.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mae_jax.data import arrays
from mae_jax.data.sources.source import Example, Examples, check_split

SPLITS = {"train": ("TRAIN",), "test": ("TEST",), "all": ("TRAIN", "TEST")}  # ends of the files

Series = Float[np.ndarray, "time c"]


class Header(NamedTuple):
    """What a file says of its series before their values."""

    flags: dict[str, bool]  # by lower-case names, such as "univariate"; a missing one is unknown
    sizes: dict[str, int]  # "serieslength" and "dimensions", if the file says them
    classes: tuple[str, ...]


def ts(path: str, split: str) -> Examples:
    """Open `PATH_TRAIN.ts` and `PATH_TEST.ts`, or those of the folder `PATH` that have its name.

    The splits are "train", "test", and "all" for both. An example is an `Array` in memory of
    float64 [time, channels], with NaN where the file has `?` or NaN; series may be of different
    lengths. Labels are the classes of the header in its order, or numbers after
    `@targetLabel true`.

    Raises:
      FileNotFoundError: there are no such files.
      ValueError: the split is unknown, or a file is malformed, has time stamps, or has other
        classes than its partner.
    """
    spec = f"ts:{path}"
    check_split(spec, split, tuple(SPLITS))
    place = Path(path).expanduser()
    stem = place / place.resolve().name if place.is_dir() else place
    files = [Path(f"{stem}_{end}.ts") for end in SPLITS[split]]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"data {spec!r}: there is no file {missing[0]!r}: name the folder of a data set, or "
            "its files without _TRAIN.ts"
        )
    pairs = [_read(file) for file in files]
    headers = [header for header, _ in pairs]
    if len({(h.classes, h.flags.get("targetlabel")) for h in headers}) > 1:
        raise ValueError(f"data {spec!r}: its files have different classes: use 'train' or 'test'")
    rows = [row for _, rows in pairs for row in rows]
    names = [name for name, _, _ in rows]
    series, labels = tuple(x for _, x, _ in rows), tuple(label for _, _, label in rows)
    load = functools.partial(_load, series, labels)
    kind: dict[str, Any] = {}
    if headers[0].flags.get("targetlabel"):
        kind = dict(label_kind="number", targets=("target",))
    return Examples(len(rows), load, headers[0].classes, names=names, labels=labels, **kind)


def _load(series: Sequence[Series], labels: Sequence[Any], i: int) -> Example:
    # The file tells time from channels, also if there are as many steps as channels.
    return {"image": dataclasses.replace(arrays.of(series[i]), sides=1), "label": labels[i]}


def _read(file: Path) -> tuple[Header, list[tuple[str, Series, Any]]]:
    """Return the header of a file, and a name, the values and the label of each series."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        numbered = enumerate(map(str.strip, lines), 1)
        number = 0
        try:
            header = _read_header(numbered)
            rows = []
            for number, line in numbered:
                if line:
                    rows.append((f"{file.name}:{number}", *_read_series(line, header)))
        except ValueError as error:
            where = f"line {number}" if number else "its header"
            raise ValueError(f"{str(file)!r} cannot be read: {where} {error}") from error
    lengths = {len(series) for _, series, _ in rows}
    if header.flags.get("equallength") and len(lengths) > 1:
        raise ValueError(
            f"{str(file)!r} has series of {min(lengths)} to {max(lengths)} values, but says "
            "@equalLength true: correct one of them"
        )
    if not rows:
        raise ValueError(f"{str(file)!r} has no series after @data: download it again")
    return header, rows


def _read_header(lines: Iterable[tuple[int, str]]) -> Header:
    """Read the lines up to `@data`; comments and unknown keys are skipped, as aeon does."""
    flags, sizes, classes = {}, {}, ()
    for _, line in lines:
        key, *values = line.split() or [""]
        key = key.lower().removeprefix("@")
        if key == "data" and line.startswith("@"):
            break
        if not line.startswith("@"):
            continue
        if key in ("timestamps", "univariate", "equallength", "classlabel", "targetlabel"):
            if not values or values[0].lower() not in ("true", "false"):
                raise ValueError(f"has '{line}': write true or false")
            flags[key] = values[0].lower() == "true"
            classes = tuple(values[1:]) if key == "classlabel" and flags[key] else classes
        elif key in ("serieslength", "dimensions"):
            if not values or not values[0].isdecimal():
                raise ValueError(f"has '{line}': write a whole number")
            sizes[key] = int(values[0])
    else:
        raise ValueError("has no line @data: it is no .ts file, or is cut off")
    if flags.get("timestamps"):
        raise ValueError("has @timeStamps true: save the values alone, at equal steps")
    if flags.get("targetlabel"):
        flags["classlabel"], classes = False, ()
    if flags.get("classlabel") and not classes:
        raise ValueError("has @classLabel true without names: list the classes behind it")
    if len(set(classes)) < len(classes):
        raise ValueError(f"names a class twice: {' '.join(classes)}")
    return Header(flags, sizes, classes)


def _read_series(line: str, header: Header) -> tuple[Series, Any]:
    """Return the values and the label of a line such as `1,2,3:4,5,6:label`, two channels."""
    *parts, last = line.split(":")
    label: Any = -1
    if header.flags.get("targetlabel"):
        label = np.array([_number(last)], np.float32)
    elif header.flags.get("classlabel"):
        if last.strip() not in header.classes:
            names = ", ".join(header.classes)
            raise ValueError(f"has the class {last.strip()!r}, and the header only {names}")
        label = header.classes.index(last.strip())
    else:
        parts.append(last)
    channels = [[_number(text) for text in part.split(",")] for part in parts]
    lengths = sorted({*map(len, channels)})
    given = header.sizes.get("dimensions", 1 if header.flags.get("univariate") else len(channels))
    if len(channels) != given or not channels:
        raise ValueError(f"has {len(channels)} channel(s), and the header says {given}")
    if len(lengths) > 1:
        raise ValueError(f"has channels of {lengths[0]} and {lengths[-1]} values: use one length")
    if header.flags.get("equallength") and header.sizes.get("serieslength", *lengths) != lengths[0]:
        raise ValueError(
            f"has {lengths[0]} values, and the header says {header.sizes['serieslength']}"
        )
    return np.array(channels, np.float64).T, label


def _number(text: str) -> float:
    text = text.strip()
    if "_" in text:  # Python's own digits, such as 1_000
        raise ValueError(f"has {text!r}, which is no number")
    try:
        return float("nan" if text == "?" else text)
    except ValueError:
        raise ValueError(f"has {text!r}, which is no number") from None
