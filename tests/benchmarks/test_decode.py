"""scripts/experiments/decode.py: the baseline does what torchvision does."""

import numpy as np
import pytest

from scripts.experiments import decode


@pytest.fixture(scope="module")
def pictures():
    return decode.jpegs(4)


def test_the_baseline_is_what_torchvision_makes_of_the_same_box(pictures):
    for seed, data in enumerate(pictures):
        values = decode.timed(decode.with_pillow(data, seed), {})
        assert (values.shape, values.dtype) == ((3, 224, 224), np.float32)
        pixels = 255 * (values * decode.STD + decode.MEAN).transpose(1, 2, 0)
        pixels = pixels[:, ::-1] if seed % 2 else pixels
        crop = decode.timed(decode.with_loader(data, seed), {})
        assert (crop.shape, crop.dtype) == ((224, 224, 3), np.uint8)
        assert np.abs(pixels - crop).mean() < 1  # another box differs by 20 and more


def test_the_ratio_is_that_of_the_stages(pictures):
    found = decode.compare(pictures[:2], rounds=2)
    stages = found["pillow_milliseconds"]
    assert list(stages) == ["decode", "crop", "resize", "flip", "to tensor", "normalise"]
    np.testing.assert_allclose(found["pillow_images_per_second"], 1e3 / sum(stages.values()))
    rates = found["loader_images_per_second"] / found["pillow_images_per_second"]
    np.testing.assert_allclose(found["ratio"], rates)
    assert found["ratio_uint8"] < found["ratio"] and found["psnr_least"] > 40
