"""Layers, and that what makes a step fast changes neither its loss nor its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mae_jax.models import attention, build, layers, masking, operations
from mae_jax.models.attention import pallas_tpu

ATTEND = attention.IMPLEMENTATIONS


def close(a, b, rtol=1e-5, atol=1e-6):
    paths = jax.tree_util.tree_leaves_with_path(a)
    for (path, x), y in zip(paths, jax.tree.leaves(b), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=name)


def normal(i: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(i).normal(size=shape), jnp.float32)


def textbook(query, key, value):
    """Attention in numpy's float64, one head of one sample at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros(query.shape)
    for b, h in np.ndindex(query.shape[0], query.shape[2]):
        logits = query[b, :, h] @ key[b, :, h].T / np.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max(1, keepdims=True))
        out[b, :, h] = weights / weights.sum(1, keepdims=True) @ value[b, :, h]
    return out


@pytest.mark.optimised
@pytest.mark.parametrize("n, s", [(5, 5), (5, 7), (150, 150), (150, 131)])
@pytest.mark.parametrize("name", ["reference", "recompute", "per_sample"])
def test_implementations_of_attention(name, n, s):
    three = normal(0, 2, n, 3, 8), normal(1, 2, s, 3, 8), normal(2, 2, s, 3, 8)
    weights = normal(3, 2, n, 3, 8)

    def weighted(name, *three):
        y = ATTEND[name](*three)
        return (y * weights).sum(), y

    graph = jax.jit(jax.grad(weighted, argnums=(1, 2, 3), has_aux=True), static_argnums=0)
    gradients, y = graph(name, *three)
    np.testing.assert_allclose(y, textbook(*three), atol=2e-6)
    close(gradients, graph("reference", *three)[0], atol=5e-6)


@pytest.mark.parametrize("n, s, size", [(5, 5, 16), (50, 50, 64), (9, 20, 80), (20, 9, 48)])
def test_the_kernel_for_tpus(n, s, size):
    """Interpreted, with heads that share a register, that span two, and that fill none."""
    shapes = ((2, n, 4, size), (2, s, 4, size), (2, s, 4, size), (2, n, 4, size))
    four = [normal(i, *shape) for i, shape in enumerate(shapes)]

    @functools.partial(jax.jit, static_argnums=0)
    def graph(name, *four):
        y, gradients = jax.vjp(ATTEND[name], *four[:3])
        return y, gradients(four[3])

    y, ours = graph("pallas", *four)
    np.testing.assert_allclose(y, textbook(*four[:3]), atol=2e-6)
    for x, expected in zip(ours, graph("reference", *four)[1], strict=True):
        np.testing.assert_allclose(x, expected, atol=5e-6)


def test_the_kernel_is_for_short_sequences():
    assert pallas_tpu.fits(197, 197, 512, 2) and pallas_tpu.fits(257, 257, 1280, 2)
    assert not pallas_tpu.fits(1568, 1568, 384, 2)
    three = [normal(i, 1, 600, 2, 8) for i in range(3)]
    traced = lambda name: str(jax.make_jaxpr(ATTEND[name])(*three))
    assert traced("pallas") == traced("recompute")


def test_an_unknown_implementation():
    with pytest.raises(
        ValueError,
        match="attention 'flash' is none of reference, recompute, per_sample, cudnn, pallas",
    ):
        build.autoencoder(dict(patch=(4,), width=8, depth=1, heads=2, attention="flash"))


@pytest.mark.parametrize("custom", [False, True])
def test_the_norm_is_that_of_flax(custom):
    x, weights = 3 + 2 * normal(0, 2, 5, 16), normal(1, 2, 5, 16)
    variables = {"params": {"scale": normal(2, 16), "bias": normal(3, 16)}}
    by_hand = {"layer_norm": operations.layer_norm_by_hand} if custom else {}
    ours = layers.Norm(1e-6, operations.Operations(**by_hand))
    flax = nn.LayerNorm(1e-6, use_fast_variance=False)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    started = lambda norm: shapes(jax.eval_shape(norm.init, jax.random.key(0), x))
    assert started(ours) == started(flax)
    graph = lambda norm: jax.jit(
        jax.value_and_grad(
            lambda variables, x: (norm.apply(variables, x) * weights).sum(), argnums=(0, 1)
        )
    )(variables, x)
    close(graph(ours), graph(flax), atol=5e-6)
    low = layers.Norm(1e-6, operations.Operations(jnp.bfloat16, **by_hand)).apply(variables, x)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        low.astype(jnp.float32), ours.apply(variables, x), rtol=2e-2, atol=0.05
    )


def test_products_have_the_usual_gradients():
    x, kernel, weights = normal(0, 2, 5, 4), normal(1, 4, 3), normal(2, 2, 5, 3)
    graph = lambda product: jax.jit(
        jax.grad(lambda *x: (product(*x) * weights).sum(), argnums=(0, 1))
    )
    close(graph(operations.product_by_hand)(x, kernel), graph(jnp.matmul)(x, kernel))


def low_of(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def test_gelu_is_exact():
    x = jnp.linspace(-10, 10, 2001)
    exact = lambda x: x / 2 * (1 + jax.scipy.special.erf(x / np.sqrt(2)))
    with jax.enable_x64(True):
        wanted = exact(jnp.asarray(np.asarray(x), jnp.float64))
    np.testing.assert_allclose(layers.gelu(x), wanted, atol=5e-7)
    low = layers.gelu(x.astype(jnp.bfloat16))  # rounded once, at the end
    np.testing.assert_array_equal(low, layers.gelu(low_of(x)).astype(jnp.bfloat16))


PLAIN = dict(attention="reference", remat="none", scan=False, custom=False)
ALL = dict(attention="per_sample", custom=True, remat="inputs", scan=True)
SAME = [  # is it the cross-decoder, the blocks of each part, options
    (False, 1, dict(custom=True)),
    (False, 1, dict(attention="recompute", custom=True)),
    (False, 1, dict(attention="per_sample", custom=True)),
    (False, 2, dict(scan=True)),
    (False, 1, dict(remat="products")),
    (False, 1, dict(remat="inputs")),
    (False, 2, ALL),
    (True, 1, dict(attention="recompute", custom=True)),
    (True, 2, ALL),
]


@functools.cache
def results_of(cross, depth, **options):
    """Parameters, and loss, intermediates and gradients of a model of so many blocks.

    Blocks beside each other start from their names alone, so that only several are initialised.
    """
    images = normal(0, 2, 48, 48, 3)
    mask = masking.from_scores(normal(1, 2, 144), 20)
    options = PLAIN | options
    custom = options.pop("custom")
    decoder = "cross" if cross else "self"
    fields = dict(patch=(4, 4), width=16, depth=depth, heads=2, decoder=decoder)
    fields |= dict(decoder_width=12, decoder_depth=depth, decoder_heads=3)
    model = build.autoencoder(fields | options, custom_gradients=custom)
    if depth > 1:
        params = jax.jit(model.init)(jax.random.key(2), images, mask)["params"]
    else:
        shapes = jax.eval_shape(model.init, jax.random.key(2), images, mask)["params"]
        params = jax.tree.map(lambda x: 0.1 * normal(x.size, *x.shape), shapes)

    def loss(params):
        out = model.apply({"params": params}, images, mask)
        return out.loss, out.intermediates

    return params, jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.optimised
@pytest.mark.parametrize("cross, depth, options", SAME, ids=str)
def test_options_of_speed_and_memory_change_no_result(cross, depth, options):
    expected = results_of(cross, depth)
    params, results = results_of(cross, depth, **options)
    close(params, expected[0], rtol=0, atol=0)  # the names, and where they start
    close(results, expected[1])


def test_remat_keeps_less():
    """Between forward and backward a block holds its input alone, or also products."""
    images = normal(0, 2, 16, 16, 3)
    mask = masking.from_scores(jax.random.uniform(jax.random.key(1), (2, 16)), 4)

    def kept(remat):
        fields = dict(patch=(4, 4), width=16, depth=3, heads=2, remat=remat)
        fields |= dict(decoder_width=16, decoder_depth=2, decoder_heads=2)
        model = build.autoencoder(fields, custom_gradients=True)
        params = jax.eval_shape(model.init, jax.random.key(2), images, mask)["params"]
        loss = lambda params: model.apply({"params": params}, images, mask).loss
        backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        return sum(x.size for x in jax.tree.leaves(backward))

    assert kept("inputs") < 0.7 * kept("products") < 0.6 * kept("none")


def test_forward_mode_works_without_custom_gradients():
    images = normal(0, 2, 48, 48, 3)
    mask = masking.from_scores(jax.random.uniform(jax.random.key(1), (2, 144)), 20)
    fields = dict(patch=(4, 4), width=16, depth=1, heads=2)
    fields |= dict(decoder_width=12, decoder_depth=1, decoder_heads=3)
    model = build.autoencoder(fields)
    for name in ("recompute", "per_sample", "pallas"):
        assert build.autoencoder(fields | dict(attention=name)) == model
    params = jax.jit(model.init)(jax.random.key(2), images, mask)["params"]
    loss = lambda images: model.apply({"params": params}, images, mask).loss
    direction = normal(3, *images.shape)
    _, slope = jax.jit(lambda x, d: jax.jvp(loss, (x,), (d,)))(images, direction)
    expected = (jax.jit(jax.grad(loss))(images) * direction).sum()
    np.testing.assert_allclose(slope, expected, rtol=1e-4)


def test_recomputed_attention_keeps_its_bits_in_bfloat16():
    """Its gradients are as near to float64 as those of `reference`."""
    shapes = [(2, 150, 4, 64)] * 4
    query, key, value, dy = (normal(i, *s).astype(jnp.bfloat16) for i, s in enumerate(shapes))

    @functools.partial(jax.jit, static_argnums=0)
    def gradients_of(attend, *inputs):
        return jax.vjp(attend, *inputs[:3])[1](inputs[3])

    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in (query, key, value, dy)]

        def exact(q, k, v):
            weights = jax.nn.softmax(jnp.einsum("bnhd,bshd->bhns", q, k) / 8)
            return jnp.einsum("bhns,bshd->bnhd", weights, v)

        wanted = [np.asarray(x) for x in gradients_of(exact, *wide)]

    def errors(name):
        ours = gradients_of(ATTEND[name], query, key, value, dy)
        norm = np.linalg.norm
        return [norm(np.float64(a) - b) / norm(b) for a, b in zip(ours, wanted, strict=True)]

    for recomputed, plain in zip(errors("recompute"), errors("reference"), strict=True):
        assert recomputed < 1.15 * plain


def test_a_tpu_takes_the_kernel_only_where_it_agrees_with_reference(monkeypatch, caplog):
    """The kernel is interpreted, as on a CPU; one that computes something else is refused."""
    pallas_tpu.agrees_with_reference.cache_clear()
    assert pallas_tpu.agrees_with_reference()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert attention.suited() == "pallas"
    run = pallas_tpu._run
    monkeypatch.setattr(pallas_tpu, "_run", lambda *x: [1.1 * y for y in run(*x)])
    pallas_tpu.agrees_with_reference.cache_clear()
    assert attention.suited() == "recompute"
    assert "does not agree with 'reference'" in caplog.text
    pallas_tpu.agrees_with_reference.cache_clear()
