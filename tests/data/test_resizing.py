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
    for place in samples._PHOTOS.values():
        photo = np.ascontiguousarray(samples._photo(*place)[:300, :300])
        resized = resize.bicubic(photo, size)
        assert resized is not None and resized.dtype == np.uint8
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
        assert resized is not None and resized.shape == (*size, 3) and (resized == 201).all()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 1), np.uint8)
    np.testing.assert_array_equal(resize.bicubic(noise, (40, 50)), noise)


def test_what_it_leaves_to_others():
    assert resize.bicubic(np.zeros((100, 100, 3), np.uint8), (90, 33)) is None
    assert resize.bicubic(np.zeros((100, 100, 5), np.uint8), (90, 90)) is None
