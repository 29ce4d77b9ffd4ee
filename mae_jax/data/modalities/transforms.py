"""Transforms of examples for training and evaluation; `data` is that section of a config."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mae_jax.data.modalities import MODALITIES

Example = dict[str, Any]


def train_transform(
    data: Mapping[str, Any],
) -> Callable[[Example, np.random.Generator], Example]:
    """Return `example, generator -> example` with a random crop, window or clip `[*size, c]`.

    If `data.repeats` is above one, the result has that many crops of the same decoded file,
    `[repeats, *size, c]`: repeated sampling (Hoffer et al., arXiv 1901.09335; MAE-ST, arXiv
    2205.09113).
    """
    return functools.partial(_apply, MODALITIES[data["modality"]].train_views, dict(data), ())


def eval_transform(
    data: Mapping[str, Any], clips: int = 1, crops: int = 1
) -> Callable[[Example], Example]:
    """Return `example -> example` with the middle of the example, `[*size, c]`.

    With several `clips` or `crops` the result has views spread over it,
    `[clips * crops, *size, c]`.
    """
    eval_views = MODALITIES[data["modality"]].eval_views
    return functools.partial(_apply, eval_views, dict(data), (clips, crops))


def _apply(
    make_views: Callable[..., Iterable[np.ndarray]],
    data: dict[str, Any],
    counts: tuple[int, ...],
    example: Example,
    *rng: np.random.Generator,
) -> Example:
    views = list(make_views(example["image"], data, *counts, *rng))
    return {**example, "image": views[0] if len(views) == 1 else np.stack(views)}
