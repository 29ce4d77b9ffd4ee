import io

import numpy as np
import pytest
from PIL import Image

from mae_jax.applications.retrieval import copies
from mae_jax.data import sources


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", copies.COPIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_copies_differ_from_the_picture_and_repeat_by_seed(picture, kind, channels):
    given = picture[..., :channels]
    before = given.copy()
    copied = copies.make(kind, given, 0, 1)
    assert copied.dtype == np.uint8 and copied.shape[-1] == channels
    assert not np.array_equal(copied, given) and np.array_equal(given, before)
    np.testing.assert_array_equal(copied, copies.make(kind, given, 0, 1))
    assert copies.make(kind, np.zeros((1, 2, channels), np.uint8), 0).size


@pytest.mark.parametrize("kind", ["crop", "rotation", "overlay"])
def test_seeds_differ(picture, kind):
    found = {copies.make(kind, picture, seed).tobytes() for seed in range(8)}
    assert len(found) == 2 if kind == "rotation" else len(found) > 4


def test_kinds_are_what_their_names_say(picture):
    np.testing.assert_array_equal(copies.make("flip", picture), picture[:, ::-1])
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=20)
    np.testing.assert_array_equal(copies.make("jpeg", picture), np.asarray(Image.open(file)))
    part = copies.make("crop", picture)
    windows = np.lib.stride_tricks.sliding_window_view(picture, (28, 42, 3))[:, :, 0]
    assert part.shape == (28, 42, 3)
    assert (windows == part).all((-3, -2, -1)).sum() == 1
    caption = copies.make("overlay", picture)
    changed = (caption != picture).any((1, 2))
    assert changed.sum() == 8 and np.ptp(np.flatnonzero(changed)) == 7


def test_rotation_is_by_ten_degrees():
    y, x = np.mgrid[:101, :101] - 50
    line = (255 * (np.abs(y) < 2) * (np.abs(x) < 45)).astype(np.uint8)[..., None]
    rows, columns, _ = np.nonzero(copies.make("rotation", line) > 127)
    slope = np.polyfit(columns, rows, 1)[0]
    assert abs(abs(np.degrees(np.arctan(slope))) - 10) < 0.3


def test_copies_of_a_source():
    source = sources.open_source("photos", "test")
    copied = copies.of_source(source, "crop", 3, seed=5)
    assert len(copied) == len(source) and copied.name(3) == source.name(3)
    assert copied[3]["label"] == source[3]["label"] and copied.classes == source.classes
    expected = copies.make("crop", source[3]["image"], 5, 3)
    np.testing.assert_array_equal(copied[3]["image"], expected)
    assert copies.of_source(source, "crop", 1)[3]["image"].shape[-1] == 1


def test_mistakes(picture):
    with pytest.raises(ValueError, match="'blur' is none of crop, jpeg"):
        copies.make("blur", picture)
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        copies.of_source(sources.open_source("photos", "test"), "crop", 4)
