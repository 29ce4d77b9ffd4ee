"""The NNX module of a model is the linen model: the same numbers, arrays and names."""

import functools

import jax
import numpy as np
import optax
import pytest
import tiny_models
from flax import nnx

from mae_jax.models import build, masking
from mae_jax.models.nnx import to_nnx

SMALL = tiny_models.TINY | dict(depth=1)
KINDS = {
    "autoencoder": ("MaskedAutoencoder", tiny_models.DECODER | dict(decoder_depth=1)),
    "classifier": ("Classifier", dict(classes=5, learned_positions=True, scan=True)),
    "encoder": ("Classifier", dict(classes=0, pooling="cls")),
}


@functools.cache
def case(name):
    """A model, its parameters, and the arguments of a call."""
    kind, fields = KINDS[name]
    model = build.model(kind, SMALL | fields)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    mask = masking.from_scores(jax.random.uniform(jax.random.key(1), (2, 16)), 4)
    inputs = (images, mask) if name == "autoencoder" else (images,)
    return model, tiny_models.random_params(model), inputs


def parameters(module):
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


@pytest.mark.parametrize("name", KINDS)
def test_the_results_are_those_of_linen_to_the_bit(name):
    model, params, inputs = case(name)
    found = nnx.jit(lambda module, *inputs: (module(*inputs), module.encode(inputs[0])))
    linen = functools.partial(model.apply, method="encode")
    expected = jax.jit(lambda variables, *x: (model.apply(variables, *x), linen(variables, x[0])))
    tiny_models.equal(found(to_nnx(model, params), *inputs), expected({"params": params}, *inputs))


def test_the_encoder_alone():
    model, params, (images,) = case("encoder")
    module = to_nnx(model.encoder, params["encoder"])
    tiny_models.equal(module(images), to_nnx(model, params).encode(images))


@pytest.mark.parametrize("name", KINDS)
def test_the_parameters_are_the_same_arrays_under_the_same_names(name):
    model, params, _ = case(name)
    module = to_nnx(model, params)
    found = parameters(module)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert all(map(lambda a, b: a is b, jax.tree.leaves(found), jax.tree.leaves(params)))
    assert module.encoder["cls"].get_value() is params["encoder"]["cls"]
    assert not jax.tree.leaves(nnx.state(module, nnx.Not(nnx.Param)))


def test_a_step_of_an_optimizer_is_that_of_linen():
    """And leaves the given parameters as they are."""
    model, params, inputs = case("autoencoder")
    tx, before = optax.sgd(0.01), jax.tree.map(np.array, params)
    module = to_nnx(model, params)
    optimizer = nnx.Optimizer(module, tx, wrt=nnx.Param)

    @nnx.jit
    def nnx_step(module, optimizer):
        loss, gradient = nnx.value_and_grad(lambda module: module(*inputs).loss)(module)
        optimizer.update(module, gradient)
        return loss

    @jax.jit
    def linen_step(params):
        of = lambda params: model.apply({"params": params}, *inputs).loss
        loss, gradient = jax.value_and_grad(of)(params)
        updates, _ = tx.update(gradient, tx.init(params), params)
        return loss, optax.apply_updates(params, updates)

    loss = nnx_step(module, optimizer)
    expected, updated = linen_step(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, parameters(module), updated)
    assert nnx_step(module, optimizer) < 0.99 * loss
    tiny_models.equal(params, before)
    merged = nnx.merge(*nnx.split(module))
    tiny_models.equal(parameters(merged), parameters(module))
    assert nnx_step(merged, nnx.Optimizer(merged, tx, wrt=nnx.Param)) < 0.98 * loss


def test_it_can_be_a_part_of_a_module():
    model, params, (images,) = case("encoder")

    class Regressor(nnx.Module):
        def __init__(self, backbone, rngs):
            self.backbone, self.head = backbone, nnx.Linear(24, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.backbone(x))

    regressor = Regressor(to_nnx(model, params), nnx.Rngs(0))
    gradient = nnx.jit(nnx.grad(lambda module: (module(images) ** 2).sum()))(regressor)
    assert np.abs(gradient["backbone"]["encoder"]["cls"].get_value()).max() > 0
