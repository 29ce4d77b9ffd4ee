"""Arrays of numbers [*sides, c]: volumes and pictures with many channels."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mae_jax.data import array_io, arrays, values
from mae_jax.data.image_io import resize

Array = str | np.ndarray | arrays.Array  # the path of a file, or an array


def open_values(array: Array, data: Mapping[str, Any]) -> values.Values:
    """Return the values of an array, or of one in a file, with as many sides as `data.size` has.

    Raises:
      Unreadable: the file is of another kind or damaged, or the array does not fit `data`.
      OSError: the file does not exist.
    """
    if isinstance(array, np.ndarray):
        array = arrays.of(array)
    elif not isinstance(array, arrays.Array):
        array = array_io.open_array(array)
    return values.of(array, len(data["size"]), data)


def train_views(
    array: Array, data: Mapping[str, Any], rng: np.random.Generator
) -> Iterator[np.ndarray | values.View]:
    """Yield random parts of an array, resized to [*size, c]: uint8 or float32, see `values.scaled`.

    The sides of a part are those of `data.size` times one factor, which is log-uniform in
    `data.zoom`: (1, 1) keeps the resolution, and 2 shows twice as much at half the resolution.
    Resizing is linear, and antialiased where it shrinks. An array smaller than the part is
    continued on both sides: by missing values if `data.nodata` is set, else by its edge values.

    Raises:
      Unreadable: as `open_values`, or the part has values that are not finite.
    """
    size, opened = data["size"], open_values(array, data)
    for _ in range(data["repeats"]):
        factor = np.exp(rng.uniform(*np.log(data["zoom"])))
        sides = [max(1, round(side * factor)) for side in size]
        starts = rng.integers(0, free(opened, sides), endpoint=True)
        yield opened.view(resize.linear(crop(opened, starts, sides), size), starts, sides)


def eval_views(
    array: Array, data: Mapping[str, Any], clips: int = 1, crops: int = 1
) -> Iterator[np.ndarray | values.View]:
    """Yield the middle of an array without resizing, [*size, c]; otherwise as `train_views`."""
    size, opened = data["size"], open_values(array, data)
    starts = np.array(free(opened, size)) // 2
    yield opened.view(crop(opened, starts, size), starts, size)


def free(opened: values.Values, sides: Sequence[int]) -> list[int]:
    return [max(0, n - side) for n, side in zip(opened.sides, sides, strict=True)]


def crop(
    opened: values.Values, starts: Any, sides: Sequence[int], at_end: bool = False
) -> np.ndarray:
    """Return the part of `sides` from `starts` on, continued on both sides of a smaller array.

    With `at_end` the array is continued at the end alone, so that its first values stay the first.
    """
    ends = map(min, zip(opened.sides, np.add(starts, sides).tolist(), strict=True))
    part = opened.read([slice(int(a), b) for a, b in zip(starts, ends, strict=True)])
    gaps = [side - n for side, n in zip(sides, part.shape[:-1], strict=True)]
    if any(gaps):
        before = [0 if at_end else gap // 2 for gap in gaps]
        around = [*((n, gap - n) for n, gap in zip(before, gaps, strict=True)), (0, 0)]
        how: Any = dict(mode="edge")
        if opened.data.get("nodata") is not None:
            how = dict(constant_values=np.nan)
        part = np.pad(part, around, **how)
    return part
