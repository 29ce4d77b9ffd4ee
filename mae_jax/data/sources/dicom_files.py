"""DICOM files, as pictures or as series."""

import collections
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mae_jax.data import notices
from mae_jax.data.array_io import dicom, dicom_header
from mae_jax.data.array_io.dicom_header import Header
from mae_jax.data.arrays import Array
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import folders, splits, tables
from mae_jax.data.sources.labels import labelled
from mae_jax.data.sources.labels import none as no_labels
from mae_jax.data.sources.source import Examples, check_split

_log = logging.getLogger(__name__)
_SHOWN = 3  # names in a message
_PARTS = ("train", *splits.STORED["test"])  # folders of splits
Groups = dict[str, list[Header]]  # the headers of the files of each example


def scans(path: str, split: str, modality: str) -> Examples:
    """Open the DICOM file `path`, or those under the folder `path`, which may have any names.

    An example of modality "image" is a file with one frame, and of modality "volume" a series, or
    a file with several frames, as an `Array`. A series is called by its folder, or by its folder
    and its UID if the folder holds others or is one of a split. Splits, classes and tables are
    those of `folders.pictures`, but a tenth of the patients (PatientID) is held out, so that no
    patient is on both sides. If each sub-folder holds one patient, the sub-folders are no classes.
    Files without pixels are left out, and counted in the log.

    Raises:
      FileNotFoundError: the path does not exist, or holds no such files.
      ValueError: the split is unknown or has no examples.
      ImportError: pydicom, or a decoder, is not installed.
    """
    spec, noun = f"dicom:{path}", "DICOM volumes" if modality == "volume" else "DICOM pictures"
    root, _ = tables.split_place(path)
    if modality not in ("image", "volume"):
        raise ValueError(
            f"data {spec!r} is of data.modality = 'image' or 'volume', not {modality!r}"
        )
    if root.is_file():
        check_split(spec, split, splits.SPLITS)
        if split not in ("train", "all"):
            raise ValueError(f"data {spec!r} is one file, which is no example of split {split!r}")
        load = functools.partial(_open, modality, [[dicom_header.read_header(root)]])
        return labelled(load, no_labels(1), [root.name])
    groups = _group(root, modality, spec) if root.is_dir() else {}
    inside = lambda _, part, endings: [
        name for name in groups if not part or name.startswith(f"{part}/")
    ]
    patient_of = lambda name: _patient(groups[name])
    listing = folders.list_files(path, split, ("dcm",), spec, noun, inside, patient_of)
    labels, by_table = listing.labels, (root / tables.BESIDE).is_file()
    if not by_table and _are_patients(groups):
        notices.once(_log.warning, f"data {spec!r}: the sub-folders are patients, and no classes")
        labels = no_labels(len(listing.files))
    load = functools.partial(_open, modality, [groups[name] for name in listing.files])
    return labelled(load, labels, listing.files)


def _open(modality: str, groups: Sequence[Sequence[Header]], i: int) -> Array:
    if modality == "volume":
        return dicom.open_series(groups[i])
    return dicom.open_array(groups[i][0].path)


def _patient(headers: Sequence[Header]) -> str:
    return headers[0].patient or headers[0].series or headers[0].path


def _are_patients(groups: Groups) -> bool:
    """Return whether each of several folders holds one patient, who is in no other."""
    pairs = set()
    for name, headers in groups.items():
        above = [part for part in name.split("/")[:-1] if part not in _PARTS]
        pairs |= {(folder, _patient(headers)) for folder in above[:1]}
    return 1 < len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def _group(root: Path, modality: str, spec: str) -> Groups:
    """Return the files of each example under `root`, by the name of the example."""
    headers, reasons = _read_headers(root)
    if modality == "image":
        chosen = {file: [header] for file, header in headers.items() if header.frames == 1}
        reasons |= {
            file: "several frames, which data.modality='volume' reads"
            for file in headers.keys() - chosen.keys()
        }
    else:
        chosen = _series(headers)
    _tell(headers, reasons, spec)
    return chosen


def _read_headers(root: Path) -> tuple[dict[str, Header], dict[str, str]]:
    """Return the headers of the DICOM files under `root`, and why others are left out."""
    headers, reasons = {}, {}
    for file in sorted(folders.walk(root, "")):
        try:
            if file != tables.BESIDE:
                headers[file] = dicom_header.read_header(root / file)
        except Unreadable as error:
            reasons[file] = str(error)
    return headers, reasons


def _series(headers: Mapping[str, Header]) -> Groups:
    files = collections.defaultdict(list)
    for file, header in headers.items():
        files[file if header.frames > 1 else header.series].append(file)
    above = {key: os.path.commonpath([os.path.dirname(f) for f in files[key]]) for key in files}
    held = collections.Counter(
        folder for names in files.values() for folder in {os.path.dirname(name) for name in names}
    )
    chosen = {}
    for key, names in files.items():
        folder = above[key]
        is_alone = held[folder] == 1 and folder not in ("", *_PARTS)
        name = key if key in headers else folder if is_alone else f"{folder}/{key}".lstrip("/")
        chosen[name] = [headers[file] for file in names]
    return chosen


def _tell(headers: Mapping[str, Header], reasons: Mapping[str, str], spec: str) -> None:
    """Name in the log the files that are left out, and the pictures that viewers invert."""
    if reasons:
        shown = ", ".join(f"{file!r} ({why})" for file, why in [*sorted(reasons.items())][:_SHOWN])
        dots = ", ..." if len(reasons) > _SHOWN else ""
        count = len(reasons.keys() | headers.keys())
        notices.once(
            _log.warning,
            f"data {spec!r}: {len(reasons):,} of {count:,} files are left out: {shown}{dots}",
        )
    inverted = [name for name, header in headers.items() if header.photometric == "MONOCHROME1"]
    if inverted:
        notices.once(
            _log.warning,
            f"data {spec!r}: {len(inverted):,} of {len(headers):,} files are MONOCHROME1, such as "
            f"{inverted[0]!r}: values stay as stored, low where viewers show white",
        )
