"""What a function of tiles says of the inputs of a source, one input after another."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from mae_jax.applications.anomaly.settings import Tiles
from mae_jax.data import pipeline, sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import source as reading
from mae_jax.data.values import Values
from mae_jax.distributed import partitioning
from mae_jax.evaluators import tiles
from mae_jax.evaluators.loaded_model import LoadedModel
from mae_jax.evaluators.tiled_inputs import TiledInputs

Index = Sequence[int] | Int[np.ndarray, "n"]  # of examples in a source
# Of a batch of tiles: values [b *cells k], and which tiles have finite ones [b].
Function = Callable[[dict[str, jax.Array]], tuple[jax.Array, jax.Array]]


class Input(NamedTuple):
    """An input of a source, opened, and its tiles, counted in patches."""

    index: int  # in the source
    opened: Values
    tiling: tiles.Tiling


class Tile(NamedTuple):
    """What was said of a tile."""

    of: Input
    start: tuple[int, ...]  # its first cell along each side
    values: Float[np.ndarray, "*tile k"]
    is_last: bool  # of the input

    @property
    def inside(self) -> Float[np.ndarray, "*part k"]:
        """The values without those beyond the end of the input."""
        ends = (n - a for n, a in zip(self.of.tiling.cells, self.start, strict=True))
        return self.values[tuple(map(slice, ends))]


class Failed(NamedTuple):
    """An input that cannot be read, or of which nothing finite is said."""

    index: int
    error: Unreadable
    is_last: bool = True


@dataclasses.dataclass(frozen=True)
class TileStream:
    """A stream of tiles of many inputs; small inputs share batches.

    The last patch along a side may reach beyond the end of the input, which is continued there, so
    that every value lies in a patch.
    """

    inputs: TiledInputs
    function: Function

    def __call__(self, source: sources.Source, index: Index) -> Iterator[Tile | Failed]:
        """Yield the tiles of the inputs of a source, in order, and those that failed.

        A large input may fail after some of its tiles.
        """
        for group in self._groups(source, index):
            if isinstance(group, Failed):
                yield group
            else:
                yield from self._of_group(group)

    def cells(self, sides: Sequence[int]) -> tuple[int, ...]:
        """Return the number of patches along each side that hold all values."""
        return tuple(-(-n // p) for n, p in zip(sides, self.inputs.model.patch, strict=True))

    def _groups(self, source: sources.Source, index: Index) -> Iterator[list[Input] | Failed]:
        """Yield inputs that together have about a batch of tiles, all of one type."""
        open_one = functools.partial(self._open, source, [int(i) for i in index])
        threads = self.inputs.transform.data["threads"]
        group, count = [], 0
        for found in pipeline.in_order(open_one, len(index), threads, 1):
            is_failed = isinstance(found, Failed)
            # np.stack would join bytes with numbers of another scale
            if group and (is_failed or found.opened.array.dtype != group[-1].opened.array.dtype):
                yield group
                group, count = [], 0
            if is_failed:
                yield found
                continue
            group.append(found)
            count += len(found.tiling.starts)
            if count >= self.inputs.batch_size:
                yield group
                group, count = [], 0
        if group:
            yield group

    def _open(self, source: sources.Source, index: Sequence[int], k: int) -> Input | Failed:
        try:
            read = lambda example: self.inputs.open(example["image"])
            opened = reading.read(source, index[k], read)
        except Unreadable as error:
            return Failed(index[k], error)
        tile = self.cells(self.inputs.transform.size)
        return Input(
            index[k], opened, tiles.cut(self.cells(opened.sides), tile, self.inputs.overlap)
        )

    def _of_group(self, group: list[Input]) -> Iterator[Tile | Failed]:
        """Yield the tiles of inputs; if one of several fails, read each alone."""
        try:
            found = self._tiles(group)
            yield from found if len(group) == 1 else list(found)
        except Unreadable as error:
            if len(group) == 1:
                yield Failed(group[0].index, error)
                return
            for one in group:
                yield from self._of_group([one])

    def _tiles(self, group: list[Input]) -> Iterator[Tile]:
        starts = [(k, start) for k, x in enumerate(group) for start in x.tiling.starts]
        patch = self.inputs.model.patch
        corners = [(k, *map(operator.mul, start, patch)) for k, start in starts]
        read = lambda corner: self.inputs.tile(group[corner[0]].opened, corner[1:])
        places = iter(starts)
        for batch, count in self.inputs.batches(corners, read):
            values, is_finite = map(np.asarray, self.function(batch))
            for one, finite in zip(values[:count], is_finite[:count], strict=True):
                k, start = next(places)
                if not finite:
                    raise Unreadable("its scores are not finite")
                yield Tile(group[k], start, one, start == group[k].tiling.starts[-1])


def inputs(loaded: LoadedModel, cut: Tiles) -> TiledInputs:
    """Return how the model of a detector sees inputs of any size."""
    return TiledInputs(loaded.model, loaded.transform, loaded.mesh, *cut)


def jitted(loaded: LoadedModel, function: Callable, argument: Any = ()) -> Function:
    """Return `function(model, params, inputs, coordinates, argument)` as one of batches of tiles.

    All devices hold the argument, a pytree.
    """
    model, transform, mesh = loaded.model, loaded.transform, loaded.mesh

    def of_batch(params, argument, batch):
        inputs, places = transform.split(batch["image"]), transform.coordinates(batch, model)
        return function(model, params, inputs, places, argument)

    replicated = partitioning.replicated(mesh)
    run = jax.jit(of_batch, out_shardings=replicated)
    argument = jax.device_put(argument, replicated)
    return lambda batch: run(loaded.params, argument, batch)
