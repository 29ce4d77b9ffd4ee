"""Where examples come from: `open(spec, split)`."""

from typing import Any, Protocol

from mae_jax.data import folders, records, shipped


class Source(Protocol):
    """A finite, ordered collection of pictures; picklable, and safe to read from many threads.

    `source[i]` is `{"image": encoded bytes or uint8 [h, w] or [h, w, c], "label": int}`, with label
    -1 where there is none, and never changes. `classes` names the labels in order; it is empty
    where they are absent or unknown. `name(i)` says which picture that is, for messages.
    """

    classes: tuple[str, ...]

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


_BUILT_IN = {"photos": shipped.photos, "digits": shipped.digits, "synthetic": shipped.Synthetic}
_PLACED = {
    "folder": ("PATH", folders.folder),
    "idx": ("PATH", records.idx),
    "tfds": ("NAME", records.tfds),
    "array_record": ("GLOB", records.array_record),
}
