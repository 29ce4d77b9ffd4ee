"""Frozen features of an encoder, and how good they are for classifying."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax.data import sources
from mae_jax.distributed import partitioning
from mae_jax.evaluators import heldout, knn, linear_probe
from mae_jax.models import layers


class Feature(NamedTuple):
    """What is taken from an encoder as the feature of a picture."""

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
        """Features and labels of the examples that have a label; ValueError: none has."""
        chosen = self.labels >= 0
        if chosen.all():
            return self.features, self.labels
        if not chosen.any():
            raise ValueError("none of the examples has a label, but the data names classes")
        return {name: x[chosen] for name, x in self.features.items()}, self.labels[chosen]


def extractor(
    model: Any, wanted: Sequence[Feature], view: heldout.View, mesh: Mesh
) -> Callable[[dict | None, sources.Source, int | None, int], Table]:
    """A function of `variables, source, examples, batch_size`: a table of all `wanted` features.

    Of (at most `examples`) whole pictures of a source, in one pass. Without variables a feature is
    the pixels, scaled down to at most 32 a side.

    Args:
      model: anything with a method `encode`, see `vit.Encoder`. A classifier that normalises after
        pooling does so for features after the norm.
    """

    def features(variables, batch):
        images = view.normalize(batch["image"])
        if variables is None:
            small = tuple(min(side, 32) for side in view.size)
            shape = (len(images), *small, images.shape[-1])
            pixels = jax.image.resize(images.astype(jnp.float32), shape, "linear")
            pixels = pixels.reshape(len(images), -1)
            found = [pixels] * len(wanted)
        else:
            _, intermediates = model.apply(variables, images, method="encode")
            found = [_feature(model, variables["params"], intermediates, f) for f in wanted]
        return found, batch["label"], batch["index"], batch["valid"]

    features = jax.jit(features, out_shardings=partitioning.replicated(mesh))

    def table(variables, source, examples, batch_size) -> Table:
        rows = [
            jax.tree.map(np.asarray, features(variables, batch))
            for batch in heldout.batches(source, view, examples, batch_size, mesh)
        ]
        found, labels, index, valid = jax.tree.map(lambda *xs: np.concatenate(xs), *rows)
        columns = dict(zip(wanted, (x[valid] for x in found), strict=True))
        return Table(columns, labels[valid], index[valid])

    return table


def _feature(model, params, intermediates, feature: Feature) -> jax.Array:
    tokens = intermediates[f"block_{feature.block % model.depth}"]

    def norm(x, scale_and_bias) -> Any:
        return layers.Norm(model.eps, model.dtype).apply({"params": scale_and_bias}, x)

    early = feature.norm and "norm" in params["encoder"]  # the usual place, before pooling
    if early:
        tokens = norm(tokens, params["encoder"]["norm"])
    parts = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(1)}
    chosen = parts.values() if feature.pooling == "both" else [parts[feature.pooling]]
    if feature.norm and not early:
        chosen = [norm(x, params["norm"]) for x in chosen]
    return jnp.concatenate([x.astype(jnp.float32) for x in chosen], axis=-1)


def probe(config, mean, std, model: Any, mesh: Mesh):
    """A function of the variables: kNN and linear accuracy of the features, as a config asks.

    A feature is the mean over the patch tokens after the last norm, on the whole image,
    standardised on the training examples; without variables it is the pixels. Examples without a
    label are left out.

    Returns:
      The function; None when the config names no labelled source.
    """
    parts = [config.probe.train, config.probe.test]
    if not any(part.source for part in parts):
        return None
    train, *test = [heldout.opened(config, part) for part in parts if part.source]
    if sources.is_multilabel(train):
        return None  # several labels for an example: these probes are for one
    if not test or min(len(train.classes), len(test[0].classes)) < 2:
        if all(part.source == "same" for part in parts):
            return None  # a folder of pictures without labels
        raise ValueError(
            f"probe.train.source = {parts[0].source!r} and probe.test.source = {parts[1].source!r} "
            'must both have two classes or more: name such sources, or "" for both to go without a '
            "probe"
        )
    if train.classes != test[0].classes:
        raise ValueError(
            f"probe.train.source = {parts[0].source!r} and probe.test.source = {parts[1].source!r} "
            f"have different classes: {different(train.classes, test[0].classes)}"
        )
    table = extractor(model, [Feature()], heldout.view_of(config, mean, std), mesh)

    def labelled(variables, source) -> tuple[np.ndarray, np.ndarray]:
        found = table(variables, source, config.probe.examples, config.evaluate.batch_size)
        columns, labels = found.labelled()
        return columns[Feature()], labels

    def accuracies(variables) -> dict[str, float]:
        (x, labels), (test_x, test_labels) = (labelled(variables, s) for s in (train, *test))
        x, test_x = knn.standardize(x, test_x)
        data = (x, labels, test_x, test_labels)
        figures = {"knn": knn.knn(*data, ks=(20,))[20]}
        return figures | ({"linear": linear_probe.linear(*data)} if config.probe.linear else {})

    return accuracies


def different(classes: Sequence[str], others: Sequence[str]) -> str:
    """The first few names that only one of both has, or their numbers if the order differs."""
    names = sorted(set(classes) ^ set(others))[:5]
    return ", ".join(names) or "the same names in another order"
