"""Attention in forms that compute the same, each for the devices where it is the fastest."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mae_jax.distributed import partitioning
from mae_jax.models import attention_tpu

FORMS = ("plain", "light", "mapped", "cudnn", "pallas")
OF = {"cudnn": "gpu", "pallas": "tpu"}  # where alone they are


def suited(platform: str | None = None, devices: int | None = None) -> str:
    """The form for so many devices, by default for those here."""
    platform = platform or jax.default_backend()
    alone = (devices or jax.device_count()) == 1  # mapping would gather the samples of others
    return {"cpu": "mapped" if alone else "light", "tpu": "pallas"}.get(platform, "light")


def check(form: str, platform: str) -> None:
    """Raise ValueError if a config names a form that there is not on such devices."""
    if OF.get(form, platform) != platform:
        raise ValueError(
            f"model.attention = {form!r} needs a {OF[form].upper()}, here it is a "
            f"{platform.upper()}: use 'auto'"
        )


def attend(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b s h d"],
    value: Float[Array, "b s h d"],
    form: str = "plain",
) -> Float[Array, "b n h d"]:
    """What each token gathers: `softmax(query @ key / sqrt(d)) @ value` for each head.

    Args:
      form: "plain" is three operations and their automatic gradient; "light" keeps no weights for
        the gradient and computes them again, for less memory and less traffic to it; "mapped" takes
        one sample at a time, which is faster on one CPU when there are many tokens, since the
        weights of a sample stay in its cache; "cudnn" is NVIDIA's kernel for float16 and bfloat16;
        "pallas" is a kernel for TPUs and short sequences, and "light" where it cannot be.

    Raises:
      ValueError: there is no such form.
    """
    if form == "pallas" and (split := _splittable(query, key)):
        flat: Any = _kernel(split, query.shape[-1], *map(_flat, (query, key, value)))
        return flat.reshape(query.shape)
    if form in ("light", "pallas"):
        return _light(query, key, value)
    if form == "mapped" and query.shape[1] * key.shape[1] > 128 * 128:
        return _mapped(query * query.shape[-1] ** -0.5, key, value)
    if form == "cudnn":
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    if form not in FORMS:
        raise ValueError(f"attention {form!r} is none of {', '.join(FORMS)}")
    return jnp.einsum("bhns,bshd->bnhd", weights(query, key), value)


def weights(
    query: Float[Array, "b n h d"], key: Float[Array, "b s h d"]
) -> Float[Array, "b h n s"]:
    """How much each token looks at each of the others, for each head."""
    logits = jnp.einsum("bnhd,bshd->bhns", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * query.shape[-1] ** -0.5).astype(query.dtype)


# --- without kept weights -------------------------------------------------------------------------


@jax.custom_vjp
def _light(query, key, value):
    return _light_forward(query, key, value)[0]


def _light_forward(query, key, value):
    raised = _exponentials(query, key)
    y = jnp.einsum("bhns,bshd->bnhd", raised, value, preferred_element_type=jnp.float32)
    total = raised.sum(-1, dtype=jnp.float32)  # divided by it are d numbers a token, and not s
    y = (y / total.swapaxes(1, 2)[..., None]).astype(query.dtype)
    return y, (query, key, value, y)


def _light_backward(kept, gradient):
    query, key, value, y = kept
    raised = _exponentials(query, key)
    weights = (raised / raised.sum(-1, dtype=jnp.float32, keepdims=True)).astype(query.dtype)
    # how much each token gains if all of its weights grow alike, from d numbers a token again
    alike = (gradient.astype(jnp.float32) * y).sum(-1).swapaxes(1, 2)[..., None]
    to_weights = jnp.einsum("bnhd,bshd->bhns", gradient, value, preferred_element_type=jnp.float32)
    to_logits = (weights * (to_weights - alike) * query.shape[-1] ** -0.5).astype(query.dtype)
    return (
        jnp.einsum("bhns,bshd->bnhd", to_logits, key),
        jnp.einsum("bhns,bnhd->bshd", to_logits, query),
        jnp.einsum("bhns,bnhd->bshd", weights, gradient),
    )


_light.defvjp(_light_forward, _light_backward)


def _exponentials(query, key):
    logits = jnp.einsum("bnhd,bshd->bhns", query, key, preferred_element_type=jnp.float32)
    logits = logits * query.shape[-1] ** -0.5
    return jnp.exp(logits - logits.max(-1, keepdims=True)).astype(query.dtype)


# --- a kernel for TPUs, on whatever each device holds ---------------------------------------------


def _splittable(query, key) -> Callable | None:
    """How to call a kernel on each device's part; None if it would not fit or nobody knows how."""
    _, n, heads, size = query.shape
    if not attention_tpu.fits(n, key.shape[1], heads * size, query.dtype.itemsize):
        return None
    return partitioning.on_each(heads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kernel(split, size, *three):
    return split(_lowered(attention_tpu.forward, size))(*three)


def _lowered(kernel: Callable, size: int) -> Callable:
    """The kernel where it is compiled for a TPU, whatever runs here; its operations elsewhere."""
    return lambda *arrays: jax.lax.platform_dependent(
        *arrays,
        tpu=functools.partial(kernel, size=size),
        default=functools.partial(kernel, size=size, interpret=True),
    )


_kernel.defvjp(
    lambda split, size, *three: (_kernel(split, size, *three), three),
    lambda split, size, kept, gradient: split(_lowered(attention_tpu.backward, size))(
        *kept, gradient
    ),
)


def _flat(x: Float[Array, "b n h d"]) -> Float[Array, "b n w"]:
    return x.reshape(*x.shape[:2], -1)


# --- one sample at a time: [h n d] instead of [b h n d] ------------------------------------------


@jax.custom_vjp
def _mapped(query, key, value):
    def one(sample):
        query, key, value = map(_heads_first, sample)
        return _heads_first(_softmax(query, key) @ value)

    return jax.lax.map(one, (query, key, value))


def _mapped_backward(kept, gradient):
    def one(sample):
        query, key, value, gradient = map(_heads_first, sample)
        weights = _softmax(query, key)  # again: faster than to keep those of all samples
        to_weights = jnp.einsum("hnd,hsd->hns", gradient, value, preferred_element_type=jnp.float32)
        to_logits = weights * (to_weights - (to_weights * weights).sum(-1, keepdims=True))
        to_logits = to_logits.astype(query.dtype)
        to_three = to_logits @ key, _turned(to_logits) @ query, _turned(weights) @ gradient
        return tuple(map(_heads_first, to_three))

    return jax.lax.map(one, (*kept, gradient))


_mapped.defvjp(lambda *three: (_mapped(*three), three), _mapped_backward)


def _softmax(query, key):
    logits = jnp.einsum("hnd,hsd->hns", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits).astype(query.dtype)


def _heads_first(x: Float[Array, "n h d"]) -> Float[Array, "h n d"]:
    return x.swapaxes(0, 1)  # and back


def _turned(x: Float[Array, "h n d"]) -> Float[Array, "h d n"]:
    return x.swapaxes(1, 2)
