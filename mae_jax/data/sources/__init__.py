"""Where examples come from: `open(spec, split)`."""

import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mae_jax.data.unreadable import Unreadable


class Source(Protocol):
    """A finite, ordered collection of examples; picklable, and safe to read from many threads.

    `source[i]` is `{"image": ..., "label": int}` and never changes. The image of a picture is its
    encoded bytes or uint8 `[h, w]` or `[h, w, c]`; of another modality what the file of that name
    takes, a path or an array. The label is -1 where there is none, and where several classes may be
    true of an example it is uint8 `[classes]`, 1 for these. `classes` names the labels in order; it
    is empty where they are absent or unknown. `name(i)` says which example that is, for messages.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> dict[str, Any]: ...
    def name(self, i: int) -> str: ...


def open(spec: str, split: str, modality: str = "image") -> Source:
    """The examples that `spec` names: a built-in set such as `photos`, or `KIND:PLACE`.

    Pictures: `photos`, `digits`, `synthetic`; `folder:PATH`, `idx:PATH` (MNIST's files),
    `tfds:NAME` and `array_record:GLOB` read what lies on the disk and download nothing. Clips:
    `pans`; `video:PATH`, `frames:PATH`. Sounds: `tones`; `audio:PATH`. Volumes and pictures with
    many channels: `phantoms`, `spectra`; `arrays:PATH`. Bytes: `stdlib`; `text:PATH`. Splits are
    "train" and "test"; folders also know "validation" and "all", and `tfds` takes its own
    ("validation", "train[:10%]").

    Raises:
      ValueError: an unknown kind, split or data set, a malformed file, or another modality.
      FileNotFoundError: nothing at PLACE.
    """
    built_in, placed = _openers()
    kind, _, place = spec.partition(":")
    known = built_in.keys() | placed.keys()
    if kind in known and modality not in (kinds := _MODALITIES.get(kind, ("image",))):
        others = [name for name in known if modality in _MODALITIES.get(name, ("image",))]
        raise ValueError(
            f"data {spec!r} is of data.modality = {kinds[0]!r}, not {modality!r}, which "
            f"{', '.join(sorted(others))} are of"
        )
    if kind in built_in:
        if place:
            raise ValueError(f"data {spec!r}: {kind!r} takes no place, write {kind!r} alone")
        from mae_jax.data.sources.records import check_split

        check_split(spec, split, ("train", "test"))
        return built_in[kind](split)
    if kind in placed:
        kind_of_place, opener = placed[kind]
        if not place:
            raise ValueError(f"data {spec!r} needs a place: write '{kind}:{kind_of_place}'")
        return opener(place, split)
    kinds = ", ".join([*built_in, *(f"{kind}:{place}" for kind, (place, _) in placed.items())])
    raise ValueError(f"unknown data {spec!r}: use one of {kinds}")


def several(source: Source) -> bool:
    """Whether an example may have several labels: as the first one says that can be read."""
    for i in range(min(len(source), 100)):
        with contextlib.suppress(Unreadable, OSError):
            return np.ndim(source[i]["label"]) > 0
    return False


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


def _openers() -> tuple[dict[str, Any], dict[str, Any]]:
    # imported here: these modules use parts of this package
    from mae_jax.data.modalities import audio, text, video, volume
    from mae_jax.data.sources import folders, records, samples, synthetic

    built_in = {
        "photos": samples.photos,
        "digits": samples.digits,
        "synthetic": samples.Synthetic,
        "pans": synthetic.pans,
        "tones": synthetic.tones,
        "phantoms": synthetic.phantoms,
        "spectra": synthetic.spectra,
        "stdlib": text.stdlib,
    }
    placed = {
        "folder": ("PATH", folders.folder),
        "idx": ("PATH", records.idx),
        "tfds": ("NAME", records.tfds),
        "array_record": ("GLOB", records.array_record),
        "video": ("PATH", video.files),
        "frames": ("PATH", video.frames),
        "audio": ("PATH", audio.files),
        "arrays": ("PATH", volume.files),
        "text": ("PATH", text.files),
    }
    return built_in, placed


_MODALITIES = {  # of those that are no pictures
    "pans": ("video",),
    "video": ("video",),
    "frames": ("video",),
    "tones": ("audio",),
    "audio": ("audio",),
    "phantoms": ("volume",),
    "spectra": ("volume",),
    "arrays": ("volume",),
    "stdlib": ("text",),
    "text": ("text",),
}
