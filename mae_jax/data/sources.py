"""Where examples come from: `open(spec, split)`."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mae_jax.data import folders, records, shipped


class Source(Protocol):
    """A finite, ordered collection of pictures; picklable, and safe to read from many threads.

    `source[i]` is `{"image": encoded bytes or uint8 [h, w] or [h, w, c], "label": int}`, with label
    -1 where there is none, and never changes. `classes` names the labels in order; it is empty
    where they are absent or unknown. `name(i)` says which picture that is, for messages.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> dict[str, Any]: ...
    def name(self, i: int) -> str: ...


def open(spec: str, split: str) -> Source:
    """The pictures that `spec` names: `photos`, `digits`, `synthetic`, or `KIND:PLACE`.

    `folder:PATH`, `idx:PATH` (MNIST's files), `tfds:NAME` and `array_record:GLOB` read what lies on
    the disk and download nothing. Splits are "train" and "test"; `folder` also knows "validation"
    and "all", and `tfds` takes its own ("validation", "train[:10%]").

    Raises:
      ValueError: an unknown kind, split or data set, or a malformed file.
      FileNotFoundError: nothing at PLACE.
    """
    kind, _, place = spec.partition(":")
    if kind in _BUILT_IN:
        if place:
            raise ValueError(f"data {spec!r}: {kind!r} takes no place, write {kind!r} alone")
        records.check_split(spec, split, ("train", "test"))
        return _BUILT_IN[kind](split)
    if kind in _PLACED:
        kind_of_place, opener = _PLACED[kind]
        if not place:
            raise ValueError(f"data {spec!r} needs a place: write '{kind}:{kind_of_place}'")
        return opener(place, split)
    kinds = ", ".join([*_BUILT_IN, *(f"{kind}:{place}" for kind, (place, _) in _PLACED.items())])
    raise ValueError(f"unknown data {spec!r}: use one of {kinds}")


@dataclass(frozen=True)
class Part:
    """Some examples of a source: number i is `source[chosen[i]]`."""

    source: Source
    chosen: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.source[int(self.chosen[i])]

    def name(self, i: int) -> str:
        return self.source.name(int(self.chosen[i]))


def part(source: Source, examples: int) -> Source:
    """A fixed random choice of so many examples, in order; all of them if `examples` is 0.

    A smaller choice is a part of every larger one.

    Raises:
      ValueError: the source has fewer.
    """
    if not examples:
        return source
    if examples > len(source):
        raise ValueError(f"data.examples = {examples}, but there are only {len(source)}: use 0")
    shuffled = np.random.default_rng(0).permutation(len(source))
    return Part(source, np.sort(shuffled[:examples]))


_BUILT_IN = {"photos": shipped.photos, "digits": shipped.digits, "synthetic": shipped.Synthetic}
_PLACED = {
    "folder": ("PATH", folders.folder),
    "idx": ("PATH", records.idx),
    "tfds": ("NAME", records.tfds),
    "array_record": ("GLOB", records.array_record),
}
