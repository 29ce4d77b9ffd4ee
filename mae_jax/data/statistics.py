"""Mean and standard deviation of the values of a source, for normalisation."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import decode
from mae_jax.data.modalities import transforms
from mae_jax.data.sources.source import Example, Source, fixed_choice, length_of, read


def mean_std(
    source: Source, data: Mapping[str, Any], limit: int = 2000
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, over all values of `limit` examples.

    The examples are a fixed random choice, without unreadable examples. The values are whole
    pictures, and the central views of other modalities; uint8 is scaled to [0, 1]. The deviation is
    at least 1/255, so that one can divide by it.

    Args:
      data: the section `data` of a config.

    Raises:
      ValueError: none of these examples can be read, or the source is empty.
    """
    channels, central_view = data["channels"], transforms.eval_transform(data)

    def values(example: Example) -> np.ndarray:
        if data["modality"] == "image":
            return decode.decode(example["image"], channels)
        return central_view(example)["image"]

    def moments(i: int) -> list[np.ndarray] | Unreadable:
        """Return count, mean and sum of squared deviations by channel, for parts of an example."""
        try:
            x = read(source, int(i), values).reshape(-1, channels)
        except Unreadable as error:
            return error
        parts = []
        for y in np.array_split(x, 1 + x.size // 2**22):  # large pictures are too large as float64
            y = y.astype(np.float64) / (255 if y.dtype == np.uint8 else 1)
            mean = y.mean(0)
            parts.append(np.stack([np.full(channels, len(y)), mean, ((y - mean) ** 2).sum(0)]))
        return parts

    with ThreadPoolExecutor(max(1, data["threads"])) as pool:
        results = list(pool.map(moments, fixed_choice(length_of(source), limit)))
    parts = [part for parts in results if isinstance(parts, list) for part in parts]
    if not parts:
        raise Unreadable(f"none of {len(results)} examples can be read; the first: {results[0]}")
    counts, means, squares = np.array(parts).swapaxes(0, 1)  # each [n c]
    mean = (counts * means).sum(0) / counts.sum(0)
    variance = (squares + counts * (means - mean) ** 2).sum(0) / counts.sum(0)
    return tuple(mean.tolist()), tuple(np.maximum(np.sqrt(variance), 1 / 255).tolist())
