"""Scorers: how unlike good examples each patch of a batch is, in two ways with one signature.

A scorer is a pytree of what it learned, and its call returns a map [b *cells], which is NaN where a
patch has no data, and which inputs have finite results [b].
"""

import functools
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from mae_jax.applications.anomaly import score_maps
from mae_jax.data.augment.missing import Inputs
from mae_jax.evaluators import complementary, dense
from mae_jax.evaluators.features import Feature
from mae_jax.models import masking

_CHUNK = 1024  # vectors of the memory that are compared at once
_MOST_MASKS = 64


class Scored(NamedTuple):
    """What a scorer says of a batch."""

    maps: Float[Array, "b *cells"]
    is_finite: Bool[Array, "b"]


class Scorer(Protocol):
    """What both scorers are."""

    def __call__(self, model: Any, params: dict, inputs: Inputs, coordinates: Any) -> Scored: ...


@struct.dataclass
class Reconstruction:
    """The error of a masked autoencoder that predicts each patch from others.

    The masks are those of `masking.partition`, so each patch is predicted equally often, and its
    score is the mean error. Errors are in the terms of the model's target: squared errors of
    normalised values; with `norm_pix`, of values that are standardised within their patch, so that
    brightness and contrast do not count and patches of little contrast weigh as much as others.

    Args:
      order: the scores of the patches for each mask, see `complementary.losses`.
      keep: how many patches each mask shows.
    """

    order: Float[Any, "g 1 n"]  # of numpy or of jax
    keep: int = struct.field(pytree_node=False)

    def __call__(self, model, params, inputs, coordinates):
        cells = _cells(model, inputs)
        found = complementary.losses(
            model, {"params": params}, inputs, self.order, self.keep, coordinates
        )
        found = found.reshape(found.shape[0], -1, *cells)  # channel groups are the first axis
        exists = ~jnp.isnan(found)
        total, count = jnp.where(exists, found, 0).sum(1), exists.astype(jnp.float32).sum(1)
        maps = jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)
        is_finite = _has_finite(maps)
        if inputs.weight is not None:  # two patches, one to see and one to predict
            is_finite |= model.present(inputs.weight).astype(jnp.float32).sum(1) < 2
        return Scored(maps, is_finite & ~(maps == jnp.inf).any(tuple(range(1, maps.ndim))))


def reconstruction(model: Any, size: tuple[int, ...], ratio: float, seed: int) -> Reconstruction:
    """Return the scorer whose masks hide about `ratio` of the patches, each equally often.

    The patches are shared out among groups of equal size, of which each mask shows one.

    Raises:
      ValueError: the number of patches has no suitable divisor.
    """
    shape = model.grid(size)
    n = math.prod(shape)
    divisors = [g for g in range(2, min(n, _MOST_MASKS) + 1) if n % g == 0]
    if not divisors:
        raise ValueError(
            f"{n} patches of size {size} cannot be shared out equally among 2 to {_MOST_MASKS} "
            "masks: choose another --size"
        )
    groups = min(divisors, key=lambda g: abs(math.log(g * (1 - ratio))))
    keep = n // groups
    order = masking.partition(jax.random.key(seed), 1, shape, groups, keep)
    return Reconstruction(order, keep)


@struct.dataclass
class PatchMemory:
    """The distance of the features of each patch to the nearest ones of good examples.

    A feature is the mean over 3x3 patches (3x3x3 of volumes) of the tokens of a block,
    standardised on good examples. The distance is the root of the mean squared difference over its
    dimensions. The method is that of PatchCore (arXiv 2106.08265).

    Args:
      memory: standardised features.
      mean, std: of the features of good examples.
      feature: the block and the norm; its pooling is not used.
    """

    memory: Float[Any, "m d"]  # of numpy or of jax
    mean: Float[Any, "d"]
    std: Float[Any, "d"]
    feature: Feature = struct.field(pytree_node=False)

    def __call__(self, model, params, inputs, coordinates):
        x, is_finite = features(model, params, inputs, coordinates, self.feature)
        x, one = x.reshape(x.shape[0], -1, x.shape[-1]), (None, None)
        x = (x - self.mean[one]) / self.std[one]
        maps = nearest(x, self.memory).reshape(x.shape[0], *_cells(model, inputs))
        return Scored(maps, is_finite)


def features(
    model: Any, params: dict, inputs: Inputs, coordinates: Any, feature: Feature
) -> tuple[Float[Array, "b *cells d"], Bool[Array, "b"]]:
    """Return the local means of the tokens of patches, and which inputs have finite ones.

    The tokens of the channel groups of one patch are joined.
    """
    x, is_finite = dense.patch_tokens(model, params, inputs, coordinates, feature)
    x = x.reshape(*x.shape[:-2], -1)
    return score_maps.local_mean(x, range(1, x.ndim - 1)), is_finite


def nearest(x: Float[Array, "b n d"], memory: Float[Array, "m d"]) -> Float[Array, "b n"]:
    """Return the distance of each vector to the nearest one of the memory, in float32.

    It is the root of the mean squared difference over the dimensions. The nearest vector is found
    by products of matrices, and the difference itself is computed, so that equal vectors have the
    distance 0.
    """
    memory, count = jnp.asarray(memory), min(_CHUNK, len(memory))
    rows = jnp.arange(-(-len(memory) // count) * count) % len(memory)
    rows = rows.reshape(-1, count)  # the last chunk is filled up with the first vectors

    def compare(best, rows):
        chunk = memory[rows]
        product = jnp.einsum("bnd,md->bnm", x, chunk, precision=jax.lax.Precision.HIGHEST)
        similarity = product - (jnp.square(chunk).sum(-1) / 2)[None, None]
        new = similarity.max(-1), rows[similarity.argmax(-1)]
        is_better = new[0] > best[0]
        return jax.tree.map(functools.partial(jnp.where, is_better), new, best), None

    start = jnp.full(x.shape[:2], -jnp.inf), jnp.zeros(x.shape[:2], jnp.int32)
    (_, index), _ = jax.lax.scan(compare, start, rows)
    return jnp.sqrt(jnp.square(x - memory[index]).mean(-1))


def default_block(depth: int) -> int:
    """Return the block about two thirds up, whose features suit distances better than the last."""
    return max(0, round(depth * 2 / 3) - 1)


def _cells(model: Any, inputs: Inputs) -> tuple[int, ...]:
    sides = inputs.values.shape[1:-1]
    return tuple(n // p for n, p in zip(sides, model.patch, strict=True))


def _has_finite(maps: jax.Array) -> jax.Array:
    return jnp.isfinite(maps).any(tuple(range(1, maps.ndim)))


def parts(scorer: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a scorer by the names of its fields."""
    paths = jax.tree_util.tree_flatten_with_path(scorer)[0]
    return {jax.tree_util.keystr(p, simple=True): np.asarray(x) for p, x in paths}
