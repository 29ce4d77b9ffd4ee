"""Frozen features of an encoder."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from mae_jax.data.sources import Source
from mae_jax.distributed import partitioning
from mae_jax.evaluators import held_out
from mae_jax.models import layers, masking
from mae_jax.models.heads import classification


class Feature(NamedTuple):
    """A feature of an example: the tokens of an encoder, pooled."""

    block: int = -1  # whose output is pooled; -1 is the last block
    pooling: str = "mean"  # over the patch tokens, or the class tokens "cls", or "both"
    norm: bool = True  # whether the final norm, if there is one, is applied, after any block

    def __str__(self) -> str:
        return f"block {self.block}, {self.pooling}, {'after' if self.norm else 'before'} the norm"


class Table(NamedTuple):
    """Features of the examples of a source, in its order."""

    features: dict[Feature, np.ndarray]  # [n, d] float32
    labels: np.ndarray  # [n *k], as in `sources.Source`
    index: np.ndarray  # [n], of the examples in the source
    previews: np.ndarray | None = None  # [n ...], if the extractor makes them

    def labelled(self) -> tuple[dict[Feature, np.ndarray], np.ndarray]:
        """Return features and labels of examples with labels; raise ValueError without labels."""
        labelled = self.labels >= 0 if self.labels.ndim == 1 else ~np.isnan(self.labels).all(-1)
        if labelled.all():
            return self.features, self.labels
        if not labelled.any():
            raise ValueError(
                "none of the examples has a label, but the data name classes or targets"
            )
        return {name: x[labelled] for name, x in self.features.items()}, self.labels[labelled]


class Extractor:
    """An extractor of several features of a source in one pass.

    Args:
      model: a model with a method `encode`. A classifier that normalises after pooling does so for
        features after the norm.
      preview: makes something small of the normalised inputs `[b *size c]` of a batch, to be kept.
    """

    def __init__(
        self,
        model: Any,
        wanted: Sequence[Feature],
        transform: held_out.EvalTransform,
        mesh: Mesh,
        preview: Callable[[jax.Array], jax.Array] | None = None,
    ):
        self.model, self.wanted, self.transform, self.mesh = model, wanted, transform, mesh
        self.preview = preview
        replicated = partitioning.replicated(mesh)
        self._features = jax.jit(self._features_of_batch, out_shardings=replicated)

    def __call__(
        self,
        variables: dict | None,
        source: Source,
        examples: int,
        batch_size: int,
        progress: Callable[[Iterable], Iterable] = iter,
    ) -> Table:
        """Return the features of at most `examples` examples of a source; 0 means all.

        Without variables a feature is the input, scaled down to sides of at most 32; an input with
        one axis to at most 1,024 steps.

        Args:
          progress: wraps the batches, as `tqdm` does.
        """
        batches = held_out.batches(source, self.transform, examples, batch_size, self.mesh)
        extract = lambda batch: jax.tree.map(np.asarray, self._features(variables, batch))
        rows = [extract(batch) for batch in progress(batches)]
        valid = np.concatenate([row.pop("valid") for row in rows])
        found = jax.tree.map(lambda *xs: np.concatenate(xs)[valid], *rows)
        found["features"] = dict(zip(self.wanted, found["features"], strict=True))
        return Table(**found)

    def _features_of_batch(self, variables, batch):
        inputs, present, _ = self.transform.split(batch["image"])
        if variables is None:
            most = 32 if len(self.transform.size) > 1 else 1024
            small = (min(side, most) for side in self.transform.size)
            shape = (len(inputs), *small, inputs.shape[-1])
            pixels = jax.image.resize(inputs.astype(jnp.float32), shape, "linear")
            columns = [pixels.reshape(len(inputs), -1)] * len(self.wanted)
        else:
            mask = None if present is None else masking.whole(self.model.present(present))
            places = self.transform.coordinates(batch, self.model)
            _, maps = self.model.apply(variables, inputs, mask, places, method="encode")
            columns = [pool(self.model, variables["params"], maps, x, mask) for x in self.wanted]
        found = dict(features=columns, labels=batch["label"], index=batch["index"])
        found |= {"previews": self.preview(inputs)} if self.preview else {}
        return found | {"valid": batch["valid"]}


def pool(
    model: Any,
    params: dict,
    maps: Sequence[jax.Array],
    feature: Feature,
    mask: masking.Mask | None = None,
) -> Float[jax.Array, "b d"]:
    """Return a feature of the feature maps of `model.encode`, in float32.

    Args:
      mask: that of `encode`, if patches without data are to be left out, see `masking.whole`.

    Raises:
      ValueError: the pooling needs a class token, and the model has none.
    """
    tokens = tokens_of(model, params, maps, feature)
    count = model.cls_tokens
    if not count and feature.pooling != "mean":
        raise ValueError(f"pooling = {feature.pooling!r} needs a class token: use 'mean'")
    patches = functools.partial(classification.mean_of_patches, tokens[:, count:], mask)
    pooled = {"cls": lambda: tokens[:, :count].mean(1), "mean": patches}
    names = pooled if feature.pooling == "both" else [feature.pooling]
    parts = [pooled[name]() for name in names]
    if feature.norm and "norm" in params:  # a classifier's, after pooling
        parts = [_normalized(model, x, params["norm"], model.norm_eps) for x in parts]
    return jnp.concatenate([x.astype(jnp.float32) for x in parts], axis=-1)


def tokens_of(
    model: Any, params: dict, maps: Sequence[jax.Array], feature: Feature
) -> Float[jax.Array, "b cls+n width"]:
    """Return the tokens of a feature before they are pooled, given the maps of `model.encode`."""
    tokens = maps[1 + feature.block % model.depth]  # maps[0] is before the first block
    if feature.norm and "norm" in params["encoder"]:
        tokens = _normalized(model, tokens, params["encoder"]["norm"], model.encoder.trunk.eps)
    return tokens


def _normalized(model: Any, x: jax.Array, scale_and_bias: dict, eps: float) -> Any:
    return layers.Norm(eps, model.encoder.trunk.ops).apply({"params": scale_and_bias}, x)


def standardize(train: Float[np.ndarray, "n d"], *others: Float[np.ndarray, "m d"]):
    """Give every dimension zero mean and unit variance on `train`, and map `others` alike.

    Otherwise the distances of MAE features depend mostly on a few high-variance dimensions, which
    carry little information.
    """
    mean, std = train.mean(0), train.std(0)
    return tuple((x - mean) / (std + 1e-6) for x in (train, *others))


def different(classes: Sequence[str], others: Sequence[str]) -> str:
    """Return the first few names on only one side, or that only their order differs."""
    names = sorted(set(classes) ^ set(others))[:5]
    return ", ".join(names) or "the same names in another order"
