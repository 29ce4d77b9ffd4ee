"""Collections of examples and how to open them by name: `open_source(spec, split)`."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mae_jax.data.sources import (
    array_files,
    audio_files,
    csv_files,
    dicom_files,
    folders,
    parquet_files,
    records,
    samples,
    saved_datasets,
    series,
    synthetic,
    tar_shards,
    text_files,
    user_sources,
)
from mae_jax.data.sources.source import (
    Examples,
    LabelKind,
    Source,
    check_split,
    fixed_choice,
    is_multilabel,
    label_kind,
    labelled,
    labels_of,
    of_inputs,
    subset,
)

__all__ = [
    "ARGUMENT",
    "KINDS",
    "Examples",
    "LabelKind",
    "Source",
    "fixed_choice",
    "given",
    "is_multilabel",
    "label_kind",
    "labelled",
    "labels_of",
    "of_inputs",
    "open_source",
    "subset",
]

ARGUMENT, given = user_sources.ARGUMENT, user_sources.given


class Kind(NamedTuple):
    """A kind of source: `open(split)`, or `open(place, split)` if `place` names a place.

    A kind without `modalities` may hold any of them, and its `open(place, split, modality)` is told
    which one is read.
    """

    modalities: tuple[str, ...]
    place: str  # what stands for the place in messages; "" for a built-in set, which has none
    open: Callable[..., Source]


def _arrays(name: str, *modalities: str) -> Kind:
    return Kind(modalities, "PATH", functools.partial(array_files.open_files, name))


KINDS = {
    "photos": Kind(("image",), "", samples.photos),
    "digits": Kind(("image",), "", samples.digits),
    "synthetic": Kind(("image",), "", synthetic.shapes),
    "pans": Kind(("video",), "", synthetic.pans),
    "tones": Kind(("audio",), "", synthetic.tones),
    "phantoms": Kind(("volume",), "", synthetic.phantoms),
    "spectra": Kind(("volume",), "", synthetic.spectra),
    "beats": Kind(("signal",), "", synthetic.beats),
    "mixtures": Kind(("volume",), "", synthetic.mixtures),
    "stdlib": Kind(("text",), "", text_files.stdlib),
    "folder": Kind(("image",), "PATH", folders.pictures),
    "idx": Kind(("image",), "PATH", records.idx),
    "tfds": Kind(("image",), "NAME", records.tfds),
    "array_record": Kind(("image",), "GLOB", records.array_record),
    "video": Kind(("video",), "PATH", folders.videos),
    "frames": Kind(("video",), "PATH", folders.frames),
    "audio": Kind(("audio",), "PATH", audio_files.sounds),
    "arrays": _arrays("arrays", "volume", "image", "signal"),
    "geotiff": _arrays("geotiff", "image", "volume"),
    "hdf5": _arrays("hdf5", "volume", "image", "signal"),
    "zarr": _arrays("zarr", "volume", "image", "signal"),
    "npy": _arrays("npy", "volume", "image", "signal"),
    "npz": _arrays("npz", "volume", "image", "signal"),
    "nifti": _arrays("nifti", "volume"),
    "dicom": Kind((), "PATH", dicom_files.scans),
    "ts": Kind(("signal",), "PATH", series.ts),
    "text": Kind(("text",), "PATH", text_files.texts),
    "csv": Kind((), "FILE", csv_files.named_files),
    "parquet": Kind((), "PATH", parquet_files.rows),
    "webdataset": Kind((), "GLOB", tar_shards.members),
    "hf": Kind((), "PATH", saved_datasets.saved),
    "python": Kind((), "MODULE:FACTORY", user_sources.made),
}


def open_source(
    spec: str, split: str, modality: str = "image", given: Mapping[str, Source] | None = None
) -> Source:
    """Open the examples that `spec` names: a built-in set such as `photos`, or `KIND:PLACE`.

    "argument" names the sources that are `given` by split, as by `train(source=...)`.

    Nothing is downloaded. Splits are "train" and "test"; folders also know "validation" and "all",
    tables their own ones and folds ("fold:2", and "not_fold:2" for the others), and `tfds` takes
    its own ("validation", "train[:10%]").

    Raises:
      ValueError: the kind, split or data set is unknown, a file is malformed, or the source is of
        another modality.
      FileNotFoundError: there is nothing at PLACE.
    """
    if spec == user_sources.ARGUMENT:
        return user_sources.choose(given or {}, split)
    name, _, place = spec.partition(":")
    if not (kind := KINDS.get(name)):
        forms = ", ".join(f"{k}:{kind.place}" if kind.place else k for k, kind in KINDS.items())
        raise ValueError(f"unknown data {spec!r}: use one of {forms}")
    if kind.modalities and modality not in kind.modalities:
        kinds = sorted(
            k for k, kind in KINDS.items() if modality in (kind.modalities or [modality])
        )
        raise ValueError(
            f"data {spec!r} is of data.modality = {' or '.join(map(repr, kind.modalities))}, not "
            f"{modality!r}, which {', '.join(kinds)} are of"
        )
    if kind.place and not place:
        raise ValueError(f"data {spec!r} needs a place: write '{name}:{kind.place}'")
    if kind.place:
        return kind.open(place, split, *([] if kind.modalities else [modality]))
    if place:
        raise ValueError(f"data {spec!r}: {name!r} takes no place, write {name!r} alone")
    check_split(spec, split, ("train", "test"))
    return kind.open(split)
