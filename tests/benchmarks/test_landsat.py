"""scripts/experiments/landsat.py: its halves lie where the scene lies, and its figures are R2."""

import numpy as np
import pytest

from scripts.experiments import landsat

rasterio = pytest.importorskip("rasterio")


@pytest.fixture
def scene(tmp_path):
    path, values = str(tmp_path / "scene.tif"), np.arange(6 * 8 * 7, dtype=np.uint16)
    values = values.reshape(6, 8, 7)
    transform = rasterio.Affine(28.5, 0, 1000, 0, -28.5, 9000)
    profile = dict(driver="GTiff", width=7, height=8, count=6, dtype="uint16", crs="EPSG:31985")
    with rasterio.open(path, "w", transform=transform, **profile) as file:
        file.write(values)
    return path, values


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")  # in rasterio
@pytest.mark.parametrize("train", landsat.OPPOSITE)
def test_halves_have_all_pixels_at_their_places(scene, tmp_path, train):
    path, values = scene
    with rasterio.open(path) as whole:
        area = 0
        for half in landsat.write_halves(path, tmp_path / "halves", train):
            with rasterio.open(half) as part:
                assert part.crs == whole.crs and part.res == whole.res
                area += part.width * part.height
                x = round((part.bounds.left - whole.bounds.left) / 28.5)
                y = round((whole.bounds.top - part.bounds.top) / 28.5)
                expected = values[:, y : y + part.height, x : x + part.width]
                np.testing.assert_array_equal(part.read(), expected)
        assert area == 56


def test_the_pixels_around_a_pixel():
    x = np.arange(4 * 5 * 2).reshape(4, 5, 2)
    near = landsat.around(x, 3).reshape(4, 5, 2, 3, 3)
    np.testing.assert_array_equal(near[..., 1, 1], x)
    np.testing.assert_array_equal(near[1, 2, 0], x[:3, 1:4, 0])
    np.testing.assert_array_equal(near[0, 0, 1, 0], x[0, [0, 0, 1], 1])


def test_r2_is_that_of_scikit_learn():
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(0)
    true, land = rng.normal(size=(9, 8, 3)), rng.random((9, 8)) < 0.6
    predicted = true + rng.normal(size=true.shape) * [0.1, 0.5, 2]
    expected = [r2_score(true[land][:, k], predicted[land][:, k]) for k in range(3)]
    np.testing.assert_allclose(landsat.r2(predicted, true, land), expected)
