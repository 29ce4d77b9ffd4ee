"""An index of examples, which finds those that are most similar to others."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mae_jax.applications import fitted_folder
from mae_jax.applications.fitted_folder import Fitted
from mae_jax.applications.retrieval import choice, whitening
from mae_jax.applications.retrieval.approximate import Graph
from mae_jax.applications.retrieval.reader import Inputs, Reader, as_source, normal
from mae_jax.applications.retrieval.rows import Labels, Rows, check_names
from mae_jax.applications.retrieval.whitening import Method, Whitening
from mae_jax.data.bad_examples import Unreadable
from mae_jax.evaluators import loaded_model
from mae_jax.evaluators.features import Feature
from mae_jax.evaluators.loaded_model import LoadedModel
from mae_jax.evaluators.neighbours import Gallery

KIND = "index"  # of folder, see `fitted_folder`
DTYPES = ("float32", "float16")
_WHITENED = Method("pca")


class Neighbours(NamedTuple):
    """The examples of an index that are most similar to each query, the nearest first."""

    names: list[list[str | None]]  # [m k]; None where the index has no more examples
    similarities: Float[np.ndarray, "m k"]  # cosines; NaN there
    indices: Int[np.ndarray, "m k"]  # of the examples in the index; -1 there


@dataclasses.dataclass
class Index:
    """Examples with the vectors that a model makes of them; `build` and `load` make one.

    A vector is a feature of the model after a whitening, which is fitted on the first examples and
    stays as it is when others are added.
    """

    reader: Reader
    whitening: Whitening
    rows: Rows
    about: dict[str, Any]  # for people: what was chosen and why, and where the examples came from
    graph: Graph | None = None  # for approximate search

    @classmethod
    def build(
        cls,
        model: LoadedModel | str,
        inputs: Inputs,
        feature: Feature | None = None,
        method: Method | Whitening = _WHITENED,
        dtype: str = "float32",
        side: int = 64,
        batch_size: int = 256,
    ) -> "Index":
        """Return the index of examples.

        Args:
          model: a checkpoint, or what `loaded_model.of` returns.
          inputs: a source, or a list of what the modality of the model reads, such as paths.
          feature: by default `choice.usual_feature`; `choice.WAYS` choose another one.
          method: how the features are whitened, or a whitening that is fitted already.
          dtype: of the vectors: "float16" takes half the memory.
          side: of the thumbnails, which make a contact sheet possible; 0 keeps none.

        Raises:
          ValueError: two examples have the same name, or an argument does not fit.
          Unreadable: see `Reader`.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype = {dtype!r} is none of {', '.join(DTYPES)}")
        loaded = model if isinstance(model, LoadedModel) else loaded_model.of(model)
        reader = Reader(loaded, feature or choice.usual_feature(loaded.model), side, batch_size)
        check_names(as_source(inputs))
        rows, _ = reader(inputs)
        is_fitted = isinstance(method, Whitening)
        fitted = method if is_fitted else whitening.fit(rows.vectors, method)
        rows = rows._replace(vectors=fitted(rows.vectors).astype(dtype))
        about = dict(whitening="given" if is_fitted else str(method), fitted_on=len(rows.names))
        return cls(reader, fitted, rows, about)

    def __len__(self) -> int:
        return len(self.rows.names)

    def read(self, inputs: Inputs) -> tuple[Rows, Int[np.ndarray, "n"]]:
        """Return examples with their vectors, and their indices in a source: see `Reader`."""
        rows, index = self.reader(inputs)
        return rows._replace(vectors=self.whitening(rows.vectors)), index

    def add(self, inputs: Inputs) -> int:
        """Add examples, and return their number.

        Raises:
          ValueError: an example has the name of another one, or other labels than the index.
          Unreadable: see `Reader`.
        """
        names = check_names(as_source(inputs))
        if known := {*self.rows.names} & {*names}:
            raise ValueError(
                f"the index has {len(known):,} of these {len(names):,} examples already, such as "
                f"{min(known)!r}: remove them first, or add only others"
            )
        rows, _ = self.read(inputs)
        joined = self.rows.joined(rows)
        graph = self.graph and self.graph.added(joined.vectors[len(self) :])
        self._replace(joined, graph)
        return len(rows.names)

    def remove(self, names: Collection[str]) -> None:
        """Remove the examples with these names, a list.

        Raises:
          ValueError: there is no such example, or the names are one text.
        """
        if isinstance(names, str):
            raise ValueError(f"{names!r} is one name: give a list of names")
        if unknown := {*names} - {*self.rows.names}:
            raise ValueError(f"the index has no example {min(unknown)!r}: give names that it has")
        gone = {*names}
        kept = self.rows.take([i for i, x in enumerate(self.rows.names) if x not in gone])
        self._replace(kept, self.graph and Graph.of(kept.vectors))

    def _graph(self) -> Graph:
        self.graph = self.graph or Graph.of(self.rows.vectors)
        return self.graph

    def _vectors(self, inputs: Inputs) -> np.ndarray:
        """Return the vectors of all inputs; raise Unreadable if one cannot be read."""
        rows, index = self.read(inputs)
        source = as_source(inputs)
        if missing := {*range(len(source))} - {*index.tolist()}:
            raise Unreadable(self.reader.note(source, min(missing)))
        return rows.vectors

    def _replace(self, rows: Rows, graph: Graph | None) -> None:
        self.rows, self.graph = rows, graph
        self.__dict__.pop("gallery", None)

    @functools.cached_property
    def gallery(self) -> Gallery:
        """The vectors on the devices, for exact search."""
        return Gallery(self.rows.vectors, self.reader.loaded.mesh)

    def rows_of(self, names: Sequence[str | None]) -> Int[np.ndarray, "m"]:
        """Return the index of the example with each name, or -1."""
        place: dict[Any, int] = {name: i for i, name in enumerate(self.rows.names)}
        return np.array([place.get(name, -1) for name in names], int)

    def holds(self, data: str, split: str) -> bool:
        """Return whether the index was made of a split of data, or of one that shares examples."""
        known = {part for spec, part in self.about.get("data", ()) if normal(spec) == normal(data)}
        return bool(known) and (split in known or "all" in {split, *known})

    def check(self, k: int) -> None:
        """Raise ValueError if the index is empty, or `k` is no number of neighbours."""
        if not len(self):
            raise ValueError("the index is empty: add examples before searching")
        if k < 1:
            raise ValueError(f"k = {k} must be at least 1")

    def search(
        self,
        queries: Inputs | Float[np.ndarray, "m e"],
        k: int = 10,
        own: Sequence[str | None] = (),
        approximate: bool = False,
    ) -> Neighbours:
        """Return the nearest examples of each query.

        Args:
          queries: a source or a list of inputs; or vectors, such as those of `read`.
          own: the name that each query itself has in the index, which is left out.
          approximate: search by the graph, which is made if there is none.

        Raises:
          ValueError: the index is empty, or the vectors have another dimension.
          Unreadable: an input cannot be read.
        """
        self.check(k)
        vectors = queries if isinstance(queries, np.ndarray) else self._vectors(queries)
        if vectors.shape[1:] != self.rows.vectors.shape[1:]:
            raise ValueError(
                f"queries of shape {vectors.shape} do not fit an index of vectors of "
                f"{self.rows.vectors.shape[1]} numbers: give those of `read`"
            )
        engine = self._graph() if approximate else self.gallery
        similarity, index = engine.search(vectors, k + bool(own))
        if own:
            is_own = index == self.rows_of(own)[:, None]
            order = np.argsort(is_own, axis=1, kind="stable")[:, :k]  # the query itself comes last
            similarity, index, is_own = (
                np.take_along_axis(x, order, axis=1) for x in (similarity, index, is_own)
            )
            similarity, index = np.where(is_own, np.nan, similarity), np.where(is_own, -1, index)
        names = [[self.rows.names[i] if i >= 0 else None for i in row] for row in index.tolist()]
        return Neighbours(names, similarity, index)

    def save(self, path: str, overwrite: bool = False) -> None:
        """Write a folder with the model, the vectors and the rest, whole or not at all.

        Raises:
          ValueError: something else lies there, or no checkpoint describes the model.
        """
        rows, reader = self.rows, self.reader
        arrays = dict(vectors=rows.vectors, labels=rows.labels.values, **self.whitening._asdict())
        if rows.thumbnails is not None:
            arrays["thumbnails"] = rows.thumbnails
        if self.graph is not None:
            arrays["graph"] = self.graph.stored
        about = dict(names=rows.names, label_names=rows.labels.names, about=self.about)
        about |= dict(feature=reader.feature._asdict(), side=reader.side)
        about |= dict(batch_size=reader.batch_size)
        fitted_folder.write(path, KIND, Fitted(reader.loaded, arrays, about), overwrite)

    @classmethod
    def load(cls, path: str, threads: int = 16) -> "Index":
        """Return what `save` wrote; raise ValueError if there is none, or it is damaged."""
        loaded, arrays, about = fitted_folder.read(path, KIND, threads)
        try:
            labels = Labels(arrays["labels"], about["label_names"])
            rows = Rows(about["names"], arrays["vectors"], labels, arrays.get("thumbnails"))
            feature = Feature(**about["feature"])
            reader = Reader(loaded, feature, about["side"], about["batch_size"])
            fitted = Whitening(arrays["mean"], arrays["matrix"])
            graph = Graph(arrays["graph"]) if "graph" in arrays else None
            about = about["about"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}): make it again") from error
        if not len(rows.names) == len(rows.vectors) == len(labels.values):
            raise ValueError(f"{path} is damaged (its names are not those of its vectors)")
        return cls(reader, fitted, rows, about, graph)
