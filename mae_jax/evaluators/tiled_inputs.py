"""Inputs of any size, cut into overlapping tiles of the size that a model sees."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.data import notices, pipeline
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.modalities import transforms, volume
from mae_jax.data.values import Values
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.evaluators import held_out, tiles

_log = logging.getLogger(__name__)
Tile = dict[str, np.ndarray]  # an example, "image" and what else is read of it


@dataclasses.dataclass(frozen=True)
class TiledInputs:
    """Inputs of any size, as batches of tiles.

    An input smaller than a tile is continued at its end: by missing values if `data.nodata` is set,
    else by its edge values.

    Args:
      overlap: the share of a tile's length that neighbours share, in [0, 1).
      batch_size: the largest number of tiles of a batch, on all devices together.

    Raises:
      ValueError: examples of this modality have no patches to cut, or the overlap is out of range.
    """

    model: Any
    transform: held_out.EvalTransform
    mesh: Mesh
    overlap: float = 0.5
    batch_size: int = 256

    def __post_init__(self):
        if self._open_values is None:
            raise ValueError(
                "tiles are those of images, volumes and signals, not of "
                f"{self.transform.data['modality']}"
            )
        self.patches(self.transform.size)

    @property
    def _open_values(self) -> Callable | None:
        module = transforms.MODALITIES[self.transform.data["modality"]]
        return getattr(module, "open_values", None)

    def open(self, value: Any) -> Values:
        """Return an input, the "image" of an example, whose parts are read when they are needed.

        Raises:
          Unreadable: it cannot be read, does not fit the model, or is smaller than a patch.
        """
        assert self._open_values is not None
        data, size = self.transform.data, self.transform.size
        opened = self._open_values(value, data)
        if any(n < p for n, p in zip(opened.sides, self.model.patch, strict=True)):
            raise Unreadable(
                f"an input of size {opened.sides} is smaller than a patch {self.model.patch}: "
                "enlarge it"
            )
        has_times = data.get("reference_spacing") and data.get("time_band") is not None
        if has_times and opened.sides[0] < size[0]:
            raise Unreadable(
                f"a signal of length {opened.sides[0]} has no times beyond its end: choose a size "
                f"below {size[0]}"
            )
        return opened

    def cells(self, sides: Sequence[int]) -> tuple[int, ...]:
        """Return the number of whole patches along each side.

        What is left of a side after the last whole patch is in none of them, and that is told.
        """
        patch = self.model.patch
        cells = tuple(n // p for n, p in zip(sides, patch, strict=True))
        cropped = tuple(n * p for n, p in zip(cells, patch, strict=True))
        if cropped != tuple(sides):
            text = "inputs such as one of size %s are cut at their ends to %s, whole patches of %s"
            notices.once(_log.info, text, tuple(sides), cropped, patch)
        return cells

    def patches(self, sides: Sequence[int]) -> tiles.Tiling:
        """Return the tiles of an input, counted in patches."""
        return tiles.cut(self.cells(sides), self.cells(self.transform.size), self.overlap)

    def values(self, sides: Sequence[int]) -> tiles.Tiling:
        """Return the tiles of an input, counted in values: the last ones end where it ends."""
        return tiles.cut(sides, self.transform.size, self.overlap)

    def batches(
        self, corners: Sequence[Sequence[int]], read: Callable[[Sequence[int]], Tile]
    ) -> Iterator[tuple[dict[str, jax.Array], int]]:
        """Yield tiles in batches on the mesh, and how many tiles of a batch count.

        The last batch is filled up with copies of the last tile. Tiles are read ahead, in threads.

        Args:
          corners: the first value of each tile along each side.
          read: returns a tile by its corner, such as `tile`.
        """
        # Sizes are powers of 2 up to the largest one, so that few are compiled.
        size = min(self.batch_size, 1 << (len(corners) - 1).bit_length())
        shares = device_mesh.batch_shares(self.mesh)
        size = -(-size // shares) * shares
        rows = partitioning.local_rows(self.mesh, size).tolist()
        chosen = [
            corners[min(first + row, len(corners) - 1)]
            for first in range(0, len(corners), size)
            for row in rows
        ]
        load = functools.partial(_read, read, chosen)
        threads = self.transform.data["threads"]
        parts = iter(pipeline.in_order(load, len(chosen), threads, len(rows)))
        for first in range(0, len(corners), size):
            examples = list(itertools.islice(parts, len(rows)))
            batch = jax.tree.map(lambda *values: np.stack(values), *examples)
            yield partitioning.place(batch, self.mesh), min(size, len(corners) - first)

    def tile(self, opened: Values, corner: Sequence[int]) -> Tile:
        """Return the tile of an input at a corner, and where its values lie."""
        size = self.transform.size
        tile = volume.crop(opened, corner, size, at_end=True)
        return transforms.joined([opened.view(tile, corner, size)])


def _read(read: Callable, corners: Sequence[Sequence[int]], i: int) -> Tile:
    return read(corners[i])
