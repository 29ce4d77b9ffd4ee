"""Fine-tuning's augmentations: each operation is what it says, each draw has its distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image
from scipy import stats

from mae_jax.data.augment import batch, randaugment

AFFINE, BICUBIC = Image.Transform.AFFINE, Image.Resampling.BICUBIC


def picture(height, width, channels, seed=0):
    """Noise on a slope, so that every operation shows."""
    y, x = np.mgrid[:height, :width]
    slope = 40 + 120 * (x[..., None] / width) + 10 * np.arange(channels)
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, channels))
    return (slope + noise * (y[..., None] > 2)).astype(np.uint8)


def as_pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def is_a_box(masks):
    """Each of [n h w] is a rectangle, or empty."""
    rows, columns = masks.any(2), masks.any(1)
    np.testing.assert_array_equal(masks, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):
        assert (
            np.abs(np.diff(np.pad(line, ((0, 0), (1, 1))).astype(int), axis=1)).sum(1) <= 2
        ).all()


# --- RandAugment

FILL = {1: (77,), 3: (10, 120, 230)}

NUMBERS = {  # what a colour operation is told at levels 9, 5, -5 and 10
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
    assert NAMES == [*randaugment.COLOURS, *randaugment.MOVES] and len(NAMES) == 15


@pytest.mark.parametrize("name", NUMBERS)
def test_what_a_colour_operation_is_told(name):
    numbers = [randaugment.COLOURS[name](level / 10) for level in (9, 5, -5, 10)]
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

    for table, names in (("COLOURS", NUMBERS), ("MOVES", MOVES)):
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
            out, colours = randaugment.randaugment(image, rng, **options)
            np.testing.assert_array_equal(out, image)
            assert (colours[:, 0] == -1).all() and len(colours) == options.get("operations", 2)


def test_draws_by_hand():
    """The moves are applied one after the other, the colours handed on in the same places."""
    image, moves, colours = picture(21, 17, 3), 0, 0
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
                handed[i] = chosen[i], randaugment.COLOURS[name](amount)
        out, drawn = randaugment.randaugment(image, np.random.default_rng(seed), fill=(1, 2, 3))
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(drawn, handed)
        assert drawn.dtype == np.float32
        moves, colours = moves + (out != image).any(), colours + (drawn[:, 0] >= 0).any()
    assert moves > 5 and colours > 10


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (5, 1, 3), (13, 30, 1), (33, 14, 3)])
def test_randaugment_of_any_size_is_a_function_of_the_generator(shape):
    image = picture(*shape)
    original = image.copy()
    run = lambda image, seed: randaugment.randaugment(
        image, np.random.default_rng(seed), operations=4, probability=1
    )
    view = np.repeat(image, 2, axis=1)[:, ::2]  # not contiguous
    results = [run(image, seed) for seed in range(25)]
    for seed, (out, colours) in enumerate(results):
        assert out.dtype == np.uint8 and out.shape == shape and colours.shape == (4, 2)
        for given in (image, view):
            again, same = run(given, seed)
            np.testing.assert_array_equal(out, again)
            np.testing.assert_array_equal(colours, same)
    np.testing.assert_array_equal(image, original)
    assert len({out.tobytes() for out, _ in results}) > 3
    assert len({colours.tobytes() for _, colours in results}) > 20


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


# --- targets


@pytest.mark.parametrize("smoothing", [0, 0.1, 0.7])
def test_targets_by_hand(smoothing):
    labels = np.array([0, 3, 4, 3])
    expected = np.full((4, 5), smoothing / 5)
    expected[range(4), labels] = 1 - smoothing + smoothing / 5
    actual = jax.jit(lambda y: batch.targets(y, 5, smoothing))(jnp.asarray(labels))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_allclose(np.sum(actual, -1), 1, rtol=1e-6)


def test_smoothing_is_a_share():
    for smoothing in (-0.1, 1, 10):
        with pytest.raises(ValueError, match="label smoothing"):
            batch.targets(jnp.array([0]), 2, smoothing)


# --- mixup and cutmix


B = 5  # odd: the middle picture is its own partner


@functools.cache
def mixed(mixup, cutmix, switch=0.5, n=4000):
    """Pictures [n b h w] of which picture i is all i before, and targets [n b b], over n keys."""
    images = jnp.broadcast_to(jnp.arange(float(B))[:, None, None, None], (B, 9, 14, 1))
    mix = lambda key: batch.mix(key, images, jnp.eye(B), mixup, cutmix, switch)
    x, y = jax.jit(jax.vmap(mix))(jax.random.split(jax.random.key(1), n))
    x, y = np.asarray(x)[..., 0], np.asarray(y)
    share = y[:, 0, 0][:, None, None]
    np.testing.assert_allclose(y, share * np.eye(B) + (1 - share) * np.eye(B)[::-1], atol=1e-6)
    # the mean pixel has the share of the target: picture 0 becomes (1 - share) of picture B - 1
    np.testing.assert_allclose(x[:, 0].mean((1, 2)), (B - 1) * (1 - share[:, 0, 0]), atol=1e-5)
    np.testing.assert_allclose(x[:, B // 2], B // 2, atol=1e-5)
    return x, share[:, 0, 0]


def test_mixup_is_one_average_for_the_batch_from_beta():
    x, share = mixed(0.8, 0.0)
    average = share[:, None] * np.arange(B) + (1 - share[:, None]) * np.arange(B)[::-1]
    np.testing.assert_allclose(x, np.broadcast_to(average[..., None, None], x.shape), atol=1e-5)
    assert stats.kstest(share, stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
    assert stats.kstest(share, stats.beta(1, 1).cdf).pvalue < 1e-3  # the test can tell


def test_cutmix_pastes_one_box_and_counts_its_pixels():
    x, share = mixed(0.0, 0.6)
    x = np.delete(x, B // 2, axis=1)
    before = np.delete(np.arange(B), B // 2)[:, None, None]
    own, partner = x == before, x == before[::-1]
    assert (own ^ partner).all()  # nothing is averaged
    assert (own == own[:, :1]).all()  # one box for the batch
    np.testing.assert_allclose(own[:, 0].mean((1, 2)), share, atol=1e-6)
    is_a_box(partner[:, 0])


def test_cutmix_boxes_have_the_papers_distribution():
    x, _ = mixed(0.0, 0.6)
    inside = x[:, 0] != 0
    rng, n = np.random.default_rng(0), 4000
    side = np.sqrt(1 - rng.beta(0.6, 0.6, n))
    expected = np.ones((n, 9, 14), bool)
    for axis, length in ((1, 9), (2, 14)):
        half, centre = (side * length).astype(int) // 2, rng.integers(length, size=n)
        distance = np.arange(length) - centre[:, None]
        line = (-half[:, None] <= distance) & (distance < half[:, None])
        expected &= np.expand_dims(line, 3 - axis)
    areas = [m.sum((1, 2)) for m in (inside, expected)]
    assert stats.kstest(areas[0], areas[1]).pvalue > 1e-3
    np.testing.assert_allclose(inside.mean(0), expected.mean(0), atol=0.05)  # where boxes lie


def test_switch_says_how_often_it_is_cutmix():
    x, share = mixed(0.4, 2.0, 0.3)
    cut = ((x[:, 0] == 0) | (x[:, 0] == B - 1)).all((1, 2))
    assert stats.binomtest(int(cut.sum()), len(cut), 0.3).pvalue > 1e-3
    assert stats.kstest(share[~cut], stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    # Beta(2, 2) pastes large boxes more rarely than Beta(.4, .4), which pastes all in 1 of 5
    assert (share[cut] < 0.1).mean() < 0.05


def test_no_mixing_changes_nothing(key):
    images, targets = jnp.ones((3, 4, 4, 1)) * jnp.nan, jnp.eye(3)
    x, y = batch.mix(key, images, targets, 0, 0)
    np.testing.assert_array_equal(x, images)
    np.testing.assert_array_equal(y, targets)
    clips = jnp.zeros((3, 2, 4, 4, 1))
    assert batch.mix(key, clips, targets, 0, 0)[0] is clips


def test_half_precision_stays(key):
    images = jax.ShapeDtypeStruct((4, 6, 5, 2), jnp.bfloat16)
    mix = lambda x: batch.mix(key, batch.erase(key, x), jnp.eye(4), 0.8, 1.0)
    x, y = jax.eval_shape(mix, images)
    assert x.shape == images.shape and x.dtype == jnp.bfloat16 and y.dtype == jnp.float32


def test_what_cannot_be_mixed_or_erased(key):
    with pytest.raises(ValueError, match=r"\[b, ..., h, w, c\]"):
        batch.erase(key, jnp.zeros((2, 16, 1)))
    with pytest.raises(ValueError, match="not uint8"):
        batch.mix(key, jnp.zeros((2, 4, 4, 1), jnp.uint8), jnp.eye(2), 0.8, 1.0)
    with pytest.raises(ValueError, match="positive alpha"):
        batch.mix(key, jnp.zeros((2, 4, 4, 1)), jnp.eye(2), -1, 1.0)


# --- random erasing


erase = jax.jit(batch.erase)


@functools.cache
def erased(size=(64, 64), probability=1.0, n=1500):
    """Pictures before, after, and where they differ [n h w]; before, no value is near noise."""
    key = jax.random.key(2)
    images = 20 + np.random.default_rng(0).random((n, *size, 2), np.float32)
    out = np.asarray(erase(key, images, probability))
    changed = out != images
    assert (changed.all(-1) == changed.any(-1)).all()  # all channels, or none: the rest bit-equal
    assert (out[changed] < 10).all()
    is_a_box(changed[..., 0])
    return images, out, changed[..., 0]


def sides(changed):
    return changed.any(2).sum(1), changed.any(1).sum(1)


def test_erased_boxes_have_the_papers_sizes():
    _, _, changed = erased()
    h, w = sides(changed)
    # a side is off by at most half a pixel
    assert ((h + 0.5) * (w + 0.5) >= 0.02 * 64 * 64).all()
    assert ((h - 0.5) * (w - 0.5) <= 64 * 64 / 3).all()
    assert ((h + 0.5) / (w - 0.5) >= 0.3).all() and ((w + 0.5) / (h - 0.5) >= 0.3).all()
    area = stats.uniform(0.02, 1 / 3 - 0.02)
    assert stats.kstest(h * w / 64**2, area.cdf).statistic < 0.05
    aspect = stats.uniform(np.log(0.3), -2 * np.log(0.3))
    assert stats.kstest(np.log(h / w), aspect.cdf).statistic < 0.05


def test_erased_boxes_lie_anywhere_inside():
    _, _, changed = erased()
    h, w = sides(changed)
    for line, side in ((changed.any(2), h), (changed.any(1), w)):
        low = line.argmax(1)
        free = 64 - side
        assert ((0 <= low) & (low <= free)).all()
        some = free > 20
        at = (low[some] + 0.5) / (free[some] + 1)
        assert stats.kstest(at, stats.uniform.cdf).statistic < 0.05
        assert (low == 0).any() and (low == free).any()


def test_erased_pixels_are_standard_normal_noise():
    images, out, changed = erased()
    values = out[changed]  # [pixels c]
    assert stats.kstest(values[::400].ravel(), stats.norm.cdf).pvalue > 1e-3
    np.testing.assert_allclose((values.mean(), values.std()), (0, 1), atol=0.01)
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.01  # channels of their own
    both = changed[0::2] & changed[1::2]
    assert abs(np.corrcoef(out[0::2][both][:, 0], out[1::2][both][:, 0])[0, 1]) < 0.01
    assert abs(np.corrcoef(values[:, 0], images[changed][:, 0])[0, 1]) < 0.01


FLAT = (1, 15)  # most boxes are too high, and some would round to nothing


@pytest.mark.parametrize("probability", [0.0, 0.25])
def test_a_share_of_the_pictures_is_erased(probability):
    images, out, changed = erased(FLAT, probability)
    hit = changed.any((1, 2))
    assert stats.binomtest(int(hit.sum()), len(hit), probability).pvalue > 1e-3
    np.testing.assert_array_equal(out[~hit], images[~hit])


def test_erasing_pictures_in_which_boxes_do_not_fit():
    _, _, changed = erased(FLAT)
    h, w = sides(changed)
    assert (h == 1).all() and w.min() == 1 and w.max() > 3
