"""What a config's section `mask` means: how many patches are hidden, and which."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mae_jax.models import masking, patches

NAMES = ("random", "block", "grid", "joint", "tube", "frame", "time", "frequency", "importance")


class Hiding(NamedTuple):
    """A strategy on the grid of an input."""

    n: int  # patches
    keep: int  # of them that stay visible
    decode: int  # of the hidden ones that are predicted
    scores: Callable[[jax.Array, jax.Array], jax.Array]  # key, images [b *size c] -> [b n]


def of(
    mask: Mapping[str, Any], size: Sequence[int], patch: Sequence[int], groups: patches.Groups = ()
) -> Hiding:
    """The strategy `mask["name"]` with the share `mask["ratio"]` hidden.

    Args:
      mask: also `decode`, the share of the hidden patches that is predicted, and `side`, of the
        boxes of `joint`; all but `ratio` may be missing.
      size, patch, groups: of the inputs and the model.

    Raises:
      ValueError: a strategy of clips or spectrograms on a grid with another number of axes, or a
        ratio that hides or shows nothing.
    """
    name, side = mask.get("name", "random"), mask.get("side", 2)
    shape = patches.grid_of(size, patch, groups)
    axes, n = len(shape), math.prod(shape)
    needed = {"tube": 3, "frame": 3, "time": 2, "frequency": 2}
    if needed.get(name, axes) != axes:
        kind = "clips (frames, height, width)" if needed[name] == 3 else "spectrograms (time, mel)"
        raise ValueError(f"mask.name = {name!r} is of {kind}, not of a grid {shape}: use 'random'")
    kept_along = {"tube": (1, 2), "frame": (0,), "time": (0,), "frequency": (1,)}
    together = 1
    if name in kept_along:
        together = n // math.prod(shape[axis] for axis in kept_along[name])
    if name == "joint" and side > min(shape[bool(groups) :]):
        raise ValueError(f"mask.side = {side} is larger than the grid {shape}: use 2, 3 or 4")
    box = (1,) * bool(groups) + (side,) * (axes - bool(groups))  # groups are hidden on their own
    if name == "joint" and not any(x % y for x, y in zip(shape, box, strict=True)):
        together = math.prod(box)
    keep = masking.keep_count(n, mask["ratio"], together)

    def scores(key, images):
        b = len(images)
        match name:
            case "random":
                return masking.random(key, b, shape)
            case "block":
                return masking.block(key, b, shape)
            case "grid":
                return masking.grid(key, b, shape)
            case "joint":
                return masking.joint(key, b, shape, box)
            case "importance":
                return masking.importance(key, -contrast(images, patch, groups))
            case _:
                return masking.along(key, b, shape, kept_along[name])

    decode = max(1, round((n - keep) * mask.get("decode", 1.0)))
    return Hiding(n, keep, decode, scores)


def contrast(images: jax.Array, patch: Sequence[int], groups: patches.Groups = ()) -> jax.Array:
    """The standard deviation of each patch, `[b, n]`, standardised over those of its picture."""
    weights = patches.weights_of(groups, patch, images.shape[-1])
    x = patches.patchify(images.astype(jnp.float32), patch)
    of_group = [patches.statistics(x, jnp.asarray(row))[1][..., 0] for row in weights]
    spread = jnp.concatenate(of_group, axis=1)
    return (spread - spread.mean(1, keepdims=True)) / (spread.std(1, keepdims=True) + 1e-6)
