import numpy as np
import pytest
from PIL import Image

from mae_jax.data.image_io import resize
from mae_jax.data.sources import samples

SHRINKS = [0.7, 1, 1.05, 1.3, 1.6, 2, 2.4, 2.9]


def pillow(image, size):
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def error(a, b):
    return np.sqrt(np.mean((np.asarray(a, float) - b) ** 2))


@pytest.mark.parametrize("across", SHRINKS)
@pytest.mark.parametrize("down", [1, 1.7])
def test_photographs_look_as_by_pillow(down, across):
    size = (round(300 / down), round(300 / across))
    for name in samples.PHOTOS:
        photo = np.ascontiguousarray(samples.photo(name)[:300, :300])
        resized = resize.bicubic(photo, size)
        assert resized.dtype == np.uint8 and (
            max(down, across) == 1 or (resized != pillow(photo, size)).any()
        )
        # JPEG of quality 90 is 5 to 10 times as far from what it encodes
        assert error(resized, pillow(photo, size)) < 1.4  # PSNR 45 dB


def zone_plate(side):
    """Rings whose frequency grows with the distance: to half a cycle per pixel at the edge."""
    y, x = np.mgrid[:side, :side] - side // 2
    rings = 127.5 + 127.5 * np.cos(np.pi * (x**2 + y**2) / side)
    return np.repeat(np.rint(rings).astype(np.uint8)[..., None], 3, -1)


@pytest.mark.parametrize("shrink", [1.4, 1.8, 2.3, 2.8])
def test_what_does_not_fit_becomes_gray_and_not_new_rings(shrink):
    import cv2

    plate, new = zone_plate(512), round(512 / shrink)
    y, x = np.mgrid[:new, :new] - new // 2
    lost = np.maximum(abs(x), abs(y)) > 1.25 * new / shrink / 2  # along an axis: beyond its Nyquist
    aliased = lambda picture: error(picture[lost], 127.5)
    resized = resize.bicubic(plate, (new, new))
    assert aliased(resized) < aliased(pillow(plate, (new, new))) + 5
    others = [cv2.INTER_CUBIC, cv2.INTER_AREA]  # not antialiased, and by a box
    for other in others:
        assert aliased(resized) < 0.8 * aliased(cv2.resize(plate, (new, new), interpolation=other))


def test_flat_areas_and_pictures_of_the_right_size_stay():
    flat = np.full((90, 70, 3), 201, np.uint8)
    for size in [(40, 60), (90, 41), (120, 30), (90, 70)]:
        resized = resize.bicubic(flat, size)
        assert resized.shape == (*size, 3) and (resized == 201).all()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 1), np.uint8)
    np.testing.assert_array_equal(resize.bicubic(noise, (40, 50)), noise)


@pytest.mark.parametrize("channels, size", [(3, (90, 33)), (5, (90, 90))])
def test_many_channels_and_a_strong_shrink_are_left_to_pillow(channels, size):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, channels), np.uint8)
    planes = [pillow(np.ascontiguousarray(noise[..., c]), size) for c in range(channels)]
    np.testing.assert_array_equal(resize.bicubic(noise, size), np.stack(planes, -1))


@pytest.mark.parametrize("size", [(9, 30), (31, 17), (40, 50)])
def test_linear_resizing_is_pillows_bilinear(size):
    values = np.random.default_rng(0).normal(size=(23, 29, 1)).astype(np.float32)
    resized = resize.linear(values, size)
    expected = Image.fromarray(values[..., 0]).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_allclose(resized[..., 0], expected, atol=1e-5)
    assert resized.flags.c_contiguous and resized.dtype == np.float32


def test_linear_resizing_keeps_constants_bytes_and_axes():
    values = np.random.default_rng(0).integers(0, 256, (8, 9, 10, 3), np.uint8)
    resized = resize.linear(values, (5, 12, 7))
    assert (resized.shape, resized.dtype) == ((5, 12, 7, 3), np.uint8)
    flat = np.full((8, 9, 10, 1), 255, np.uint8)
    assert (resize.linear(flat, (5, 12, 7)) == 255).all()
    turned = resize.linear(values.transpose(2, 1, 0, 3), (7, 12, 5)).transpose(2, 1, 0, 3)
    np.testing.assert_allclose(turned.astype(int), resized, atol=1)
