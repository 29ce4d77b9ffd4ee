"""The bytes of odd files: damaged, huge, hostile, or only unusual."""

import io
import struct
import zipfile
import zlib
from typing import Any

import cv2
import numpy as np
from PIL import Image
from reading import SIDE

BLOCK = 1 << 24  # bytes of zeros that are compressed once


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


# --- pictures ---


def smooth() -> np.ndarray:
    """A picture without sharp edges, uint8 [32, 32, 3]."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    return np.stack([255 * x, 255 * y, 120 + 60 * (x - y)], -1).round().astype(np.uint8)


def encoded(picture: Image.Image | np.ndarray, file_format: str, **options) -> bytes:
    whole = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    whole.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(picture=None, **options) -> bytes:
    return encoded(smooth() if picture is None else picture, "PNG", **options)


def jpeg(picture=None, **options) -> bytes:
    options = {"quality": 95, "subsampling": 0} | options
    return encoded(smooth() if picture is None else picture, "JPEG", **options)


def opencv_png(array: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".png", array)
    assert ok
    return data.tobytes()


def plain(color: tuple[int, int, int], side: int = SIDE) -> Image.Image:
    return Image.new("RGB", (side, side), color)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, color: int, rows: bytes, *before: bytes) -> bytes:
    """A PNG of 8 bits made by hand; `rows` are deflated."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0))
    parts = [header, *before, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def deflated_zeros(count: int, before: bytes = b"") -> bytes:
    """`before` and so many zeros as raw deflate, in a moment: the same compressed block again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    whole, rest = divmod(count, BLOCK)
    start = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * whole + packer.compress(bytes(rest)) + packer.flush()


def zlib_zeros(count: int) -> bytes:
    checksum = (count % 65521) << 16 | 1  # Adler-32
    return b"\x78\xda" + deflated_zeros(count) + struct.pack(">I", checksum)


def png_bomb() -> bytes:
    """40,000 x 40,000 gray pixels in two megabytes: 1.6 GB."""
    return png_of(40_000, 40_000, 0, zlib_zeros(40_000 * 40_001))


def text_bomb() -> bytes:
    """A small picture with a compressed text of a gigabyte."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib_zeros(1 << 30))
    rows = zlib.compress((b"\0" + bytes(3 * SIDE)) * SIDE)
    return png_of(SIDE, SIDE, 2, rows, text)


def jpeg_with_size(side: int) -> bytes:
    """A JPEG whose header says another size."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def damaged_checksum() -> bytes:
    data = bytearray(png())
    data[data.index(b"IDAT") + 9] ^= 255
    return bytes(data)


def turned() -> bytes:
    """`smooth`, stored on its side, with the EXIF tag that says so (6: turn it clockwise)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(np.ascontiguousarray(np.rot90(smooth())), exif=exif.tobytes())


def animation(file_format: str) -> bytes:
    """A red frame, a green one and a blue one."""
    red, *others = [plain(c) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    return encoded(red, file_format, save_all=True, append_images=others, lossless=True)


def wide(file_format: str) -> bytes:
    """20,000 x 64 pixels, gray with another gray in the middle."""
    pixels = np.full((64, 20_000, 3), 128, np.uint8)
    pixels[:, 10_000 - 32 : 10_000 + 32] = 77
    return encoded(pixels, file_format)


def quantized() -> Image.Image:
    return Image.fromarray(smooth()).quantize(256)


def transparent_palette() -> bytes:
    picture = Image.new("P", (SIDE, SIDE), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    return png(picture, transparency=1)


# --- arrays, sounds, videos, records ---


def npy(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npz_bomb() -> bytes:
    """Two gigabytes of zeros in two megabytes, all of it as it should be."""
    side = 22_000
    header = npy(np.zeros((1, 1, 1), np.float32))[:128]
    header = header.replace(b"(1, 1, 1), }" + b" " * 8, b"(%d, %d, 1), }" % (side, side))
    size, total = side * side * 4, zlib.crc32(header)
    for start in range(0, size, BLOCK):
        total = zlib.crc32(bytes(min(BLOCK, size - start)), total)
    data, name = deflated_zeros(size, header), b"image.npy"
    sizes = struct.pack("<HHHHIII", 0, 8, 0, 33, total, len(data), len(header) + size)
    sizes += struct.pack("<HH", len(name), 0)
    local = b"PK\3\4\x14\0" + sizes + name
    central = b"PK\1\2\x14\0\x14\0" + sizes + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    return local + data + central + b"PK\5\6" + end


def wav(samples: np.ndarray, **options) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", **options)
    return buffer.getvalue()


def clip(color: int) -> bytes:
    """Twenty frames as an animated GIF, which is a video too."""
    first, *others = [plain((color, 10 * i, 0), 40) for i in range(20)]
    return encoded(first, "GIF", save_all=True, append_images=others)


def record(image: bytes | None, label: int) -> bytes:
    """A tf.train.Example."""
    from tensorflow_datasets.proto import tf_example_pb2

    example: Any = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
    if image is not None:
        example.features.feature["image"].bytes_list.value.append(image)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()
