"""Odd pictures; for chaos_inputs.py."""

import io
import os
import random
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from chaos_reading import (
    IMAGE,
    SIDE,
    Case,
    Failed,
    becomes,
    check,
    either,
    epoch,
    good,
    is_left_out,
    is_replaced,
    opened,
    says,
    write,
)
from PIL import Image


def smooth() -> np.ndarray:
    """A picture without sharp edges, uint8 [32, 32, 3]."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    return np.stack([255 * x, 255 * y, 120 + 60 * (x - y)], -1).round().astype(np.uint8)


def encoded(picture: Image.Image | np.ndarray, form: str, **options) -> bytes:
    whole = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    whole.save(buffer, form, **options)
    return buffer.getvalue()


def png(picture=None, **options) -> bytes:
    return encoded(smooth() if picture is None else picture, "PNG", **options)


def jpeg(picture=None, **options) -> bytes:
    options = {"quality": 95, "subsampling": 0} | options
    return encoded(smooth() if picture is None else picture, "JPEG", **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, bits: int, colour: int, rows: bytes, *before: bytes) -> bytes:
    """A PNG made by hand; `rows` are deflated."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    parts = [header, *before, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def deflated_zeros(count: int, before: bytes = b"") -> bytes:
    """`before` and so many zeros as raw deflate, in a moment: the same compressed block again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    whole, rest = divmod(count, BLOCK)
    start = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * whole + packer.compress(bytes(rest)) + packer.flush()


BLOCK = 1 << 24


def zlib_zeros(count: int) -> bytes:
    checksum = (count % 65521) << 16 | 1  # Adler-32
    return b"\x78\xda" + deflated_zeros(count) + struct.pack(">I", checksum)


def png_bomb() -> bytes:
    """40,000 x 40,000 gray pixels in two megabytes: 1.6 GB."""
    return png_of(40_000, 40_000, 8, 0, zlib_zeros(40_000 * 40_001))


def text_bomb() -> bytes:
    """A small picture with a compressed text of a gigabyte."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib_zeros(1 << 30))
    rows = zlib.compress((b"\0" + bytes(3 * SIDE)) * SIDE)
    return png_of(SIDE, SIDE, 8, 2, rows, text)


def jpeg_with_size(side: int) -> bytes:
    """A JPEG whose header says another size."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def damaged_crc() -> bytes:
    data = bytearray(png())
    data[data.index(b"IDAT") + 9] ^= 255
    return bytes(data)


def turned() -> bytes:
    """`smooth`, stored on its side, with the EXIF tag that says so (6: turn it clockwise)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(np.ascontiguousarray(np.rot90(smooth())), exif=exif.tobytes())


def animation(form: str) -> bytes:
    pictures = [Image.new("RGB", (SIDE, SIDE), c) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    return encoded(
        pictures[0], form, save_all=True, append_images=pictures[1:], **LOSSLESS.get(form, {})
    )


LOSSLESS = {"WEBP": {"lossless": True}}


def cmyk() -> bytes:
    return encoded(Image.new("CMYK", (SIDE, SIDE), (40, 90, 160, 30)), "JPEG", quality=100)


def cv_encoded(array: np.ndarray, end: str) -> bytes:
    ok, data = cv2.imencode(end, array)
    assert ok
    return data.tobytes()


DEEP = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 64).astype(np.uint16)  # up to 65472
MADE_IN_MEMORY = 20_000


def wide(form: str) -> bytes:
    """20,000 x 64 pixels, gray on the left, `smooth` in the middle."""
    pixels = np.full((64, MADE_IN_MEMORY, 3), 128, np.uint8)
    middle = MADE_IN_MEMORY // 2
    pixels[:, middle - 32 : middle + 32] = 77
    return encoded(pixels, form)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def from_white(alpha: float, colour) -> np.ndarray:
    return np.rint(np.array(colour) * alpha + 255 * (1 - alpha))


def pictures() -> list[Case]:
    red = lambda: np.array([250, 0, 0])
    gray16 = lambda: np.rint(DEEP[..., None] / 257)
    real = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    stays = lambda name, data, tolerance=0: becomes(smooth, tolerance, write(name, data))
    bad = lambda name, data: is_replaced(write(name, data))

    def linked(target: str):
        return lambda folder: (folder / "x.png").symlink_to(target)

    def palette() -> bytes:
        return png(Image.fromarray(smooth()).quantize(256))

    def quantized() -> np.ndarray:
        return np.asarray(Image.fromarray(smooth()).quantize(256).convert("RGB"))

    def transparent_palette() -> bytes:
        picture = Image.new("P", (SIDE, SIDE), 1)
        picture.putpalette([0, 0, 0, 10, 20, 30])
        return png(picture, transparency=1)

    def loop(folder: Path) -> None:
        (folder / "x.png").write_bytes(png())
        (folder / "loop").symlink_to(folder)
        (folder / "up").symlink_to(folder.parent)

    def forbidden(folder: Path) -> None:
        (folder / "x.png").write_bytes(png())
        (folder / "x.png").chmod(0)
        check(not os.access(folder / "x.png", os.R_OK), "root may read everything: start chaos.py")

    def gone(folder: Path) -> None:
        (folder / "x.png").unlink()

    def a_folder_now(folder: Path) -> None:
        gone(folder)
        (folder / "x.png").mkdir()

    def come(folder: Path) -> None:
        (folder / "y.png").write_bytes(png())
        (folder.parent / "new class").mkdir()

    def unnoticed(place: Path) -> str:
        good(place / "p")
        (place / "p" / "odd" / "x.png").write_bytes(png())
        source = opened(f"folder:{place / 'p'}")
        come(place / "p" / "odd")
        batch = epoch(source, place, IMAGE)
        check(len(batch.image) == 8 and not batch.replaced, "noticed")
        return "not noticed until the next start"

    def same_with_any_threads(place: Path) -> str:
        good(place / "p")
        for i in range(5):
            (place / "p" / "odd" / f"{i}.png").write_bytes(b"bad" if i % 2 else png())
        source = opened(f"folder:{place / 'p'}")
        data = IMAGE | {"crop_scale": (0.2, 1.0), "crop_ratio": (0.75, 1.33)}
        batches = [epoch(source, place, data, threads=n) for n in (0, 2, 3)]
        for batch in batches[1:]:
            check((batch.image == batches[0].image).all(), "other pictures")
            check((batch.label == batches[0].label).all(), "other labels")
            check(sorted(batch.replaced) == sorted(batches[0].replaced), "others are named")
        return "the same batches with 0, 2 and 3 threads"

    def too_many(place: Path) -> str:
        from mae_jax.config.errors import UserError

        good(place / "p")
        for i in range(3):
            (place / "p" / "odd" / f"{i}.png").write_bytes(b"bad")
        try:
            epoch(opened(f"folder:{place / 'p'}"), place, IMAGE, at_most=0.1)
        except (UserError, ValueError) as error:
            check("max_bad_fraction" in str(error), f"no way out: {error}")
            return str(error)
        raise Failed("three in ten unreadable, and nothing is said")

    def none_good(place: Path) -> str:
        from mae_jax.config.errors import UserError

        (place / "p").mkdir(parents=True)
        for i in range(8):
            (place / "p" / f"{i}.png").write_bytes(b"bad")
        try:
            epoch(opened(f"folder:{place / 'p'}"), place, IMAGE)
        except (UserError, ValueError) as error:
            return str(error)
        raise Failed("nothing is readable, and nothing is said")

    def newline(place: Path) -> str:
        happened = is_replaced(write("a\nb.png", b"bad"))(place)
        return f"{happened}, in one line"

    deep_tiff = lambda x: encoded(Image.fromarray(x), "TIFF")
    with_nan = real.copy()
    with_nan[3, 3] = np.nan

    named = {
        "an empty file": bad("x.jpg", b""),
        "half a JPEG": bad("x.jpg", lambda: half(jpeg())),
        "half a PNG": bad("x.png", lambda: half(png())),
        "half a WebP": bad("x.webp", lambda: half(encoded(smooth(), "WEBP", quality=90))),
        "half a TIFF": bad("x.tif", lambda: half(encoded(smooth(), "TIFF"))),
        "a text called .png": bad("x.png", b"nothing to see\n" * 50),
        "an HTML page called .jpg": bad("x.jpg", b"<!DOCTYPE html><html>404</html>"),
        "random bytes called .jpg": bad("x.jpg", lambda: random.Random(0).randbytes(5000)),
        "a JPEG's start and then nothing": bad("x.jpg", b"\xff\xd8\xff\xe0"),
        "a PNG with a wrong checksum": bad("x.png", damaged_crc),
        "a PNG called .jpg": stays("x.jpg", png),
        "a JPEG called .PNG": stays("X.PNG", jpeg, 8),
        "a bomb: 40,000 x 40,000 in a small PNG": bad("x.png", png_bomb),
        "a bomb: a text of 1 GB in a PNG": either(
            bad("x.png", text_bomb), becomes(lambda: np.zeros(3), 0, write("x.png", text_bomb))
        ),
        "a JPEG that claims 65,000 x 65,000": bad("x.jpg", lambda: jpeg_with_size(65_000)),
        "a PNG without pixels: 0 x 32": bad("x.png", lambda: png_of(0, 32, 8, 2, b"")),
        "one pixel": becomes(
            lambda: np.array([9, 80, 200]),
            0,
            write("x.png", lambda: png(Image.new("RGB", (1, 1), (9, 80, 200)))),
        ),
        "1 x 400 pixels": becomes(
            lambda: np.array([9, 80, 200]),
            0,
            write("x.png", lambda: png(Image.new("RGB", (1, 400), (9, 80, 200)))),
        ),
        "20,000 x 64 pixels, PNG": becomes(
            lambda: np.array([77] * 3), 0, write("x.png", lambda: wide("PNG"))
        ),
        "20,000 x 64 pixels, JPEG": becomes(
            lambda: np.array([77] * 3), 3, write("x.jpg", lambda: wide("JPEG"))
        ),
        "20,000 x 4,000 pixels, JPEG": becomes(
            lambda: np.array([9, 80, 200]),
            3,
            write("x.jpg", lambda: jpeg(Image.new("RGB", (20_000, 4_000), (9, 80, 200)))),
        ),
        "16-bit gray PNG": becomes(gray16, 1, write("x.png", lambda: cv_encoded(DEEP, ".png"))),
        "16-bit colour PNG": becomes(
            gray16, 1, write("x.png", lambda: cv_encoded(np.stack([DEEP] * 3, -1), ".png"))
        ),
        "16-bit TIFF": becomes(gray16, 1, write("x.tif", lambda: deep_tiff(DEEP))),
        "float TIFF in [0, 1]": becomes(
            lambda: np.rint(real[..., None] * 255), 1, write("x.tif", lambda: deep_tiff(real))
        ),
        "float TIFF in [-3, 5]": becomes(
            lambda: np.rint(real[..., None] * 255),
            1,
            write("x.tif", lambda: deep_tiff(real * 8 - 3)),
        ),
        "float TIFF with NaN": either(
            bad("x.tif", lambda: deep_tiff(with_nan)),
            becomes(
                lambda: np.rint(np.nan_to_num(with_nan)[..., None] * 255),
                1,
                write("x.tif", lambda: deep_tiff(with_nan)),
            ),
        ),
        "CMYK JPEG": becomes(
            lambda: np.array([(255 - c) * (255 - 30) / 255 for c in (40, 90, 160)]),
            4,
            write("x.jpg", cmyk),
        ),
        "palette": becomes(quantized, 0, write("x.png", palette)),
        "palette with a transparent colour": becomes(
            lambda: np.array([255] * 3), 0, write("x.png", transparent_palette)
        ),
        "half-transparent colour": becomes(
            lambda: from_white(128 / 255, (10, 200, 100)),
            1,
            write("x.png", lambda: png(Image.new("RGBA", (SIDE, SIDE), (10, 200, 100, 128)))),
        ),
        "half-transparent gray": becomes(
            lambda: from_white(51 / 255, (90, 90, 90)),
            1,
            write("x.png", lambda: png(Image.new("LA", (SIDE, SIDE), (90, 51)))),
        ),
        "one bit a pixel": becomes(
            lambda: np.where(smooth()[..., :1] > 127, 255, 0),
            0,
            write("x.png", lambda: png(Image.fromarray(smooth()[..., 0] > 127))),
        ),
        "progressive gray JPEG": becomes(
            lambda: smooth()[..., :1],
            8,
            write("x.jpg", lambda: jpeg(smooth()[..., 0], progressive=True)),
        ),
        "animated GIF: the first frame": becomes(red, 0, write("x.gif", lambda: animation("GIF"))),
        "animated WebP: the first frame": becomes(
            red, 0, write("x.webp", lambda: animation("WEBP"))
        ),
        "a JPEG turned by EXIF": stays("x.jpg", turned, 8),
        "a JPEG with rubbish as EXIF": stays(
            "x.jpg", lambda: jpeg(exif=b"Exif\0\0" + bytes(range(200))), 8
        ),
        "a PNG with rubbish as colour profile": stays(
            "x.png", lambda: png(icc_profile=bytes(range(256)))
        ),
        "a JPEG with rubbish behind it": stays(
            "x.jpg", lambda: jpeg() + random.Random(1).randbytes(9999), 8
        ),
        "no permission to read": is_replaced(forbidden),
        "a unicode name": stays("图片 ümläut 🙂.png", png),
        "a newline in the name": becomes(smooth, 0, write("a\nb.png", png)),
        "a newline in the name of a bad file": newline,
        "a name that is not UTF-8": stays(os.fsdecode(b"\xff\xfe.png"), png),
        "a name that is not UTF-8, a bad file": bad(os.fsdecode(b"\xff\xfe.png"), b"bad"),
        "links in a circle": becomes(smooth, 0, loop),
        "a link to nothing": is_left_out(linked("nowhere.png")),
        "a link to itself": is_left_out(linked("x.png")),
        "an empty class": is_left_out(lambda folder: None),
        "a folder called x.png": is_left_out(lambda folder: (folder / "x.png").mkdir()),
        "a pipe called x.png": is_left_out(lambda folder: os.mkfifo(folder / "x.png")),
        "a hidden file": is_left_out(write("._x.png", b"of macOS")),
        "an empty folder": says(lambda p: opened(f"folder:{p}"), "no pictures"),
        "no folder": says(lambda p: opened(f"folder:{p}/no"), "no folder"),
        "a file instead of a folder": says(
            lambda p: ((p / "x").write_text(""), opened(f"folder:{p}/x")), "no folder"
        ),
        "deleted after the start": is_replaced(write("x.png", png), gone),
        "overwritten after the start": is_replaced(write("x.png", png), write("x.png", b"rubbish")),
        "a folder in its place after the start": is_replaced(write("x.png", png), a_folder_now),
        "a new picture after the start": unnoticed,
        "bad files, any number of threads": same_with_any_threads,
        "more bad files than data.max_bad_fraction": too_many,
        "nothing but bad files": none_good,
    }
    return [Case(name, act) for name, act in named.items()]
