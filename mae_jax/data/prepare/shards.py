"""Pictures in and out of one array_record file."""

import collections
import hashlib
import io
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_jax.data.image_io import decode
from mae_jax.data.sources import Source
from mae_jax.data.sources.records import Records
from mae_jax.data.unreadable import Unreadable

_OPTIONS = "group_size:1,uncompressed"  # a chunk for each record, to read it alone; JPEGs are small


def write(path: Path, records: Iterable[bytes]) -> dict:
    """Write a shard, which is there whole or not at all; its number of records and checksums.

    Raises:
      OSError: it cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    partial, count, crc = path.with_name(f".{path.name}.partial"), 0, 0
    try:
        writer = ArrayRecordWriter(str(partial), _OPTIONS)
        try:
            for data in records:
                writer.write(data)
                count, crc = count + 1, zlib.crc32(data, crc)
        finally:
            writer.close()
        with partial.open("rb") as written:
            os.fsync(written.fileno())
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        os.replace(partial, path)
    except RuntimeError as error:  # of array_record
        raise OSError(f"cannot write {str(path)!r}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return {"records": count, "records_crc32": crc, "sha256": digest}


def damage(path: Path, entry: dict | None) -> str:
    """Why a shard is not the file that `write` wrote, "" if it is."""
    if not entry or not path.is_file():
        return "it is missing"
    with path.open("rb") as opened:
        whole = hashlib.file_digest(opened, "sha256").hexdigest() == entry["sha256"]
    return "" if whole else "its bytes are damaged"


def read_back(path: Path, entry: dict, pool: ThreadPoolExecutor, seen: Callable[[], None]) -> str:
    """Why the records of a shard are not those that `write` got, "" if they are and all decode."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    raw: Any = ArrayRecordDataSource([str(path)])
    if len(raw) != entry["records"]:
        return f"it holds {len(raw)} records instead of {entry['records']}"
    parsed, crc = Records(raw, (), path.name), 0

    def read(i: int) -> bytes:
        image = parsed[i]["image"]
        decode.decode(image, _channels(image))
        return raw[i]

    try:
        for data in in_order(pool, read, range(len(raw)), 64):
            crc = zlib.crc32(data, crc)
            seen()
    except Unreadable as error:
        return f"a record cannot be read: {error}"
    return "" if crc == entry["records_crc32"] else "its records are not those that were written"


def record(source: Source, i: int, side: int | None, quality: int) -> tuple[bytes, str]:
    """A serialised tf.train.Example of `source[i]`, and if it cannot be read why.

    Raises:
      ValueError: a label or an array that such a record cannot hold.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        example = source[i]
        data = encoded(example["image"], side, quality)
    except (Unreadable, OSError) as error:
        return b"", f"{source.name(i)!r}: {error}"
    if not isinstance(example["label"], int | np.integer):
        raise ValueError(f"{source.name(i)!r} has several labels: shards hold one for each picture")
    proto: Any = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
    proto.features.feature["image"].bytes_list.value.append(data)
    proto.features.feature["label"].int64_list.value.append(int(example["label"]))
    return proto.SerializeToString(deterministic=True), ""


def encoded(image: bytes | np.ndarray, side: int | None, quality: int) -> bytes:
    """The bytes to store of a picture, which surely decode.

    Encoded pictures stay as they are, unless their shorter side is longer than `side`.

    Raises:
      Unreadable: not a picture.
      ValueError: an array that is no file.
    """
    if isinstance(image, np.ndarray):
        channels = image.shape[2] if image.ndim == 3 else 1
        if channels not in (1, 3, 4):
            raise ValueError(f"pictures with {channels} channels are no files: train on the arrays")
    else:
        channels = _channels(image)
    pixels = decode.decode(image, channels)
    height, width = pixels.shape[:2]
    if isinstance(image, bytes) and min(height, width) <= (side or height):
        return image
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    if side and min(height, width) > side:
        shape = [round(x * side / min(height, width)) for x in (width, height)]
        picture = picture.resize((shape[0], shape[1]), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if isinstance(image, np.ndarray) or channels == 4:
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _channels(data: bytes) -> int:
    """How many channels show all of an encoded picture: 1, 3, or 4 with transparency."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.has_transparency_data:
                return 4
            return 1 if picture.mode == "1" or picture.mode[0] in "IF" or picture.mode == "L" else 3
    except Exception:  # the plugins raise nearly every type: `decode` says what is wrong
        return 3


def in_order(
    pool: ThreadPoolExecutor, make: Callable[[int], Any], numbers: Iterable[int], ahead: int
) -> Iterator[Any]:
    """`make` of each number in order; so many are made ahead."""
    numbers, waiting = iter(numbers), collections.deque()
    waiting.extend(pool.submit(make, i) for i in itertools.islice(numbers, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(make, i) for i in itertools.islice(numbers, 1))
