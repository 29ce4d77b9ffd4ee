"""Dense features: a vector for each patch of an input of any size, encoded tile by tile."""

import functools
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from mae_jax.data import arrays
from mae_jax.data.augment.missing import Inputs
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.values import Values
from mae_jax.distributed import partitioning
from mae_jax.evaluators import features, held_out, tiles
from mae_jax.evaluators.tiled_inputs import TiledInputs
from mae_jax.models import masking


class FeatureMap(NamedTuple):
    """The dense features of an input, and where they lie in the world."""

    values: Float[np.ndarray, "*cells d"]  # float32; NaN where a patch has no data
    spacing: tuple[float, ...] | None = None  # of a cell, as `arrays.Array.spacing`
    frame: arrays.Frame | None = None


class DenseExtractor:
    """An extractor of the features of all patches of an input, at the input's own resolution.

    The input is cut into overlapping tiles of the size that the model sees, so that a patch has the
    positions that it has in a tile. The features of a patch are a mean over the tiles that hold it,
    weighted by `tiles.window`. An input smaller than a tile is continued at its end: by missing
    values if `data.nodata` is set, else by its edge values. What is left of a side after the last
    whole patch is not encoded.

    Args:
      model: a model with a method `encode`.
      feature: its pooling is not used, nor the norm that a classifier has after the pooling.
      overlap: the share of a tile's length that neighbours share, in [0, 1).
      batch_size: the largest number of tiles that are encoded at once, on all devices together.

    Raises:
      ValueError: examples of this modality have no patches to cut, or the overlap is out of range.
    """

    def __init__(
        self,
        model: Any,
        feature: features.Feature,
        transform: held_out.EvalTransform,
        mesh: Mesh,
        overlap: float = 0.5,
        batch_size: int = 256,
    ):
        self.model, self.feature, self.transform = model, feature, transform
        self.inputs = TiledInputs(model, transform, mesh, overlap, batch_size)
        self.open = self.inputs.open
        replicated = partitioning.replicated(mesh)
        self._encode = jax.jit(self._encode_batch, out_shardings=replicated)

    def cells(self, opened: Values) -> tuple[int, ...]:
        """Return the number of patches along each side."""
        return self.inputs.cells(opened.sides)

    def place(self, opened: Values) -> dict[str, Any]:
        """Return the spacing and the frame of the feature map of an input: see `place_of`."""
        return place_of(opened, self.model.patch)

    def blocks(
        self, variables: dict, opened: Values
    ) -> Iterator[Float[np.ndarray, "rows *cells d"]]:
        """Yield the features, float32, in blocks of whole rows from the first to the last.

        Memory holds a few batches of tiles, and the features of one row of tiles.

        Raises:
          Unreadable: a part cannot be read, or its features are not finite.
        """
        tiling = self.inputs.patches(opened.sides)
        for block in tiles.blend(self._tiles(variables, opened, tiling), tiling):
            yield block.reshape(*block.shape[:-2], -1)

    def __call__(self, variables: dict, value: Any) -> FeatureMap:
        """Return the features of an input, the "image" of an example, in memory."""
        opened = self.open(value)
        blocks = list(self.blocks(variables, opened))
        return FeatureMap(np.concatenate(blocks), **self.place(opened))

    def _tiles(
        self, variables: dict, opened: Values, tiling: tiles.Tiling
    ) -> Iterator[Float[np.ndarray, "*tile k d"]]:
        """Yield the tokens of each tile."""
        patch = self.model.patch
        corners = [tuple(map(operator.mul, start, patch)) for start in tiling.starts]
        read = functools.partial(self.inputs.tile, opened)
        for batch, count in self.inputs.batches(corners, read):
            tokens, is_finite = map(np.asarray, self._encode(variables, batch))
            if not is_finite[:count].all():
                raise Unreadable("its features are not finite")
            yield from tokens[:count]

    def _encode_batch(self, variables, batch) -> tuple[jax.Array, jax.Array]:
        inputs, places = (
            self.transform.split(batch["image"]),
            self.transform.coordinates(batch, self.model),
        )
        return patch_tokens(self.model, variables["params"], inputs, places, self.feature)


def place_of(opened: Values, patch: Sequence[int]) -> dict[str, Any]:
    """Return the `spacing` and the `frame` of the patches of an input.

    The spacing is that of its file or else `data.spacing`, times a patch.
    """
    array, spacing = opened.array, opened.array.spacing or opened.data.get("spacing")
    spacing = spacing and tuple(s * p for s, p in zip(spacing, patch, strict=True))
    return dict(spacing=spacing, frame=array.frame and array.frame.strided(patch))


def patch_tokens(
    model: Any, params: dict, inputs: Inputs, coordinates: Any, feature: features.Feature
) -> tuple[Float[jax.Array, "b *cells k d"], Bool[jax.Array, "b"]]:
    """Return the tokens of a batch, NaN where a patch has no data, and if others are finite.

    Tokens of one patch, such as those of channel groups, are along `k`.
    """
    mask = None if inputs.present is None else masking.whole(model.present(inputs.present))
    _, maps = model.apply({"params": params}, inputs.values, mask, coordinates, method="encode")
    x = features.tokens_of(model, params, maps, feature)
    x = x[:, model.cls_tokens :].astype(jnp.float32)
    is_finite = jnp.isfinite(x).all((1, 2))
    if mask is not None:
        x = jnp.where(masking.masked_map(mask)[..., None] > 0, jnp.nan, x)
    sides = inputs.values.shape[1:-1]
    cells = (n // p for n, p in zip(sides, model.patch, strict=True))
    x = x.reshape(x.shape[0], -1, *cells, x.shape[-1])  # channel groups are the first axis
    return jnp.moveaxis(x, 1, -2), is_finite
