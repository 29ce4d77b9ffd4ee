"""Attention in implementations that compute the same, each for the devices where it is fastest.

Each is a function of query [b n h d], key and value [b s h d] that returns
`softmax(query @ key / sqrt(d)) @ value` for each head, [b n h d]. With `key_mask` [b s], keys where
it is False have no weight. All but "reference" and "cudnn" have gradients written by hand, and no
forward mode (`jax.jvp`).
"""

import logging

import jax

from mae_jax.models.attention import cudnn, pallas_tpu, per_sample, recompute, reference

IMPLEMENTATIONS = {
    "reference": reference.attend,  # three operations and their automatic gradient
    "recompute": recompute.attend,  # keeps no weights for the gradient: less memory and traffic
    "per_sample": per_sample.attend,  # faster on a single CPU when there are many tokens
    "cudnn": cudnn.attend,  # NVIDIA's kernel for float16 and bfloat16
    "pallas": pallas_tpu.attend,  # a kernel for TPUs and short sequences
}
FORWARD_MODE = ("reference", "cudnn")
PLATFORM = {"cudnn": "gpu", "pallas": "tpu"}  # the only platform of an implementation
_log = logging.getLogger(__name__)


def suited(platform: str | None = None, devices: int | None = None) -> str:
    """Return the implementation for a number of devices, by default for jax's own.

    On TPUs that is "pallas", once the kernel agrees with `reference` on the device itself; else
    "recompute" and a warning in the log.
    """
    default = jax.default_backend()
    platform = platform or default
    if platform == "tpu":
        if default != "tpu" or pallas_tpu.agrees_with_reference():
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
