"""Scores that need no network, for comparison.

Inputs [*sides c] are normalised as the model sees them; values that are missing count as the mean,
0. A map has a cell for each patch of the model, as those of a detector.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jaxtyping import Float

from mae_jax.applications.anomaly import scorers
from mae_jax.applications.anomaly.coreset import Reservoir
from mae_jax.data.values import Values
from mae_jax.evaluators import tiles
from mae_jax.evaluators.loaded_model import LoadedModel

Input = Float[np.ndarray, "*sides c"]
Map = Float[np.ndarray, "*cells"]
_MOST_BYTES = 2**28  # of the windows that principal components are fitted on
_THUMBNAIL = 32  # the longest side of what whole inputs are compared by


class Found(NamedTuple):
    """What a baseline says of an input; one that has no map says the score itself."""

    map: Map | None
    score: float | None = None


class Baseline(Protocol):
    """What all baselines are."""

    def learn(self, x: Input) -> None:
        """Learn from a good input; all of these come before the first call."""

    def __call__(self, x: Input) -> Found: ...


def unfitted(loaded: LoadedModel) -> dict[str, Baseline]:
    """Return all baselines by name."""
    patch, size = loaded.model.patch, loaded.transform.size
    return {
        "nearest input": NearestInput(),
        "nearest patch": NearestPatch(patch),
        "PCA": PrincipalComponents(patch, size),
        "blur": Blur(patch),
    }


def read(opened: Values, loaded: LoadedModel) -> Input:
    """Return the whole of an input, normalised, with 0 for what is missing."""
    x = opened.read([slice(0, side) for side in opened.sides])
    x = x.astype(np.float32) / np.float32(255 if x.dtype == np.uint8 else 1)
    mean, std = (np.array(y, np.float32) for y in (loaded.transform.mean, loaded.transform.std))
    x = (x - mean) / std
    return np.nan_to_num(x, nan=0.0)


class Blur:
    """The difference of each value from a Gaussian blur of its surroundings; it learns nothing."""

    def __init__(self, patch: Sequence[int], sigma: float = 2.0):
        self.patch, self.sigma = patch, sigma

    def learn(self, x: Input) -> None:
        pass

    def __call__(self, x: Input) -> Found:
        sigmas = [self.sigma] * (x.ndim - 1) + [0]
        return Found(_of_patches(np.abs(x - scipy.ndimage.gaussian_filter(x, sigmas)), self.patch))


class NearestInput:
    """The distance of a whole input, scaled down, to the nearest good one."""

    def __init__(self):
        self._good: list[np.ndarray] = []
        self._sides: tuple[int, ...] = ()

    def learn(self, x: Input) -> None:
        self._sides = self._sides or tuple(min(side, _THUMBNAIL) for side in x.shape[:-1])
        self._good.append(self._small(x))

    def __call__(self, x: Input) -> Found:
        difference = self._stacked - self._small(x)
        return Found(None, float(np.sqrt(np.square(difference).mean(-1).min())))

    @functools.cached_property
    def _stacked(self) -> Float[np.ndarray, "n d"]:
        return np.stack(self._good)

    def _small(self, x: Input) -> Float[np.ndarray, "d"]:
        from skimage import transform

        shape = (*self._sides, x.shape[-1])
        small: Any = transform.resize(x, shape, order=1, anti_aliasing=True)
        return small.ravel()


class NearestPatch:
    """The distance of the values around each patch to the nearest ones in good inputs.

    A window is twice as long as a patch. Those of good inputs lie at the patches of inputs whose
    first values are cut off at random, so that they show patterns at all phases.
    """

    def __init__(self, patch: Sequence[int], count: int = 4096):
        self.patch, self.count = patch, count
        self._rng, self._nearest = np.random.default_rng(0), jax.jit(scorers.nearest)
        self._sample: Reservoir | None = None

    def learn(self, x: Input) -> None:
        shift = [int(self._rng.integers(p)) for p in self.patch]
        shifted = zip(shift, x.shape, strict=False)
        windows = self._windows(x[tuple(slice(a if n > a else 0, None) for a, n in shifted)])
        width = windows.shape[-1]
        self._sample = self._sample or Reservoir(self.count, width, seed=0)
        self._sample.add(windows.reshape(-1, width))

    def __call__(self, x: Input) -> Found:
        windows = self._windows(x)
        flat = windows.reshape(1, -1, windows.shape[-1])
        return Found(np.asarray(self._nearest(flat, self._memory)).reshape(windows.shape[:-1]))

    @functools.cached_property
    def _memory(self) -> jax.Array:
        assert self._sample is not None
        return jnp.asarray(self._sample.sample)

    def _windows(self, x: Input) -> Float[np.ndarray, "*cells d"]:
        before = [p // 2 for p in self.patch]
        after = [-n % p + p - p // 2 for n, p in zip(x.shape, self.patch, strict=False)]
        padded = np.pad(x, [*zip(before, after, strict=True), (0, 0)], mode="edge")
        axes, lengths = tuple(range(len(self.patch))), tuple(2 * p for p in self.patch)
        views = np.lib.stride_tricks.sliding_window_view(padded, lengths, axes)
        views = views[tuple(slice(None, None, p) for p in self.patch)]
        return np.ascontiguousarray(views).reshape(*views.shape[: len(axes)], -1)


class PrincipalComponents:
    """The error of inputs that are projected on principal components of good ones.

    They are those of windows of the size that the model sees, and errors of overlapping windows are
    blended as the tiles of a detector are.
    """

    def __init__(self, patch: Sequence[int], size: Sequence[int], count: int = 64):
        self.patch, self.size, self.count = patch, size, count
        self._sample: Reservoir | None = None

    def learn(self, x: Input) -> None:
        windows = self._windows(x)
        flat = windows.reshape(len(windows), -1)
        most = max(2, min(4096, _MOST_BYTES // flat[0].nbytes))
        self._sample = self._sample or Reservoir(most, flat.shape[1], seed=0)
        self._sample.add(flat)

    def __call__(self, x: Input) -> Found:
        windows = self._windows(x)
        flat = windows.reshape(len(windows), -1)
        error = np.square(self._pca.inverse_transform(self._pca.transform(flat)) - flat)
        blended = tiles.blend(error.reshape(windows.shape)[..., None, :], self._tiling(x))
        return Found(_of_patches(np.concatenate([*blended])[..., 0, :], self.patch))

    @functools.cached_property
    def _pca(self) -> Any:
        from sklearn.decomposition import PCA

        assert self._sample is not None
        x = self._sample.sample
        return PCA(min(self.count, *x.shape), svd_solver="randomized", random_state=0).fit(x)

    def _tiling(self, x: Input) -> tiles.Tiling:
        return tiles.cut(x.shape[:-1], self.size, 0.5)

    def _windows(self, x: Input) -> Float[np.ndarray, "n *size c"]:
        short = [(0, max(0, n - m)) for n, m in zip(self.size, x.shape, strict=False)]
        padded = np.pad(x, [*short, (0, 0)], mode="edge")
        place = lambda start: tuple(slice(a, a + n) for a, n in zip(start, self.size, strict=True))
        return np.stack([padded[place(start)] for start in self._tiling(x).starts])


def _of_patches(x: Input, patch: Sequence[int]) -> Map:
    """Return the mean over each patch, of which the last ones may be cut off by the end."""
    short = [-n % p for n, p in zip(x.shape, patch, strict=False)]
    padded = np.pad(x.mean(-1), [(0, n) for n in short], constant_values=np.nan)
    split: list[int] = []
    for n, p in zip(padded.shape, patch, strict=True):
        split += [n // p, p]
    return np.nanmean(padded.reshape(split), axis=tuple(range(1, 2 * len(patch), 2)))
