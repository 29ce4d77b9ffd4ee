"""The features of inputs in Python: `mae_jax.embed`."""

from typing import Any

import numpy as np
from jaxtyping import Float

from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.evaluators import example_columns, loaded_model
from mae_jax.evaluators.dense import DenseExtractor, FeatureMap
from mae_jax.evaluators.features import Extractor, Feature

_LAST = Feature()


def embed(
    path: Any,
    model: Any,
    params: dict | None = None,
    *,
    dense: bool = False,
    feature: Feature = _LAST,
    overlap: float = 0.5,
    batch_size: int = 256,
    **data: Any,
) -> Float[np.ndarray, "*n d"] | FeatureMap | list[FeatureMap]:
    """Return the features of an input, or of a list of inputs, as `python -m mae_jax.embed` does.

    Args:
      path: an input: the path of a file or what else the modality of the model reads, such as an
        array [*sides, c]; or a list of inputs, for which the encoder is compiled once.
      model, params, data: a checkpoint, or a model with its parameters, and keys of the section
        `data` of a config: see `loaded_model.of`.
      dense: return a vector for each patch of an input of any size, see `dense.DenseExtractor`.
        Otherwise the tokens of one view of `size` are pooled, as an evaluation does.
      feature: the block, the pooling and whether the final norm is applied.
      overlap: of the tiles of dense features.
      batch_size: the largest number of inputs or of tiles that are encoded at once.

    Raises:
      ValueError: how inputs are shown is unknown, or does not fit the model.
      Unreadable: an input cannot be read, or does not fit.
    """
    found = loaded_model.of(model, params, **data)
    model, transform, mesh = found.model, found.transform, found.mesh
    variables, several = found.variables, isinstance(path, list | tuple)
    inputs = list(path) if several else [path]
    if dense:
        extractor = DenseExtractor(model, feature, transform, mesh, overlap, batch_size)
        maps = [extractor(variables, value) for value in inputs]
        return maps if several else maps[0]
    source = sources.of_inputs(inputs)
    extract = Extractor(model, [feature], transform, mesh)
    table = extract(variables, source, 0, min(batch_size, len(inputs)))
    if missing := {*range(len(inputs))} - {*table.index.tolist()}:
        raise Unreadable(example_columns.reason(source, min(missing), transform))
    rows = table.features[feature]
    return rows if several else rows[0]
