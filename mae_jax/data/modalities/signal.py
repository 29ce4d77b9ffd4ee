"""Signals: windows [length, c] of arrays with one axis of time or wavelength, and channels."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mae_jax.data import values
from mae_jax.data.modalities import volume

open_values = volume.open_values


def train_views(
    signal: volume.Array, data: Mapping[str, Any], rng: np.random.Generator
) -> Iterator[np.ndarray | values.View]:
    """Yield random windows of a signal [time, c], resampled by `data.zoom`: `volume.train_views`.

    A signal shorter than a window is continued on both sides: by missing values if `data.nodata` is
    set, else by its first and its last values.
    """
    return volume.train_views(signal, data, rng)


def eval_views(
    signal: volume.Array, data: Mapping[str, Any], clips: int = 1, crops: int = 1
) -> Iterator[np.ndarray | values.View]:
    """Yield `clips` windows, evenly spread from the start to the end; or the middle.

    The windows are not resampled, and are otherwise as in `train_views`.
    """
    size = data["size"]
    opened = open_values(signal, data)
    (free,) = volume.free(opened, size)
    for share in np.linspace(0, 1, clips) if clips > 1 else [0.5]:
        starts = [int(free * share)]
        yield opened.view(volume.crop(opened, starts, size), starts, size)
