"""Approximate nearest neighbours by a graph of `usearch`, which the extra `retrieval` installs."""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8


@dataclasses.dataclass
class Graph:
    """A hierarchical navigable small world (arXiv 1603.09320) over vectors of length 1, as bytes.

    Several threads build it, so two graphs of the same vectors may differ a little.

    Raises:
      ImportError: `usearch` is not installed; as soon as the graph is searched.
    """

    stored: UInt8[np.ndarray, "bytes"]  # with the vectors

    @classmethod
    def of(cls, vectors: Float[np.ndarray, "n e"]) -> "Graph":
        """Return a graph over vectors."""
        kind = "f16" if vectors.dtype == np.float16 else "f32"
        index = _index_class()(ndim=vectors.shape[1], metric="cos", dtype=kind)
        return cls(np.frombuffer(index.save(None), np.uint8)).added(vectors)

    def added(self, vectors: Float[np.ndarray, "m e"]) -> "Graph":
        """Return a graph with further vectors, whose indices follow."""
        if not len(vectors):
            return self
        index = _index_class().restore(self.stored.tobytes())
        index.add(len(index) + np.arange(len(vectors)), vectors)
        return Graph(np.frombuffer(index.save(None), np.uint8))

    @functools.cached_property
    def _index(self) -> Any:
        return _index_class().restore(self.stored.tobytes())

    def __len__(self) -> int:
        return len(self._index)

    def search(
        self, queries: Float[np.ndarray, "m e"], k: int
    ) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
        """Return similarities and indices, as `neighbours.Gallery.search` does, mostly."""
        k = min(k, len(self))
        found = self._index.search(queries.astype(np.float32), k)
        shape = len(queries), k  # usearch drops the first axis of one query
        similarity = 1 - np.asarray(found.distances, np.float32).reshape(shape)
        return similarity, np.asarray(found.keys).astype(np.int32).reshape(shape)


def recall(exact: Int[np.ndarray, "m k"], found: Int[np.ndarray, "m k"]) -> float:
    """Return the share of the exact neighbours that were found."""
    pairs = zip(exact, found, strict=True)
    return float(np.mean([np.isin(wanted, given).mean() for wanted, given in pairs]))


def _index_class() -> Any:
    try:
        from usearch.index import Index
    except ImportError as error:
        raise ImportError(
            "approximate search needs usearch: pip install 'mae_jax[retrieval]', or search exactly"
        ) from error
    return Index
