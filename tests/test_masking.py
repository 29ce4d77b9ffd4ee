import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax import masking


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
def test_a_mask_that_hides_nothing_or_all_is_refused(n, ratio):
    with pytest.raises(ValueError, match="mask ratio"):
        masking.keep_count(n, ratio)


def test_keep_and_hidden_are_a_partition_ordered_by_score(key):
    scores = masking.random(key, 8, 49)
    mask = masking.from_scores(scores, 12)
    order = np.concatenate([mask.keep, mask.hidden], axis=1)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(49), (8, 1)))
    kept = np.take_along_axis(np.asarray(scores), np.asarray(mask.keep), 1)
    hidden = np.take_along_axis(np.asarray(scores), np.asarray(mask.hidden), 1)
    assert (kept.max(1) < hidden.min(1)).all()


def test_samples_of_a_batch_get_different_masks(key):
    mask = masking.from_scores(masking.random(key, 16, 49), 12)
    assert len({tuple(sorted(row.tolist())) for row in mask.keep}) == 16


def test_every_patch_is_hidden_equally_often(key):
    mask = masking.from_scores(masking.random(key, 4000, 16), 4)
    share = np.asarray(masking.hidden_map(mask)).mean(0)
    np.testing.assert_allclose(share, 0.75, atol=5 * np.sqrt(0.75 * 0.25 / 4000))


def test_hidden_map():
    mask = masking.from_scores(jnp.array([[0.3, 0.1, 0.2], [0.1, 0.2, 0.3]]), 1)
    np.testing.assert_array_equal(masking.hidden_map(mask), [[1, 0, 1], [0, 1, 1]])


def test_masks_do_not_depend_on_the_devices(key):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    draw = lambda key: masking.from_scores(masking.random(key, 8, 16), 4).keep
    np.testing.assert_array_equal(jax.jit(draw, out_shardings=split)(key), jax.jit(draw)(key))
