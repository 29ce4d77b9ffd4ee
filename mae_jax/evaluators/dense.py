"""Dense features: a vector for each patch of an input of any size, encoded tile by tile."""

import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from mae_jax.data import arrays, notices, pipeline
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.modalities import transforms, volume
from mae_jax.data.values import Values
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.evaluators import features, held_out, tiles
from mae_jax.models import masking

_log = logging.getLogger(__name__)


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
        self.model, self.feature, self.transform, self.mesh = model, feature, transform, mesh
        self.overlap, self.batch_size = overlap, batch_size
        modality, self.data = transform.data["modality"], transform.data
        self._open = getattr(transforms.MODALITIES[modality], "open_values", None)
        if self._open is None:
            raise ValueError(
                f"dense features are those of images, volumes and signals, not of {modality}: "
                "leave dense out"
            )
        self._cut(transform.size)
        replicated = partitioning.replicated(mesh)
        self._encode = jax.jit(self._encode_batch, out_shardings=replicated)

    def open(self, value: Any) -> Values:
        """Return an input, the "image" of an example, whose parts are read when they are needed.

        Raises:
          Unreadable: it cannot be read, does not fit the model, or is smaller than a patch.
        """
        assert self._open is not None
        opened = self._open(value, self.data)
        if any(n < p for n, p in zip(opened.sides, self.model.patch, strict=True)):
            raise Unreadable(
                f"an input of size {opened.sides} is smaller than a patch {self.model.patch}: "
                "enlarge it"
            )
        has_times = self.data.get("reference_spacing") and self.data.get("time_band") is not None
        if has_times and opened.sides[0] < self.transform.size[0]:
            raise Unreadable(
                f"a signal of length {opened.sides[0]} has no times beyond its end: choose a size "
                f"below {self.transform.size[0]}"
            )
        cropped = tuple(n // p * p for n, p in zip(opened.sides, self.model.patch, strict=True))
        if cropped != opened.sides:
            text = "inputs such as one of size %s are cut at their ends to %s, whole patches of %s"
            notices.once(_log.info, text, opened.sides, cropped, self.model.patch)
        return opened

    def cells(self, opened: Values) -> tuple[int, ...]:
        """Return the number of patches along each side."""
        return tuple(n // p for n, p in zip(opened.sides, self.model.patch, strict=True))

    def place(self, opened: Values) -> dict[str, Any]:
        """Return the spacing and the frame of the feature map of an input.

        The spacing is that of its file or else `data.spacing`, times a patch.
        """
        array, patch = opened.array, self.model.patch
        spacing = array.spacing or self.data.get("spacing")
        spacing = spacing and tuple(s * p for s, p in zip(spacing, patch, strict=True))
        return dict(spacing=spacing, frame=array.frame and array.frame.strided(patch))

    def blocks(
        self, variables: dict, opened: Values
    ) -> Iterator[Float[np.ndarray, "rows *cells d"]]:
        """Yield the features, float32, in blocks of whole rows from the first to the last.

        Memory holds a few batches of tiles, and the features of one row of tiles.

        Raises:
          Unreadable: a part cannot be read, or its features are not finite.
        """
        tiling = self._cut(opened.sides)
        for block in tiles.blend(self._tiles(variables, opened, tiling), tiling):
            yield block.reshape(*block.shape[:-2], -1)

    def __call__(self, variables: dict, value: Any) -> FeatureMap:
        """Return the features of an input, the "image" of an example, in memory."""
        opened = self.open(value)
        blocks = list(self.blocks(variables, opened))
        return FeatureMap(np.concatenate(blocks), **self.place(opened))

    def _cut(self, sides: Sequence[int]) -> tiles.Tiling:
        cells, tile = (
            [n // p for n, p in zip(lengths, self.model.patch, strict=True)]
            for lengths in (sides, self.transform.size)
        )
        return tiles.cut(cells, tile, self.overlap)

    def _tiles(
        self, variables: dict, opened: Values, tiling: tiles.Tiling
    ) -> Iterator[Float[np.ndarray, "*tile k d"]]:
        """Yield the tokens of each tile; the last batch is filled up with copies of the last."""
        starts = tiling.starts
        size = min(self.batch_size, 1 << (len(starts) - 1).bit_length())  # few sizes to compile
        shares = device_mesh.batch_shares(self.mesh)
        size = -(-size // shares) * shares
        rows = partitioning.local_rows(self.mesh, size).tolist()
        places = [b + row for b in range(0, len(starts), size) for row in rows]
        load = functools.partial(self._read, opened, starts, places)
        parts = iter(pipeline.in_order(load, len(places), self.data["threads"], len(rows)))
        for first in range(0, len(starts), size):
            examples = list(itertools.islice(parts, len(rows)))
            batch = jax.tree.map(lambda *values: np.stack(values), *examples)
            tokens = self._encode(variables, partitioning.place(batch, self.mesh))
            tokens, is_finite = map(np.asarray, tokens)
            count = min(size, len(starts) - first)
            if not is_finite[:count].all():
                raise Unreadable("its features are not finite")
            yield from tokens[:count]

    def _read(
        self, opened: Values, starts: Sequence[tuple[int, ...]], places: Sequence[int], i: int
    ) -> dict[str, np.ndarray]:
        """Return the tile that fills one place of the batches, and where its values lie."""
        start = starts[min(places[i], len(starts) - 1)]
        corner = [a * p for a, p in zip(start, self.model.patch, strict=True)]
        tile = volume.crop(opened, corner, self.transform.size, at_end=True)
        return transforms.joined([opened.view(tile, corner, self.transform.size)])

    def _encode_batch(self, variables, batch) -> tuple[jax.Array, jax.Array]:
        """Return the tokens [b *tile k d], NaN where a patch has no data, and if others are finite.

        Tokens of one patch, such as those of channel groups, are along `k`.
        """
        values, present, _ = self.transform.split(batch["image"])
        mask = None if present is None else masking.whole(self.model.present(present))
        places = self.transform.coordinates(batch, self.model)
        _, maps = self.model.apply(variables, values, mask, places, method="encode")
        x = features.tokens_of(self.model, variables["params"], maps, self.feature)
        x = x[:, self.model.cls_tokens :].astype(jnp.float32)
        is_finite = jnp.isfinite(x).all((1, 2))
        if mask is not None:
            x = jnp.where(masking.masked_map(mask)[..., None] > 0, jnp.nan, x)
        cells = (n // p for n, p in zip(self.transform.size, self.model.patch, strict=True))
        x = x.reshape(len(x), -1, *cells, x.shape[-1])  # channel groups are the first axis
        return jnp.moveaxis(x, 1, -2), is_finite
