"""RandAugment on the host: each operation is what it says, each draw has its distribution."""

import functools

import numpy as np
import pytest
import skimage.data
from PIL import Image
from scipy import stats

from mae_jax.data.augment import randaugment

AFFINE, BICUBIC = Image.Transform.AFFINE, Image.Resampling.BICUBIC


def picture(height, width, channels, seed=0):
    """Noise on a slope, so that every operation shows."""
    y, x = np.mgrid[:height, :width]
    slope = 40 + 120 * (x[..., None] / width) + 10 * np.arange(channels)
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, channels))
    return (slope + noise * (y[..., None] > 2)).astype(np.uint8)


def as_pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


FILL = {1: (77,), 3: (10, 120, 230)}

NUMBERS = {  # what a color operation is told at levels 9, 5, -5 and 10
    "auto_contrast": (0, 0, 0, 0),
    "equalize": (0, 0, 0, 0),
    "invert": (0, 0, 0, 0),
    "posterize": (1, 2, 2, 1),  # never no bits
    "solarize": (26, 128, 128, 0),
    "solarize_add": (99, 55, 55, 110),
    "color": (1.81, 1.45, 0.55, 1.9),
    "contrast": (1.81, 1.45, 0.55, 1.9),
    "brightness": (1.81, 1.45, 0.55, 1.9),
    "sharpness": (1.81, 1.45, 0.55, 1.9),
}


def turned(degrees):
    return lambda p, **options: p.rotate(degrees, **options)


def warped(*rows):
    return lambda p, **options: p.transform(p.size, AFFINE, rows, **options)


MOVES = {  # what Pillow is told at levels 9, 5 and -5, of a picture of 120 x 160
    "rotate": [turned(d) for d in (27, 15, -15)],
    "shear_x": [warped(1, s, 0, 0, 1, 0) for s in (0.27, 0.15, -0.15)],
    "shear_y": [warped(1, 0, 0, s, 1, 0) for s in (0.27, 0.15, -0.15)],
    "translate_x": [warped(1, 0, s, 0, 1, 0) for s in (64.8, 36, -36)],
    "translate_y": [warped(1, 0, 0, 0, 1, s) for s in (48.6, 27, -27)],
}
NAMES = [*NUMBERS, *MOVES]


def test_there_are_the_papers_fifteen_operations():
    assert NAMES == [*randaugment.COLORS, *randaugment.MOVES] and len(NAMES) == 15


@pytest.mark.parametrize("name", NUMBERS)
def test_what_a_color_operation_is_told(name):
    numbers = [randaugment.COLORS[name](level / 10) for level in (9, 5, -5, 10)]
    np.testing.assert_allclose(numbers, NUMBERS[name])


def moved(name, image, amount):
    height, width, channels = image.shape
    rows = randaugment.MOVES[name](amount, height, width)
    return randaugment.moved(image, rows, FILL[channels]).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MOVES)
def test_each_move_is_pillows_at_its_level(name, channels):
    """Their cubics differ, and how they end at the border, but by no fraction of a pixel."""
    image = np.ascontiguousarray(skimage.data.astronaut()[:480:4, ::3][:, :160, :channels])
    fill = FILL[channels] if channels == 3 else FILL[1][0]
    for level, pillow in zip((9, 5, -5), MOVES[name], strict=True):
        expected = pillow(as_pillow(image), resample=BICUBIC, fillcolor=fill)
        expected = np.asarray(expected).reshape(image.shape).astype(int)
        actual = moved(name, image, level / 10)
        assert actual.shape == image.shape and np.abs(expected - image).mean() > 15
        apart = np.abs(actual - expected)
        assert apart.mean() < 1.6 and (apart > 20).mean() < 0.01
        for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            height, width, _ = image.shape
            rows = np.array(randaugment.MOVES[name](level / 10, height, width))
            rows[[2, 5]] += x / 4, y / 4
            off = randaugment.moved(image, tuple(rows), FILL[channels])
            assert np.abs(off - expected).mean() > 2.5 * apart.mean()


@pytest.mark.parametrize("channels", [1, 3])
def test_moves_by_whole_pixels_are_exact(channels):
    image = picture(20, 40, channels)
    for name in MOVES:
        np.testing.assert_array_equal(moved(name, image, 0.0), image)
    right, down = moved("translate_x", image, -1.0), moved("translate_y", image, -1.0)
    np.testing.assert_array_equal(right[:, 18:], image[:, :22])  # .45 of 40
    np.testing.assert_array_equal(down[9:], image[:11])  # .45 of 20
    assert (right[:, :18] == FILL[channels]).all() and (down[:9] == FILL[channels]).all()
    corners = moved("rotate", picture(40, 40, channels), 1.0)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == FILL[channels]).all()


@pytest.fixture
def calls(monkeypatch):
    """Operations that do nothing but write down (name, amount)."""
    seen = []

    def record(amount, *size, name):
        seen.append((name, amount))
        return (1, 0, 0, 0, 1, 0) if size else 0

    for table, names in (("COLORS", NUMBERS), ("MOVES", MOVES)):
        recording = {name: functools.partial(record, name=name) for name in names}
        monkeypatch.setattr(randaugment, table, recording)
    return seen


def test_how_often_and_how_strong(calls):
    image, rng, n = picture(2, 2, 1), np.random.default_rng(0), 15_000
    per_picture = []
    for _ in range(n):
        before = len(calls)
        randaugment.randaugment(image, rng)
        per_picture.append(calls[before:])
    lengths = np.bincount([len(c) for c in per_picture])
    assert stats.chisquare(lengths, n * np.array([0.25, 0.5, 0.25])).pvalue > 1e-3
    counts = [sum(name == other for other, _ in calls) for name in NAMES]
    assert stats.chisquare(counts).pvalue > 1e-3
    pairs = [c[0][0] == c[1][0] for c in per_picture if len(c) == 2]
    assert stats.binomtest(sum(pairs), len(pairs), 1 / 15).pvalue > 1e-3  # with replacement

    amounts = np.array([amount for _, amount in calls])
    assert stats.binomtest(int((amounts > 0).sum()), len(amounts), 0.5).pvalue > 1e-3
    levels = 10 * np.abs(amounts)
    assert levels.max() == 10
    top = stats.norm(9, 0.5).sf(10)
    assert stats.binomtest(int((levels == 10).sum()), len(levels), top).pvalue > 1e-3
    below = stats.truncnorm(-18, 2, 9, 0.5)
    assert stats.kstest(levels[levels < 10], below.cdf).pvalue > 1e-3


def test_arguments_of_randaugment(calls):
    image, rng = picture(2, 2, 3), np.random.default_rng(0)
    randaugment.randaugment(image, rng, operations=40, magnitude=4, std=0, probability=1)
    assert {abs(amount) for _, amount in calls} == {0.4} and len(calls) == 40
    calls.clear()
    randaugment.randaugment(image, rng, operations=40, magnitude=-5, std=0, probability=1)
    assert {abs(amount) for _, amount in calls} == {0}


@pytest.mark.parametrize("channels", [1, 3])
def test_no_operation_is_the_identity(channels):
    image, rng = picture(9, 7, channels), np.random.default_rng(0)
    for options in ({"probability": 0}, {"operations": 0}):
        for _ in range(20):
            out, colors = randaugment.randaugment(image, rng, **options)
            np.testing.assert_array_equal(out, image)
            assert (colors[:, 0] == -1).all() and len(colors) == options.get("operations", 2)


def test_draws_by_hand():
    """The moves are applied one after the other, the colors handed on in the same places."""
    image, moves, colors = picture(21, 17, 3), 0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        chosen, applied = rng.integers(15, size=2), rng.random(2) < 0.5
        amounts, signs = rng.normal(9, 0.5, 2).clip(0, 10) / 10, rng.choice((-1, 1), 2)
        expected, handed = image, np.array([(-1, 0), (-1, 0)], np.float32)
        for i in np.flatnonzero(applied):
            name, amount = NAMES[chosen[i]], float(amounts[i] * signs[i])
            if name in MOVES:
                rows = randaugment.MOVES[name](amount, 21, 17)
                expected = randaugment.moved(expected, rows, (1, 2, 3))
            else:
                handed[i] = chosen[i], randaugment.COLORS[name](amount)
        out, drawn = randaugment.randaugment(image, np.random.default_rng(seed), fill=(1, 2, 3))
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(drawn, handed)
        assert drawn.dtype == np.float32
        moves, colors = moves + (out != image).any(), colors + (drawn[:, 0] >= 0).any()
    assert moves > 5 and colors > 10


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (5, 1, 3), (13, 30, 1), (33, 14, 3)])
def test_randaugment_of_any_size_is_a_function_of_the_generator(shape):
    image = picture(*shape)
    original = image.copy()
    run = lambda image, seed: randaugment.randaugment(
        image, np.random.default_rng(seed), operations=4, probability=1
    )
    view = np.repeat(image, 2, axis=1)[:, ::2]  # not contiguous
    results = [run(image, seed) for seed in range(25)]
    for seed, (out, colors) in enumerate(results):
        assert out.dtype == np.uint8 and out.shape == shape and colors.shape == (4, 2)
        for given in (image, view):
            again, same = run(given, seed)
            np.testing.assert_array_equal(out, again)
            np.testing.assert_array_equal(colors, same)
    np.testing.assert_array_equal(image, original)
    assert len({out.tobytes() for out, _ in results}) > 3
    assert len({colors.tobytes() for _, colors in results}) > 20


def test_the_generator_moves_on_by_the_same_draws():
    states = []
    for probability in (0, 1):
        rng = np.random.default_rng(0)
        randaugment.randaugment(picture(4, 4, 3), rng, probability=probability)
        states.append(rng.bit_generator.state)
    assert states[0] == states[1]


def test_what_randaugment_cannot_do():
    rng = np.random.default_rng(0)
    for channels in (2, 4):
        with pytest.raises(ValueError, match="1 or 3 channels"):
            randaugment.randaugment(picture(4, 4, channels), rng)
    with pytest.raises(ValueError, match="uint8"):
        randaugment.randaugment(picture(4, 4, 3) / 255, rng)
    with pytest.raises(ValueError, match="2 numbers for 3"):
        randaugment.randaugment(picture(4, 4, 3), rng, fill=(1, 2))
