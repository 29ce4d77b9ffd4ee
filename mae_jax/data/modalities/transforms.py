"""How an example of any modality becomes the array `[*size, c]` that a network sees.

A modality is named by `data.modality`: "image" (uint8 pixels), "video" (uint8 clips), "audio"
(log-mel spectrograms), "volume" (arrays with any number of axes and channels) and "text" (bytes, as
int32: categories, not brightness). `data` is that section of a config.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mae_jax.data import pipeline
from mae_jax.data.image_io import crop, decode
from mae_jax.data.modalities import audio, text, video, volume
from mae_jax.data.pipeline import Example
from mae_jax.data.sources import Source


def train_transform(
    data: Mapping[str, Any],
) -> Callable[[Example, np.random.Generator], Example]:
    """`example, generator -> example` with a random crop, window or clip `[*size, c]`.

    With `data.repeats` above one these are as many of the same decoded file, `[repeats, *size, c]`:
    repeated sampling (Hoffer et al., arXiv 1901.09335; MAE-ST, arXiv 2205.09113).
    """
    return functools.partial(_transformed, _train, dict(data))


def test_transform(
    data: Mapping[str, Any], clips: int = 1, crops: int = 1
) -> Callable[[Example], Example]:
    """`example -> example` with the middle of it, `[*size, c]`.

    With several `clips` or `crops` these are views spread over it, `[clips * crops, *size, c]`.
    """
    return functools.partial(_transformed, functools.partial(_test, clips, crops), dict(data))


test_transform.__test__ = False  # pytest would collect it in every module that imports it


def mean_std(source: Source, data: Mapping[str, Any], limit: int = 2000):
    """Mean and standard deviation of each channel, over all values of `limit` examples.

    Whole pictures in [0, 1]; of other modalities the middles. See `pipeline.mean_std`.
    """
    if data["modality"] == "image":
        values = lambda example: decode.decode(example["image"], data["channels"])
    else:
        middle = test_transform(data)
        values = lambda example: middle(example)["image"]
    return pipeline.mean_std(
        source, data["channels"], limit=limit, threads=data["threads"], values=values
    )


def _transformed(transform, data, example, *rng) -> Example:
    views = list(transform(data, example["image"], *rng))
    return {**example, "image": views[0] if len(views) == 1 else np.stack(views)}


def _train(data, given, rng) -> Iterator[np.ndarray]:
    size, repeats = tuple(data["size"]), data["repeats"]
    channels = data["channels"]
    match data["modality"]:
        case "image":
            scale, ratio = tuple(data["crop_scale"]), tuple(data["crop_ratio"])
            yield from crop.random_crops(given, channels, size, scale, ratio, rng, repeats)
        case "video":
            yield from video.train(
                given,
                rng,
                size=size,
                channels=channels,
                stride=data["stride"],
                scale=tuple(data["crop_scale"]),
                ratio=tuple(data["crop_ratio"]),
                repeats=repeats,
            )
        case "audio":
            for _ in range(repeats):
                yield audio.train(
                    given,
                    rng,
                    size=size,
                    rate=data["rate"],
                    roll=data["roll"],
                    magnitude=data["magnitude"],
                )
        case "volume":
            values = volume.decode(given, len(size), channels)
            for _ in range(repeats):
                yield volume.train(values, rng, size=size, scale=tuple(data["zoom"]))
        case "text":
            for _ in range(repeats):
                yield text.train(given, rng, size=size).astype(np.int32)


def _test(clips, crops, data, given) -> Iterator[np.ndarray]:
    size, channels = tuple(data["size"]), data["channels"]
    match data["modality"]:
        case "image":
            pixels = decode.decode(given, channels)
            yield crop.center_crop(pixels, size, data["center_crop"])
        case "video":
            yield from video.test(
                given,
                size=size,
                channels=channels,
                stride=data["stride"],
                share=data["center_crop"],
                clips=clips,
                crops=crops,
            )
        case "audio":
            yield from audio.test(given, size=size, rate=data["rate"], clips=clips)
        case "volume":
            yield volume.test(volume.decode(given, len(size), channels), size=size)
        case "text":
            yield text.test(given, size=size).astype(np.int32)
