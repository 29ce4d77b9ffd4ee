"""Bad inputs, bad configurations and flipped bits: the part of chaos.py inside one process.

    python scripts/chaos_inputs.py inputs --place=DIR   # also: configs, flips

Inputs are read as training reads them: a folder with seven good pictures and an odd one, through
`sources.open`, the training transform and `pipeline.training_batches`. The odd one is converted to
what an independent computation expects, or another takes its place and it is counted, or one
sentence says what is wrong. Configurations go through the real parser and `train`, and must be
refused before anything is compiled. Flipped bits are looked for by what training restores with.

Prints a line of JSON a case, which chaos.py collects.
"""

import argparse
import contextlib
import functools
import gzip
import io
import json
import os
import random
import re
import shutil
import signal
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"

import cv2
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SIDE = 32
SECONDS, MEGABYTES = 60, 1000  # that a case may take


class Failed(Exception):
    """What is not as it should be."""


class Case(NamedTuple):
    name: str
    act: Callable[[Path], str]  # working place -> what happened


def check(true: Any, otherwise: str) -> None:
    if not true:
        raise Failed(otherwise)


# --- reading as training does ---


class Batch(NamedTuple):
    image: np.ndarray
    label: np.ndarray
    replaced: list[str]  # lines of unreadable.txt
    share: float


IMAGE = dict(modality="image", size=(SIDE, SIDE), channels=3, crop_scale=(1, 1), crop_ratio=(1, 1))


def opened(spec: str, split: str = "all", modality: str = "image"):
    from mae_jax.data import sources

    return sources.open(spec, split, modality)


def epoch(source, place: Path, data: dict, threads: int = 0, at_most: float = 1.0) -> Batch:
    """Every example of a source once, in one batch, by the reader that training uses."""
    from mae_jax.data import damage, inputs, pipeline

    path = place / f"unreadable_{time.monotonic_ns()}.txt"
    found = damage.Damage(source, at_most, path)
    batches = pipeline.training_batches(
        source,
        inputs.train_transform({"repeats": 1} | data),
        batch_size=len(source),
        seed=0,
        threads=threads,
        damage=found,
    )
    closing: Any = contextlib.closing(batches)  # pyright: ignore[reportArgumentType]
    with within_memory(), closing:
        batch = next(batches)
    lines = path.read_text(errors="surrogateescape").splitlines() if path.exists() else []
    return Batch(batch["image"], batch["label"], lines, float(found.share))


def colours() -> list[tuple[int, int, int]]:
    return [(20 + 30 * i, 200 - 25 * i, 40 * (i % 3)) for i in range(7)]


def good(folder: Path) -> None:
    """Seven pictures of one colour each, of class "good"."""
    (folder / "good").mkdir(parents=True)
    (folder / "odd").mkdir()
    for i, colour in enumerate(colours()):
        Image.new("RGB", (SIDE, SIDE), colour).save(folder / "good" / f"{i}.png")


def apart(batch: Batch) -> np.ndarray:
    """The rows that are no good picture as it is; raises if a good one is missing."""
    flat = batch.image.reshape(len(batch.image), -1, 3)
    known = np.array(colours())
    match = (flat == flat[:, :1]).all((1, 2)) & (flat[:, :1] == known).all(2).any(1)
    seen = {tuple(row) for row in flat[match][:, 0].tolist()}
    check(seen == set(colours()), f"good pictures are missing: {len(seen)} of 7 are there")
    return batch.image[~match]


@contextlib.contextmanager
def within_seconds() -> Iterator[None]:
    def late(number, frame):
        raise Failed(f"not done after {SECONDS} s")

    handler = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def within_memory() -> Iterator[None]:
    """What happens inside does not make the process much larger, not even for a moment."""

    def megabytes(field: str) -> float:
        with contextlib.suppress(OSError):
            text = Path("/proc/self/status").read_text()
            if found := re.search(rf"{field}:\s+(\d+)", text):
                return int(found[1]) / 1024
        return 0.0

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = megabytes("VmRSS")
    yield
    grown = megabytes("VmHWM") - before
    check(grown < MEGABYTES, f"took {grown:.0f} MB")


# --- what an odd picture becomes ---


def becomes(expected: Callable[[], np.ndarray], tolerance: int, make: Callable[[Path], Any]):
    """Converted: the odd one is what is expected [32, 32, 3], and nothing is replaced."""

    def act(place: Path) -> str:
        good(place / "p")
        make(place / "p" / "odd")
        batch = epoch(opened(f"folder:{place / 'p'}"), place, IMAGE)
        check(not batch.replaced, f"replaced: {batch.replaced}")
        rows = batch.image[batch.label == 1]
        check(len(rows) == 1 and len(batch.image) == 8, f"{len(rows)} odd of {len(batch.image)}")
        want = expected()
        want = np.broadcast_to(want, (SIDE, SIDE, 3)).astype(int)
        worst = np.abs(rows[0].astype(int) - want).max()
        check(worst <= tolerance, f"off by {worst} of 255")
        return f"converted, off by {worst} of 255 at most"

    return act


def is_replaced(make: Callable[[Path], Any], after: Callable[[Path], Any] | None = None):
    """A good one takes its place, which is counted and named.

    Args:
      after: what happens to the folder when its files have been listed.
    """

    def act(place: Path) -> str:
        good(place / "p")
        make(place / "p" / "odd")
        source = opened(f"folder:{place / 'p'}")
        if after:
            after(place / "p" / "odd")
        batch = epoch(source, place, IMAGE)
        check(len(batch.image) == 8, f"{len(batch.image)} rows")
        odd = apart(batch)
        check(len(odd) == 0, "it was taken for a picture")
        check((batch.label == 0).all(), "the substitute has the label of what it replaces")
        check(len(batch.replaced) == 1, f"unreadable.txt has {batch.replaced}")
        check("odd/" in batch.replaced[0], f"not named: {batch.replaced}")
        check(abs(batch.share - 1 / 8) < 1e-6, f"share {batch.share} instead of 1/8")
        again = epoch(source, place, IMAGE, threads=2)
        check((again.image == batch.image).all(), "another substitute the second time")
        return "another takes its place, counted and named"

    return act


def is_left_out(make: Callable[[Path], Any]):
    """It is no example at all."""

    def act(place: Path) -> str:
        good(place / "p")
        make(place / "p" / "odd")
        source = opened(f"folder:{place / 'p'}")
        check(len(source) == 7, f"{len(source)} examples instead of 7")
        batch = epoch(source, place, IMAGE)
        check(not batch.replaced and not len(apart(batch)), "read")
        check("odd" not in source.classes, "an empty class counts as one")
        return "left out"

    return act


def either(*acts):
    """One of these."""

    def act(place: Path) -> str:
        problems = []
        for i, one in enumerate(acts):
            try:
                return one(place / str(i))
            except Failed as error:
                problems.append(str(error))
        raise Failed(" and ".join(problems))

    return act


def says(open_it: Callable[[Path], Any], *patterns: str):
    """One sentence instead of a source."""

    def act(place: Path) -> str:
        place.mkdir(parents=True, exist_ok=True)
        try:
            open_it(place)
        except (ValueError, OSError, ImportError) as error:
            text = str(error)
            check(text and "\n" not in text, f"not one sentence: {text!r}")
            for pattern in patterns:
                check(re.search(pattern, text), f"does not say {pattern!r}: {text}")
            return text
        raise Failed("opened without a word")

    return act


def write(name: str, data: Callable[[], bytes] | bytes):
    def make(folder: Path) -> None:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data())

    return make


# --- files ---


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
        from mae_jax import config as configs

        good(place / "p")
        for i in range(3):
            (place / "p" / "odd" / f"{i}.png").write_bytes(b"bad")
        try:
            epoch(opened(f"folder:{place / 'p'}"), place, IMAGE, at_most=0.1)
        except (configs.Mistake, ValueError) as error:
            check("max_bad_fraction" in str(error), f"no way out: {error}")
            return str(error)
        raise Failed("three in ten unreadable, and nothing is said")

    def none_good(place: Path) -> str:
        from mae_jax import config as configs

        (place / "p").mkdir(parents=True)
        for i in range(8):
            (place / "p" / f"{i}.png").write_bytes(b"bad")
        try:
            epoch(opened(f"folder:{place / 'p'}"), place, IMAGE)
        except (configs.Mistake, ValueError) as error:
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


# --- other kinds of files ---

ARRAYS = dict(modality="volume", size=(SIDE, SIDE), channels=1, zoom=(1.0, 1.0))


def plane(value: float) -> np.ndarray:
    return np.full((SIDE, SIDE, 1), value, np.float32)


def arrays_case(name: str, data: Callable[[], bytes] | bytes, expected: np.ndarray | None):
    """An odd array among seven of one value each: what it becomes, or None if it is replaced."""

    def act(place: Path) -> str:
        folder = place / "a"
        folder.mkdir(parents=True)
        for i in range(7):
            np.save(folder / f"{i}.npy", plane(i))
        write(name, data)(folder)
        batch = epoch(opened(f"arrays:{folder}", modality="volume"), place, ARRAYS)
        values = batch.image
        check(len(values) == 8 and np.isfinite(values.astype(float)).all(), "not finite")
        constant = [float(x.flat[0]) for x in values if np.ptp(x) == 0]
        check({float(i) for i in range(7)} <= set(constant), f"others are missing: {constant}")
        if expected is None:
            check(len(batch.replaced) == 1, f"unreadable.txt has {batch.replaced}")
            check(set(constant) == {float(i) for i in range(7)}, "it was taken for an array")
            return "another takes its place, counted and named"
        check(not batch.replaced, f"replaced: {batch.replaced}")
        check(any(np.array_equal(x, expected) for x in values), "converted to something else")
        return "converted exactly"

    return Case(f"array: {name}", act)


def saved(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


RAN = Path("/tmp") / f"mae_jax_chaos_ran_{os.getpid()}"  # what a pickle makes if it is run


class Hostile:
    def __reduce__(self):
        return os.mkdir, (str(RAN),)


def pickled(place: Path) -> str:
    data = lambda: saved(np.array([Hostile()], object), allow_pickle=True)
    happened = arrays_case("x.npy", data, None).act(place)
    if RAN.exists():
        RAN.rmdir()
        raise Failed("code from a file was run")
    return happened + ", not run"


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npz_bomb() -> bytes:
    """Two gigabytes of zeros in two megabytes, all of it as it should be."""
    side = 22_000
    header = saved(np.zeros((1, 1, 1), np.float32))[:128]
    header = header.replace(b"(1, 1, 1), }" + b" " * 8, b"(%d, %d, 1), }" % (side, side))
    size, total = side * side * 4, zlib.crc32(header)
    for start in range(0, size, BLOCK):
        total = zlib.crc32(bytes(min(BLOCK, size - start)), total)
    data, name = deflated_zeros(size, header), b"image.npy"
    facts = struct.pack("<HHHHIII", 0, 8, 0, 33, total, len(data), len(header) + size)
    facts += struct.pack("<HH", len(name), 0)
    local = b"PK\3\4\x14\0" + facts + name
    central = b"PK\1\2\x14\0\x14\0" + facts + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    return local + data + central + b"PK\5\6" + end


def sound(samples: np.ndarray, rate: int = 16_000, **options) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", **options)
    return buffer.getvalue()


def media(kind: str, data: dict, others: Callable[[int], tuple[str, bytes]]):
    """An odd file among three good ones: whether another takes its place."""

    def case(title: str, name: str, odd: Callable[[], bytes] | bytes, replaced: bool) -> Case:
        def act(place: Path) -> str:
            folder = place / "m"
            folder.mkdir(parents=True)
            for i in range(3):
                write(*others(i))(folder)
            write(name, odd)(folder)
            source = opened(f"{kind}:{folder}", modality=data["modality"])
            check(len(source) == 4, f"{len(source)} examples")
            batch = epoch(source, place, data)
            check(np.isfinite(batch.image.astype(float)).all(), "not finite")
            check(len(batch.replaced) == replaced, f"unreadable.txt has {batch.replaced}")
            return "another takes its place, counted and named" if replaced else "converted"

        return Case(title, act)

    return case


def clip(colour: int) -> bytes:
    """Twenty frames as an animated GIF, which is a video too."""
    frames = [Image.new("RGB", (40, 40), (colour, 10 * i, 0)) for i in range(20)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def idx(place: Path, images: int, labels: bytes | None = None, cut: int = 0, zipped=False):
    """Files as MNIST's."""
    header = bytes([0, 0, 8, 3]) + struct.pack(">III", images, 4, 4)
    data = (header + bytes(images * 16))[: -cut or None]
    name = "train-images-idx3-ubyte"
    (place / (name + ".gz" * zipped)).write_bytes(gzip.compress(data)[:-9] if zipped else data)
    marks = bytes(range(images)) if labels is None else labels
    marks = bytes([0, 0, 8, 1]) + struct.pack(">I", len(marks)) + marks
    (place / "train-labels-idx1-ubyte").write_bytes(marks)
    return opened(f"idx:{place}", "train")


def records(place: Path, examples: list[bytes]) -> Any:
    from array_record.python.array_record_module import ArrayRecordWriter

    place.mkdir(parents=True)
    writer = ArrayRecordWriter(str(place / "train.array_record"), "group_size:1")
    for example in examples:
        writer.write(example)
    writer.close()
    (place / "label.labels.txt").write_text("first\nsecond\n")
    return opened(f"array_record:{place}/{{split}}.array_record", "train")


def proto(image: bytes | None, label: int) -> bytes:
    from tensorflow_datasets.proto import tf_example_pb2

    example: Any = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
    if image is not None:
        example.features.feature["image"].bytes_list.value.append(image)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def odd_record(odd: Callable[[], bytes]):
    """A record among seven good ones, of two classes."""

    def act(place: Path) -> str:
        fine = [
            proto(png(Image.new("RGB", (SIDE, SIDE), colour)), i % 2)
            for i, colour in enumerate(colours())
        ]
        batch = epoch(records(place / "r", [*fine, odd()]), place, IMAGE)
        check(set(batch.label.tolist()) <= {0, 1}, f"labels {batch.label.tolist()}")
        check(len(batch.replaced) == 1, f"unreadable.txt has {batch.replaced}")
        check(not len(apart(batch)), "it was taken for a picture")
        return "another takes its place, counted and named"

    return act


def texts(place: Path, **files: bytes) -> Any:
    (place / "t").mkdir(parents=True)
    for name, data in files.items():
        (place / "t" / f"{name}.txt").write_bytes(data)
    return opened(f"text:{place / 't'}", modality="text")


def empty_text(place: Path) -> str:
    source = texts(place, a=b"hello " * 100, b=b"", c=bytes(range(256)) * 4)
    check(len(source) == 2, f"{len(source)} examples")
    epoch(source, place, dict(modality="text", size=(64,), channels=1))
    return "left out"


def unknown_sound(place: Path) -> Any:
    (place / "a.wav").write_bytes(sound(np.zeros(99)))
    (place / "labels.csv").write_text("file,label\na.wav,dog\nb.wav,cat\n")
    return opened(f"audio:{place}", modality="audio")


def others() -> list[Case]:
    tone = np.sin(np.arange(16_000) / 9) / 2
    audio = dict(modality="audio", size=(32, 16), channels=1, rate=16_000, roll=False)
    sounds = media(
        "audio", audio | {"magnitude": False}, lambda i: (f"{i}.wav", sound(tone / (i + 1)))
    )
    video = dict(modality="video", size=(4, SIDE, SIDE), channels=3, stride=1)
    clips = media(
        "video",
        video | {"crop_scale": (1, 1), "crop_ratio": (1, 1)},
        lambda i: (f"{i}.gif", clip(60 * i)),
    )
    ramp = np.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE, 1)
    with_inf = ramp.copy()
    with_inf[5, 5] = np.inf
    return [
        arrays_case("half.npy", half(saved(ramp)), None),
        arrays_case("empty.npy", b"", None),
        arrays_case("text.npy", b"1, 2, 3\n", None),
        arrays_case("nan.npy", saved(ramp * np.nan), None),
        arrays_case("inf.npy", saved(with_inf), None),
        arrays_case("complex.npy", saved(ramp.astype(complex)), None),
        arrays_case("channels.npy", saved(np.zeros((SIDE, SIDE, 5))), None),
        arrays_case("axes.npy", saved(np.zeros((2, 2, SIDE, SIDE, 1))), None),
        arrays_case("big endian.npy", saved(ramp.astype(">f4")), ramp),
        arrays_case("Fortran order.npy", saved(np.asfortranarray(ramp)), ramp),
        arrays_case("float64.npy", saved(ramp.astype(float)), ramp),
        arrays_case("half.npz", half(npz(image=saved(ramp))), None),
        arrays_case("several.npz", npz(a=saved(ramp), b=saved(ramp)), None),
        Case(
            "array: two gigabytes in a small .npz",
            either(
                arrays_case("bomb.npz", npz_bomb, None).act,
                arrays_case("bomb.npz", npz_bomb, plane(0)).act,
            ),
        ),
        Case("array: a pickle with code", pickled),
        sounds("half a sound's header", "x.wav", half(sound(tone)[:40]), True),
        sounds("a text called .wav", "x.wav", b"do re mi", True),
        sounds("an empty sound", "x.wav", lambda: sound(np.zeros(0)), True),
        sounds("one sample of sound", "x.wav", lambda: sound(np.zeros(1)), False),
        sounds(
            "a sound with NaN",
            "x.wav",
            lambda: sound(tone * np.nan, subtype="FLOAT"),
            True,
        ),
        clips("a text called .mp4", "x.mp4", b"moving text", True),
        clips("an empty video", "x.mp4", b"", True),
        clips("a video cut off in its header", "x.gif", lambda: clip(1)[:30], True),
        Case("a record that is no example", odd_record(lambda: b"\xff\xff\xff\xff")),
        Case("a record without a picture", odd_record(lambda: proto(None, 1))),
        Case("a record with a bad picture", odd_record(lambda: proto(b"bad", 1))),
        Case(
            "a label above the classes",
            either(odd_record(lambda: proto(png(), 7)), says(lambda p: labels_of(p, 7), "label")),
        ),
        Case(
            "a label below zero",
            either(odd_record(lambda: proto(png(), -5)), says(lambda p: labels_of(p, -5), "label")),
        ),
        Case("MNIST's files, truncated", says(lambda p: idx(p, 9, cut=5), "truncated")),
        Case(
            "MNIST's files, fewer labels", says(lambda p: idx(p, 9, bytes(5)), "9 images.*5 labels")
        ),
        Case("MNIST's files, half a .gz", says(lambda p: idx(p, 9, zipped=True), "gz")),
        Case("MNIST's files, a text", says(lambda p: idx_text(p), "no IDX")),
        Case("a text without a byte", empty_text),
        Case("texts, all empty", says(lambda p: texts(p, a=b"", b=b""), "")),
        Case("labels.csv names no file", says(unknown_sound, "b.wav")),
        Case(
            "array_record: a text",
            says(
                lambda p: (
                    (p / "x.array_record").write_bytes(b"text" * 99),
                    opened(f"array_record:{p}/x.array_record", "train"),
                ),
                "x.array_record",
            ),
        ),
    ]


def labels_of(place: Path, label: int) -> None:
    epoch(records(place / "r", [proto(png(), label)] * 8), place, IMAGE)


def idx_text(place: Path):
    idx(place, 9)
    (place / "train-labels-idx1-ubyte").write_text("labels")
    return opened(f"idx:{place}", "train")


# --- configurations ---

DEBUG = "--config=configs/vit_base.py:debug"
TUNE = "--config=configs/finetune_vit_base.py:debug"


class Wrong(NamedTuple):
    """Arguments, and what must be said of them: keys, values and ways out."""

    arguments: tuple[str, ...]
    says: tuple[str, ...]


def wrong(*arguments: str, says: tuple[str, ...], config: str = DEBUG) -> Wrong:
    return Wrong((config, "--workdir={place}/run", *arguments), says)


def configurations() -> dict[str, Wrong]:
    """On four devices; the debug config has 16 patches, 64 examples, width 48 and batch 8."""
    key = "--config."
    return {
        "a mask ratio above 1": wrong(
            key + "mask.ratio=1.5", says=("mask.ratio", "1.5", "between 0 and 1")
        ),
        "a mask ratio of zero": wrong(
            key + "mask.ratio=0.0", says=("mask.ratio", "0.0", "between 0 and 1")
        ),
        "a single patch, to be hidden and seen": wrong(
            key + "data.size=(16,16)", says=("data.size|mask", "1 patch", "smaller patch")
        ),
        "a size that patches do not divide": wrong(
            key + "data.size=(60,64)", says=("data.size", r"60", r"\(48, 64\)|\(64, 64\)|48|64")
        ),
        "heads that do not divide the width": wrong(
            key + "model.heads=5", says=("model.heads", "5", "48")
        ),
        "an empty batch": wrong(key + "batch_size=0", says=("batch_size", "0", "at least 1")),
        "a batch that devices cannot share": wrong(
            key + "batch_size=6", says=("batch_size", "6", "4 or 8")
        ),
        "an accumulation that does not divide": wrong(
            key + "accumulation=3", says=("accumulation", "3", "8")
        ),
        "a warm-up as long as the run": wrong(
            key + "optimizer.warmup_epochs=3.0", says=("warmup_epochs", "3", "epochs = 1")
        ),
        "a split that is not there": wrong(
            key + "data.train.split=all", says=("split", "all", "train")
        ),
        "a folder that is not there": wrong(
            key + "data.train.source=folder:/no/such", says=("/no/such", "no folder")
        ),
        "an unknown kind of data": wrong(
            key + "data.train.source=foldr:x", says=("foldr", "folder:PATH")
        ),
        "held-out data that are not there": wrong(
            key + "data.test.source=folder:/no/such", says=("/no/such", "no folder")
        ),
        "a negative learning rate": wrong(
            key + "optimizer.base_learning_rate=-1", says=("base_learning_rate", "-1", "above 0")
        ),
        "a learning rate of NaN": wrong(
            key + "optimizer.base_learning_rate=nan", says=("base_learning_rate", "nan", "above 0")
        ),
        "a typo in a key": wrong(key + "mask.rato=0.5", says=("mask.rato", "mask.ratio")),
        "a key of another section": wrong(
            key + "model.ratio=0.5", says=("model.ratio", "did you mean")
        ),
        "a stray argument": wrong("mask.ratio=0.5", says=("mask.ratio=0.5", "--config.key=value")),
        "an argument without --config": wrong("--batch_size=16", says=("batch_size",)),
        "a config that is not there": wrong(
            config="--config=configs/vit_bas.py", says=("vit_bas.py", "vit_base.py")
        ),
        "an unknown config argument": wrong(
            config="--config=configs/vit_base.py:debgu", says=("debgu", "debug")
        ),
        "no work directory": Wrong((DEBUG,), ("--workdir",)),
        "no epochs": wrong(key + "epochs=0", says=("epochs", "0", "above 0")),
        "epochs in words": wrong(key + "epochs=many", says=("epochs", "many", "number")),
        "a mesh that devices do not fill": wrong(
            key + "mesh.data=3", says=("mesh.data", "3", "4 device", "-1")
        ),
        "heads that tensor does not divide": wrong(
            key + "mesh.tensor=2", says=("mesh.tensor", "2", "3")
        ),
        "a mean for two channels": wrong(
            key + "data.mean=(0.5,0.5)", says=("data.mean", r"0.5", "channels")
        ),
        "a deviation of zero": wrong(
            key + "data.std=(0.2,0.0,0.2)", says=("data.std", r"0.0", "above 0")
        ),
        "attention of another machine": wrong(
            key + "model.attention=cudnn",
            key + "model.dtype=bfloat16",
            key + "model.width=48",
            says=("model.attention", "cudnn", "auto|multiple of 8"),
        ),
        "a checkpoint that is not there": wrong(
            key + "init.checkpoint=/no/such", says=("/no/such",)
        ),
        "no checkpoints to keep": wrong(key + "keep=0", says=("keep", "0", "at least 1")),
        "two channels of pictures": wrong(
            key + "data.channels=2",
            key + "data.mean=(0.5,0.5)",
            key + "data.std=(0.2,0.2)",
            says=("2", "1, 3 or 4"),
        ),
        "a heartbeat of one second": wrong(
            key + "recovery.heartbeat=1", says=("recovery.heartbeat", "1", "at least 5")
        ),
        "a crop scale the wrong way round": wrong(
            key + "data.crop_scale=(0.9,0.1)", says=("crop_scale", "0.9", "smallest")
        ),
        "more examples than there are": wrong(
            key + "data.examples=1000", says=("data.examples", "1000", "64")
        ),
        "a negative seed": wrong(key + "seed=-1", says=("seed", "-1", "from 0")),
        "a patch for one axis": wrong(
            key + "model.patch=(16,)", says=("model.patch", r"16", "data.size|axes")
        ),
        "a share of bad files above 1": wrong(
            key + "data.max_bad_fraction=2.0", says=("max_bad_fraction", "2", "0 to 1")
        ),
        "a spike factor below 1": wrong(
            key + "recovery.spike=0.5", says=("recovery.spike", "0.5", "above 1")
        ),
        "no such mask": wrong(key + "mask.name=rnadom", says=("mask.name", "rnadom", "random")),
        "a broken expression": wrong(
            key + "trainable=head/(", config=TUNE, says=("trainable", r"head/\(", "expression")
        ),
        "nothing to train": wrong(
            key + "trainable=haed/.*", config=TUNE, says=("trainable", "haed", "head")
        ),
        "three mistakes at once": wrong(
            key + "mask.ratio=2.0",
            key + "keep=0",
            key + "optimizer.clip=-1.0",
            says=("mask.ratio", "2.0", "keep", "optimizer.clip", "-1.0"),
        ),
        "three contradictions at once": wrong(
            key + "model.heads=5",
            key + "accumulation=3",
            key + "optimizer.warmup_epochs=3.0",
            says=("model.heads", "accumulation", "warmup_epochs"),
        ),
        "a range and a contradiction at once": wrong(
            key + "keep=0", key + "model.heads=5", says=("keep", "model.heads")
        ),
    }


COMPILED: list[str] = []  # names of the functions that were


def refused(case: Wrong):
    def act(place: Path) -> str:
        from mae_jax import config as configs
        from mae_jax.train import train

        place.mkdir(parents=True)
        COMPILED.clear()
        try:
            arguments = [argument.format(place=place) for argument in case.arguments]
            config, workdir = configs.parse(arguments)
            train(config, workdir)
        except configs.Mistake as mistake:
            text = str(mistake)
            check("\n" not in text.strip(), f"not one sentence: {text!r}")
            for pattern in case.says:
                check(re.search(pattern, text), f"does not say {pattern!r}: {text}")
            big = [name for name in COMPILED if re.search("init_state|on_mesh|step|evaluate", name)]
            check(not big, f"compiled first: {big}; then: {text}")
            left = place / "run" / "config.json"
            check(not left.exists(), "the work directory now belongs to this config")
            return text
        raise Failed("accepted")

    return act


def wrong_configs() -> list[Case]:
    return [Case(name, refused(case)) for name, case in configurations().items()]


def watch_compilations() -> None:
    import jax

    def listen(event: str, duration_secs: float, **facts: Any) -> None:
        if event.endswith("backend_compile_duration"):
            COMPILED.append(str(facts.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(listen)


# --- flipped bits ---

FLIPS = 60


class Captured(Exception):
    pass


def expected_state(arguments: list[str], workdir: Path) -> Any:
    """The arrays that training wants to restore, with their places: asked of training itself."""
    from mae_jax import checkpoint
    from mae_jax import config as configs
    from mae_jax.train import train

    def capture(self, abstract, *_):
        raise Captured(abstract)

    kind: Any = checkpoint.Checkpoints
    original, kind.newest = kind.newest, capture
    try:
        train(*configs.parse([*arguments, f"--workdir={workdir}"]))
    except Captured as captured:
        return captured.args[0]
    finally:
        kind.newest = original
    raise Failed("training restores nothing")


def restored(checkpoints: Path, abstract: Any) -> tuple[int, dict[str, bytes], list[str]]:
    """What training goes on from: the step, the bits of all arrays, and what was said."""
    import jax

    from mae_jax import checkpoint

    said: list[str] = []
    with contextlib.closing(checkpoint.Checkpoints(checkpoints, 9)) as manager:
        found = manager.newest(abstract, said.append)
    if not found:
        raise Failed("nothing restored")
    state, _ = found
    named = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    return int(state.step), {str(p): np.asarray(x).tobytes() for p, x in named}, said


def flips(arguments: list[str], checkpoints: Path) -> Iterator[Case]:
    """Sixty flipped bits of the newest of two checkpoints, spread over its files."""
    steps = sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    older, newest = steps[-2:]
    abstract = expected_state(arguments, checkpoints.parent)
    true = restored(checkpoints, abstract)
    shutil.move(checkpoints / str(newest), checkpoints.parent / "aside")
    before = restored(checkpoints, abstract)
    shutil.move(checkpoints.parent / "aside", checkpoints / str(newest))
    check((true[0], before[0]) == (newest, older), "the undamaged ones are not restored")

    root = checkpoints / str(newest)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    sizes = [(root / file).stat().st_size for file in files]
    draw = random.Random(0)
    chosen = [file for file, size in zip(files, sizes, strict=True) if size][:FLIPS]
    chosen += draw.choices(files, sizes, k=FLIPS - len(chosen))

    def flip(file: Path, at: int, bit: int, place: Path) -> str:
        work = place / "run" / "checkpoints"
        shutil.copytree(checkpoints, work)
        data = bytearray((work / str(newest) / file).read_bytes())
        data[at] ^= 1 << bit
        (work / str(newest) / file).write_bytes(data)
        step, bits, said = restored(work, abstract)
        if step == newest:
            check(bits == true[1], "silent: other bits are restored without a word")
            return "carried nothing: the same bits are restored"
        check(step == older and bits == before[1], f"step {step} with other bits")
        check(any(str(newest) in text for text in said), f"silent: step {older}, said {said}")
        return f"named, step {step} is used: {said[0].partition(':')[0][-60:]}"

    for number, file in enumerate(chosen):
        at, bit = draw.randrange((root / file).stat().st_size), draw.randrange(8)
        name = re.sub(r"[0-9a-f]{28,}", lambda m: m[0][:6] + "...", str(file))
        act = functools.partial(flip, file, at, bit)
        yield Case(f"{number + 1}: bit {bit} of byte {at} of {name}", act)


# --- ---


def show(kind: str, case: Case, place: Path) -> None:
    began, ok = time.monotonic(), False
    try:
        with within_seconds():
            happened = case.act(place)
        ok = True
    except Failed as error:
        happened = str(error)
    except Exception as error:  # not a sentence that a user would see
        happened = f"{type(error).__name__}: {error}"
    shutil.rmtree(place, ignore_errors=True)
    found = dict(kind=kind, fault=case.name, happened=" ".join(happened.split())[:300])
    found |= dict(lost=None, ok=ok, seconds=time.monotonic() - began)
    os.write(1, f"{json.dumps(found)}\n".encode())  # at once: other threads write too


def main() -> None:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("part", choices=["inputs", "configs", "flips"])
    parser.add_argument("--place", type=Path, help="a directory to work in")
    parser.add_argument("--checkpoints", type=Path, help="where the newest one is damaged")
    parser.add_argument("--only", default="", help="regular expression over the names")
    parser.add_argument("--list", action="store_true", help="the names alone")
    options, arguments = parser.parse_known_args()
    kind = options.part.removesuffix("s")
    cases: Any = {
        "inputs": lambda: [*pictures(), *others()],
        "configs": wrong_configs,
        "flips": lambda: flips(arguments, options.checkpoints.resolve()),
    }
    if options.list:
        found = range(1, FLIPS + 1) if kind == "flip" else [c.name for c in cases[options.part]()]
        names = [f"{kind}: {name}" for name in found]
        print("\n".join(name for name in names if re.search(options.only, name)))
        return
    watch_compilations()
    with contextlib.chdir(ROOT):
        for number, case in enumerate(cases[options.part]()):
            if re.search(options.only, f"{kind}: {case.name}"):
                show(kind, case, options.place / f"{kind}_{number}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
