"""Pictures in files that hold many: MNIST's IDX, TensorFlow Datasets, array_record."""

import fnmatch
import functools
import glob
import gzip
import importlib
import math
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources.source import Example, Examples, check_split

_MAX_IDX_BYTES = 2**32
_IDX_STEMS = {"train": "train", "test": "t10k"}
_DAMAGED = "the record is damaged, or no tf.train.Example"


def from_arrays(
    images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], title: str
) -> Examples:
    """Return the source of pictures in memory: `images` uint8 [n, h, w], `labels` [n]."""
    load = functools.partial(_picture, images, labels)
    return Examples(len(images), load, classes, title, labels=labels)


def _picture(images: np.ndarray, labels: np.ndarray, i: int) -> Example:
    return {"image": images[i], "label": int(labels[i])}


def idx(path: str, split: str) -> Examples:
    """Open MNIST's `{train,t10k}-{images-idx3,labels-idx1}-ubyte`, plain or `.gz`: uint8 [h, w].

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the split is unknown, or a file is not what its name says.
    """
    root = Path(path).expanduser()
    check_split(f"idx:{path}", split, tuple(_IDX_STEMS))
    images = _read_idx(root, split, "images", 3)
    labels = _read_idx(root, split, "labels", 1)
    if len(images) != len(labels):
        raise ValueError(
            f"data 'idx:{path}': {len(images)} images but {len(labels)} labels in split {split!r}"
        )
    # The test files may lack the last classes.
    seen = _read_idx(root, "train", "labels", 1) if split == "test" else labels
    count = 1 + max(seen.max(initial=0), labels.max(initial=0))
    return from_arrays(images, labels, tuple(map(str, range(count))), f"{root.name} {split}")


def _read_idx(root: Path, split: str, what: str, axes: int) -> np.ndarray:
    """Read an IDX file: bytes 0 0 8 axes, each side as a big-endian 32-bit number, then data."""
    names = [f"{_IDX_STEMS[split]}-{what}{dash}idx{axes}-ubyte" for dash in "-."]
    paths = [root / (name + end) for end in ("", ".gz") for name in names]
    if not (path := next(filter(Path.is_file, paths), None)):
        raise FileNotFoundError(f"data 'idx:{root}': there is no {names[0]} (or {names[0]}.gz)")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * axes)
            if head[:4] != bytes([0, 0, 8, axes]):
                raise ValueError(
                    f"{str(path)!r} is no IDX file of bytes with {axes} axes: "
                    f"it starts with {head[:4].hex(' ')}, not 00 00 08 0{axes}"
                )
            if len(head) < 4 + 4 * axes:
                raise ValueError(f"{str(path)!r} is truncated: {len(head)} bytes")
            shape = np.frombuffer(head, ">u4", axes, 4).tolist()
            size = math.prod(shape)
            claim = f"{str(path)!r} should hold {'x'.join(map(str, shape))} = {size} bytes"
            if size > _MAX_IDX_BYTES:
                raise ValueError(f"{claim}: files of at most 4 GiB are read")
            data = file.read(size + 1)  # not all of it: a small .gz may unpack to any size
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{str(path)!r} is a broken gzip file: {error}") from error
    if len(data) != size:
        held = len(data) if len(data) < size else "more"
        raise ValueError(f"{claim} but holds {held}: it is truncated or damaged")
    return np.frombuffer(data, np.uint8).reshape(shape)


def import_tfds(module: str) -> Any:
    """Import a module of TensorFlow Datasets; an ImportError says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            "'tfds:' and 'array_record:' need TensorFlow Datasets (they read without TensorFlow): "
            f"pip install 'mae_jax[tfds]' ({error})"
        ) from error


def tfds(name: str, split: str) -> Examples:
    """Open a prepared data set of TensorFlow Datasets in TFDS_DATA_DIR, without TensorFlow.

    Raises:
      ValueError: the data set or split is unknown, or has no pictures.
      FileNotFoundError: it is not prepared in a format with random access.
    """
    tensorflow_datasets = import_tfds("tensorflow_datasets")
    decoders = {"image": tensorflow_datasets.decode.SkipDecoding()}
    try:
        records: Any = tensorflow_datasets.data_source(
            name, split=split, download=False, decoders=decoders
        )
    except (KeyError, NotImplementedError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"data 'tfds:{name}' is not prepared: run 'tfds build {name} "
            "--file_format=array_record' (that needs TensorFlow, reading does not), "
            "or set TFDS_DATA_DIR to the folder that holds it"
        ) from error
    except (ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"data 'tfds:{name}', split {split!r}: {reason}") from error
    features = records.dataset_info.features
    if "image" not in features:
        raise ValueError(f"data 'tfds:{name}' has no feature 'image': it has {', '.join(features)}")
    labelled = "label" in features and features["label"].shape == ()
    classes = tuple(getattr(features["label"], "names", None) or ()) if labelled else ()
    load = functools.partial(_read_tfds, records, labelled)
    return Examples(len(records), load, classes, f"{name} {split}")


def _read_tfds(records: Any, labelled: bool, i: int) -> Example:
    try:
        example = records[i]
    except Exception as error:  # array_record, protobuf and tfds raise types of their own
        raise Unreadable(_DAMAGED) from error
    return {"image": example["image"], "label": int(example["label"]) if labelled else -1}


def array_record(pattern: str, split: str) -> Examples:
    """Open the array_record files that match `pattern`, in the order of their names.

    `{split}` in the pattern stands for the split. Each record is a tf.train.Example with the bytes
    `image` (or `image/encoded`) and, if labelled, the integer `label` (or `image/class/label`), as
    TensorFlow Datasets writes them; class names come from a `label.labels.txt` beside the files.

    Raises:
      FileNotFoundError: no file matches, or files of a numbered set are missing.
      ValueError: a file is no array_record.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    import_tfds("tensorflow_datasets.proto")  # before examples are read
    place = os.path.expanduser(pattern.replace("{split}", split))
    files = sorted(glob.glob(place, recursive=True))
    if not files:
        raise FileNotFoundError(f"data 'array_record:{pattern}': no file matches {place!r}")
    if missing := _missing(files, place):
        raise FileNotFoundError(
            f"data 'array_record:{pattern}': {len(missing)} of the files are missing, such as "
            f"{missing[0]!r}: bring them, or give a pattern that they do not match"
        )
    try:
        records = ArrayRecordDataSource(files)
    except RuntimeError as error:
        raise ValueError(f"data 'array_record:{pattern}' cannot be read: {error}") from error
    names = Path(files[0]).with_name("label.labels.txt")
    classes = tuple(names.read_text("utf-8").split("\n")) if names.is_file() else ()
    load = functools.partial(read_record, records)
    return Examples(len(records), load, tuple(filter(None, classes)), place)


def read_record(records: Any, i: int) -> Example:
    """Return the picture and the label of the tf.train.Example in record i."""
    parse = import_tfds("tensorflow_datasets.proto").tf_example_pb2.Example.FromString
    try:
        features = parse(records[i]).features.feature
    except Exception as error:  # each back end of protobuf raises its own types
        raise Unreadable(_DAMAGED) from error
    image = [features[key] for key in ("image", "image/encoded") if key in features]
    label = [features[key] for key in ("label", "image/class/label") if key in features]
    if not image or not image[0].bytes_list.value:
        raise Unreadable(
            "the record has no bytes feature 'image' or 'image/encoded': "
            f"it has {', '.join(sorted(features)) or 'no features'}"
        )
    number = label[0].int64_list.value if label else ()
    return {"image": image[0].bytes_list.value[0], "label": number[0] if number else -1}


def _missing(files: Sequence[str], pattern: str) -> list[str]:
    """Return the files of numbered sets that match the pattern but do not exist."""
    matches = filter(None, (re.search(r"-(\d{5})-of-(\d{5})", file) for file in files))
    sets = {(m.string[: m.start(1)], int(m[2]), m.string[m.end(1) :]) for m in matches}
    whole = {f"{head}{k:05}{tail}" for head, count, tail in sets for k in range(count)}
    return sorted(file for file in whole - {*files} if fnmatch.fnmatchcase(file, pattern))
