"""A few vectors that stand for many: a reservoir sample, and of it a greedy k-centre coreset."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

_PROJECTED = 128  # dimensions, in which distances are about those of all
_STEPS = 128  # between two updates of the bar


class Reservoir:
    """A uniform sample of fixed size of a stream of vectors, and the moments of the whole stream.

    It is algorithm R (Vitter 1985). The sample depends on the seed and on the order of the vectors,
    not on how they come in blocks.
    """

    def __init__(self, size: int, width: int, seed: int):
        self.seen, self._rng = 0, np.random.default_rng(seed)
        self._sample = np.empty((size, width), np.float32)
        self._sum, self._squares = np.zeros(width), np.zeros(width)

    def add(self, x: Float[np.ndarray, "n d"]) -> None:
        order = self.seen + np.arange(len(x))
        # One number for each vector, whatever the blocks.
        places = np.floor(self._rng.random(len(x)) * (order + 1)).astype(np.int64)
        places = np.where(order < len(self._sample), order, places)
        kept = places < len(self._sample)
        self._sample[places[kept]] = x[kept]  # of equal places the last one counts
        wide = x.astype(np.float64)
        self._sum += wide.sum(0)
        self._squares += np.square(wide).sum(0)
        self.seen += len(x)

    @property
    def sample(self) -> Float[np.ndarray, "m d"]:
        return self._sample[: self.seen]

    def moments(self) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d"]]:
        """Return the mean and the standard deviation of each dimension, above 0."""
        mean = self._sum / self.seen
        variance = np.maximum(self._squares / self.seen - mean**2, 0)
        return mean.astype(np.float32), (np.sqrt(variance) + 1e-6).astype(np.float32)


def greedy(x: Float[np.ndarray, "n d"], count: int, seed: int) -> Int[np.ndarray, "count"]:
    """Return the indices of a k-centre coreset: each new vector is the farthest from those before.

    The greedy choice covers all vectors within twice the best radius (Gonzalez 1985). Distances are
    measured in a random projection to 128 dimensions, as PatchCore does. If there are not more than
    `count` vectors, all are chosen.
    """
    if len(x) <= count:
        return np.arange(len(x))
    rng = np.random.default_rng(seed)
    first = int(rng.integers(len(x)))
    if x.shape[1] > _PROJECTED:
        basis = rng.normal(size=(x.shape[1], _PROJECTED)) / np.sqrt(_PROJECTED)
        x = x @ basis.astype(np.float32)
    points = jnp.asarray(x)
    chosen, distances = [np.array([first])], jnp.square(points - points[first][None]).sum(1)
    with tqdm(total=count, initial=1, unit="vector", desc="coreset", disable=None) as bar:
        for done in range(1, count, _STEPS):
            distances, found = _farthest(points, distances, min(_STEPS, count - done))
            chosen.append(np.asarray(found))
            bar.update(len(found))
    return np.concatenate(chosen)


@functools.partial(jax.jit, static_argnums=2)
def _farthest(
    x: Float[Array, "n d"], distances: Float[Array, "n"], steps: int
) -> tuple[Float[Array, "n"], Int[Array, "steps"]]:
    """Choose the farthest vector `steps` times; return the squared distances and the choice."""

    def step(distances, _):
        index = distances.argmax()
        new = jnp.square(x - x[index][None]).sum(1)
        return jnp.minimum(distances, new), index

    return jax.lax.scan(step, distances, None, steps)
