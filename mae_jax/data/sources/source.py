"""The protocol of sources of examples, and the choice and reading of examples."""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from mae_jax.data.bad_examples import Unreadable

_log = logging.getLogger(__name__)
Example = dict[str, Any]
LabelKind = Literal["class", "classes", "number"]


class Source(Protocol):
    """A finite, ordered collection of examples; picklable, and safe to read from many threads.

    `source[i]` is `{"image": ..., "label": ...}` and never changes. The key is "image" for every
    modality, as in tfds and in prepared records. A picture is its encoded bytes or uint8 `[h, w]`
    or `[h, w, c]`; the modules of `mae_jax.data.modalities` say what other modalities accept.

    The label is of one of three kinds, which an attribute `label_kind` may name: an int, -1 if it
    is unknown ("class"); uint8 `[classes]` with a 1 for each class if several may be true
    ("classes"); or float32 `[t]`, with NaN for those that are unknown ("number"). `classes` names
    the labels in order, and is empty if there are none, if they have no names, or if they are
    numbers; an attribute `targets` may name the t numbers. `name(i)` identifies example i in
    messages. A source that knows all labels without reading may have `labels`.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Example: ...
    def name(self, i: int) -> str: ...


@dataclass(frozen=True)
class Examples:
    """A source whose example i is `load(i)` and is called `names[i]` or, without names, `title[i]`.

    `load` must be picklable: a function of a module, or a `functools.partial` of one.
    """

    count: int
    load: Callable[[int], Example]
    classes: tuple[str, ...]
    title: str = ""
    names: Sequence[str] = ()
    labels: Sequence[Any] | np.ndarray | None = None
    label_kind: LabelKind | None = None
    targets: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Example:
        return self.load(range(self.count)[i])

    def name(self, i: int) -> str:
        return self.names[i] if self.names else f"{self.title}[{i}]"


def of_inputs(inputs: Sequence[Any]) -> Examples:
    """Return inputs without labels as a source; a path is the name of its example.

    Args:
      inputs: a list of what a modality reads, such as paths or arrays.

    Raises:
      ValueError: the inputs are no list, or there are none.
    """
    if not isinstance(inputs, list | tuple):
        raise ValueError(f"inputs of type {type(inputs).__name__} are no list: give a list of them")
    if not inputs:
        raise ValueError("the list of inputs is empty: give at least one")
    values = [os.fspath(x) if isinstance(x, os.PathLike) else x for x in inputs]
    names = [x if isinstance(x, str) else f"input {i}" for i, x in enumerate(values)]
    return Examples(len(values), functools.partial(_unlabelled, values), (), names=names)


def _unlabelled(values: Sequence[Any], i: int) -> Example:
    return {"image": values[i], "label": -1}


def check_split(spec: str, split: str, splits: Sequence[str]) -> None:
    """Raise a ValueError unless `split` is one of `splits`."""
    if split not in splits:
        raise ValueError(f"data {spec!r} has no split {split!r}: use {' or '.join(splits)}")


def label_kind(source: Source) -> LabelKind | None:
    """Return the kind of a source's labels: its own `label_kind`, or that of its first label.

    The first label is the first of `labels`, or else that of the first readable example. None
    means that no example can be read.
    """
    if kind := getattr(source, "label_kind", None):
        return kind
    labels = getattr(source, "labels", None)
    for i in range(min(len(source), 100)):
        with contextlib.suppress(Unreadable, OSError):
            label = np.asarray(source[i]["label"] if labels is None else labels[i])
            several = "number" if label.dtype.kind == "f" else "classes"
            return several if label.ndim else "class"
    return None


def labels_of(source: Source, read: bool = False) -> np.ndarray | None:
    """Return the labels of all examples [n] or [n k]; None if the source does not know them.

    Args:
      read: read the examples of a source that does not know its labels. Those that cannot be read
        are left out.

    Raises:
      Unreadable: no example can be read.
    """
    if (labels := getattr(source, "labels", None)) is not None or not read:
        return None if labels is None else np.asarray(labels)
    found = []
    for i in range(len(source)):
        with contextlib.suppress(Unreadable, OSError):
            found.append(source[i]["label"])
    if not found:
        raise Unreadable(f"none of {len(source)} examples can be read")
    return np.stack(found)


def is_multilabel(source: Source) -> bool:
    """Return whether an example may have several classes."""
    return label_kind(source) == "classes"


def subset(source: Source, examples: int, balanced: bool = True) -> Source:
    """Return a fixed random choice of `examples` examples in order, or all if `examples` is 0.

    A smaller choice is contained in every larger one. Each class has the same number of examples,
    up to one, as long as it has enough. Examples without a label come last. If the source has no
    class names, or labels of another kind than "class", or if `balanced` is False, the choice
    ignores labels.

    Raises:
      ValueError: the source has fewer examples.
    """
    if not examples:
        return source
    if examples > len(source):
        raise ValueError(f"data.examples = {examples}, but there are only {len(source)}: use 0")
    shuffled = np.random.default_rng(0).permutation(len(source))
    if balanced and source.classes and label_kind(source) == "class":
        shuffled = _in_rounds(source, shuffled, examples)
    return _chosen(source, np.sort(shuffled[:examples]).tolist())


def labelled(source: Source) -> Source:
    """Return the examples that have a class, if the source knows its labels and some have none."""
    labels = labels_of(source)
    if labels is None or label_kind(source) != "class" or (labels >= 0).all():
        return source
    chosen = np.flatnonzero(labels >= 0).tolist()
    text = "%s of %s training examples have a label, and the others are left out"
    _log.warning(text, f"{len(chosen):,}", f"{len(source):,}")
    return _chosen(source, chosen)


def _chosen(source: Source, chosen: list[int]) -> Examples:
    load, names = functools.partial(_load_chosen, source, chosen), [*map(source.name, chosen)]
    labels, targets = labels_of(source), getattr(source, "targets", ())
    return Examples(
        len(chosen),
        load,
        source.classes,
        names=names,
        labels=None if labels is None else labels[chosen],
        label_kind=label_kind(source),
        targets=targets,
    )


def _load_chosen(source: Source, chosen: list[int], i: int) -> Example:
    return source[chosen[i]]


def _in_rounds(source: Source, shuffled: np.ndarray, examples: int) -> np.ndarray:
    """Reorder `shuffled` so that each round takes one more example of each class.

    Labels are read only until the first `examples` numbers are certain.
    """
    classes = len(source.classes)
    full, rest = divmod(examples, classes)
    counts, unfilled, in_last = np.zeros(classes, int), classes if full else 0, 0
    rounds = np.full(len(shuffled), len(shuffled))  # examples without a label come last
    for position, i in enumerate(shuffled):
        label = _label(source, int(i))
        if not 0 <= label < classes:
            continue
        rounds[position] = counts[label]
        counts[label] += 1
        unfilled -= counts[label] == full
        in_last += rounds[position] == full
        if not unfilled and in_last >= rest:
            break
    return shuffled[np.argsort(rounds, kind="stable")]


def _label(source: Source, i: int) -> int:
    if (labels := getattr(source, "labels", None)) is not None:
        return int(labels[i])
    try:
        return int(source[i]["label"])
    except (Unreadable, OSError):
        return -1


def fixed_choice(length: int, limit: int | None) -> np.ndarray:
    """Return the sorted indices of `limit` of `length` examples, a fixed random choice.

    Evenly spaced examples of a source whose classes alternate could all be of one class.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} leaves no examples: use None for all of them")
    if limit is None or limit >= length:
        return np.arange(length)
    return np.sort(np.random.default_rng(0).choice(length, limit, replace=False, shuffle=False))


def length_of(source: Source) -> int:
    """Return the number of examples; raise a ValueError if there are none."""
    if not len(source):
        raise ValueError("the data has no examples: use another split")
    return len(source)


def read(source: Source, i: int, transform: Callable[[Example], Any]) -> Any:
    """Return `transform(source[i])`.

    Raises:
      Unreadable: the example, which is named, cannot be read, or its label is none of the classes.
    """
    try:
        example, classes = source[i], len(source.classes)
        label = example["label"]
        if np.ndim(label) == 0 and (label < -1 or classes and label >= classes):
            raise Unreadable(f"its label {label} is not one of {classes} classes")
        return transform(example)
    except (Unreadable, OSError) as error:
        raise Unreadable(f"cannot read {source.name(i)!r}: {error}") from error
