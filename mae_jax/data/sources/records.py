"""Pictures in files that hold many: MNIST's IDX, TensorFlow Datasets, array_record."""

import fnmatch
import glob
import gzip
import importlib
import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources.source import Example, check_split

_MAX_IDX_BYTES = 2**32
_IDX_STEMS = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Arrays:
    """Pictures in memory: `images` uint8 [n, h, w], `labels` [n]."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    title: str

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Example:
        return {"image": self.images[i], "label": int(self.labels[i])}

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"


def idx(path: str, split: str) -> Arrays:
    """Open MNIST's `{train,t10k}-{images-idx3,labels-idx1}-ubyte`, plain or `.gz`: uint8 [h, w].

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the split is unknown, or a file is not what its name says.
    """
    root = Path(path).expanduser()
    check_split(f"idx:{path}", split, tuple(_IDX_STEMS))
    stem = _IDX_STEMS[split]
    images = _read_idx(_idx_file(root, stem, "images", 3), 3)
    labels = _read_idx(_idx_file(root, stem, "labels", 1), 1)
    if len(images) != len(labels):
        raise ValueError(
            f"data 'idx:{path}': {len(images)} images but {len(labels)} labels in split {split!r}"
        )
    # The test files may lack the last classes.
    seen = _read_idx(_idx_file(root, "train", "labels", 1), 1) if split == "test" else labels
    count = 1 + max(seen.max(initial=0), labels.max(initial=0))
    return Arrays(images, labels, tuple(str(c) for c in range(count)), f"{root.name} {split}")


def _idx_file(root: Path, stem: str, what: str, axes: int) -> Path:
    names = [f"{stem}-{what}{dash}idx{axes}-ubyte" for dash in "-."]
    for name in (name + end for end in ("", ".gz") for name in names):
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"data 'idx:{root}': there is no {names[0]} (or {names[0]}.gz)")


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """Read an IDX file: bytes 0 0 8 axes, each side as a big-endian 32-bit number, then data."""
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
            if size > _MAX_IDX_BYTES:
                raise ValueError(
                    f"{str(path)!r} should hold {'x'.join(map(str, shape))} = {size} bytes: "
                    "files of at most 4 GiB are read"
                )
            data = file.read(size + 1)  # not all of it: a small .gz may unpack to any size
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{str(path)!r} is a broken gzip file: {error}") from error
    if len(data) != size:
        held = len(data) if len(data) < size else "more"
        raise ValueError(
            f"{str(path)!r} should hold {'x'.join(map(str, shape))} = {size} bytes "
            f"but holds {held}: it is truncated or damaged"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


@dataclass(frozen=True)
class Tfds:
    """A data source of TensorFlow Datasets whose pictures stay encoded."""

    examples: Any
    labelled: bool
    classes: tuple[str, ...]
    title: str

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Example:
        try:
            example = self.examples[i]
        except Exception as error:  # array_record, protobuf and tfds raise types of their own
            raise Unreadable("the record is damaged") from error
        return {"image": example["image"], "label": int(example["label"]) if self.labelled else -1}

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"


def import_tfds(module: str) -> Any:
    """Import a module of TensorFlow Datasets, which is an extra.

    Raises:
      ImportError: it is not installed; how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            "'tfds:' and 'array_record:' need TensorFlow Datasets (they read without TensorFlow): "
            f"pip install 'mae_jax[tfds]' ({error})"
        ) from error


def tfds(name: str, split: str) -> Tfds:
    """Open a prepared data set of TensorFlow Datasets in TFDS_DATA_DIR, without TensorFlow.

    Raises:
      ValueError: the data set or split is unknown, or has no pictures.
      FileNotFoundError: it is not prepared in a format with random access.
    """
    tensorflow_datasets = import_tfds("tensorflow_datasets")
    decoders = {"image": tensorflow_datasets.decode.SkipDecoding()}
    try:
        examples: Any = tensorflow_datasets.data_source(
            name, split=split, download=False, decoders=decoders
        )
    except (KeyError, NotImplementedError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"data 'tfds:{name}' is not prepared: run 'tfds build {name} "
            "--file_format=array_record' (that needs TensorFlow, reading does not), "
            "or set TFDS_DATA_DIR to the place where it is"
        ) from error
    except (ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"data 'tfds:{name}', split {split!r}: {reason}") from error
    features = examples.dataset_info.features
    if "image" not in features:
        raise ValueError(f"data 'tfds:{name}' has no feature 'image': it has {', '.join(features)}")
    labelled = "label" in features and features["label"].shape == ()
    classes = tuple(getattr(features["label"], "names", None) or ()) if labelled else ()
    return Tfds(examples, labelled, classes, f"{name} {split}")


@dataclass(frozen=True)
class Records:
    """tf.train.Example protos in array_record files."""

    records: Any
    classes: tuple[str, ...]
    title: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Example:
        parse = import_tfds("tensorflow_datasets.proto").tf_example_pb2.Example.FromString
        try:
            example = parse(self.records[i])
        except Exception as error:  # each back end of protobuf raises its own types
            raise Unreadable("the record is damaged, or no tf.train.Example") from error
        features = example.features.feature
        image = [features[key] for key in ("image", "image/encoded") if key in features]
        label = [features[key] for key in ("label", "image/class/label") if key in features]
        if not image or not image[0].bytes_list.value:
            raise Unreadable(
                "the record has no bytes feature 'image' or 'image/encoded': "
                f"it has {', '.join(sorted(features)) or 'no features'}"
            )
        number = label[0].int64_list.value if label else ()
        return {"image": image[0].bytes_list.value[0], "label": number[0] if number else -1}

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"


def array_record(pattern: str, split: str) -> Records:
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
            f"{missing[0]!r}: bring them, or give a pattern of those that are there alone"
        )
    try:
        records = ArrayRecordDataSource(files)
    except RuntimeError as error:
        raise ValueError(f"data 'array_record:{pattern}' cannot be read: {error}") from error
    names = Path(files[0]).with_name("label.labels.txt")
    classes = tuple(names.read_text("utf-8").split("\n")) if names.is_file() else ()
    return Records(records, tuple(filter(None, classes)), place)


def _missing(files: Sequence[str], pattern: str) -> list[str]:
    """Return the files of numbered sets that match the pattern but do not exist."""
    numbered = re.compile(r"-(\d{5})-of-(\d{5})")
    sets = {
        (file[: found.start(1)], int(found[2]), file[found.end(1) :])
        for file in files
        if (found := numbered.search(file))
    }
    whole = {f"{head}{k:05}{tail}" for head, count, tail in sets for k in range(count)}
    return sorted(x for x in whole - {*files} if fnmatch.fnmatchcase(x, pattern))
