import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
import benchmark_decode as benchmark  # noqa: E402


@pytest.fixture(scope="module")
def pictures():
    return benchmark.jpegs(4)


def test_the_baseline_is_what_torchvision_makes_of_the_same_box(pictures):
    for seed, data in enumerate(pictures):
        values = benchmark.with_pillow(data, seed, benchmark.Stages())
        assert (values.shape, values.dtype) == ((3, 224, 224), np.float32)
        pixels = 255 * (values * benchmark.STD + benchmark.MEAN).transpose(1, 2, 0)
        pixels = pixels[:, ::-1] if seed % 2 else pixels
        crop = benchmark.with_loader(data, seed, benchmark.Stages())
        assert (crop.shape, crop.dtype) == ((224, 224, 3), np.uint8)
        assert np.abs(pixels - crop).mean() < 1  # another box differs by 20 and more


def test_the_ratio_is_that_of_the_stages(pictures):
    found = benchmark.compare(pictures[:2], rounds=2)
    stages = found["pillow_milliseconds"]
    assert list(stages) == ["decode", "crop", "resize", "flip", "to tensor", "normalise"]
    np.testing.assert_allclose(found["pillow_images_per_second"], 1e3 / sum(stages.values()))
    rates = found["loader_images_per_second"] / found["pillow_images_per_second"]
    np.testing.assert_allclose(found["ratio"], rates)
    assert found["ratio_uint8"] < found["ratio"] and found["psnr_least"] > 40
