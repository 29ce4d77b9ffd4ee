"""Labels of examples: one class, several classes, or numbers."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mae_jax.data.sources.source import Example, Examples, LabelKind

_MAX_CLASSES = 100_000  # of labels that are numbers of classes, so that an id is not taken for one


class Labels(NamedTuple):
    """The labels of examples, with the names that a `Source` has for them."""

    values: Sequence[Any] | np.ndarray
    kind: LabelKind = "class"
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def of(self, rows: Sequence[int]) -> "Labels":
        """Return the labels of some of the examples."""
        take = lambda values: tuple(values[i] for i in rows)
        if isinstance(self.values, np.ndarray):
            return self._replace(values=self.values[[*rows]])
        if isinstance(self.values, _Several):
            chosen = dataclasses.replace(self.values, numbers=take(self.values.numbers))
            return self._replace(values=chosen)
        return self._replace(values=take(self.values))


@dataclasses.dataclass(frozen=True)
class _Several(Sequence):
    """Labels uint8 [classes], made when they are read: in one array they may take gigabytes."""

    numbers: Sequence[Sequence[int]]  # of the classes of each example
    classes: int

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: Any) -> np.ndarray:
        label = np.zeros(self.classes, np.uint8)
        label[[*self.numbers[i]]] = 1
        return label


def labelled(
    load: Callable[[int], Any], labels: Labels, names: Sequence[str], title: str = ""
) -> Examples:
    """Return the source whose example i is `{"image": load(i), "label": labels.values[i]}`."""
    read = functools.partial(_read, load, labels.values)
    values, kind, classes, targets = labels
    return Examples(len(values), read, classes, title, names, values, kind, targets)


def _read(load: Callable[[int], Any], values: Any, i: int) -> Example:
    return {"image": load(i), "label": values[i]}


def none(count: int) -> Labels:
    """Return the labels of examples of which none has one."""
    return Labels((-1,) * count)


def one_class(values: Sequence[str | int | None], names: Sequence[str] = ()) -> Labels:
    """Return one class for each value, or -1 for None.

    Values are names of classes, or their numbers, of which `names` are the names.

    Raises:
      ValueError: numbers are none of a class.
    """
    known = {value for value in values if value is not None and value != -1}
    number, classes = _numbered(known, names)
    return Labels(tuple(number.get(value, -1) for value in values), "class", classes)


def several_classes(
    values: Sequence[Sequence[str | int] | None], names: Sequence[str] = ()
) -> Labels:
    """Return any number of classes for each value, whose members are as in `one_class`.

    Raises:
      ValueError: numbers are none of a class.
    """
    number, classes = _numbered({member for value in values for member in value or ()}, names)
    numbers = tuple(tuple(number[member] for member in value or ()) for value in values)
    return Labels(_Several(numbers, len(classes)), "classes", classes)


def numbers(columns: Mapping[str, Sequence[float | None]]) -> Labels:
    """Return a number for each column, by its name: NaN for None.

    Raises:
      ValueError: a number is infinite.
    """
    values = np.array([*columns.values()], np.float64).T  # [n t]; None becomes NaN
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if (infinite := np.isinf(values)).any():
        row, column = np.argwhere(infinite)[0]
        raise ValueError(
            f"{[*columns][column]} of example {row} is infinite, or beyond float32: correct it, or "
            "leave it empty if it is unknown"
        )
    return Labels(values, "number", targets=tuple(columns))


def _numbered(known: set[Any], names: Sequence[str]) -> tuple[dict[Any, int], tuple[str, ...]]:
    """Return the number of each value, and the names of all classes."""
    if all(isinstance(value, str) for value in known):
        ordered = sorted(known if not names else names, key=_as_number_or_text)
        return {name: k for k, name in enumerate(ordered)}, tuple(map(printable, ordered))
    if not all(isinstance(value, int) for value in known):
        raise ValueError("labels are of several types: write all of them as text")
    low, high = min(known), max(known)
    if low < 0 or high >= (len(names) or _MAX_CLASSES):
        wrong = low if low < 0 else high
        raise ValueError(
            f"label {wrong} is no number of one of {len(names) or _MAX_CLASSES} classes: write the "
            "names of the classes as text"
        )
    return {value: value for value in known}, tuple(names) or tuple(map(str, range(high + 1)))


def _as_number_or_text(name: str) -> tuple[float, str]:
    """Return what sorts 2 before 10, and numbers before other names."""
    return (int(name), name) if name.isdecimal() else (math.inf, name)


def printable(name: str) -> str:
    """Return the name of a class for reports, which are UTF-8 and have one line for each class."""
    return name if name.isprintable() else repr(name)[1:-1]
