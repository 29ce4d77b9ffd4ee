"""Bytes of texts: windows [length, 1]."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mae_jax.data.bad_examples import Unreadable


def train_views(
    text: bytes, data: Mapping[str, Any], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield random windows of `text`: int32 [length, 1], with zeros after its end.

    Raises:
      Unreadable: the text is empty.
    """
    (length,) = data["size"]
    for _ in range(data["repeats"]):
        yield _window(text, rng.integers(0, max(0, len(text) - length), endpoint=True), length)


def eval_views(
    text: bytes, data: Mapping[str, Any], clips: int = 1, crops: int = 1
) -> Iterator[np.ndarray]:
    """Yield the middle window of `text`; otherwise as `train_views`."""
    (length,) = data["size"]
    yield _window(text, max(0, len(text) - length) // 2, length)


def _window(text: bytes, start: Any, length: int) -> np.ndarray:
    if not text:
        raise Unreadable("an empty text: remove the file")
    cut = text[start : start + length].ljust(length, b"\0")
    return np.frombuffer(cut, np.uint8).reshape(-1, 1).astype(np.int32)
