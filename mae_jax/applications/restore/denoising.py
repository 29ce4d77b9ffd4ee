"""Denoising without clean data: each patch is predicted from others, which have other noise."""

import dataclasses
import functools
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped
from tqdm import tqdm

from mae_jax.applications.restore import noise, pictures
from mae_jax.applications.restore.adaptation import Adapter
from mae_jax.data import values
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.values import Values
from mae_jax.distributed import partitioning
from mae_jax.evaluators import complementary, loaded_model, tiles
from mae_jax.evaluators.loaded_model import LoadedModel
from mae_jax.evaluators.tiled_inputs import TiledInputs
from mae_jax.models import masking

_log = logging.getLogger(__name__)


class Denoised(NamedTuple):
    """A picture without its noise."""

    values: Shaped[np.ndarray, "..."]  # of the shape, the type and the units of the picture
    sigma: tuple[float, ...]  # the strength of the noise of each channel, in the same units


@dataclasses.dataclass(frozen=True)
class Options:
    """How pictures are denoised.

    Args:
      steps: of adaptation to the picture, see `Adapter`. 0 leaves the parameters as they are.
      sigma: the standard deviation of the noise, in the units of the picture; None estimates that
        of each channel, see `noise.estimate`.
      combine: return the mean of each value given its prediction and its noisy value, see
        `noise.combine`. Else the result is the prediction, whatever sigma is.
      groups: each mask masks one of so many groups of patches, or of about so many that have the
        same size, and shows the others.
      overlap: the share of a tile's length that neighbours share, in [0, 1).
      batch_size: the largest number of tiles of a batch, on all devices together.
      seed: of the masks, and of the crops of the adaptation.
    """

    steps: int = 0
    sigma: float | None = None
    combine: bool = True
    groups: int = 4
    overlap: float = 0.75
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self):
        for name, lowest in dict(steps=0, groups=2, batch_size=1, seed=0).items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {lowest}")
        if self.sigma is not None and not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma = {self.sigma} must be a finite number of at least 0")


class Denoiser:
    """A function that denoises pictures of any size with one model.

    Each patch is predicted from others under masks that together mask every patch, so that its own
    noise does not enter its prediction: no clean pictures are needed. The corners of tiles, which
    overlap, are no multiples of a patch apart, so that a value is predicted at several places of
    the patch grid (cycle spinning, Coifman & Donoho 1995). Predictions are blended by
    `tiles.window`.

    Raises:
      ValueError: the model predicts no pixels or not all of them, or there are several
        processes.
    """

    def __init__(self, loaded: LoadedModel, options: Options | None = None):
        model, transform, mesh = loaded.model, loaded.transform, loaded.mesh
        options = options or Options()
        complementary.check_pixels(model)
        if any(step > 1 for step in model.target.stride):
            raise ValueError(
                f"the model predicts only every {model.target.stride} values: use one that was "
                "trained without model.target_stride"
            )
        if jax.process_count() > 1:
            raise ValueError("a picture is denoised by one process: start one")
        grid = model.grid(transform.size)
        n = math.prod(grid)
        if n < 2:
            raise ValueError(
                f"a patch {model.patch} covers all that the model sees, so that it cannot be "
                "predicted from others: choose a larger size"
            )
        self.loaded, self.options = loaded, options
        divisors = [g for g in range(2, n + 1) if n % g == 0]
        groups = min(divisors, key=lambda g: abs(g - options.groups))
        if groups != options.groups:
            text = "%d patches cannot be shared out among %d groups: there are %d"
            _log.info(text, n, options.groups, groups)
        self.keep = n - n // groups
        key = jax.random.key(options.seed)
        self.scores = masking.partition(key, 1, grid, groups, self.keep)
        sizes = options.overlap, options.batch_size
        self.inputs = TiledInputs(model, transform, mesh, *sizes)
        self.adapter = Adapter(self.inputs, self.keep)
        replicated = partitioning.replicated(mesh)
        self._predict = jax.jit(self._predict_batch, out_shardings=replicated)

    def __call__(self, image: Any) -> Denoised:
        """Return a picture without its noise.

        Args:
          image: see `pictures.read`.

        Raises:
          Unreadable: it cannot be read, or does not fit the model.
        """
        return self.denoise(pictures.read(image, self.loaded.transform.data))

    def denoise(self, picture: pictures.Picture) -> Denoised:
        """Return a picture that was read without its noise."""
        shown, options = pictures.show(picture, self.inputs), self.options
        opened, data = shown.opened, shown.opened.data
        _check_size(opened.sides, self.inputs)
        stored, exists = opened.raw([slice(0, side) for side in opened.sides])
        _check_range(stored, exists, data)
        # All below is in the terms of `data.range`, in double precision.
        low, high = values.unscaled(np.array([0.0, 1.0]), shown.dtype, data)
        stored = (stored.astype(np.float64) - low) / (high - low)
        noisy = stored if exists is None else np.where(exists, stored, np.nan)
        sigma = np.full(noisy.shape[-1], (options.sigma or 0) / (high - low))
        if options.sigma is None:
            sigma = noise.estimate(noisy)
        params = self.loaded.params
        if options.steps:
            params = self.adapter(params, opened, options.steps, options.seed)
        clean = self.predict(params, opened)
        unknown = np.isnan(clean)
        if count := int((unknown & ~np.isnan(noisy)).sum()):
            _log.warning("%s values stay as they are, as too few around them exist", f"{count:,}")
        clean = np.where(unknown, stored, clean)
        if options.combine:
            clean = noise.combine(noisy, clean, sigma)
        result = picture.values.copy()
        shown.channels_last(result)[...] = shown.restored(np.where(np.isnan(noisy), stored, clean))
        sigma = (high - low) * sigma[: 1 if shown.is_gray else None]
        return Denoised(result, tuple(sigma.tolist()))

    def predict(self, params: dict, opened: Values) -> Float[np.ndarray, "*sides c"]:
        """Return the prediction of each value from other patches, in the terms of `data.range`.

        It is NaN where nothing is predicted.
        """
        tiling = self.inputs.values(opened.sides)
        pairs = zip(tiling.steps, self.inputs.model.patch, strict=True)
        # One value off whole patches: the places in a patch change from tile to tile.
        steps = (s + (s % p == 0 and s > 1) for s, p in pairs)
        tiling = tiling._replace(steps=tuple(map(min, zip(steps, tiling.tile, strict=True))))
        blocks = tiles.blend(self._tiles(params, opened, tiling), tiling)
        return np.concatenate([block[..., 0] for block in blocks])

    def _tiles(
        self, params: dict, opened: Values, tiling: tiles.Tiling
    ) -> Iterator[Float[np.ndarray, "*tile c 1"]]:
        """Yield the prediction of each tile."""
        read, corners = functools.partial(self.inputs.tile, opened), tiling.starts
        with tqdm(total=len(corners), unit="tile", desc="denoising", disable=None) as bar:
            for batch, count in self.inputs.batches(corners, read):
                found = np.asarray(self._predict(params, batch))[:count]
                if (
                    not np.isfinite(found).all()
                    and self.loaded.transform.data.get("nodata") is None
                ):
                    raise ValueError("the predictions of the model are not finite: use another one")
                yield from found[..., None]
                bar.update(count)

    def _predict_batch(
        self, params: dict, batch: Mapping[str, Any]
    ) -> Float[jax.Array, "b *tile c"]:
        """Return predictions in the terms of `data.range`."""
        model, transform = self.loaded.model, self.loaded.transform
        inputs, places = transform.split(batch["image"]), transform.coordinates(batch, model)
        found = complementary.predictions(
            model, {"params": params}, inputs, self.scores, self.keep, places
        )
        row = lambda x: jnp.asarray(x, jnp.float32).reshape((1,) * (found.ndim - 1) + (-1,))
        return found * row(transform.std) + row(transform.mean)


def denoise(
    model: Any,
    params: dict | None,
    image: Any,
    steps: int = 0,
    *,
    sigma: float | None = None,
    seed: int = 0,
    **data: Any,
) -> Shaped[np.ndarray, "..."]:
    """Return a picture without its noise, as `applications.denoise` does.

    The result has the shape, the type and the units of the picture. `Denoiser` denoises many
    pictures with one compiled model, and has further options.

    Args:
      model, params, data: a checkpoint and None, or a model with its parameters, and keys of the
        section `data` of a config: see `loaded_model.of`.
      image: the path of a file, or an array [h, w] or [h, w, c]: see `pictures.read`.
      steps, sigma, seed: see `Options`.

    Raises:
      ValueError: the model predicts no pixels, or an option is out of its range.
      Unreadable: the picture cannot be read or does not fit the model.
    """
    options = Options(steps, sigma, seed=seed)
    loaded = loaded_model.of(model, params, **data)
    return Denoiser(loaded, options)(image).values


def _check_size(sides: tuple[int, ...], inputs: TiledInputs) -> None:
    """Raise `Unreadable` if a picture would be continued by copies of its own noise."""
    size, patch = inputs.transform.size, inputs.model.patch
    if inputs.transform.data.get("nodata") is not None:  # continued by missing values
        return
    shorter = tuple(map(min, zip(sides, size, strict=True)))
    if shorter != size:
        fits = tuple(n // p * p for n, p in zip(shorter, patch, strict=True))
        raise Unreadable(
            f"a picture of size {sides} is smaller than what the model sees, {size}: choose a "
            f"smaller size for the model, such as {fits}"
        )


def _check_range(
    stored: np.ndarray, exists: Bool[np.ndarray, "..."] | None, data: Mapping[str, Any]
) -> None:
    """Raise `Unreadable` if `data.clip` changes values of a picture."""
    if data.get("clip"):
        whole = values.scaled(stored, exists, {**data, "clip": False})
        if whole.dtype != np.uint8 and (np.nanmin(whole) < 0 or np.nanmax(whole) > 1):
            raise Unreadable("the picture has values beyond data.range: set data.clip=False")
