"""Every patch is predicted equally often, and never from itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from mae_jax.data.augment.missing import Inputs
from mae_jax.evaluators import complementary
from mae_jax.models import build, masking

GRID, N = (4, 4), 16


@pytest.fixture(scope="module")
def network():
    model = tiny_models.model("autoencoder")
    params = jax.tree.map(lambda x: 0.2 * x, tiny_models.random_params(model))
    return model, {"params": params}


def images(count: int = 2) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(count, 16, 16, 3)), jnp.float32)


@pytest.mark.parametrize("groups, keep", [(4, 4), (4, 12), (8, 8)])
def test_it_is_the_mean_over_the_masks_that_mask_a_patch(network, groups, keep):
    model, variables = network
    x = images()
    scores = masking.partition(jax.random.key(0), 1, GRID, groups, keep)
    predicted = complementary.predictions(model, variables, Inputs(x, None, None), scores, keep)
    found = complementary.losses(model, variables, Inputs(x, None, None), scores, keep)

    sums, losses, count = np.zeros(x.shape), np.zeros((2, N)), np.zeros((2, N))
    for row in scores:
        mask = masking.from_scores(jnp.repeat(row, 2, 0), keep)
        out = model.apply(variables, x, mask)
        filled = np.asarray(model.target.to_inputs(out.prediction, x, mask))
        masked = np.asarray(masking.masked_map(mask))
        sums += np.where(model.target.masked_values(x, mask), filled, 0)
        per_patch = model.target.losses(out.prediction, x, mask.masked)
        np.add.at(losses, (np.arange(2)[:, None], np.asarray(mask.masked)), per_patch)
        count += masked
    assert (count == count[0, 0]).all()  # each patch is predicted equally often
    np.testing.assert_allclose(predicted, sums / count[0, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found, losses / count, rtol=1e-5)


def test_no_patch_is_predicted_from_itself(network):
    model, variables = network
    scores = masking.partition(jax.random.key(0), 1, GRID, 4, 12)
    top = lambda x: complementary.predictions(model, variables, Inputs(x, None, None), scores, 12)[
        0, :4, 4:8
    ].sum()
    gradient = np.abs(jax.grad(top)(images(1)))[0]
    assert gradient[:4, 4:8].max() == 0
    assert gradient.max() > 0


def test_a_result_does_not_depend_on_the_batch(network):
    model, variables = network
    scores, x = masking.partition(jax.random.key(0), 1, GRID, 4, 4), images(4)
    run = lambda x: complementary.losses(model, variables, Inputs(x, None, None), scores, 4)
    np.testing.assert_allclose(run(x)[2:], run(x[2:]), rtol=1e-5)


def test_a_patch_without_data_has_no_loss(network):
    model, variables = network
    x = images(1)
    present = jnp.ones(x.shape, bool).at[:, :4, :4].set(False)
    inputs = Inputs(jnp.where(present, x, 0), present, present.astype(jnp.float32))
    scores = masking.partition(jax.random.key(0), 1, GRID, 4, 4)
    found = complementary.losses(model, variables, inputs, scores, 4)[0]
    assert np.isnan(found[0]) and not np.isnan(found[1:]).any()


def test_predictions_need_pixels(network):
    complementary.check_pixels(network[0])
    kind, fields = tiny_models.MODELS["autoencoder"]
    with pytest.raises(ValueError, match="norm_pix=False"):
        complementary.check_pixels(build.model(kind, fields | dict(norm_pix=True)))
    with pytest.raises(ValueError, match="no decoder"):
        complementary.check_pixels(tiny_models.model("classifier"))
