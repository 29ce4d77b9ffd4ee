"""How an example of each modality becomes the arrays `[*size, c]` that a network sees.

A modality is named by `data.modality`, and is a module that answers two questions.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from mae_jax.data.modalities import audio, image, text, video, volume


class Modality(Protocol):
    """What a module of this package offers.

    `given` is what an example holds under the key "image", and `data` the section of a config.
    """

    def train_views(
        self, given: Any, /, data: Mapping[str, Any], rng: np.random.Generator
    ) -> Iterable[np.ndarray]:
        """Yield `data.repeats` random crops, windows or clips `[*size, c]` of one example."""
        ...

    def eval_views(
        self, given: Any, /, data: Mapping[str, Any], clips: int = 1, crops: int = 1
    ) -> Iterable[np.ndarray]:
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
    "text": text,  # bytes, as int32: they are categories, not brightness
}
