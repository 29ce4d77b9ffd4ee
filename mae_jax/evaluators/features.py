"""Frozen features of an encoder."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from mae_jax.data import sources
from mae_jax.distributed import partitioning
from mae_jax.evaluators import held_out
from mae_jax.models import layers


class Feature(NamedTuple):
    """What is taken from an encoder as the feature of an example."""

    block: int = -1  # after which block; -1 is the last one
    pooling: str = "mean"  # over the patch tokens, or "cls", or "both" side by side
    norm: bool = True  # after the last norm (which every block may be put through), or before

    def __str__(self) -> str:
        return f"block {self.block}, {self.pooling}, {'after' if self.norm else 'before'} the norm"


class Table(NamedTuple):
    """Features of the examples of a source, in its order."""

    features: dict[Feature, np.ndarray]  # [n, d] float32
    labels: np.ndarray  # [n], -1 where there is none
    index: np.ndarray  # [n] in the source

    def labelled(self) -> tuple[dict[Feature, np.ndarray], np.ndarray]:
        """Return the features and labels of the examples that have a label.

        Raises:
          ValueError: none has one.
        """
        chosen = self.labels >= 0
        if chosen.all():
            return self.features, self.labels
        if not chosen.any():
            raise ValueError("none of the examples has a label, but the data names classes")
        return {name: x[chosen] for name, x in self.features.items()}, self.labels[chosen]


class Extractor:
    """Extracts features of a source in one pass.

    Args:
      model: anything with a method `encode`, see `vit.Encoder`. A classifier that normalises after
        pooling does so for features after the norm.
      wanted: the features.
    """

    def __init__(
        self, model: Any, wanted: Sequence[Feature], transform: held_out.EvalTransform, mesh: Mesh
    ):
        self.model, self.wanted, self.transform, self.mesh = model, list(wanted), transform, mesh
        self._features = jax.jit(
            self._features_of_batch, out_shardings=partitioning.replicated(mesh)
        )

    def __call__(
        self, variables: dict | None, source: sources.Source, examples: int, batch_size: int
    ) -> Table:
        """Return the features of (at most `examples`; 0 means all) whole examples of a source.

        Without variables a feature is the input, scaled down to at most 32 a side.
        """
        batches = held_out.batches(source, self.transform, examples, batch_size, self.mesh)
        rows = [jax.tree.map(np.asarray, self._features(variables, batch)) for batch in batches]
        found, labels, index, valid = jax.tree.map(lambda *xs: np.concatenate(xs), *rows)
        columns = dict(zip(self.wanted, (x[valid] for x in found), strict=True))
        return Table(columns, labels[valid], index[valid])

    def _features_of_batch(self, variables, batch):
        inputs = self.transform.normalize(batch["image"])
        if variables is None:
            small = tuple(min(side, 32) for side in self.transform.size)
            shape = (len(inputs), *small, inputs.shape[-1])
            pixels = jax.image.resize(inputs.astype(jnp.float32), shape, "linear")
            found = [pixels.reshape(len(inputs), -1)] * len(self.wanted)
        else:
            _, intermediates = self.model.apply(variables, inputs, method="encode")
            params = variables["params"]
            found = [_feature(self.model, params, intermediates, f) for f in self.wanted]
        return found, batch["label"], batch["index"], batch["valid"]


def _feature(model, params, intermediates, feature: Feature) -> Float[jax.Array, "b d"]:
    tokens, trunk = intermediates[f"block_{feature.block % model.depth}"], model.encoder.trunk

    def norm(x, scale_and_bias) -> Any:
        return layers.Norm(trunk.eps, trunk.compute).apply({"params": scale_and_bias}, x)

    early = feature.norm and "norm" in params["encoder"]  # the usual place, before pooling
    if early:
        tokens = norm(tokens, params["encoder"]["norm"])
    parts = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(1)}
    chosen = parts.values() if feature.pooling == "both" else [parts[feature.pooling]]
    if feature.norm and not early:
        chosen = [norm(x, params["norm"]) for x in chosen]
    return jnp.concatenate([x.astype(jnp.float32) for x in chosen], axis=-1)


class Tables:
    """Features that the evaluators of a list share: each is extracted once for a network.

    The newest `KEPT` tables are remembered, as long as the arrays of their networks live.
    """

    KEPT = 6  # two splits of three networks: none (pixels), an untrained and a trained one

    def __init__(self, model: Any, transform: held_out.EvalTransform, mesh: Mesh):
        self.model, self.transform, self.mesh = model, transform, mesh
        self._sources: dict[tuple, sources.Source] = {}
        self._extractors: dict[Feature, Extractor] = {}
        self._kept: list[tuple[list[weakref.ref], tuple, Table]] = []

    def open(self, part: Mapping[str, str]) -> sources.Source:
        """Open the source of a part of a config, once."""
        spec = part["source"], part["split"]
        if spec not in self._sources:
            self._sources[spec] = held_out.open_part(part, self.transform.data)
        return self._sources[spec]

    def table(
        self,
        variables: dict | None,
        part: Mapping[str, str],
        feature: Feature,
        examples: int,
        batch_size: int,
    ) -> Table:
        """Return one feature of the examples of a part, see `Extractor`."""
        leaves = jax.tree.leaves(variables)
        key = (part["source"], part["split"], feature, examples)
        self._kept = [kept for kept in self._kept if all(ref() is not None for ref in kept[0])]
        for refs, other, table in self._kept:
            same = len(refs) == len(leaves) and all(
                ref() is x for ref, x in zip(refs, leaves, strict=True)
            )
            if key == other and same:
                return table
        if feature not in self._extractors:
            self._extractors[feature] = Extractor(self.model, [feature], self.transform, self.mesh)
        table = self._extractors[feature](variables, self.open(part), examples, batch_size)
        self._kept = [*self._kept, (list(map(weakref.ref, leaves)), key, table)][-self.KEPT :]
        return table


def save(path: str, feature: Feature, tables: Mapping[str, Table], classes: Sequence[str]) -> None:
    """Write one feature of the splits of a source to an .npz file, without pickles.

    A split `test` becomes `test_features` [n, d], `test_labels` and `test_index`, in the source.
    """
    arrays: dict[str, Any] = {
        "feature": np.array(str(feature)),
        "classes": np.array(classes, dtype=str),
    }
    for name, table in tables.items():
        arrays |= {
            f"{name}_features": table.features[feature],
            f"{name}_labels": table.labels,
            f"{name}_index": table.index,
        }
    with open(path, "wb") as f:  # np.savez would add an ending of its own
        np.savez(f, **arrays)


def standardize(train: Float[np.ndarray, "n d"], *others: Float[np.ndarray, "m d"]):
    """Give every dimension zero mean and unit variance on `train`, and map `others` alike.

    MAE features need it before distances: a few high-variance dimensions carry little.
    """
    mean, std = train.mean(0), train.std(0)
    return tuple((x - mean) / (std + 1e-6) for x in (train, *others))


def different(classes: Sequence[str], others: Sequence[str]) -> str:
    """The first few names that only one of both has, or what differs if the names do not."""
    names = sorted(set(classes) ^ set(others))[:5]
    return ", ".join(names) or "the same names in another order"
