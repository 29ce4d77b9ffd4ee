"""Transforms of examples of each modality; `data` is the section `data` of a config."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mae_jax.data import values
from mae_jax.data.modalities import audio, image, signal, text, video, volume

Example = dict[str, Any]


class Modality(Protocol):
    """The functions of a modality's module; `value` is the "image" of an example."""

    def train_views(
        self, value: Any, /, data: Mapping[str, Any], rng: np.random.Generator
    ) -> Iterable[np.ndarray | values.View]:
        """Yield `data.repeats` random crops, windows or clips `[*size, c]` of one example."""
        ...

    def eval_views(
        self, value: Any, /, data: Mapping[str, Any], clips: int = 1, crops: int = 1
    ) -> Iterable[np.ndarray | values.View]:
        """Yield the middle `[*size, c]` of an example, or several views spread over it.

        A modality with an axis of time has `clips` views along it, and one with frames has `crops`
        views of each.
        """
        ...


MODALITIES: dict[str, Modality] = {
    "image": image,  # uint8 pixels
    "video": video,  # uint8 clips
    "audio": audio,  # log-mel spectrograms
    "volume": volume,  # arrays with any number of axes and channels
    "signal": signal,  # arrays with one axis, of time or wavelength, and channels
    "text": text,  # bytes, as int32 because they are categories
}


def train_transform(data: Mapping[str, Any]) -> Callable[[Example, np.random.Generator], Example]:
    """Return `example, generator -> example` with a random crop, window or clip `[*size, c]`.

    If `data.repeats` is above one, the result has that many crops of the same decoded file,
    `[repeats, *size, c]`: repeated sampling (Hoffer et al., arXiv 1901.09335).
    """
    return functools.partial(_apply, MODALITIES[data["modality"]].train_views, dict(data), ())


def eval_transform(
    data: Mapping[str, Any], clips: int = 1, crops: int = 1
) -> Callable[[Example], Example]:
    """Return `example -> example` with its middle `[*size, c]`, or `[clips * crops, *size, c]`."""
    eval_views = MODALITIES[data["modality"]].eval_views
    return functools.partial(_apply, eval_views, dict(data), (clips, crops))


def _apply(
    make_views: Callable[..., Iterable[np.ndarray | values.View]],
    data: dict[str, Any],
    counts: tuple[int, ...],
    example: Example,
    *rng: np.random.Generator,
) -> Example:
    return {**example, **joined(list(make_views(example["image"], data, *counts, *rng)))}


def joined(views: Sequence[np.ndarray | values.View]) -> Example:
    """Return views as keys of an example: "image", and "spacing" or "times" if they count.

    Several views are stacked.
    """
    join = lambda arrays: arrays[0] if len(arrays) == 1 else np.stack(arrays)
    if not isinstance(views[0], values.View):
        return {"image": join(views)}
    columns = zip(("image", "spacing", "times"), zip(*views, strict=True), strict=True)
    return {name: join(x) for name, x in columns if x[0] is not None}
