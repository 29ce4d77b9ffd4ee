import numpy as np
import pytest

from mae_jax.data import description, sources
from mae_jax.data.sources.source import Examples

SEEN = dict(mean=(0.5,), std=(0.25,), channels=1, repeats=1)


def of(images, **data) -> str:
    source = Examples(len(images), lambda i: {"image": images[i], "label": -1}, (), "test")
    return description.describe(source, dict(SEEN, size=(8, 8), modality="volume") | data)


@pytest.mark.parametrize(
    "dtype, data, words",
    [
        (np.float32, dict(range="numbers"), "numbers stay as they are; crops of 8 x 8; (x - mean)"),
        (np.uint8, dict(range="auto"), "bytes become 0 to 1; crops"),
        (
            np.int16,
            dict(range=(-160, 240), clip=True),
            "-160 to 240 become 0 to 1, and others are cut",
        ),
        (np.uint16, dict(range="dtype"), "whole numbers become 0 to 1 by the limits of their type"),
        (np.float32, dict(range="auto", nodata=-9999.0), "missing: NaN and -9999; crops"),
        (np.float32, dict(range="auto", nodata="file"), "missing: NaN and what files say of them"),
    ],
)
def test_it_says_what_is_done_to_numbers(dtype, data, words):
    text = of([np.zeros((9, 10), dtype), np.zeros((12, 10), dtype)], **data)
    first, second = text.split("\n")
    kinds = [f"{side} x 10, 1 channel(s), {np.dtype(dtype)}" for side in (9, 12)]
    assert first == f"2 training examples: {'; '.join(kinds)}"
    assert words in second and second.endswith("with mean 0.5 and deviation 0.25")


def test_many_kinds_and_unreadable_examples_are_shortened():
    images = [np.zeros((0, 3)), *(np.zeros((9, n)) for n in range(8, 16))]
    first = of(images, range="auto").split("\n")[0]
    assert first.startswith("9 training examples: 9 x 8,") and first.endswith("; ...")


def test_texts_have_neither_crops_nor_a_mean():
    source = sources.open_source("stdlib", "train", "text")
    text = description.describe(source, dict(modality="text", size=(256,)))
    assert text.endswith("text examples\nwhat the network sees: 256 bytes")
