"""Writing pictures to one array_record file, and reading them back."""

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_jax.data import pipeline
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import decode
from mae_jax.data.sources import Source, records

# Each record is a chunk, so that it can be read alone; JPEGs cannot be compressed further.
_OPTIONS = "group_size:1,uncompressed"


def write(path: Path, examples: Iterable[bytes]) -> dict:
    """Write a whole shard or nothing; return its number of records and checksums."""
    from array_record.python.array_record_module import ArrayRecordWriter

    partial, count, crc = path.with_name(f".{path.name}.partial"), 0, 0
    try:
        writer = ArrayRecordWriter(str(partial), _OPTIONS)
        try:
            for data in examples:
                writer.write(data)
                count, crc = count + 1, zlib.crc32(data, crc)
        finally:
            writer.close()
        with partial.open("rb") as written:
            os.fsync(written.fileno())
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        os.replace(partial, path)
    except RuntimeError as error:  # raised by array_record
        raise OSError(f"cannot write {str(path)!r}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return {"records": count, "records_crc32": crc, "sha256": digest}


def find_damage(path: Path, entry: dict | None) -> str:
    """Return why a shard is not the file that `write` wrote, or "" if it is."""
    if not entry or not path.is_file():
        return "it is missing"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if digest == entry["sha256"] else "its bytes are damaged"


def read_back(path: Path, entry: dict, threads: int, progress: Callable[[], Any]) -> str:
    """Return why the records of a shard are not those that were written, or "" if they are."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    raw: Any = ArrayRecordDataSource([str(path)])
    if len(raw) != entry["records"]:
        return f"it holds {len(raw)} records instead of {entry['records']}"

    def read(i: int) -> bytes:
        image = records.read_record(raw, i)["image"]
        decode.bands(image)
        return raw[i]

    crc = 0
    try:
        for data in pipeline.in_order(read, len(raw), threads, 64):
            crc = zlib.crc32(data, crc)
            progress()
    except Unreadable as error:
        return f"a record cannot be read: {error}"
    return "" if crc == entry["records_crc32"] else "its records are not those that were written"


def record(source: Source, i: int, side: int | None, quality: int) -> tuple[bytes, str]:
    """Return a serialised tf.train.Example of `source[i]`, or b"" and why it cannot be read."""
    example_pb2 = records.import_tfds("tensorflow_datasets.proto").tf_example_pb2
    try:
        example = source[i]
        data = encode(example["image"], side, quality)
    except (Unreadable, OSError) as error:
        return b"", f"{source.name(i)!r}: {error}"
    if not isinstance(example["label"], int | np.integer):
        raise ValueError(
            f"{source.name(i)!r} has several labels or numbers: shards hold one class for each"
        )
    proto = example_pb2.Example()
    proto.features.feature["image"].bytes_list.value.append(data)
    proto.features.feature["label"].int64_list.value.append(int(example["label"]))
    return proto.SerializeToString(deterministic=True), ""


def encode(image: bytes | np.ndarray, side: int | None, quality: int) -> bytes:
    """Return the bytes to store of a picture, which are certain to decode.

    Encoded pictures are kept, unless their shorter side is longer than `side`.

    Raises:
      Unreadable: the picture cannot be read.
      ValueError: no file format holds such an array.
    """
    is_encoded = isinstance(image, bytes)
    pixels = decode.bands(image)
    channels, shorter = pixels.shape[-1], min(pixels.shape[:2])
    if is_encoded and (not side or shorter <= side):
        return image
    if channels not in decode.MODES:
        raise ValueError(f"pictures with {channels} channels are no files: train on the arrays")
    if pixels.dtype != np.uint8:
        raise Unreadable(f"its {pixels.dtype} values fit no JPEG: prepare without --shorter-side")
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    if side and shorter > side:
        width, height = (round(x * side / shorter) for x in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if is_encoded and channels != 4:
        picture.save(buffer, "JPEG", quality=quality)
    else:
        picture.save(buffer, "PNG")
    return buffer.getvalue()
