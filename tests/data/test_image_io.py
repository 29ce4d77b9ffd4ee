import io
import math
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image, ImageOps

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import crop as cropping
from mae_jax.data.image_io import decode, high_bit_depth, jpeg


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def smooth(height, width, channels=3):
    y, x = np.mgrid[:height, :width]
    planes = [127 + 120 * np.sin(y / (5 + c) + x / (7 + c) + c) for c in range(channels)]
    return np.stack(planes, -1).astype(np.uint8)


RED = (204, 51, 0)  # one of the 216 colors of the standard palette
LUMA = round(0.299 * 204 + 0.587 * 51)


@pytest.mark.parametrize("channels, expected", [(1, [LUMA]), (3, RED), (4, (*RED, 255))])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_every_color_mode_gives_the_same_color(mode, channels, expected):
    picture = Image.new("RGB", (6, 4), RED).convert(mode)
    pixels = decode.decode(encoded(picture, "TIFF"), channels)
    assert pixels.dtype == np.uint8 and pixels.shape == (4, 6, channels)
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, (4, 6, channels)), atol=1)


def test_cmyk_jpeg_is_not_inverted():
    data = encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=100)
    assert b"Adobe" in data
    np.testing.assert_allclose(decode.decode(data, 3)[8, 8], RED, atol=4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB with a transparent color"])
def test_transparent_pixels_are_white(mode):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (10, 10, 10, 0))
    options = {}
    if mode == "P":
        picture = Image.new("P", (2, 1))
        picture.putpalette([0, 0, 0, 10, 10, 10])
        picture.putpixel((1, 0), 1)
        options = {"transparency": 1}
    elif mode == "LA":
        picture = picture.convert("LA")
    elif mode != "RGBA":
        picture, options = picture.convert("RGB"), {"transparency": (10, 10, 10)}
    data = encoded(picture, **options)
    assert decode.decode(data, 3).tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert decode.decode(data, 1).tolist() == [[[0], [255]]]
    assert decode.decode(data, 4)[0, :, 3].tolist() == [255, 0]


def test_half_transparent_is_mixed_with_white():
    data = encoded(Image.new("RGBA", (1, 1), (0, 100, 200, 128)))
    np.testing.assert_allclose(decode.decode(data, 3)[0, 0], (127, 177, 227), atol=1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("bands", [1, 3])
def test_sixteen_bits_keep_their_levels_and_are_never_taken_for_eight(kind, bands):
    values = np.random.default_rng(0).integers(0, 4096, (9, 7, bands), np.uint16)
    if kind == "TIFF":
        out = io.BytesIO()
        tifffile.imwrite(out, values)
        data = out.getvalue()
    else:
        order = values[..., ::-1]  # OpenCV's
        data = cv2.imencode({"PNG": ".png"}.get(kind, ".pgm" if bands == 1 else ".ppm"), order)[
            1
        ].tobytes()
    found = decode.bands(data)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, values)
    with pytest.raises(Unreadable, match="more than 8 bits.*set data.range"):
        decode.decode(data, bands)
    with pytest.raises(Unreadable, match="uint16 values are no picture of 8 bits: set data.range"):
        decode.decode(values, bands)


def test_sixteen_bits_of_jpeg_2000():
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    data = encoded(Image.fromarray(values), "JPEG2000")
    np.testing.assert_array_equal(decode.bands(data)[..., 0], values)
    assert not high_bit_depth.detect(encoded(Image.fromarray(noise(8, 8)), "JPEG2000"))


def test_big_endian_sixteen_bits():
    picture = Image.new("I;16B", (1, 1))
    picture.putpixel((0, 0), 257 * 7)
    assert decode.bands(encoded(picture, "TIFF")).item() == 257 * 7


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bits_are_as_stored(dtype):
    values = np.array([[-100_000, 0, 100_000]], dtype)
    np.testing.assert_array_equal(
        decode.bands(encoded(Image.fromarray(values), "TIFF"))[..., 0], values
    )


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_a_fourth_band_is_transparency_only_if_the_file_says_so(extra):
    values, out = noise(5, 6, 4), io.BytesIO()
    tifffile.imwrite(out, values, photometric="rgb", extrasamples=[extra])
    data, says_so = out.getvalue(), extra > 0
    if extra != 1:  # the colors were multiplied by it
        np.testing.assert_array_equal(decode.bands(data), values)
    assert high_bit_depth.detect(data) != says_so
    if says_so:
        assert decode.decode(data, 3).shape == (5, 6, 3)
    else:
        with pytest.raises(Unreadable, match="other bands than colors: set .*data.channels"):
            decode.decode(data, 3)


def test_gray_with_alpha_of_sixteen_bits_has_two_bands():
    values = np.random.default_rng(0).integers(0, 2**16, (6, 5, 2), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunk = lambda kind, body: (
        len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)
    )
    head = (5).to_bytes(4) + (6).to_bytes(4) + bytes([16, 4, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode.bands(data), values)


def test_four_bands_of_jpeg_2000_are_no_transparency():
    values = noise(16, 12, 4)
    data = encoded(Image.fromarray(values), "JPEG2000", no_jp2=True)  # a code stream says no alpha
    assert high_bit_depth.detect(data)
    np.testing.assert_array_equal(decode.bands(data), values)
    with pytest.raises(Unreadable, match="other bands than colors"):
        decode.decode(data, 3)


def test_many_bands_and_planes():
    values, out = noise(5, 6, 7), io.BytesIO()
    tifffile.imwrite(out, values, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(decode.bands(out.getvalue()), values)
    out = io.BytesIO()
    planes = np.moveaxis(values, -1, 0)
    tifffile.imwrite(out, planes, photometric="minisblack", planarconfig="separate")
    np.testing.assert_array_equal(decode.bands(out.getvalue()), values)


def test_damaged_pictures_of_high_bit_depth():
    out = io.BytesIO()
    values = noise(64, 64, 7).astype(np.uint16)
    tifffile.imwrite(out, values, photometric="minisblack", planarconfig="contig")
    png = cv2.imencode(".png", noise(64, 64).astype(np.uint16))[1].tobytes()
    for data in (out.getvalue()[:3000], png[:200], png[:26], b"Pf\n-1 -1\n", b"P6 9 9 65535\n"):
        with pytest.raises(Unreadable, match="^not a |no "):
            decode.bands(data)


def test_one_bit():
    picture = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert decode.decode(encoded(picture), 1)[..., 0].tolist() == [[0, 255], [255, 0]]
    assert decode.decode(np.array([[False, True]]), 1).ravel().tolist() == [0, 255]


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (3, 2), color) for color in ("blue", "lime")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode.decode(data, 3)[0, 0], (0, 0, 255))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    picture = Image.fromarray(smooth(24, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    pixels = decode.decode(data, 3)
    assert pixels.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    np.testing.assert_array_equal(pixels, expected)


def test_exif_orientation_of_sixteen_bits():
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(Image.fromarray(np.array([[0, 65535]], np.uint16)), exif=exif)
    assert decode.bands(data).ravel().tolist() == [65535, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(orientation):
    exif, values = Image.Exif(), noise(4, 6)
    exif[0x0112] = orientation
    upright = ImageOps.exif_transpose(
        Image.open(io.BytesIO(encoded(Image.fromarray(values), exif=exif)))
    )
    data = encoded(Image.fromarray(values.astype(np.uint16)), exif=exif)
    np.testing.assert_array_equal(decode.bands(data)[..., 0], np.asarray(upright))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_arrays_of_the_right_channels_pass_unchanged(channels):
    values = noise(5, 6, channels)
    np.testing.assert_array_equal(decode.decode(values, channels), values)


def test_arrays_change_channels_like_files():
    gray, color = noise(5, 6), noise(5, 6, 3)
    np.testing.assert_array_equal(decode.decode(gray, 3), np.repeat(gray[..., None], 3, -1))
    for values in (gray, color):
        for channels in (1, 3):
            from_file = decode.decode(encoded(Image.fromarray(values)), channels)
            np.testing.assert_array_equal(decode.decode(values, channels), from_file)


@pytest.mark.parametrize(
    "values, channels",
    [
        (noise(5, 6, 2), 3),
        (noise(5, 6, 3), 5),
        (noise(5, 6, 4), 3),  # nothing says that the fourth is transparency
        (noise(5, 6, 3, 1), 3),
        (noise(5), 1),
        (noise(0, 5), 1),
        (noise(5, 6).astype(np.int64), 1),
        (encoded(Image.new("RGB", (2, 2))), 5),
    ],
)
def test_channels_that_do_not_fit(values, channels):
    with pytest.raises(ValueError, match=r"channels|picture"):
        decode.decode(values, channels)


def test_unreadable_bytes():
    whole = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    for data in (b"", b"not a picture", whole[: len(whole) // 2], whole[:30]):
        with pytest.raises(ValueError, match="^not a "):
            decode.decode(data, 3)


def bicubic(image, size):
    """The textbook: Keys' cubic (a = -1/2), widened when shrinking, as a matrix per axis."""

    def cubic(x):
        x = np.abs(x)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    def matrix(old, new):
        centers = (np.arange(new) + 0.5) * old / new
        weights = cubic((np.arange(old) + 0.5 - centers[:, None]) / max(1, old / new))
        return weights / weights.sum(1, keepdims=True)

    rows, columns = matrix(image.shape[0], size[0]), matrix(image.shape[1], size[1])
    return np.clip(np.einsum("yh,xw,hwc->yxc", rows, columns, image.astype(float)), 0, 255)


@pytest.mark.parametrize("size", [(20, 25), (33, 44), (64, 80)])
@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_center_crop_is_antialiased_bicubic(size, channels):
    image = smooth(48, 60, channels)
    whole = cropping.center_crop(image, (48, 60), 1)
    np.testing.assert_array_equal(whole, image)
    if size[0] * 60 != size[1] * 48:
        image = np.ascontiguousarray(image[:45])
    np.testing.assert_allclose(cropping.center_crop(image, size, 1), bicubic(image, size), atol=1.6)


@pytest.mark.parametrize("size", [(20, 24), (33, 11), (64, 80)])
@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_random_crops_are_nearly_antialiased_bicubic(size, channels):
    image, rng = smooth(48, 60, channels), np.random.default_rng(0)
    area, aspect = (1, 1), (60 / 48 / (size[1] / size[0]),) * 2
    crop = cropping.random_resized_crop(image, size, area, aspect, rng)
    np.testing.assert_allclose(crop, bicubic(image, size), atol=4)
    np.testing.assert_allclose(crop.mean((0, 1)), image.mean((0, 1)), atol=1)


def coordinates(height, width):
    """Channel 0 is the row and channel 1 the column, so that a crop tells where it was."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, 0 * x], -1).astype(np.uint8)


def extent(crop):
    """The box of a crop of `coordinates`, in pixels: height and width."""
    rows, columns = crop[:, 0, 0].astype(float), crop[0, :, 1].astype(float)
    inner = slice(len(rows) // 4, -(len(rows) // 4))
    slope = lambda v: np.polyfit(np.arange(len(v))[inner], v[inner], 1)[0] * len(v)
    return slope(rows), slope(columns)


@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
def test_random_crops_have_the_area_and_aspect_of_the_paper(size):
    image, rng = coordinates(200, 200 * size[1] // size[0] // 2), np.random.default_rng(0)
    scale, ratio = (0.1, 0.4), (1 / 2, 2)  # always fits, so that no draw is rejected
    one = lambda: cropping.random_resized_crop(image, size, scale, ratio, rng)
    boxes = [extent(one()) for _ in range(600)]
    areas = np.array([h * w for h, w in boxes]) / (image.shape[0] * image.shape[1])
    aspects = np.log([w / h / (size[1] / size[0]) for h, w in boxes])
    assert areas.min() > 0.08 and areas.max() < 0.43
    np.testing.assert_allclose(areas.mean(), 0.25, atol=0.015)
    np.testing.assert_allclose(areas.std(), 0.3 / math.sqrt(12), atol=0.01)
    assert np.abs(aspects).max() < math.log(2) + 0.08
    np.testing.assert_allclose(aspects.mean(), 0, atol=0.05)  # .155 if not uniform in the log
    np.testing.assert_allclose(aspects.std(), math.log(2) / math.sqrt(3), atol=0.03)


def test_random_crops_reach_every_corner():
    image, rng = coordinates(100, 100), np.random.default_rng(0)
    crops = [cropping.random_resized_crop(image, (8, 8), (0.2, 1), (1, 1), rng) for _ in range(400)]
    assert min(c[0, 0, 0] for c in crops) < 5 and min(c[0, 0, 1] for c in crops) < 5
    assert max(c[-1, -1, 0] for c in crops) > 94 and max(c[-1, -1, 1] for c in crops) > 94


def test_impossible_crops_fall_back_to_the_middle():
    image = coordinates(20, 200)
    crop = cropping.random_resized_crop(image, (20, 20), (1, 1), (1, 1), np.random.default_rng(0))
    np.testing.assert_array_equal(crop, image[:, 90:110])
    tiny = cropping.random_resized_crop(
        noise(1, 1, 3), (4, 4), (0.01, 0.02), (1, 1), np.random.default_rng(0)
    )
    assert tiny.shape == (4, 4, 3)


@pytest.mark.parametrize("height, width", [(375, 500), (449, 449), (1700, 2000), (63, 3000)])
def test_large_boxes_lie_on_the_pixels_of_a_reduced_decoding(height, width):
    rng, size, steps = np.random.default_rng(0), (56, 64), set()
    for _ in range(300):
        y, x, h, w = cropping.random_box(height, width, size, (0.01, 1), (3 / 4, 4 / 3), rng)
        assert 0 <= y <= y + h <= height and 0 <= x <= x + w <= width and h > 0 and w > 0
        step = max(k for k in (1, 2, 4, 8) if k == 1 or (h >= k * 56 and w >= k * 64))
        assert {y % step, x % step, h % step, w % step} == {0}
        steps.add(step)
    assert steps == {375: {1, 2, 4}, 449: {1, 2, 4}, 1700: {2, 4, 8}, 63: {1}}[height]


CROP = dict(size=(32, 40), scale=(0.2, 1), ratio=(3 / 4, 4 / 3))


def crops(image, channels=3, seed=0, **options):
    rng = np.random.default_rng(seed)
    taken = list(cropping.random_crops(image, channels, rng=rng, **{**CROP, **options}))
    return np.stack(taken).astype(int), rng.random()


def psnr(a, b):
    return 10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpegs_have_the_pixels_and_the_crops_of_pillow(mode, options):
    if mode == "L" and "subsampling" in options:
        return
    data = encoded(Image.fromarray(smooth(51, 70)).convert(mode), "JPEG", **options)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(decode.decode(data, 3), expected)
    for image in (expected, encoded(Image.fromarray(expected))):  # an array and a PNG
        for seed in range(5):
            np.testing.assert_array_equal(crops(data, seed=seed)[0], crops(image, seed=seed)[0])
            assert crops(data, seed=seed)[1] == crops(image, seed=seed)[1]


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_large_jpegs_are_decoded_smaller_and_the_crops_are_the_same(factor, monkeypatch):
    small = Image.fromarray(smooth(80, 100) // 2 + noise(80, 100, 3) // 4)
    picture = small.resize((100 * factor + 3, 80 * factor + 5), Image.Resampling.BICUBIC)
    data = encoded(picture, "JPEG", quality=95)
    real, shapes = simplejpeg.decode_jpeg, []
    spy = lambda *args, **options: shapes.append((out := real(*args, **options)).shape) or out
    full = decode.decode(data, 3)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    for seed in range(5):
        reduced, state = crops(data, seed=seed, scale=(0.3, 0.6))
        expected, same = crops(full, seed=seed, scale=(0.3, 0.6))
        assert state == same
        assert psnr(reduced, expected) > 38.5  # a box half a pixel off gives less than 38
    assert set(shapes) == {(-(-full.shape[0] // factor), -(-full.shape[1] // factor), 3)}
    tiny = {"scale": (0.02 / factor**2, 0.04 / factor**2)}
    np.testing.assert_array_equal(crops(data, **tiny)[0], crops(full, **tiny)[0])


def test_several_crops_of_one_decoding():
    large = encoded(Image.fromarray(smooth(375, 500)), "JPEG")
    for data, exact in ((encoded(Image.fromarray(smooth(60, 80)), "JPEG"), True), (large, False)):
        several, state = crops(data, count=4)
        rng, full = np.random.default_rng(0), decode.decode(data, 3)
        one_by_one = [cropping.random_resized_crop(full, rng=rng, **CROP) for _ in range(4)]
        assert rng.random() == state and psnr(several, one_by_one) > 35
        assert not exact or (several == one_by_one).all()
    assert several.shape == (4, 32, 40, 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["turned", "mirrored by XMP", "cmyk", "gray", "color", "mended"])
def test_unusual_jpegs_are_cropped_as_they_are_decoded(kind, channels):
    picture, options = Image.fromarray(smooth(60, 85)), {}
    if kind == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    elif kind == "mirrored by XMP":
        options["xmp"] = b'<x:xmpmeta><rdf:Description tiff:Orientation="2"/></x:xmpmeta>'
    data = encoded(
        picture.convert({"cmyk": "CMYK", "gray": "L"}.get(kind, "RGB")), "JPEG", **options
    )
    if kind == "mended":  # libjpeg warns and goes on
        data = data[:-2] + b"\0stray" + data[-2:]
        with pytest.raises(ValueError, match="extraneous"):
            simplejpeg.decode_jpeg(data)
    expected = crops(decode.decode(data, channels), channels)
    actual = crops(data, channels)
    # Color becomes gray after resizing, not before.
    np.testing.assert_allclose(actual[0], expected[0], atol=2 if channels == 1 else 0)
    assert actual[1] == expected[1]


@pytest.mark.filterwarnings("ignore")  # of Pillow's readers of damaged metadata
def test_damaged_jpegs_are_what_pillow_alone_makes_of_them(monkeypatch):
    picture, rng = Image.fromarray(smooth(51, 70)), np.random.default_rng(0)
    options = [{}, {"progressive": True}, {"subsampling": 0, "exif": Image.Exif()}]
    whole = [encoded(picture, "JPEG", **option) for option in options]
    read_header, seen = jpeg.read_header, {True: 0, False: 0}

    def outcome(data):
        try:
            return decode.decode(data, 3).tobytes()
        except Unreadable:
            return None

    for k in range(300):
        data = bytearray(whole[k % 3])
        at = rng.integers(len(data))
        match k % 4:
            case 0:
                data[at] ^= 1 << rng.integers(8)
            case 1:
                data = data[:at]
            case 2:
                data[at % 700] = rng.integers(256)
            case 3:
                data[at:at] = rng.bytes(3)
        monkeypatch.setattr(jpeg, "read_header", read_header)
        fast = outcome(bytes(data))
        monkeypatch.setattr(jpeg, "read_header", lambda data: None)
        same = fast == outcome(bytes(data))
        assert same
        seen[fast is None] += 1
    assert min(seen.values()) > 50


def test_unreadable_pictures_have_no_crops():
    whole = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    for data in (b"", b"not a picture", whole[: len(whole) // 2], whole[:30]):
        with pytest.raises(Unreadable, match="^not a "):
            crops(data)
    with pytest.raises(Unreadable, match="1, 3 or 4 channels, not 5"):
        crops(whole, 5)


def test_the_generator_alone_decides():
    image = noise(40, 50, 3)
    crop = lambda seed: cropping.random_resized_crop(
        image, (16, 16), (0.2, 1), (0.75, 1.33), np.random.default_rng(seed)
    )
    np.testing.assert_array_equal(crop(1), crop(1))
    assert (crop(1) != crop(2)).any()


@pytest.mark.parametrize("height, width", [(512, 512), (512, 700), (900, 512)])
def test_center_crop_is_resize_then_cut(height, width):
    image = smooth(height, width)
    resized = Image.fromarray(image).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    y, x = (height // 2 - 224) / 2, (width // 2 - 224) / 2
    assert y == int(y) and x == int(x)
    expected = np.asarray(resized)[int(y) : int(y) + 224, int(x) : int(x) + 224]
    actual = cropping.center_crop(image, (224, 224), 0.875)
    np.testing.assert_allclose(actual.astype(int), expected, atol=1)


def test_center_crop_keeps_the_aspect_of_other_sizes():
    image = coordinates(100, 100)
    crop = cropping.center_crop(image, (20, 40), 1)
    np.testing.assert_allclose(extent(crop), (50, 100), rtol=0.03)
    np.testing.assert_allclose(crop[..., 0].mean(), 49.5, atol=0.6)


def deflated(width, height, bits, color, rows=None):
    """A PNG of zeros, which shrinks to a thousandth; `rows` are there, of those that it claims."""
    line = bytes(1 + -(-width * bits // 8))
    deflate = zlib.compressobj(6)
    pixels = b"".join(deflate.compress(line) for _ in range(height if rows is None else rows))
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([bits, color, 0, 0, 0])
    parts = [(b"IHDR", header), (b"PLTE", bytes(6)), (b"IDAT", pixels + deflate.flush())]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, part in [*parts, (b"IEND", b"")]:
        if kind == b"PLTE" and color != 3:
            continue
        data += len(part).to_bytes(4) + kind + part + zlib.crc32(kind + part).to_bytes(4)
    return data


MEASURE = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from mae_jax.data import image_io
from mae_jax.data.image_io import crop
image_io.configure_libraries()
megabytes = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
def read(name):
    box = dict(size=(64, 64), scale=(0.2, 1), ratio=(1, 1), rng=np.random.default_rng(0))
    return next(crop.random_crops(open(name, "rb").read(), 3, **box)).shape
before = megabytes()
with ThreadPoolExecutor(4) as pool:
    assert set(pool.map(read, sys.argv[1:])) == {(64, 64, 3)}
print(megabytes() - before)
"""


def test_decompression_bombs_take_bounded_memory(tmp_path):
    for data in (deflated(20_000, 20_000, 1, 3), deflated(60_000, 60_000, 8, 0, rows=1)):
        assert len(data) < 100_000
        with pytest.raises(Unreadable, match="decompression bomb"):
            decode.decode(data, 3)
    file = tmp_path / "small.png"
    file.write_bytes(deflated(11_700, 11_700, 1, 3))  # two at a time are too many
    files = [file] * 2
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, *files], capture_output=True, text=True
    )
    assert float(done.stdout) < 1600, done.stderr  # 2100 if they were read at the same time


def test_a_jpeg_cannot_go_over_its_pixels_for_ever():
    data = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True, quality=1)
    start = data.rindex(b"\xff\xda")
    endless = data[:start] + data[start:-2] * 600 + data[-2:]
    assert decode.decode(data, 1).shape == (4000, 4000, 1)
    for channels in (1, 3):
        with pytest.raises(Unreadable, match="goes over its pixels too often"):
            crops(endless, channels)


def test_formats_that_run_programs_are_not_opened(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("a program"))
    data = encoded(Image.new("RGB", (4, 4)), "EPS")
    with pytest.raises(Unreadable, match="not a picture in a known format"):
        decode.decode(data, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1), (3, 20_000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_smallest_and_the_longest_pictures(shape, kind):
    options = {"quality": 100} if kind == "JPEG" else {}
    data = encoded(Image.new("RGB", shape[::-1], (200, 100, 50)), kind, **options)
    views = [cropping.center_crop(decode.decode(data, 3), (32, 40), 0.875)]
    views += [crops(data, seed=seed)[0][0] for seed in range(10)]
    for view in views:
        np.testing.assert_allclose(view, np.broadcast_to((200, 100, 50), (32, 40, 3)), atol=2)


@pytest.mark.parametrize("mode", ["P", "RGBA", "L"])
def test_large_pictures_are_converted_in_strips_like_small_ones(mode, monkeypatch):
    plane = smooth(50, 30, 1)[..., 0]
    picture = {
        "RGBA": lambda: Image.fromarray(np.dstack([plane, plane.T.reshape(50, 30), plane, plane])),
    }.get(mode, lambda: Image.fromarray(plane).convert(mode))()
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture, exif=exif)
    whole = [decode.decode(data, channels) for channels in (1, 3, 4)]
    monkeypatch.setattr(decode, "_STRIP", 100)
    for channels, expected in zip((1, 3, 4), whole, strict=True):
        assert expected.shape == (30, 50, channels)
        np.testing.assert_array_equal(decode.decode(data, channels), expected)
