"""Collections of examples and how to open them by name: `open_source(spec, split)`."""

from mae_jax.data.sources import (
    audio_files,
    folders,
    records,
    samples,
    synthetic,
    text_files,
    video_files,
)
from mae_jax.data.sources.source import (
    Source,
    Subset,
    check_split,
    fixed_choice,
    is_multilabel,
    subset,
)

__all__ = ["Source", "Subset", "fixed_choice", "is_multilabel", "open_source", "subset"]

_BUILT_IN = {  # name: (modality, how to open a split)
    "photos": ("image", samples.photos),
    "digits": ("image", samples.digits),
    "synthetic": ("image", synthetic.shapes),
    "pans": ("video", synthetic.pans),
    "tones": ("audio", synthetic.tones),
    "phantoms": ("volume", synthetic.phantoms),
    "spectra": ("volume", synthetic.spectra),
    "stdlib": ("text", text_files.stdlib),
}
_STORED = {  # kind: (modality, what stands for the place in messages, how to open a split of it)
    "folder": ("image", "PATH", folders.folder),
    "idx": ("image", "PATH", records.idx),
    "tfds": ("image", "NAME", records.tfds),
    "array_record": ("image", "GLOB", records.array_record),
    "video": ("video", "PATH", video_files.videos),
    "frames": ("video", "PATH", video_files.frames),
    "audio": ("audio", "PATH", audio_files.sounds),
    "arrays": ("volume", "PATH", folders.arrays),
    "text": ("text", "PATH", text_files.texts),
}


def open_source(spec: str, split: str, modality: str = "image") -> Source:
    """Open the examples that `spec` names: a built-in set such as `photos`, or `KIND:PLACE`.

    Pictures: `photos`, `digits`, `synthetic`; `folder:PATH`, `idx:PATH` (MNIST's files),
    `tfds:NAME` and `array_record:GLOB` read local files and download nothing. Clips: `pans`;
    `video:PATH`, `frames:PATH`. Sounds: `tones`; `audio:PATH`. Volumes and pictures with many
    channels: `phantoms`, `spectra`; `arrays:PATH`. Bytes: `stdlib`; `text:PATH`. Splits are "train"
    and "test"; folders also know "validation" and "all", and `tfds` takes its own ("validation",
    "train[:10%]").

    Raises:
      ValueError: the kind, split or data set is unknown, a file is malformed, or the source is of
        another modality.
      FileNotFoundError: there is nothing at PLACE.
    """
    kind, _, place = spec.partition(":")
    modalities = {name: entry[0] for name, entry in (_BUILT_IN | _STORED).items()}
    if modalities.get(kind, modality) != modality:
        others = sorted(name for name, other in modalities.items() if other == modality)
        raise ValueError(
            f"data {spec!r} is of data.modality = {modalities[kind]!r}, not {modality!r}, which "
            f"{', '.join(others)} are of"
        )
    if kind in _BUILT_IN:
        if place:
            raise ValueError(f"data {spec!r}: {kind!r} takes no place, write {kind!r} alone")
        check_split(spec, split, ("train", "test"))
        return _BUILT_IN[kind][1](split)
    if kind in _STORED:
        _, what, open_place = _STORED[kind]
        if not place:
            raise ValueError(f"data {spec!r} needs a place: write '{kind}:{what}'")
        return open_place(place, split)
    kinds = ", ".join([*_BUILT_IN, *(f"{kind}:{what}" for kind, (_, what, _) in _STORED.items())])
    raise ValueError(f"unknown data {spec!r}: use one of {kinds}")
