"""Attention in implementations that compute the same, each for the devices where it is fastest."""

import logging

import jax
from jaxtyping import Array, Float

from mae_jax.models.attention import pallas_tpu, per_sample, recompute, reference
from mae_jax.models.attention.reference import weights

__all__ = ["IMPLEMENTATIONS", "attend", "check", "suited", "weights"]

IMPLEMENTATIONS = ("reference", "recompute", "per_sample", "cudnn", "pallas")
PLATFORM = {"cudnn": "gpu", "pallas": "tpu"}  # the only platform of an implementation
_log = logging.getLogger(__name__)


def suited(platform: str | None = None, devices: int | None = None) -> str:
    """Return the implementation for a number of devices, by default for those that are here.

    On TPUs that is "pallas", once the kernel agrees with `reference` on the device itself; else
    "recompute" and a warning in the log.
    """
    here = jax.default_backend()
    platform = platform or here
    if platform == "tpu":
        if here != "tpu" or pallas_tpu.agrees_with_reference():
            return "pallas"
        _log.warning(
            "model.attention = 'auto': the Pallas kernel does not agree with 'reference' on this "
            "TPU, so 'recompute' is used"
        )
        return "recompute"
    alone = (devices or jax.device_count()) == 1  # on several, the loop would gather their samples
    return "per_sample" if platform == "cpu" and alone else "recompute"


def check(implementation: str, platform: str) -> None:
    """Raise ValueError if a config names an implementation that such devices do not have."""
    if PLATFORM.get(implementation, platform) != platform:
        raise ValueError(
            f"model.attention = {implementation!r} needs a {PLATFORM[implementation].upper()}, "
            f"here it is a {platform.upper()}: use 'auto'"
        )


def attend(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b s h d"],
    value: Float[Array, "b s h d"],
    implementation: str = "reference",
    custom_gradients: bool = True,
) -> Float[Array, "b n h d"]:
    """Return `softmax(query @ key / sqrt(d)) @ value` for each head.

    Args:
      implementation: "reference" is three operations and their automatic gradient; "recompute"
        keeps no weights for the gradient, for less memory and less traffic to it; "per_sample"
        takes one sample at a time, which is faster on a single CPU when there are many tokens;
        "cudnn" is NVIDIA's kernel for float16 and bfloat16; "pallas" is a kernel for TPUs and short
        sequences, and "recompute" where the kernel does not fit.
      custom_gradients: False: use "reference" in place of the implementations whose gradient is
        hand-written, since these have no forward mode (`jax.jvp`).

    Raises:
      ValueError: there is no such implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    if implementation == "reference" or not custom_gradients:
        return reference.attend(query, key, value)
    if implementation == "pallas" and (split := pallas_tpu.splitter(query, key)):
        return pallas_tpu.attend(split, query, key, value)
    if implementation in ("recompute", "pallas"):
        return recompute.attend(query, key, value)
    if query.shape[1] * key.shape[1] > per_sample.LEAST:
        return per_sample.attend(query, key, value)
    return reference.attend(query, key, value)
