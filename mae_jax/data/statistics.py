"""Range, mean and standard deviation of the values of a source, for their scale and normalisation.

All are measured once, over many examples, and hold for every file.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mae_jax.data import values
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.modalities import image, transforms
from mae_jax.data.sources.source import Example, Source, fixed_choice, length_of, read

_LEVEL = 1 / 255  # the least deviation of 8 bits
_RELATIVE = 1e-6  # the least deviation of other values, relative to the greatest of them
_EXACT = 1e-5  # deviations below this share of the values are lost in float32
_TRIED = 32  # examples that decide whether pictures have 8 bits
_BLOCK, _MOST = 2**22, 2**26  # values that are read at a time, and of one array
# Numbers by which people and formats say "missing": netCDF's, GDAL's, and round ones.
_FILLS = (-9999, -999, -99999, -32768, -1e34, -3.4028234663852886e38, 9.969209968386869e36, 1e20)
_log = logging.getLogger(__name__)


def measure(
    source: Source, data: Mapping[str, Any], limit: int = 2000, scale: Any = None
) -> dict[str, Any]:
    """Return `range`, `mean` and `std` of a source as keys of the section `data` of a config.

    The examples are a fixed random choice of `limit`, without unreadable examples. The values are
    whole pictures, and the central views of other modalities, without missing values. `mean` and
    `std`, one number for each channel, are of values in the terms of `range`, uint8 scaled to
    [0, 1]. `range` is measured if it is "data", or if it is "auto" and pictures have more than 8
    bits. A deviation is at least 1/255 of 8 bits, and else at least 1e-6 of the greatest value, so
    that one can divide by it.

    Args:
      scale: what `resolve_range` returned, if it was called before.

    Raises:
      ValueError: none of these examples can be read, a channel has no values, the source is empty,
        or some pictures have 8 bits and others more.
    """
    examples = fixed_choice(length_of(source), limit).tolist()
    data = {**data, "range": resolve_range(source, data) if scale is None else scale}
    is_measured = data["range"] == "data"
    parts = _values_of(data, raw=is_measured)

    def moments(i: int) -> list[np.ndarray] | Unreadable:
        try:
            return read(source, i, lambda example: [*map(_moments, parts(example))])
        except Unreadable as error:
            return error

    with ThreadPoolExecutor(max(1, data["threads"])) as pool:
        results = list(pool.map(moments, examples))
    found = [part for parts in results if isinstance(parts, list) for part in parts]
    if not found:
        raise Unreadable(f"none of {len(results)} examples can be read; the first: {results[0]}")
    counts, means, squares, low, high, levels = np.array(found).swapaxes(0, 1)  # each [n c]
    if empty := [str(c) for c in np.flatnonzero(counts.sum(0) == 0)]:
        raise ValueError(f"all values of channel(s) {', '.join(empty)} are missing")
    mean = (counts * means).sum(0) / counts.sum(0)
    variance = (squares + counts * (means - mean) ** 2).sum(0) / counts.sum(0)
    ends = {low.min(), high.max()} if data.get("nodata") is None else set()
    for fill in ends & {*_FILLS, *np.array(_FILLS, np.float32).tolist()}:
        text = "the number %g occurs among the values: if it means missing, set data.nodata=%g"
        _log.warning(text, fill, fill)
    std, scale = np.sqrt(variance), data["range"]
    greatest = np.maximum(np.abs(low.min(0)), np.abs(high.max(0)))
    if is_measured:
        scale = float(low.min()), float(high.max())
        scale = scale if scale[0] < scale[1] else (scale[0], scale[0] + 1)
        extent = scale[1] - scale[0]
        mean, std, greatest = (mean - scale[0]) / extent, std / extent, 1
    elif (std[levels.max(0) == 0] < _EXACT * greatest[levels.max(0) == 0]).any():
        _log.warning(
            "values up to %g have a deviation of %g, of which float32 holds few digits: "
            "data.range='data' keeps them",
            *(np.max(greatest), std.min()),
        )
    floor = np.maximum(levels.max(0), _RELATIVE * greatest)
    std = np.where(std > 0, np.maximum(std, floor), np.where(floor > 0, floor, 1))
    return dict(range=scale, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def resolve_range(source: Source, data: Mapping[str, Any]) -> Any:
    """Return `data.range` without "auto", but of pictures of 8 bits; "data" is to be measured.

    Bytes have (0, 255) and other arrays "numbers", which stay as they are. Pictures of more than 8
    bits have "data".

    Raises:
      ValueError: some examples are bytes and others not, or none of those tried can be read.
    """
    module: Any = transforms.MODALITIES[data["modality"]]
    scale, is_image = data.get("range", "auto"), data["modality"] == "image"
    if scale != "auto" or not hasattr(module, "open_values"):
        return scale
    kinds: dict[bool, str] = {}
    errors: list[Unreadable] = []

    def are_bytes(example: Example) -> bool:
        if is_image:
            return image.has_8_bits(example["image"])
        return module.open_values(example["image"], data).array.dtype == np.uint8

    for i in fixed_choice(length_of(source), _TRIED).tolist():
        try:
            kinds.setdefault(read(source, i, are_bytes), source.name(i))
        except Unreadable as error:
            errors.append(error)
    if not kinds:
        raise Unreadable(f"none of {len(errors)} examples can be read; the first: {errors[0]}")
    if len(kinds) > 1:
        raise ValueError(
            f"{kinds[False]!r} has more than 8 bits and {kinds[True]!r} has 8: set data.range to "
            "'dtype', or to the numbers (low, high) that mean 0 and 1 in both"
        )
    if is_image:
        return "data" if False in kinds else "auto"
    return "numbers" if False in kinds else (0.0, 255.0)


def _values_of(data: Mapping[str, Any], raw: bool) -> Callable[[Example], Iterator[np.ndarray]]:
    """Return a function that yields the values [n, c] of an example in parts, NaN where missing.

    Args:
      raw: of whole arrays, the numbers as they are stored, and not in the terms of `data.range`.
    """
    module: Any = transforms.MODALITIES[data["modality"]]
    central_view = transforms.eval_transform(data)

    def parts(example: Example) -> Iterator[np.ndarray]:
        if not raw and data["modality"] != "image":
            yield central_view(example)["image"].reshape(-1, data["channels"])
            return
        opened = module.open_values(example["image"], data)
        for part in _blocks(opened.sides, opened.array.size):
            x, exists = opened.raw(part)
            if not raw:
                x = values.scaled(x, exists, data)
            else:  # float64, so that bytes are the numbers that `values.scaled` is given
                x = x.astype(np.float64)
                x = x if exists is None else np.where(exists, x, np.nan)
            yield x.reshape(-1, data["channels"])

    return parts


def _blocks(sides: Sequence[int], size: int) -> Iterator[list[slice]]:
    """Yield blocks of rows of an array, and of one above `_MOST` values some that are spread."""
    count = min(sides[0], 1 + size // _BLOCK)  # large arrays are too large as float64
    edges = np.linspace(0, sides[0], count + 1).astype(int).tolist()
    step = max(1, size // _MOST)
    for low, high in list(itertools.pairwise(edges))[::step]:
        yield [slice(low, high), *(slice(0, side) for side in sides[1:])]


def _moments(x: np.ndarray) -> np.ndarray:
    """Return count, mean, sum of squared deviations, least, greatest and floor by channel."""
    level = _LEVEL if x.dtype == np.uint8 else 0.0
    y = x.astype(np.float64) / (255 if level else 1)
    missing = np.isnan(y)
    if missing.any():
        count = (~missing).sum(0)
        mean = np.where(missing, 0, y).sum(0) / np.maximum(count, 1)
        squares = np.where(missing, 0, y - mean) ** 2
        low, high = np.where(missing, np.inf, y).min(0), np.where(missing, -np.inf, y).max(0)
        return np.stack([count, mean, squares.sum(0), low, high, np.full(len(mean), level)])
    mean = y.mean(0)
    fill = functools.partial(np.full, len(mean))
    return np.stack([fill(len(y)), mean, ((y - mean) ** 2).sum(0), y.min(0), y.max(0), fill(level)])
