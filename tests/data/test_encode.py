"""Files of pictures: what is read back is equal to the bit, in its type."""

import io

import numpy as np
import pytest
import rasterio
from PIL import Image, ImageCms

from mae_jax.data import array_io
from mae_jax.data.array_io import geotiff
from mae_jax.data.arrays import Frame
from mae_jax.data.image_io import decode, encode

RNG = np.random.default_rng(0)
PLACE = Frame(np.array([[0, 30.0, 3e5], [-30.0, 0, 9e6], [0, 0, 1]]), "EPSG:32725")


def numbers(dtype, *shape) -> np.ndarray:
    return (RNG.random(shape) * (1 if np.dtype(dtype).kind == "f" else 2**8 - 1) * 200).astype(
        dtype
    )


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3), (7, 9, 4)])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_png(tmp_path, shape, dtype):
    values, path = numbers(dtype, *shape), tmp_path / "a.png"
    encode.write(str(path), values)
    back = decode.bands(path.read_bytes())
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back.reshape(shape), values)


@pytest.mark.parametrize("frame", [None, PLACE])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8"])
def test_tiff(tmp_path, frame, count, dtype):
    values, path = numbers(dtype, 20, 30, count), str(tmp_path / "a.tif")
    encode.write(path, values, frame, nodata=7 if frame else None)
    array = array_io.open_array(path)
    assert (array.dtype, array.sides, array.valid) == (values.dtype, 2, None)
    assert array.nodata == ((7,) if frame else ())
    np.testing.assert_array_equal(array.read(array.whole), values)
    if frame:
        np.testing.assert_array_equal(geotiff.open_array(path).frame.affine, frame.affine)
        with rasterio.open(path) as file:
            assert file.crs == rasterio.CRS.from_epsg(32725)


def test_npy(tmp_path):
    values = numbers("f2", 3, 4, 5, 2)
    encode.write(str(tmp_path / "a.npy"), values)
    array = array_io.open_array(str(tmp_path / "a.npy"))
    assert array.dtype == np.float16
    np.testing.assert_array_equal(array.read(array.whole), values)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize("end", ["png", "tif"])
def test_color_profiles_are_kept(tmp_path, end):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    values = numbers("u1", 7, 9, 3)
    encode.write(str(tmp_path / f"a.{end}"), values, profile=profile)
    with Image.open(io.BytesIO((tmp_path / f"a.{end}").read_bytes())) as picture:
        assert picture.info["icc_profile"] == profile
        np.testing.assert_array_equal(np.asarray(picture), values)


@pytest.mark.parametrize(
    "name, shape, dtype, match",
    [
        ("a.jpg", (7, 9, 3), "u1", "compressed with a loss"),
        ("a.bmp", (7, 9, 3), "u1", "must end in .png, .tif, .tiff, .npy"),
        ("a.png", (7, 9, 3), "f4", "not 3 of float32: write .tif or .npy"),
        ("a.png", (7, 9, 2), "u1", "hold 1, 3 or 4 channels of uint8 or uint16"),
        ("a.tif", (7, 9), "f2", "hold no float16: write .npy"),
        ("a.tif", (3, 7, 9, 1), "u1", "are no picture: write .npy"),
    ],
)
def test_files_that_would_change_the_values(tmp_path, name, shape, dtype, match):
    with pytest.raises(ValueError, match=match):
        encode.write(str(tmp_path / name), numbers(dtype, *shape))
    assert not list(tmp_path.iterdir())
