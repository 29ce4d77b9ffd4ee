"""Inpainting: a masked autoencoder predicts the masked pixels of pictures of any size."""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from tqdm import tqdm

from mae_jax.applications.restore import joining, masks, pictures
from mae_jax.applications.restore.pyramid import Level
from mae_jax.data.modalities import transforms
from mae_jax.data.values import Values
from mae_jax.distributed import partitioning
from mae_jax.evaluators import complementary, loaded_model, tiles
from mae_jax.evaluators.loaded_model import LoadedModel
from mae_jax.evaluators.tiled_inputs import TiledInputs
from mae_jax.models import masking, patches

_log = logging.getLogger(__name__)
_SIZES = 2  # numbers of masked patches that are compiled: up to half of a tile, and up to all
_ENOUGH = 0.25  # share of patches that a tile shows at the usual mask ratio, .75


class _Tile(NamedTuple):
    """The masked pixels of a tile."""

    corner: tuple[int, ...]
    masked: Bool[np.ndarray, "*tile"]  # the part of it that lies in the picture
    rows: Int[np.ndarray, "k"]  # of its masked pixels among those of the picture
    trust: float = 0.0

    def of(self, x: np.ndarray) -> np.ndarray:
        """Return the values of a whole tile at its masked pixels."""
        return x[tuple(map(slice, self.masked.shape))][self.masked]


class Inpainter:
    """A function that fills the masked pixels of pictures of any size, with one model.

    A patch is masked if any of its pixels is. Tiles that overlap are predicted, each from exactly
    its own other patches, and blended by `tiles.window`. Only tiles with masked pixels are
    predicted. The number of masked patches is rounded up to half or all of a tile, and that of the
    tiles in a batch to a power of 4 or to `batch_size`, so that few programs are compiled whatever
    the masks and the pictures: 8 with a `batch_size` of 32.

    Where tiles show less than a quarter of their patches, the picture of half the size is filled
    as well, in the same way, and takes the part of the result that the tiles lack. So a hole that
    is larger than a tile is filled from farther away, and a mask of which each patch has a pixel
    from means of the pixels between.

    At last the predictions are joined to the given pixels around them, see `joining.join`: without
    it the border of a hole would show, and thin scratches would not use the pixels beside them.

    Args:
      overlap: the share of a tile's length that neighbours share, in [0, 1).
      batch_size: the largest number of tiles that are predicted at once, on all devices together.
      reach: how many pixels the joining changes from the border on; 0 joins nothing.

    Raises:
      ValueError: the model predicts no pixels or not all of them, there are several processes, or
        an argument is out of its range.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        overlap: float = 0.5,
        batch_size: int = 32,
        reach: float = 4.0,
    ):
        complementary.check_pixels(loaded.model)
        if any(step > 1 for step in loaded.model.target.stride):
            raise ValueError(
                f"the model predicts only every {loaded.model.target.stride} values: use one that "
                "was trained without model.target_stride"
            )
        if jax.process_count() > 1:
            raise ValueError("a picture is filled by one process: start one")
        if batch_size < 1 or not 0 <= reach < np.inf:
            raise ValueError(f"batch_size = {batch_size} must be at least 1, and reach = {reach} 0")
        model, transform, mesh = loaded.model, loaded.transform, loaded.mesh
        self.loaded = loaded
        self.reach = reach
        self.inputs = TiledInputs(model, transform, mesh, overlap, batch_size)
        self._window = tiles.window(transform.size)
        replicated = partitioning.replicated(mesh)
        self._predict = jax.jit(self._predict_batch, static_argnums=2, out_shardings=replicated)

    def __call__(self, image: Any, mask: Any) -> Shaped[np.ndarray, "..."]:
        """Return a picture with its masked pixels filled, and all others as they are.

        Args:
          image: see `pictures.read`.
          mask: see `masks.read`.

        Raises:
          Unreadable: either cannot be read, or does not fit the model or the other.
          ValueError: the mask masks nothing or all.
        """
        picture = pictures.read(image, self.loaded.transform.data)
        return self.fill(picture, masks.read(mask, self.loaded.transform.data))

    def fill(
        self, picture: pictures.Picture, masked: Bool[np.ndarray, "*sides"]
    ) -> Shaped[np.ndarray, "..."]:
        """Return the values of a picture with the masked ones filled."""
        shown = pictures.show(picture, self.inputs)
        masks.check(masked, shown.opened.sides)
        filled = picture.values.copy()
        places = shown.channels_last(filled)  # a view
        # What is masked has no influence, not even if it is NaN or infinite.
        places[masked] = places[~masked][:1]
        opened = pictures.show(picture, self.inputs, filled).opened
        seen = opened.read([slice(0, side) for side in opened.sides])
        seen = seen / np.float32(255) if seen.dtype == np.uint8 else seen
        if np.isnan(seen[~masked]).all():
            raise ValueError("all pixels that are not masked are missing: nothing can be predicted")
        result, trust = self._filled(opened, Level(seen, masked))
        places[masked] = shown.restored(result)
        self._tell_of_missing(opened, places[masked])
        if (share := 1 - trust.mean()) >= 0.005:
            text = "%.0f %% of what is filled comes from the picture at smaller sizes, since tiles "
            _log.info(text + "show too few whole patches without masked pixels", 100 * share)
        return filled

    def _tell_of_missing(self, opened: Values, filled: Shaped[np.ndarray, "m k"]) -> None:
        """Warn of filled values that are equal to a number that stands for missing ones."""
        numbers = {*opened.array.nodata, opened.data.get("nodata")}
        for number in [x for x in numbers if isinstance(x, int | float)]:
            if count := np.count_nonzero(filled == number):
                _log.warning("%d filled values are %s, which means missing", count, number)

    def _filled(
        self, opened: Values, level: Level
    ) -> tuple[Float[np.ndarray, "m c"], Float[np.ndarray, "m"]]:
        """Return the values of the masked pixels of a level, and which share of them is its own."""
        result, trust = self._blended(opened, level)
        if trust.min() < 1:
            coarse = level.halved()
            if coarse.masked.any():
                coarse.values[coarse.masked], _ = self._filled(opened, coarse)
            guess = coarse.enlarged(np.nonzero(level.masked))
            result = guess + trust[:, None] * (result - guess)
        if self.reach:
            result = joining.join(result, level.values, level.masked, self.reach)
        return result, trust

    def _blended(
        self, opened: Values, level: Level
    ) -> tuple[Float[np.ndarray, "m c"], Float[np.ndarray, "m"]]:
        """Return the mean prediction of each masked pixel over tiles, and the mean trust in them.

        A tile is trusted in full if it shows a quarter of its patches, else in proportion.
        """
        rows = np.cumsum(level.masked).reshape(level.masked.shape) - 1  # of masked pixels
        total, groups = np.zeros(np.count_nonzero(level.masked), np.float32), {}
        for corner in self.inputs.values(level.masked.shape).starts:
            masked = level.masked[self._part(corner)]
            if masked.any():
                tile = _Tile(corner, masked, rows[self._part(corner)][masked])
                total[tile.rows] += tile.of(self._window)
                size, trust = self._count(level, corner)
                if trust:
                    groups.setdefault(size, []).append(tile._replace(trust=trust))
        mean = np.zeros((len(total), level.values.shape[-1]), np.float32)
        trusted = np.zeros_like(total)
        count = sum(map(len, groups.values()))
        bar = tqdm(total=count, unit="tile", desc=f"size 1/{2**level.depth}", disable=None)
        for size, chosen in groups.items():
            for tile, found in zip(
                chosen, self._predictions(opened, level, chosen, size), strict=False
            ):
                weight = tile.trust * tile.of(self._window)
                trusted[tile.rows] += weight
                share = (weight / trusted[tile.rows])[:, None]  # 1 of a first tile: it stays exact
                mean[tile.rows] += share * (tile.of(found) - mean[tile.rows])
                bar.update()
        bar.close()
        return mean, trusted / total

    def _predictions(
        self, opened: Values, level: Level, chosen: Sequence[_Tile], size: int
    ) -> Iterator[Float[np.ndarray, "*tile c"]]:
        """Yield the predictions of tiles with up to so many halves of their patches masked."""
        read = functools.partial(self._read, opened, level)
        corners, rounded = [tile.corner for tile in chosen], 1
        while rounded < len(corners):
            rounded *= 4
        if rounded < self.inputs.batch_size:
            corners += corners[-1:] * (rounded - len(corners))
        for batch, count in self.inputs.batches(corners, read):
            found = np.asarray(self._predict(self.loaded.variables, batch, size))[:count]
            if not np.isfinite(found).all():
                raise ValueError("the predictions of the model are not finite: use another one")
            yield from found

    def _part(self, corner: Sequence[int]) -> tuple[slice, ...]:
        sides = self.inputs.transform.size
        return tuple(slice(a, a + n) for a, n in zip(corner, sides, strict=True))

    def _padded(self, x: np.ndarray, value: Any) -> np.ndarray:
        """Return a part with the sides of a tile, continued at its ends by a value."""
        sides = self.inputs.transform.size
        gaps = [(0, side - n) for side, n in zip(sides, x.shape, strict=False)]
        return np.pad(x, gaps + [(0, 0)] * (x.ndim - len(sides)), constant_values=value)

    def _count(self, level: Level, corner: Sequence[int]) -> tuple[int, float]:
        """Return the number of masked patches of a tile in halves, and the trust in the tile."""
        part = self._part(corner)
        given = ~np.isnan(level.values[part]).all(-1)
        masked = self._any_in_patches(level.masked[part], beyond=True)
        shown = ~masked & self._any_in_patches(given)
        inside = self._any_in_patches(np.ones_like(given))
        size = -(-_SIZES * masked.sum() // len(masked))
        return int(size), min(1.0, shown.sum() / (_ENOUGH * inside.sum()))

    def _any_in_patches(self, x: Any, beyond: bool = False) -> Bool[np.ndarray, "n"]:
        """Return which patches of a tile hold any True; `beyond` is the value beyond the end."""
        x = self._padded(np.asarray(x), beyond)[None, ..., None]
        return np.asarray(patches.patchify(x, self.loaded.model.patch)).any(-1)[0]  # pyright: ignore

    def _read(self, opened: Values, level: Level, corner: Sequence[int]) -> dict[str, np.ndarray]:
        """Return a tile as an example of a batch; beyond the end of the picture it is masked."""
        part, scale = self._part(corner), 2**level.depth
        masked = self._padded(level.masked[part], True)
        values = np.where(masked[..., None], np.float32(0), self._padded(level.values[part], 0))
        covered = [scale * n for n in self.inputs.transform.size]
        view = opened.view(values, [scale * a for a in corner], covered)
        return transforms.joined([view]) | {"masked": masked}

    def _predict_batch(
        self, variables: dict, batch: Mapping[str, Any], size: int
    ) -> Float[jax.Array, "b *tile c"]:
        """Return predictions in the terms of `data.range`, of tiles of one size of masks."""
        model, transform = self.loaded.model, self.loaded.transform
        values, present, _ = transform.split(batch["image"])
        masked = model.present(jnp.broadcast_to(batch["masked"][..., None], values.shape))
        n = masked.shape[1]
        keep, predict = n - 1 - n * (size - 1) // _SIZES, n * size // _SIZES
        present = None if present is None else model.present(present)
        mask = masking.from_map(masked, keep, predict, present)
        places = transform.coordinates(batch, model)
        out = model.apply(variables, values, mask, coordinates=places)
        filled = model.target.to_inputs(out.prediction, values, mask)
        row = lambda x: jnp.asarray(x, jnp.float32).reshape((1,) * (filled.ndim - 1) + (-1,))
        return filled * row(transform.std) + row(transform.mean)


def inpaint(
    model: Any,
    params: dict | None,
    image: Any,
    mask: Any,
    *,
    overlap: float = 0.5,
    batch_size: int = 32,
    reach: float = 4.0,
    **data: Any,
) -> Shaped[np.ndarray, "..."]:
    """Return a picture with its masked pixels filled, as `applications.inpaint` does.

    The result has the shape, the type and the units of the picture. All pixels that are not masked
    keep their bits. `Inpainter` fills many pictures with one compiled model.

    Args:
      model, params, data: a checkpoint and None, or a model with its parameters, and keys of the
        section `data` of a config: see `loaded_model.of`.
      image: the path of a file, or an array [h, w] or [h, w, c]: see `pictures.read`.
      mask: the path of a picture, or an array, of the same height and width, which is not 0 where
        pixels are to be filled: see `masks.read`.
      overlap, batch_size, reach: see `Inpainter`.

    Raises:
      ValueError: the model predicts no pixels, or the mask masks nothing or all.
      Unreadable: the picture or the mask cannot be read, or they do not fit.
    """
    loaded = loaded_model.of(model, params, **data)
    return Inpainter(loaded, overlap, batch_size, reach)(image, mask)
