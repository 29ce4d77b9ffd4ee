"""Augmentation of batches on the device: each draw has its distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mae_jax.data.augment import batch


def is_a_box(masks):
    """Each of [n h w] is a rectangle, or empty."""
    rows, columns = masks.any(2), masks.any(1)
    np.testing.assert_array_equal(masks, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):
        assert (
            np.abs(np.diff(np.pad(line, ((0, 0), (1, 1))).astype(int), axis=1)).sum(1) <= 2
        ).all()


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


def test_noise_has_its_own_strength_in_each_input(key):
    inputs = jnp.full((64, 16, 16, 3), 51, jnp.uint8)
    noise = np.asarray(batch.add_noise(key, inputs, 0.5)) - 0.2
    sigma = noise.std((1, 2, 3))
    assert abs(noise.mean()) < 0.01 and sigma.max() < 0.53
    np.testing.assert_allclose(np.quantile(sigma, (0.1, 0.5, 0.9)), (0.05, 0.25, 0.45), atol=0.08)
    same = batch.add_noise(key, inputs / 255, 0.5)  # values that are no bytes stay in their units
    np.testing.assert_allclose(same, noise + 0.2, atol=1e-6)
