"""Where examples come from: `open(spec, split)`, for pictures in memory, folders and records."""

import functools
import glob
import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")


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
        _check_split(spec, split, ("train", "test"))
        return _BUILT_IN[kind](split)
    if kind in _PLACED:
        kind_of_place, opener = _PLACED[kind]
        if not place:
            raise ValueError(f"data {spec!r} needs a place: write '{kind}:{kind_of_place}'")
        return opener(place, split)
    kinds = ", ".join([*_BUILT_IN, *(f"{kind}:{place}" for kind, (place, _) in _PLACED.items())])
    raise ValueError(f"unknown data {spec!r}: use one of {kinds}")


def _check_split(spec: str, split: str, splits: Sequence[str]):
    if split not in splits:
        raise ValueError(f"data {spec!r} has no split {split!r}: use {' or '.join(splits)}")


@dataclass(frozen=True)
class Arrays:
    """Pictures that fit in memory: `images` uint8 [n, h, w], `labels` [n]."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    title: str

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.images[i], "label": int(self.labels[i])}

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"


_PHOTOS = {  # file inside the installed package -> class
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
_PHOTO_SIDE = 400  # longest allowed short side: the big photos show structure inside a window
_WINDOW = 96
_WINDOWS = {"train": 200, "test": 40}  # per photo
_TRAIN_SHARE = 0.7  # of a photo's width


@functools.cache
def _photo(package: str, file: str) -> np.ndarray:
    with (resources.files(package) / file).open("rb") as opened, Image.open(opened) as photo:
        shrink = min(1, _PHOTO_SIDE / min(photo.size))
        size = [round(side * shrink) for side in photo.size]
        return np.asarray(photo.convert("RGB").resize(size, Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Photos:
    """Fixed windows of ten real photographs; `corners` [n, 2] are their (row, column)."""

    split: str
    corners: np.ndarray
    classes: tuple[str, ...] = tuple(_PHOTOS)

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, i: int) -> dict[str, Any]:
        label = range(len(self))[i] % len(self.classes)
        y, x = self.corners[i]
        photo = _photo(*_PHOTOS[self.classes[label]])
        return {"image": photo[y : y + _WINDOW, x : x + _WINDOW], "label": label}

    def name(self, i: int) -> str:
        y, x = self.corners[i]
        return f"photos {self.split}[{i}] ({self.classes[i % len(self.classes)]} at {x}, {y})"


def photos(split: str) -> Photos:
    """Windows uint8 [96, 96, 3] of the ten colour photographs in scikit-image and scikit-learn.

    The left 70 % of each photo is the training part, the rest the test part, so the splits share no
    pixel; the photo is the label. Picture i is of photo i % 10: 2000 for training, 400 to test.
    """
    corners = []
    for index, place in enumerate(_PHOTOS.values()):
        height, width, _ = _photo(*place).shape
        cut = int(width * _TRAIN_SHARE)
        low, high = (0, cut) if split == "train" else (cut, width)
        rng = np.random.default_rng([split == "train", index])
        y = rng.integers(0, height - _WINDOW, _WINDOWS[split], endpoint=True)
        x = rng.integers(low, high - _WINDOW, _WINDOWS[split], endpoint=True)
        corners.append(np.stack([y, x], axis=-1))
    return Photos(split, np.stack(corners, axis=1).reshape(-1, 2))


def digits(split: str) -> Arrays:
    """The 1797 handwritten digits of scikit-learn, uint8 [8, 8]: every fifth of a kind to test."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    scans = np.rint(scans * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    turn = np.zeros(len(labels), int)  # how many of the same digit came before
    for label in range(10):
        turn[labels == label] = np.arange((labels == label).sum())
    chosen = (turn % 5 == 4) == (split == "test")
    return Arrays(scans[chosen], labels[chosen], tuple("0123456789"), f"digits {split}")


_SYNTHETIC = {"train": 64, "test": 32}


@dataclass(frozen=True)
class Synthetic:
    """Drawn shapes, each a function of (split, i) alone."""

    split: str
    classes: tuple[str, ...] = ("disc", "ring", "square", "triangle")

    def __len__(self) -> int:
        return _SYNTHETIC[self.split]

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        rng = np.random.default_rng([self.split == "train", i])
        ends = rng.integers(0, 256, (2, 1, 1, 3))
        across = np.linspace(0, 1, 80)[:, None]
        shade = ends[0] * across + ends[1] * (1 - across)  # [1 80 3]
        picture = Image.fromarray(np.repeat(shade, 64, 0).astype(np.uint8))
        color = tuple(int(c) for c in (ends.mean((0, 1, 2)) + 128) % 256)
        radius = int(rng.integers(10, 24))
        x, y = rng.integers(radius, [80 - radius, 64 - radius]).tolist()
        box = (x - radius, y - radius, x + radius, y + radius)
        draw, label = ImageDraw.Draw(picture), i % len(self.classes)
        match self.classes[label]:
            case "disc":
                draw.ellipse(box, fill=color)
            case "ring":
                draw.ellipse(box, outline=color, width=radius // 3)
            case "square":
                draw.rectangle(box, fill=color)
            case "triangle":
                draw.regular_polygon((x, y, radius), 3, fill=color)
        encoded = io.BytesIO()
        picture.save(encoded, "JPEG", quality=90)
        return {"image": encoded.getvalue(), "label": label}

    def name(self, i: int) -> str:
        return f"synthetic {self.split}[{i}]"


@dataclass(frozen=True)
class Folder:
    """Picture files; `files` are relative to `root`."""

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": (self.root / self.files[i]).read_bytes(), "label": self.labels[i]}

    def name(self, i: int) -> str:
        return self.files[i]


_PARTS = {  # split -> the sub-folders that may hold it, best first
    "train": ("train",),
    "test": ("test", "val", "validation"),
    "validation": ("validation", "val", "test"),
}
_HELD_OUT = 0.1


def folder(path: str, split: str) -> Folder:
    """Pictures under `path`, by relative path; the sub-folder that holds a picture is its class.

    With sub-folders `train` and `test` (or `val`, `validation`) these are the splits, and the
    classes are the sub-folders of all of them. Otherwise one file in ten is held out, by the CRC-32
    of its relative path, so that no file changes sides as others come and go. A `train` beside
    sub-folders of other names is a class like them. Hidden files and looping links are skipped.

    Raises:
      FileNotFoundError: no such folder, or no pictures in it.
      ValueError: unknown split, or a folder for one split but none for the one asked for.
    """
    spec, root = f"folder:{path}", Path(path).expanduser()
    _check_split(spec, split, (*_PARTS, "all"))
    if not root.is_dir():
        raise FileNotFoundError(f"data {spec!r}: there is no folder {str(root)!r}")
    parts = _split_folders(root)
    chosen = parts or [""]
    if parts and split != "all":
        chosen = [part for part in _PARTS[split] if part in parts][:1]
        if not chosen:
            raise ValueError(
                f"data {spec!r} has {' and '.join(parts)} but no {' or '.join(_PARTS[split])} for "
                f"split {split!r}: add it, or hold out a tenth with '{spec}/{parts[0]}'"
            )
    files = sorted(file for part in chosen for file in _pictures(root, part))
    if not files:
        raise FileNotFoundError(
            f"data {spec!r}: no pictures in {str(root / chosen[0])!r}, "
            f"where files would end in {', '.join(EXTENSIONS)}"
        )
    if parts:
        names = {name for part in parts for name in _classes(root, part)}
    else:
        names = {file.split("/")[0] for file in files if "/" in file}
        files = _hold_out(files, split)
    if not files:
        raise ValueError(f"data {spec!r} has too few pictures for split {split!r}: use 'all'")
    classes = tuple(sorted(names))
    number = {name: label for label, name in enumerate(classes)}
    steps = (file.split("/")[1 if parts else 0 :] for file in files)
    labels = tuple(number[step[0]] if len(step) > 1 else -1 for step in steps)
    return Folder(root, tuple(files), labels, classes)


def _split_folders(root: Path) -> list[str]:
    children = _children(root)
    parts = [name for name in children if name in ("train", *_PARTS["test"])]
    return parts if parts != ["train"] or children == ["train"] else []


def _children(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _classes(root: Path, part: str) -> list[str]:
    """The sub-folders of `root/part` with a picture in them; looks for one picture in each."""
    return [name for name in _children(root / part) if any(_pictures(root, f"{part}/{name}"))]


def _pictures(root: Path, part: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths relative to `root` of the pictures under `root/part`, in the order of the disk."""
    above |= {os.path.realpath(root), os.path.realpath(root / part)}
    with os.scandir(root / part) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{part}/{entry.name}" if part else entry.name
            if entry.is_dir():
                if os.path.realpath(entry.path) not in above:  # else a link back to where we are
                    yield from _pictures(root, name, above)
            elif entry.name.rpartition(".")[2].lower() in EXTENSIONS and entry.is_file():
                yield name


def _hold_out(files: list[str], split: str) -> list[str]:
    if split == "all":
        return files
    draw = {file: zlib.crc32(os.fsencode(file)) / 2**32 for file in files}
    ranked = sorted(files, key=lambda file: draw[file])
    # two pictures are enough for one on each side
    held = {f for f in files if draw[f] < _HELD_OUT} | set(ranked[: len(files) > 1])
    held -= set(ranked[-1:])
    return [file for file in files if (file in held) != (split == "train")]


_IDX_STEMS = {"train": "train", "test": "t10k"}


def idx(path: str, split: str) -> Arrays:
    """MNIST's files `{train,t10k}-{images-idx3,labels-idx1}-ubyte`, plain or `.gz`: uint8 [h, w].

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: unknown split, or a file that is not what its name says.
    """
    root = Path(path).expanduser()
    _check_split(f"idx:{path}", split, tuple(_IDX_STEMS))
    stem = _IDX_STEMS[split]
    images = _read_idx(_idx_file(root, stem, "images", 3), 3)
    labels = _read_idx(_idx_file(root, stem, "labels", 1), 1)
    if len(images) != len(labels):
        raise ValueError(
            f"data 'idx:{path}': {len(images)} images but {len(labels)} labels in split {split!r}"
        )
    # the test files may lack the last classes
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
    """An IDX file of bytes: 0 0 8 axes, then each side as a big-endian 32-bit number, then data."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{str(path)!r} is a broken gzip file: {error}") from error
    if data[:4] != bytes([0, 0, 8, axes]):
        raise ValueError(
            f"{str(path)!r} is no IDX file of bytes with {axes} axes: "
            f"it starts with {data[:4].hex(' ')}, not 00 00 08 0{axes}"
        )
    start = 4 + 4 * axes
    if len(data) < start:
        raise ValueError(f"{str(path)!r} is truncated: {len(data)} bytes")
    shape = np.frombuffer(data, ">u4", axes, 4).tolist()
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{str(path)!r} should hold {'x'.join(map(str, shape))} = {math.prod(shape)} bytes "
            f"but holds {len(data) - start}: it is truncated or damaged"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


@dataclass(frozen=True)
class Tfds:
    """A data source of TensorFlow Datasets with encoded pictures."""

    examples: Any
    labelled: bool
    classes: tuple[str, ...]
    title: str

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        example = self.examples[i]
        return {"image": example["image"], "label": int(example["label"]) if self.labelled else -1}

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"


def tfds(name: str, split: str) -> Tfds:
    """A prepared data set of TensorFlow Datasets, read without TensorFlow from TFDS_DATA_DIR.

    Raises:
      ValueError: unknown data set or split, or one without pictures.
      FileNotFoundError: not prepared in a format with random access.
    """
    import tensorflow_datasets

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

    def __getitem__(self, i: int) -> dict[str, Any]:
        from tensorflow_datasets.proto import tf_example_pb2

        parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
        example = parse(self.records[i])
        features = example.features.feature
        image = [features[key] for key in ("image", "image/encoded") if key in features]
        label = [features[key] for key in ("label", "image/class/label") if key in features]
        if not image or not image[0].bytes_list.value:
            raise ValueError(
                "the record has no bytes feature 'image' or 'image/encoded': "
                f"it has {', '.join(sorted(features)) or 'no features'}"
            )
        number = label[0].int64_list.value if label else ()
        return {"image": image[0].bytes_list.value[0], "label": number[0] if number else -1}

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"


def array_record(pattern: str, split: str) -> Records:
    """The array_record files that `pattern` matches, in order of their names.

    `{split}` in the pattern stands for the split. Each record is a tf.train.Example with the bytes
    `image` (or `image/encoded`) and, if labelled, the integer `label` (or `image/class/label`), as
    TensorFlow Datasets writes them; class names come from a `label.labels.txt` beside the files.

    Raises:
      FileNotFoundError: no file matches.
      ValueError: a file that is no array_record, or a record without a picture.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    place = os.path.expanduser(pattern.replace("{split}", split))
    files = sorted(glob.glob(place, recursive=True))
    if not files:
        raise FileNotFoundError(f"data 'array_record:{pattern}': no file matches {place!r}")
    try:
        records = ArrayRecordDataSource(files)
    except RuntimeError as error:
        raise ValueError(f"data 'array_record:{pattern}' cannot be read: {error}") from error
    names = Path(files[0]).with_name("label.labels.txt")
    classes = tuple(names.read_text("utf-8").split("\n")) if names.is_file() else ()
    return Records(records, tuple(filter(None, classes)), place)


_BUILT_IN = {"photos": photos, "digits": digits, "synthetic": Synthetic}
_PLACED = {
    "folder": ("PATH", folder),
    "idx": ("PATH", idx),
    "tfds": ("NAME", tfds),
    "array_record": ("GLOB", array_record),
}
