"""Odd pictures: each is converted exactly, or replaced and named, or left out, or refused."""

import os
import random

import numpy as np
import odd_files as odd
import pytest
import reading
from odd_files import jpeg, png, smooth
from PIL import Image
from reading import IMAGE, SIDE, converted, left_out, opened, read, replaced, says, write
from runs import cases

pytestmark = [pytest.mark.faults("bad input"), pytest.mark.usefixtures("soon")]
BAD, OR_BAD = object(), True  # another picture takes its place
COLOUR, RED, BLACK, WHITE = (9, 80, 200), (250, 0, 0), (0,) * 3, (255,) * 3
MIXED = (132, 227, 177)  # half of (10, 200, 100), half white
RAMP = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
WITH_NAN = np.where(RAMP == RAMP[3, 3], np.float32(np.nan), RAMP)
DEEP = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 64).astype(np.uint16)  # up to 65472
DEEP_COLOUR = np.stack([DEEP] * 3, -1)
GRAY = smooth()[..., 0]
BITS, BYTES = GRAY > 127, bytes(range(256))
NOT_UTF8 = os.fsdecode(b"\xff\xfe.png")

gray = lambda values: np.rint(values[..., None])
tiff = lambda array: lambda: odd.encoded(array, "TIFF")


def flat(encode, color, size=(SIDE, SIDE), mode="RGB"):
    return lambda: encode(Image.new(mode, size, color))


FILES = {  # the name of a file, its bytes, what it becomes, and by how much of 255 that may be off
    "an empty file": ("x.jpg", b"", BAD),
    "half a JPEG": ("x.jpg", lambda: odd.half(jpeg()), BAD),
    "half a PNG": ("x.png", lambda: odd.half(png()), BAD),
    "half a WebP": ("x.webp", lambda: odd.half(odd.encoded(smooth(), "WEBP", quality=90)), BAD),
    "half a TIFF": ("x.tif", lambda: odd.half(odd.encoded(smooth(), "TIFF")), BAD),
    "a text called .png": ("x.png", b"nothing to see\n" * 50, BAD),
    "an HTML page called .jpg": ("x.jpg", b"<!DOCTYPE html><html>404</html>", BAD),
    "random bytes called .jpg": ("x.jpg", lambda: random.Random(0).randbytes(5000), BAD),
    "a JPEG's start and then nothing": ("x.jpg", b"\xff\xd8\xff\xe0", BAD),
    "a PNG with a wrong checksum": ("x.png", odd.damaged_checksum, BAD),
    "a PNG called .jpg": ("x.jpg", png, smooth),
    "a JPEG called .PNG": ("X.PNG", jpeg, smooth, 8),
    "a bomb: 40,000 x 40,000 in a small PNG": ("x.png", odd.png_bomb, BAD),
    "a bomb: a text of 1 GB in a PNG": ("x.png", odd.text_bomb, BLACK, 0, OR_BAD),
    "a JPEG that claims 65,000 x 65,000": ("x.jpg", lambda: odd.jpeg_with_size(65_000), BAD),
    "a PNG without pixels: 0 x 32": ("x.png", lambda: odd.png_of(0, 32, 2, b""), BAD),
    "one pixel": ("x.png", flat(png, COLOUR, (1, 1)), COLOUR),
    "1 x 400 pixels": ("x.png", flat(png, COLOUR, (1, 400)), COLOUR),
    "20,000 x 64 pixels, PNG": ("x.png", lambda: odd.wide("PNG"), (77,) * 3),
    "20,000 x 64 pixels, JPEG": ("x.jpg", lambda: odd.wide("JPEG"), (77,) * 3, 3),
    "20,000 x 4,000 pixels, JPEG": ("x.jpg", flat(jpeg, COLOUR, (20_000, 4_000)), COLOUR, 3),
    "a 16-bit gray PNG among 8-bit pictures": ("x.png", lambda: odd.opencv_png(DEEP), BAD),
    "a 16-bit color PNG among them": ("x.png", lambda: odd.opencv_png(DEEP_COLOUR), BAD),
    "a 16-bit TIFF among them": ("x.tif", tiff(DEEP), BAD),
    "a float TIFF in [0, 1] among them": ("x.tif", tiff(RAMP), BAD),
    "a float TIFF in [-3, 5] among them": ("x.tif", tiff(RAMP * 8 - 3), BAD),
    "a float TIFF with NaN among them": ("x.tif", tiff(WITH_NAN), BAD),
    "CMYK JPEG": ("x.jpg", flat(jpeg, (40, 90, 160, 30), mode="CMYK"), (190, 146, 84), 4),
    "palette": ("x.png", lambda: png(odd.quantized()), lambda: odd.quantized().convert("RGB")),
    "palette with a transparent color": ("x.png", odd.transparent_palette, WHITE),
    "half-transparent color": ("x.png", flat(png, (10, 200, 100, 128), mode="RGBA"), MIXED, 1),
    "half-transparent gray": ("x.png", flat(png, (90, 51), mode="LA"), (222,) * 3, 1),
    "one bit a pixel": ("x.png", lambda: png(Image.fromarray(BITS)), BITS[..., None] * 255),
    "progressive gray JPEG": ("x.jpg", lambda: jpeg(GRAY, progressive=True), gray(GRAY), 8),
    "animated GIF: the first frame": ("x.gif", lambda: odd.animation("GIF"), RED),
    "animated WebP: the first frame": ("x.webp", lambda: odd.animation("WEBP"), RED),
    "a JPEG turned by EXIF": ("x.jpg", odd.turned, smooth, 8),
    "a JPEG with rubbish as EXIF": ("x.jpg", lambda: jpeg(exif=b"Exif\0\0" + BYTES), smooth, 8),
    "a PNG with rubbish as color profile": ("x.png", lambda: png(icc_profile=BYTES), smooth),
    "a JPEG with rubbish behind it": ("x.jpg", lambda: jpeg() + BYTES * 40, smooth, 8),
    "a unicode name": ("图片 ümläut 🙂.png", png, smooth),
    "a newline in the name": ("a\nb.png", png, smooth),
    "a newline in the name of a bad file": ("a\nb.png", b"bad", BAD),  # one line of unreadable.txt
    "a name that is not UTF-8": (NOT_UTF8, png, smooth),
    "a name that is not UTF-8, a bad file": (NOT_UTF8, b"bad", BAD),
}


@cases("row", FILES)
def test_odd_file(row, tmp_path, happened):
    name, data, expected, tolerance, or_replaced = (*row, *(0, False)[len(row) - 3 :])
    make = lambda folder: write(folder, name, data)
    check = replaced(make) if expected is BAD else converted(make, expected, tolerance)
    happened((reading.either(replaced(make), check) if or_replaced else check)(tmp_path))


a_picture = lambda folder: write(folder, "x.png", png)
rubbish = lambda folder: write(folder, "x.png", b"rubbish")
linked = lambda target: lambda folder: (folder / "x.png").symlink_to(target)
gone = lambda folder: (folder / "x.png").unlink()


def loop(folder):
    a_picture(folder)
    (folder / "loop").symlink_to(folder)
    (folder / "up").symlink_to(folder.parent)


def forbidden(folder):
    a_picture(folder)
    (folder / "x.png").chmod(0)


def a_folder(folder):
    (folder / "x.png").unlink(missing_ok=True)
    (folder / "x.png").mkdir()


def a_file(place):
    (place / "x").write_text("")
    return opened(f"folder:{place}/x")


def half_bad(folder):
    """Make six odd pictures, of which three cannot be read."""
    for i in range(6):
        write(folder, f"{i}.png", b"bad" if i % 2 else png)


def all_bad(place):
    for i in range(8):
        write(place, f"{i}.png", b"bad")
    return read(opened(f"folder:{place}"), place, IMAGE)


def too_many(place):
    source = opened(f"folder:{reading.pictures(place / 'p', half_bad)}")
    return read(source, place, IMAGE, at_most=0.1)


FOLDERS = {
    "no permission to read": replaced(forbidden),
    "links in a circle": converted(loop, smooth),
    "a link to nothing": left_out(linked("nowhere.png")),
    "a link to itself": left_out(linked("x.png")),
    "an empty class": left_out(lambda folder: None),
    "a folder called x.png": left_out(a_folder),
    "a pipe called x.png": left_out(lambda folder: os.mkfifo(folder / "x.png")),
    "a hidden file": left_out(lambda folder: write(folder, "._x.png", b"of macOS")),
    "an empty folder": says(lambda place: opened(f"folder:{place}"), "no pictures"),
    "no folder": says(lambda place: opened(f"folder:{place}/no"), "no folder"),
    "a file instead of a folder": says(a_file, "no folder"),
    "deleted after the start": replaced(a_picture, gone),
    "overwritten after the start": replaced(a_picture, rubbish),
    "a folder in its place after the start": replaced(a_picture, a_folder),
    "more bad files than data.max_bad_fraction": says(too_many, "max_bad_fraction"),
    "nothing but bad files": says(all_bad, "read"),
}


@cases("check", FOLDERS)
def test_odd_folder(check, tmp_path, happened):
    happened(check(tmp_path))


def test_new_picture(tmp_path, happened):
    """a new picture after the start"""
    folder = reading.pictures(tmp_path / "p", a_picture)
    source = opened(f"folder:{folder}")
    write(folder / "odd", "y.png", png)
    (folder / "new class").mkdir()
    batch = read(source, tmp_path, IMAGE)
    assert len(batch.image) == 8 and not batch.replaced
    happened("not noticed until the next start")


def test_any_number_of_threads(tmp_path, happened):
    """bad files, any number of threads"""
    source = opened(f"folder:{reading.pictures(tmp_path / 'p', half_bad)}")
    data = IMAGE | {"crop_scale": (0.2, 1.0), "crop_ratio": (0.75, 1.33)}
    first, *others = [read(source, tmp_path, data, threads=n) for n in (0, 2, 3)]
    assert len(first.replaced) == 3
    for batch in others:
        assert (batch.image == first.image).all()
        assert (batch.label == first.label).all()
        assert sorted(batch.replaced) == sorted(first.replaced)
    happened("the same batches with 0, 2 and 3 threads")
