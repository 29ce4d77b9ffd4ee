"""What a model costs, against the counts of XLA and of torch; and what devices offer."""

import math

import jax
import jax.numpy as jnp
import pytest

from mae_jax.models import build, masking
from mae_jax.planning import devices, flops

SMALL = dict(
    patch=(16, 16),
    width=32,
    depth=1,
    heads=2,
    decoder_width=32,
    decoder_depth=1,
    decoder_heads=1,
    norm_pix=False,
)
# In each another part of the model is much of the work, and products are nearly all of it.
PARTS = {
    "encoder blocks": dict(width=256, depth=4),
    "decoder blocks": dict(decoder_width=256, decoder_depth=4),
    "attention": dict(patch=(2, 2), width=64, heads=1, decoder_width=64, decoder_depth=3),
    "patch embedding": dict(patch=(32, 32), width=1024, depth=0, decoder_width=32),
    "decoder embedding": dict(width=4096, depth=0, decoder_width=512),
    "head": dict(patch=(32, 32), width=8, depth=0, decoder_width=64),
}


@pytest.mark.parametrize("part", PARTS)
def test_counts_the_flops_that_xla_counts(part):
    """Of the forward pass, before it is compiled: then no product hides in a library call."""
    model = build.autoencoder(SMALL | PARTS[part])
    size, channels = (64, 64), 3
    n = math.prod(side // p for side, p in zip(size, model.patch, strict=True))
    keep = masking.keep_count(n, 0.5)
    parts = flops.forward_flops(model, n, keep, channels)
    ours = sum(parts.values())
    assert part == "attention" or parts[part] > 0.15 * ours

    images = jnp.zeros((1, *size, channels))
    mask = masking.from_scores(jnp.zeros((1, n)), keep)
    params = jax.eval_shape(model.init, jax.random.key(0), images, mask)
    forward = jax.jit(lambda params: model.apply(params, images, mask).loss)
    theirs = forward.lower(params).cost_analysis()["flops"]
    assert 0.9 < ours / theirs < 1


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("decoder", ["self", "own_cls", "cross"])
def test_a_step_has_the_products_that_its_program_has(decoder, loop):
    """Exactly: every product of the traced gradient, none of them of the pixels."""
    tokens = dict(cls_tokens=8, register_tokens=4) if decoder == "own_cls" else {}
    model = build.autoencoder(SMALL | dict(decoder=decoder, depth=2) | tokens)
    images, keep, batch = jnp.zeros((2, 64, 64, 3)), 6, 2
    mask = masking.from_scores(jnp.zeros((batch, 16)), keep)
    params = jax.eval_shape(model.init, jax.random.key(0), images, mask)["params"]
    loss = lambda params: model.apply({"params": params}, images, mask).loss
    gradient = jax.jit(jax.grad(loss))
    parts, times = flops.forward_flops(model, 16, keep, 3), 1
    if loop:
        gradient, times = (
            jax.jit(lambda x: jax.lax.map(lambda _: jax.grad(loss)(x), jnp.arange(3))),
            3,
        )
    counted = flops.program_flops(gradient.trace(params))
    assert counted == times * flops.step_flops(parts, batch)


def test_knows_devices_by_whole_words():
    """The longest name counts, and a name is no part of a word."""
    found = lambda kind: (
        devices.find(kind)
        and next(name for name, x in devices.DEVICES.items() if x is devices.find(kind))
    )
    names = {
        "NVIDIA A100-SXM4-40GB": "NVIDIA A100",
        "NVIDIA A100-SXM4-80GB": "NVIDIA A100 SXM4 80GB",
        "NVIDIA A100 80GB PCIe": "NVIDIA A100 80GB",
        "NVIDIA H100 80GB HBM3": "NVIDIA H100",
        "NVIDIA H100 PCIe": "NVIDIA H100 PCIe",
        "NVIDIA H200": "NVIDIA H200",
        "NVIDIA GH200 480GB": "NVIDIA GH200",
        "NVIDIA GH200 144G HBM3e": "NVIDIA GH200 144G",
        "NVIDIA L40": None,
        "TPU v4": "TPU v4",
        "TPU v5 lite": "TPU v5 lite",
        "TPU v5": "TPU v5",
        "TPU v6 lite": "TPU v6 lite",
        "cpu": None,
    }
    assert {kind: found(kind) for kind in names} == names


def test_devices_offer_what_is_possible():
    for name, x in devices.DEVICES.items():
        assert 1e12 < x.flops < 1e16 and 1e11 < x.bandwidth < 1e13, name
        assert 8e9 <= x.memory <= 1e12 and 1e10 < x.links < x.bandwidth, name
