"""What an index holds of each of its examples."""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from mae_jax.data import sources
from mae_jax.evaluators import example_columns


class Labels(NamedTuple):
    """Labels of examples, as in `sources.Source`, which differ in kind."""

    values: Shaped[np.ndarray, "n *k"]  # int32 [n], -1 if unknown; int32 [n k]; or float32 [n t]
    names: tuple[str, ...] = ()  # of the classes, or of the numbers

    @property
    def is_one_class(self) -> bool:
        return self.values.ndim == 1

    def joined(self, other: "Labels") -> "Labels":
        """Return the labels of both; of one class, classes with the same name become one.

        Raises:
          ValueError: the labels differ in kind, or are not of the same classes or targets.
        """
        a, b = self.values, other.values
        if self.is_one_class and other.is_one_class:
            if len(b) == 0 or (b < 0).all():
                other = Labels(b)
            names = (*dict.fromkeys((*self.names, *other.names)),)
            number = np.array([*map(names.index, other.names), -1], b.dtype)  # -1 stays
            numbers = number[b] if other.names else b
            return Labels(np.concatenate([a, numbers]), names)
        if a.shape[1:] != b.shape[1:] or a.dtype.kind != b.dtype.kind or self.names != other.names:
            raise ValueError(
                f"the labels do not fit those of the index, which are {self}, as they are {other}: "
                "add examples with the same labels, or make another index"
            )
        return Labels(np.concatenate([a, b]), self.names)

    def texts(self) -> list[str | None]:
        """Return the label of each example for people, or None where it is unknown."""
        if self.values.dtype.kind != "f":
            found = (example_columns.class_names(x, self.names) for x in self.values)
            return [None if x is None else str(x) for x in found]
        names = self.names or tuple(map(str, range(self.values.shape[1])))
        numbers = [zip(names, row, strict=True) for row in self.values]
        of_row = lambda row: "; ".join(f"{name} {x:g}" for name, x in row if not np.isnan(x))
        return [of_row(row) or None for row in numbers]

    def __str__(self) -> str:
        names = ", ".join(self.names[:5]) + ("..." if len(self.names) > 5 else "")
        kind = "number(s)" if self.values.dtype.kind == "f" else "class(es)"
        several = " one of" if self.is_one_class else ""
        return f"{several}{len(self.names)} {kind} ({names})".strip()


class Rows(NamedTuple):
    """The examples of an index, or those that it is asked about."""

    names: tuple[str, ...]
    vectors: Float[np.ndarray, "n e"]  # of length 1
    labels: Labels
    thumbnails: UInt8[np.ndarray, "n h w c"] | None = None

    def take(self, rows: Sequence[int] | Int[np.ndarray, "m"]) -> "Rows":
        """Return some of the examples."""
        labels = self.labels._replace(values=self.labels.values[rows])
        thumbnails = None if self.thumbnails is None else self.thumbnails[rows]
        return Rows(tuple(self.names[i] for i in rows), self.vectors[rows], labels, thumbnails)

    def joined(self, other: "Rows") -> "Rows":
        """Return the examples of both, in this order; raise ValueError if their labels differ."""
        thumbnails = None
        if self.thumbnails is not None and other.thumbnails is not None:
            thumbnails = np.concatenate([self.thumbnails, other.thumbnails])
        vectors = np.concatenate([self.vectors, other.vectors.astype(self.vectors.dtype)])
        labels = self.labels.joined(other.labels)
        return Rows(self.names + other.names, vectors, labels, thumbnails)


def names_of(source: sources.Source, index: Iterable[int]) -> tuple[str, ...]:
    """Return the names of examples, with bytes that are no UTF-8 escaped."""
    names = (source.name(int(i)) for i in index)
    return tuple(name.encode("utf-8", "backslashreplace").decode() for name in names)


def check_names(source: sources.Source) -> tuple[str, ...]:
    """Return the names of all examples; raise ValueError if an index could not tell two apart."""
    names = names_of(source, range(len(source)))
    name, count = collections.Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ValueError(
            f"{count} examples are named {name!r}, and an index tells examples apart by their "
            "names: leave out all but one, or rename them"
        )
    return names
