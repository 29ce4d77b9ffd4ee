import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from mae_jax.models import build, masking

# Compiled whole, as a step does it: one operation after the other takes ten times as long.
from_scores = jax.jit(masking.from_scores, static_argnums=1)
masked_map = jax.jit(masking.masked_map)
random, block, lattice, stroke = (
    jax.jit(strategy, static_argnums=(1, 2))
    for strategy in (masking.random, masking.block, masking.lattice, masking.stroke)
)
joint = jax.jit(masking.joint, static_argnums=(1, 2, 3))
partition = jax.jit(masking.partition, static_argnums=(1, 2, 3, 4))
normal = jax.jit(jax.random.normal, static_argnums=1)


@pytest.mark.parametrize(
    "n, ratio, keep",
    [
        (196, 0.75, 49),
        (1568, 0.9, 156),
        (10, 0.9, 1),
        (1000, 0.9, 100),
        (4, 0.99, 1),
        (16, 0.75, 4),
    ],
)
def test_keep_count(n, ratio, keep):
    assert masking.keep_count(n, ratio) == keep


@pytest.mark.parametrize("n, ratio", [(1, 0.75), (4, 0.0), (4, 1.0), (4, -1), (3, 1e-12)])
def test_a_ratio_that_masks_nothing_or_all_is_refused(n, ratio):
    with pytest.raises(ValueError, match="mask ratio"):
        masking.keep_count(n, ratio)


def test_visible_and_masked_are_a_partition_ordered_by_score(key):
    scores = random(key, 8, (7, 7))
    mask = from_scores(scores, 12)
    order = np.concatenate([mask.visible, mask.masked], axis=1)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(49), (8, 1)))
    kept = np.take_along_axis(np.asarray(scores), np.asarray(mask.visible), 1)
    masked = np.take_along_axis(np.asarray(scores), np.asarray(mask.masked), 1)
    assert (kept.max(1) < masked.min(1)).all()


def test_samples_of_a_batch_get_different_masks(key):
    mask = from_scores(random(key, 16, (7, 7)), 12)
    assert len({tuple(sorted(row.tolist())) for row in mask.visible}) == 16


def test_every_patch_is_masked_equally_often(key):
    mask = from_scores(random(key, 4000, (4, 4)), 4)
    share = np.asarray(masked_map(mask)).mean(0)
    np.testing.assert_allclose(share, 0.75, atol=5 * np.sqrt(0.75 * 0.25 / 4000))


def test_masked_map():
    mask = from_scores(jnp.array([[0.3, 0.1, 0.2], [0.1, 0.2, 0.3]]), 1)
    np.testing.assert_array_equal(masked_map(mask), [[1, 0, 1], [0, 1, 1]])


def test_masks_do_not_depend_on_the_devices(key):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    draw = lambda key: from_scores(random(key, 8, (4, 4)), 4).visible
    np.testing.assert_array_equal(jax.jit(draw, out_shardings=split)(key), jax.jit(draw)(key))


# --- strategies

SHAPES = {1: (24,), 2: (6, 8), 3: (4, 6, 6)}
ANY = {  # strategies that any grid can have, with what they take beside it
    "random": random,
    "block": block,
    "grid": lattice,
    "stroke": stroke,
    "joint": lambda key, b, shape: joint(key, b, shape, (2,) * len(shape)),
    "importance": lambda key, b, shape: masking.importance(key, normal(key, (b, math.prod(shape)))),
}


def masked_of(scores, keep, shape):
    """Where patches are masked, bool [b, *shape]."""
    mask = from_scores(scores, keep)
    return np.asarray(masked_map(mask)).reshape(-1, *shape) == 1


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
@pytest.mark.parametrize("name", ANY)
def test_every_strategy_masks_the_same_number_and_differs_by_sample(name, shape, key):
    n = math.prod(shape)
    masked = masked_of(ANY[name](key, 32, shape), n // 4, shape)
    np.testing.assert_array_equal(masked.reshape(32, -1).sum(1), n - n // 4)
    assert len({row.tobytes() for row in masked}) > 3
    again = masked_of(ANY[name](key, 32, shape), n // 4, shape)
    np.testing.assert_array_equal(masked, again)


def test_jit_compiles_once_for_all_strategies(key):
    sizes = dict(width=24, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2)
    model = build.autoencoder(dict(patch=(4, 4), **sizes))
    images, shape, keep = jnp.ones((2, 24, 32, 1)), SHAPES[2], 12
    params = {"params": tiny_models.random_params(model, (24, 32), 1)}

    @jax.jit
    def loss(scores):
        return model.apply(params, images, from_scores(scores, keep)).loss

    some = jnp.zeros((2, 24, 32), bool).at[:, :5, :7].set(True)
    parts = partition(key, 2, shape, 4, keep)
    for scores in (*(f(key, 2, shape) for f in ANY.values()), *parts, masking.pixels(some, (4, 4))):
        assert scores.shape == (2, 48) and scores.dtype == jnp.float32
        assert jnp.isfinite(loss(scores))
    assert loss._cache_size() == 1


@pytest.mark.parametrize("shape", [(4, 6, 6), (2, 5), (3, 2, 2, 2)], ids=str)
def test_a_tube_masks_the_same_places_in_each_frame(shape, key):
    frames, places = shape[0], math.prod(shape[1:])
    scores = joint(key, 64, shape, (frames,) + (1,) * (len(shape) - 1))
    for kept in (1, places // 2, places - 1):
        masked = masked_of(scores, frames * kept, shape)
        np.testing.assert_array_equal(masked, np.broadcast_to(masked[:, :1], masked.shape))
        np.testing.assert_array_equal(masked[:, 0].reshape(64, -1).sum(1), places - kept)


@pytest.mark.parametrize("axis", [0, 1])
def test_frames_times_and_frequencies_are_masked_whole(axis, key):
    shape = (8, 6)
    others = shape[1 - axis]
    box = (1, others) if axis == 0 else (others, 1)
    masked = masked_of(joint(key, 64, shape, box), 2 * others, shape)
    lines = np.moveaxis(masked, 1 + axis, 1)
    assert (lines.all(2) | ~lines.any(2)).all()
    np.testing.assert_array_equal(lines.all(2).sum(1), shape[axis] - 2)


def test_a_grid_keeps_a_lattice(key):
    """At 1 / 2^axes every second place along each axis, shifted by each of the shifts."""
    for shape in ((12,), (8, 8), (4, 6, 4)):
        axes = len(shape)
        masked = masked_of(lattice(key, 64, shape), math.prod(shape) // 2**axes, shape)
        shifts = set()
        for row in masked:
            kept = np.argwhere(~row)
            assert (kept % 2 == kept[0] % 2).all()
            shifts.add(tuple(kept[0] % 2))
        assert len(shifts) == 2**axes


def test_a_grid_at_one_half_is_a_checkerboard(key):
    masked = masked_of(lattice(key, 8, (6, 6)), 18, (6, 6))
    parity = np.indices((6, 6)).sum(0) % 2
    for row in masked:
        assert (row == (parity == parity[np.argwhere(row)[0][0], np.argwhere(row)[0][1]])).all()


@pytest.mark.parametrize("shape, size", [((8,), (2,)), ((8, 6), (4, 2)), ((4, 4, 6), (2, 2, 3))])
def test_joint_blocks_are_masked_together(shape, size, key):
    scores = joint(key, 64, shape, size)
    cells = [side // length for side, length in zip(shape, size, strict=True)]
    split = [x for pair in zip(cells, size, strict=True) for x in pair]
    order = [0, *range(1, len(split) + 1, 2), *range(2, len(split) + 1, 2)]
    for extra in (0, 1):  # one patch too many cuts one box
        keep = math.prod(size) * (math.prod(cells) // 2) + extra
        masked = masked_of(scores, keep, shape).reshape(64, *split).transpose(order)
        inside = masked.reshape(64, math.prod(cells), -1)
        cut = (inside.any(2) & ~inside.all(2)).sum(1)
        np.testing.assert_array_equal(cut, extra)


def test_joint_blocks_at_an_edge_may_be_smaller(key):
    masked = masked_of(joint(key, 16, (5, 7), (2, 3)), 12, (5, 7))
    np.testing.assert_array_equal(masked.reshape(16, -1).sum(1), 23)


@pytest.mark.parametrize("shape", [(64,), (14, 14), (8, 10, 10)], ids=str)
def test_blocks_are_large_and_in_one_piece(shape, key):
    from scipy import ndimage

    n = math.prod(shape)
    pieces = lambda masked: np.mean([ndimage.label(row)[1] for row in masked])
    for share in (0.2, 0.5):
        keep = n - int(n * share)
        blocks = masked_of(block(key, 64, shape), keep, shape)
        noise = masked_of(random(key, 64, shape), keep, shape)
        assert pieces(blocks) < 2.5
        if len(shape) < 3 or share < 0.3:  # above .31 random cells of a 3-D grid percolate
            assert pieces(noise) > 2.5
        surface = lambda masked: sum(
            (np.diff(masked, axis=axis) != 0).sum() for axis in range(1, masked.ndim)
        )
        assert surface(blocks) < 0.5 * surface(noise)


def test_a_block_is_a_box_until_it_is_cut(key):
    """With so few masked that the first box holds them, they are its middle."""
    masked = masked_of(block(key, 64, (14, 14)), 196 - 9, (14, 14))
    for row in masked:
        places = np.argwhere(row)
        sides = places.max(0) - places.min(0) + 1
        assert sides.prod() <= 20


def test_strokes_are_long_and_thin(key):
    """They hang together as blocks do, have more of an edge, and are as wide as the grid is."""
    from scipy import ndimage

    shape = (8, 24)
    masks = [masked_of(f(key, 64, shape), 150, shape) for f in (stroke, random, block)]
    pieces = [np.mean([ndimage.label(row)[1] for row in masked]) for masked in masks]
    edges = np.array([[(np.diff(masked, axis=i) != 0).sum() for i in (1, 2)] for masked in masks])
    assert pieces[0] < 0.5 * pieces[1]
    assert 1.2 * edges[2].sum() < edges[0].sum() < 0.7 * edges[1].sum()
    assert 2 < edges[0, 0] / edges[0, 1] < 4


def test_the_samples_of_a_mixture_take_turns(key):
    """Each sample has the scores of one strategy, and all have as many visible patches."""
    shape, names = (4, 8, 8), ("random", "frame", "random")
    sampler = masking.make_mask_sampler(names, 0.6, shape)
    assert sampler.keep == masking.make_mask_sampler("frame", 0.6, shape).keep == 128
    draw = jax.jit(sampler.scores)
    firsts = set()
    for i in range(8):
        scores = draw(jax.random.fold_in(key, i), jnp.ones((10, 1)))
        masked = masked_of(scores, sampler.keep, shape).reshape(10, 4, 64)
        np.testing.assert_array_equal(masked.sum((1, 2)), 128)
        whole = np.flatnonzero((masked.all(2) | ~masked.any(2)).all(1))
        np.testing.assert_array_equal(whole, range(whole[0], 10, 3))
        firsts.add(int(whole[0]))
    assert firsts == {0, 1, 2}


def test_a_mixture_of_one_sample_draws_its_strategy(key):
    """An evaluation draws the mask of each example alone."""
    sampler = masking.make_mask_sampler(("random", "time"), 0.5, (8, 6))
    draw = jax.jit(jax.vmap(lambda key: sampler.scores(key, jnp.ones((1, 1)))[0]))
    masked = masked_of(draw(jax.random.split(key, 600)), sampler.keep, (8, 6))
    times = (masked.all(2) | ~masked.any(2)).all(1).mean()
    np.testing.assert_allclose(times, 0.5, atol=5 * 0.5 / np.sqrt(600))


def test_a_mixture_of_none_is_refused():
    with pytest.raises(ValueError, match="names no strategy: use some of random, block"):
        masking.make_mask_sampler((), 0.5, (8, 6))


def test_importance_draws_without_replacement_in_proportion(key):
    """The first one kept is drawn by softmax(logits); then as Plackett and Luce say."""
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    scores = masking.importance(key, jnp.tile(jnp.asarray(logits, jnp.float32), (40_000, 1)))
    visible = np.asarray(from_scores(scores, 2).visible)
    p = np.exp(logits)
    np.testing.assert_allclose(np.bincount(visible[:, 0]) / len(visible), p, atol=0.01)
    second = [sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)]
    np.testing.assert_allclose(np.bincount(visible[:, 1]) / len(visible), second, atol=0.01)


@pytest.mark.parametrize("patch, size", [((4,), (16,)), ((4, 2), (8, 6)), ((2, 2, 2), (4, 4, 6))])
def test_a_patch_with_a_masked_pixel_is_masked(patch, size, key):
    masked = jax.random.bernoulli(key, 0.05, (16, *size))
    scores = np.asarray(masking.pixels(masked, patch))
    grid = [s // p for s, p in zip(size, patch, strict=True)]
    for row, found in zip(np.asarray(masked), scores, strict=True):
        expected = np.zeros(grid)
        for place in np.argwhere(row):
            expected[tuple(place // np.array(patch))] = 1
        np.testing.assert_array_equal(found.reshape(grid), expected)
    keep = int((scores == 0).sum(-1).min())
    mask = from_scores(jnp.asarray(scores), keep)
    assert (np.asarray(masked_map(mask))[scores == 1] == 1).all()


@pytest.mark.parametrize("groups, keep", [(4, 12), (4, 36), (4, 24), (16, 3), (2, 24)])
def test_a_partition_masks_each_patch_equally_often(groups, keep, key):
    scores = partition(key, 8, (6, 8), groups, keep)
    masked = np.stack([masked_of(part, keep, (6, 8)) for part in scores])
    np.testing.assert_array_equal(masked.sum(0), groups * (48 - keep) // 48)
    assert len({row.tobytes() for row in masked[0]}) == 8
    if keep == 48 // groups:  # complementary: each is seen exactly once
        assert (~masked).sum(0).max() == 1


def test_a_partition_that_cannot_be_equal_is_refused(key):
    for groups, keep in ((5, 12), (4, 13), (1, 48)):
        with pytest.raises(ValueError, match="cannot be equal: use a number of groups among 2, 3"):
            partition(key, 1, (6, 8), groups, keep)


def test_partial_decoding_takes_masked_patches_uniformly(key):
    noise_key, part_key = jax.random.split(key)
    full = from_scores(lattice(noise_key, 4000, (4, 4)), 4)
    part = masking.partial(full, jax.random.uniform(part_key, (4000, 12)), 3)
    assert part.masked.shape == (4000, 3) and part.n == 16
    np.testing.assert_array_equal(part.visible, full.visible)
    for row, chosen in zip(np.asarray(full.masked)[:50], np.asarray(part.masked), strict=False):
        assert len(set(chosen)) == 3 and set(chosen) <= set(row)
    np.testing.assert_array_equal(masked_map(part), masked_map(full))
    rank = (np.asarray(full.masked)[:, :, None] == np.asarray(part.masked)[:, None]).any(2).mean(0)
    np.testing.assert_allclose(rank, 0.25, atol=0.03)


def test_what_is_masked_together_counts_together():
    assert masking.keep_count(1568, 0.9, together=8) == 160  # VideoMAE's 20 tubes of 8
    assert masking.keep_count(512, 0.8, together=8) == 8 * 13
    assert masking.keep_count(64, 0.75, together=4) == 16
    with pytest.raises(ValueError, match=r"mask ratio 0.1 masks none of 4 group\(s\) of 8"):
        masking.keep_count(32, 0.1, together=8)


@pytest.mark.parametrize("keep", [0, 16, 17])
def test_a_mask_that_shows_or_masks_nothing_is_refused(keep, key):
    """The mean loss over no patches would be NaN."""
    with pytest.raises(ValueError, match="keep at least 1 and mask at least 1"):
        from_scores(random(key, 2, (4, 4)), keep)
