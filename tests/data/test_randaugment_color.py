"""Colors on the device: each picture's own operations are Pillow's, wherever it lies."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from skimage import data

from mae_jax.data.augment import randaugment, randaugment_color
from mae_jax.distributed import device_mesh, partitioning


def brighter(picture, add):
    table = [min(255, x + add) if x < 128 else x for x in range(256)]
    return picture.point(table * len(picture.getbands()))


PILLOW = {  # of a picture and the number that is drawn
    "auto_contrast": lambda p, number: ImageOps.autocontrast(p),
    "equalize": lambda p, number: ImageOps.equalize(p),
    "invert": lambda p, number: ImageOps.invert(p),
    "posterize": lambda p, bits: ImageOps.posterize(p, bits),
    "solarize": lambda p, threshold: ImageOps.solarize(p, threshold),
    "solarize_add": brighter,
    "color": lambda p, factor: ImageEnhance.Color(p).enhance(factor),
    "contrast": lambda p, factor: ImageEnhance.Contrast(p).enhance(factor),
    "brightness": lambda p, factor: ImageEnhance.Brightness(p).enhance(factor),
    "sharpness": lambda p, factor: ImageEnhance.Sharpness(p).enhance(factor),
}
KINDS = {name: float(kind) for kind, name in enumerate(PILLOW)}
AMOUNTS = (-1.0, -0.9, -0.55, 0.0, 0.3, 0.9, 1.0)

apply = jax.jit(randaugment_color.apply)


def pictures(channels):
    """A photograph, a dull part of it, noise, few values, a single one: uint8 [5, 32, 45, c]."""
    rng, photo = np.random.default_rng(0), data.astronaut()
    found = [
        photo[::16, 60:420:8],
        photo[100:132, 10:55] // 2 + 20,
        rng.integers(0, 256, (32, 45, 3)),
        rng.choice((3, 128, 200), (32, 45, 3)),
        np.full((32, 45, 3), 90),
    ]
    return np.stack(found).astype(np.uint8)[..., :channels]


def pillow(name, image, number):
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.asarray(PILLOW[name](picture, number)).reshape(image.shape)


def agree(name, image, number, result):
    """Tables equal Pillow's, and blends are at most one apart, which rounding in float32 may do.

    Pillow's auto_contrast divides doubles, and ends just below some of the whole quotients.
    """
    expected = pillow(name, image, number)
    apart = result.astype(int) - expected
    if name in randaugment_color.BLENDS:
        assert np.abs(apart).max() <= 1 and (apart != 0).mean() < 0.01, (name, number)
    elif name == "auto_contrast":
        low, high = (end(image, (0, 1)).astype(int) for end in (np.min, np.max))
        whole = (image - low) * 255 % np.maximum(1, high - low) == 0
        assert set(apart[whole]) <= {0, 1} and not apart[~whole].any()
    else:
        np.testing.assert_array_equal(result, expected, err_msg=f"{name} {number}")
    return apart


@functools.cache
def everything(channels):
    """Of each name, in one batch: [(picture, number, result)] for all amounts and pictures."""
    rows = [
        (name, randaugment.COLORS[name](amount), image)
        for name in PILLOW
        for amount in AMOUNTS
        for image in pictures(channels)
    ]
    drawn = np.array([[[KINDS[name], number]] for name, number, _ in rows], np.float32)
    results = np.asarray(apply(np.stack([image for *_, image in rows]), drawn))
    assert results.dtype == np.uint8
    found = {name: [] for name in PILLOW}
    for (name, number, image), result in zip(rows, results, strict=True):
        found[name].append((image, number, result))
    return found


def test_what_the_host_draws_is_what_the_device_knows():
    assert (
        list(randaugment.COLORS)
        == [*randaugment_color.TABLES, *randaugment_color.BLENDS]
        == list(PILLOW)
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PILLOW)
def test_each_operation_is_pillows(name, channels):
    for row in everything(channels)[name]:
        agree(name, *row)
    strongest = everything(channels)[name][-len(pictures(channels)) :]
    change = max(np.abs(result.astype(int) - image).mean() for image, _, result in strongest)
    assert change == 0 if (name, channels) == ("color", 1) else change > 5


def test_auto_contrast_of_any_range():
    ends = np.sort(np.random.default_rng(0).integers(0, 256, (400, 2)), axis=1)
    values = np.arange(256).reshape(16, 16, 1)
    images = np.stack([values.clip(*pair) for pair in ends]).astype(np.uint8)
    drawn = np.tile(np.float32((KINDS["auto_contrast"], 0)), (len(images), 1, 1))
    results = np.asarray(apply(images, drawn))
    apart = [agree("auto_contrast", x, 0, y) for x, y in zip(images, results, strict=True)]
    assert 0 < np.mean(apart) < 0.1  # most are clipped to the ends, where it shows
    assert (results.max((1, 2))[ends[:, 0] < ends[:, 1]] == 255).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 5, 1), (3, 3, 3)])
def test_small_pictures(shape):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(PILLOW), *shape), dtype=np.uint8)
    numbers = [randaugment.COLORS[name](0.7) for name in PILLOW]
    drawn = np.array([[[KINDS[name], n]] for name, n in zip(PILLOW, numbers, strict=True)])
    results = np.asarray(apply(images, drawn.astype(np.float32)))
    for name, number, image, result in zip(PILLOW, numbers, images, results, strict=True):
        agree(name, image, number, result)


def draws(n, operations):
    """As the host draws them, but more often applied."""
    rng, image = np.random.default_rng(1), np.zeros((1, 1, 1), np.uint8)
    options = dict(operations=operations, probability=0.9)
    found = [randaugment.randaugment(image, rng, **options)[1] for _ in range(n)]
    return np.stack(found)


@functools.cache
def batch():
    """Pictures [24 32 45 3], three draws for each, and the results."""
    images = np.concatenate([pictures(3)] * 5)[:24]
    drawn = draws(24, 3)
    return images, drawn, np.asarray(apply(images, drawn))


def test_operations_come_one_after_the_other():
    images, drawn, results = batch()
    expected = images
    for i in range(3):
        expected = apply(expected, drawn[:, i : i + 1])
    np.testing.assert_array_equal(results, expected)
    other = (apply(images, drawn[:, ::-1]) != results).any((1, 2, 3))
    assert other.sum() > 5  # the order shows


def test_nothing_drawn_leaves_every_byte():
    images, drawn, _ = batch()
    drawn = drawn.copy()
    drawn[..., 0] = -1  # whatever the numbers are
    np.testing.assert_array_equal(apply(images, drawn), images)
    np.testing.assert_array_equal(apply(images, drawn[:, :0]), images)


def test_each_picture_has_its_own():
    """Rows in another order give the results in that order."""
    images, drawn, results = batch()
    order = np.random.default_rng(0).permutation(len(images))
    np.testing.assert_array_equal(apply(images[order], drawn[order]), results[order])


def test_devices_share_the_batch_and_send_nothing():
    images, drawn, results = batch()
    mesh = device_mesh.make_mesh(data=2, fsdp=2)
    placed = partitioning.place({"images": images, "drawn": drawn}, mesh)
    compiled = jax.jit(randaugment_color.apply).lower(**placed).compile()
    actual = compiled(**placed)
    np.testing.assert_array_equal(actual, results)
    assert actual.sharding.is_equivalent_to(partitioning.batched(mesh), 4)
    assert not re.search(r"\b(all|collective|reduce-scatter)[a-z-]*\(", compiled.as_text())


@pytest.mark.parametrize("channels", [1, 3])
def test_products_count_and_look_up_the_same(channels):
    """What a TPU does, which no test has."""
    images = pictures(channels)
    tables = np.random.default_rng(0).integers(0, 256, (len(images), channels, 256))
    counted = [randaugment_color.counts_by_scatter, randaugment_color.counts_by_products]
    looked_up = [randaugment_color.look_up_by_gather, randaugment_color.look_up_by_products]
    counted = [jax.jit(jax.vmap(f))(images) for f in counted]
    looked_up = [jax.jit(jax.vmap(f))(jnp.asarray(tables), images) for f in looked_up]
    for i in range(len(images)):
        for c in range(channels):
            values = images[i, ..., c]
            for counts in counted:
                np.testing.assert_array_equal(counts[i, c], np.bincount(values.ravel(), None, 256))
            for results in looked_up:
                np.testing.assert_array_equal(results[i, ..., c], tables[i, c, values])
