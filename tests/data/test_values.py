"""Files that people have, on one scale: bands, levels and missing values arrive as they are."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from PIL import Image

from mae_jax.data import arrays, statistics, values
from mae_jax.data.augment import batch as augment
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import resize
from mae_jax.data.modalities import transforms
from mae_jax.data.sources.source import Examples

RNG = np.random.default_rng(0)
ROWS, COLUMNS = np.mgrid[:32, :32]
BLOB = np.exp(-((ROWS - 12) ** 2 + (COLUMNS - 20) ** 2) / 60)


def tiff(x, **options) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, x, **options)
    return out.getvalue()


def png(x) -> bytes:
    out = io.BytesIO()
    Image.fromarray(x).save(out, "PNG")
    return out.getvalue()


def source(*images) -> Examples:
    return Examples(len(images), lambda i: {"image": images[i], "label": -1}, (), "test")


def section(modality="volume", size=(32, 32), channels=1, **changes) -> dict:
    """The keys of `data` with crops that are whole pictures."""
    crops = dict(crop_scale=(1, 1), crop_ratio=(1, 1), center_crop=1.0, zoom=(1, 1), flip=False)
    return (
        dict(modality=modality, size=size, channels=channels, repeats=1, threads=1)
        | crops
        | changes
    )


def views(image, data) -> list[np.ndarray]:
    """What training and evaluation see of a picture."""
    example = {"image": image, "label": -1}
    train = transforms.train_transform(data)(example, np.random.default_rng(0))
    return [train["image"], transforms.eval_transform(data)(example)["image"]]


def measured(data, *images) -> dict:
    return data | statistics.measure(source(*images), data)


def normalized(image, data) -> np.ndarray:
    x = views(image, data)[0]
    return np.asarray(augment.normalize(jnp.asarray(x)[None], data["mean"], data["std"])[0])


def test_a_near_infrared_band_is_no_transparency():
    bands = RNG.integers(0, 256, (32, 32, 4), dtype=np.uint8)
    file = tiff(bands, photometric="rgb", extrasamples=[0])
    for seen in views(file, section("image", channels=4)):
        np.testing.assert_array_equal(seen, bands)
    for seen in views(file, section("image", channels=3, bands=(3, 0, 0))):
        np.testing.assert_array_equal(seen, bands[..., [3, 0, 0]])
    with pytest.raises(Unreadable, match=r"4 channels, not 3: set data.channels=4 or data.bands="):
        views(file, section("image", channels=3))
    assert measured(section("image", channels=4), file)["range"] == "auto"


@pytest.mark.parametrize("encode", [png, tiff])
def test_twelve_bits_keep_their_levels(encode):
    x = (4095 * BLOB).astype(np.uint16)
    files = [encode(x), encode((x // 3).astype(np.uint16))]
    data = measured(section("image"), *files)
    assert data["range"] == (0, 4095)
    for file, expected in zip(files, (x, x // 3), strict=True):
        for seen in views(file, data):
            assert seen.dtype == np.float32
            np.testing.assert_array_equal(seen[..., 0], np.float32(expected / 4095))
    assert len(np.unique(views(files[0], data)[0])) == len(np.unique(x))
    np.testing.assert_allclose(data["mean"], np.mean([x, x // 3]) / 4095)
    np.testing.assert_allclose(data["std"], np.std([x, x // 3]) / 4095)
    of_type = views(files[0], section("image", range="dtype"))[0]
    np.testing.assert_array_equal(of_type[..., 0], np.float32(x / 65535))
    with pytest.raises(Unreadable, match="values of uint16, and not of 8 bits: set data"):
        views(files[0], section("image"))
    with pytest.raises(ValueError, match=r"'test\[0\]' has more than 8 bits and 'test\[1\]' has 8"):
        measured(section("image"), files[0], png(np.zeros((32, 32), np.uint8)))


@pytest.mark.parametrize("modality", ["image", "volume"])
def test_one_bright_voxel_changes_no_other(modality):
    slices = []
    for bright in (1000, 3000):
        x = np.full((32, 32), 40, np.int16)
        x[3, 4] = bright
        slices.append(tiff(x) if modality == "image" else x)
    data = measured(section(modality), *slices)
    a, b = (views(x, data)[0][..., 0] for x in slices)
    assert a[0, 0] == b[0, 0] and a[3, 4] < b[3, 4]
    window = section(modality, range=(-160, 240), clip=True)
    a, b = (views(x, window)[0][..., 0] for x in slices)
    assert a[0, 0] == b[0, 0] == 0.5 and a[3, 4] == b[3, 4] == 1


def test_channels_first_are_turned_or_named():
    x = RNG.normal(1000, 300, (13, 64, 64)).astype(np.float32)
    for choice in ("auto", "first"):
        for seen in views(x, section(channels=13, size=(64, 64), channel_axis=choice)):
            np.testing.assert_array_equal(seen, np.moveaxis(x, 0, -1))
    picked = views(x, section(channels=2, size=(64, 64), bands=(12, 3), channel_axis="first"))[0]
    np.testing.assert_array_equal(picked, np.moveaxis(x, 0, -1)[..., [12, 3]])
    with pytest.raises(Unreadable, match="channels first, and 13 of them: set data.channels=13"):
        views(x, section(channels=3, size=(64, 64)))
    with pytest.raises(Unreadable, match="channels first or last: set data.channel_axis="):
        views(x, section(channels=64, size=(13, 64)))
    last = views(x, section(channels=64, size=(13, 64), channel_axis="last"))[0]
    np.testing.assert_array_equal(last, x)


def test_the_same_pictures_on_two_scales_train_alike():
    x = np.float32(BLOB[..., None])
    seen = [normalized(y, measured(section(), y)) for y in (x, np.float32(1e-5 * x), 1e5 * x)]
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(seen[0], seen[2], rtol=1e-5, atol=1e-5)
    assert seen[0].std() == pytest.approx(1, abs=1e-3)


def test_a_constant_channel_is_divided_by_something():
    for value in (0.0, 7.0, 1e-9):
        data = measured(section(), np.full((32, 32, 1), value, np.float32))
        assert np.isfinite(normalized(np.full((32, 32, 1), value, np.float32), data)).all()


def tile() -> np.ndarray:
    x = RNG.normal(0.2, 0.05, (32, 32, 4)).astype(np.float32)
    x[:16] = -9999
    x[20, 3, 1] = np.nan
    return x


def test_missing_values_are_left_out_of_statistics_and_arrive_as_missing(caplog):
    tiles = [tile(), tile()]
    measured(section(channels=4), *(np.nan_to_num(x) for x in tiles))
    assert "the number -9999 occurs among the values: if it means missing, set" in caplog.text
    data = measured(section(channels=4, nodata=-9999), *tiles)
    known = np.concatenate([x[16:].reshape(-1, 4) for x in tiles]).astype(np.float64)
    np.testing.assert_allclose(data["mean"], np.nanmean(known, 0), rtol=1e-6)
    np.testing.assert_allclose(data["std"], np.nanstd(known, 0), rtol=1e-6)
    seen = views(tiles[0], data)[0]
    assert np.isnan(seen[:16]).all() and np.isnan(seen[20, 3, 1])
    np.testing.assert_array_equal(seen[16:20], tiles[0][16:20])
    for other in (dict(), dict(nodata="nan")):
        if other:
            assert np.isnan(views(tiles[0], section(channels=4, **other))[0]).sum() == 1
        else:
            with pytest.raises(Unreadable, match="missing values .*set data.nodata"):
                views(tiles[0], section(channels=4))
    padded = views(tiles[0], section(channels=4, size=(40, 32), nodata=-9999))[0]
    assert np.isnan(padded[-4:]).all()


@pytest.mark.parametrize("modality", ["image", "volume"])
def test_bytes_without_missing_values_are_as_without_nodata(modality):
    x = RNG.integers(1, 256, (32, 32, 3), dtype=np.uint8)
    data = section(modality, channels=3)
    plain, gappy = measured(data, x), measured(data | dict(nodata=0), x)
    assert plain["mean"] == pytest.approx(gappy["mean"], rel=1e-6)
    a, b = (views(x, y)[0] for y in (plain, gappy))
    assert (a.dtype, b.dtype) == (np.uint8, np.float32)
    np.testing.assert_allclose(normalized(x, plain), normalized(x, gappy), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("modality", ["image", "volume"])
@pytest.mark.parametrize("nodata", [None, 0])
def test_the_range_of_bytes_is_measured_in_the_numbers_that_it_scales(modality, nodata):
    x = RNG.integers(20, 101, (32, 32, 3), dtype=np.uint8)
    x[0, :3, 0] = 20, 100, 0 if nodata == 0 else 50
    data = measured(section(modality, channels=3, range="data", nodata=nodata), x)
    assert data["range"] == (20, 100)
    seen = views(x, data)[0]
    assert np.nanmin(seen) == 0 and np.nanmax(seen) == 1
    exists = np.ones(x.shape, bool) if nodata is None else x != 0
    known = np.where(exists, (x - 20.0) / 80, np.nan).reshape(-1, 3)
    np.testing.assert_allclose(data["mean"], np.nanmean(known, 0), rtol=1e-6)
    np.testing.assert_allclose(data["std"], np.nanstd(known, 0), rtol=1e-6)


def test_a_mask_band_and_what_a_file_says():
    x = RNG.normal(size=(32, 32, 3)).astype(np.float32)
    x[..., 2] = 1
    x[5, :, 2] = 0
    seen = views(x, section(channels=2, nodata="mask"))[0]
    assert np.isnan(seen[5]).all() and np.isfinite(np.delete(seen, 5, 0)).all()
    whole = arrays.of(x[..., :2])
    declared = arrays.Array(
        whole.shape,
        whole.dtype,
        whole.read,
        nodata=(float(x[3, 3, 1]),),
        valid=lambda part: x[part[:2]][..., 2] > 0,
    )
    with pytest.raises(Unreadable, match="missing values"):
        views(declared, section(channels=2))
    seen = views(declared, section(channels=2, nodata="file"))[0]
    assert np.isnan(seen[5]).all() and np.isnan(seen[3, 3, 1]) and np.isfinite(seen[3, 3, 0])


def test_numbers_that_float32_cannot_hold_are_refused_or_told(caplog):
    ids = np.array([[2**24 + 1, 2**24 + 2]], np.int32)
    with pytest.raises(Unreadable, match="lose digits as float32: set data.range"):
        values.scaled(ids[..., None], None, section())
    exact = values.scaled(ids[..., None], None, section(range=(2**24, 2**24 + 2)))
    assert exact.ravel().tolist() == [0.5, 1]
    far = 1e9 + RNG.normal(size=(32, 32, 1))
    measured(section(), far)
    assert "data.range='data' keeps them" in caplog.text
    data = measured(section(range="data"), far)
    np.testing.assert_allclose(normalized(far, data), (far - far.mean()) / far.std(), atol=1e-4)
    with pytest.raises(Unreadable, match="values beyond float32: set data.range"):
        views(np.full((32, 32), 1e300), section())


def test_resizing_takes_nothing_from_missing_values():
    x = np.ones((40, 30, 2), np.float32)
    x[:11, :, 0], x[:, 17:, 1] = np.nan, np.nan
    y = resize.linear(x, (13, 19))
    np.testing.assert_allclose(y[np.isfinite(y)], 1, rtol=1e-6)
    assert 0.6 < np.isfinite(y[..., 0]).mean() < 0.8 and 0.5 < np.isfinite(y[..., 1]).mean() < 0.65
    np.testing.assert_array_equal(np.isnan(y[..., 0]).all(1), np.isnan(y[..., 0]).any(1))


@pytest.mark.parametrize("modality", ["image", "volume"])
def test_the_spacing_of_a_view_is_that_of_the_file_times_what_it_covers(modality):
    x = np.zeros((32, 64), np.float32)
    known = arrays.Array(x.shape, x.dtype, arrays.of(x).read, spacing=(10.0, 30.0))
    data = section(modality, size=(16, 32), range=(0, 1), reference_spacing=(10.0, 10.0))
    data |= dict(zoom=(2, 2), crop_ratio=(1, 1))
    example = {"image": known, "label": -1}
    train = transforms.train_transform(data)(example, np.random.default_rng(0))
    assert train["image"].shape == (16, 32, 1) and train["spacing"].tolist() == [20, 60]
    seen = transforms.eval_transform(data)(example)["spacing"].tolist()
    assert seen == ([20, 60] if modality == "image" else [10, 30])
    with pytest.raises(Unreadable, match="says no spacing of 2 sides.*set data.spacing"):
        views(x, data)
    given = transforms.eval_transform(data | dict(spacing=(1.0, 2.0)))({"image": x, "label": -1})
    assert given["spacing"].tolist() == ([2, 4] if modality == "image" else [1, 2])


def test_the_times_of_a_signal_are_a_band_of_it():
    times = np.cumsum(RNG.uniform(0.5, 2, 40)) + 1.7e9  # float32 would lose them
    x = np.stack([np.sin(times), times], -1)
    data = section("signal", size=(40,), channels=1, time_band=1, reference_spacing=(1.0,))
    seen = transforms.eval_transform(data)({"image": x, "label": -1})
    np.testing.assert_allclose(seen["times"], times - times[0], atol=1e-5)
    np.testing.assert_array_equal(seen["image"][:, 0], np.float32(x[:, 0]))
    half = transforms.train_transform(data | dict(size=(20,), zoom=(2, 2)))
    half = half({"image": x, "label": -1}, np.random.default_rng(0))
    np.testing.assert_allclose(half["times"], (times[::2] + times[1::2]) / 2 - times[0], atol=1e-4)
    longer = transforms.eval_transform(data | dict(size=(44,)))({"image": x, "label": -1})["times"]
    np.testing.assert_allclose(longer[2:-2], times - times[0], atol=1e-5)
    np.testing.assert_allclose(np.diff(longer[:3]), np.median(np.diff(times)), atol=1e-5)
    with pytest.raises(Unreadable, match="times in band 1 do not increase"):
        transforms.eval_transform(data)({"image": x[::-1], "label": -1})


def test_what_a_tiff_says_of_missing_values_counts_in_any_source():
    x = RNG.normal(size=(32, 32)).astype(np.float32)
    x[5] = -9999
    file = tiff(x, extratags=[(42113, 2, 0, "-9999", True)])
    seen = views(file, section("image", range=(0, 1), nodata="file"))[0]
    assert np.isnan(seen[5]).all() and np.isfinite(np.delete(seen, 5, 0)).all()
    with pytest.raises(Unreadable, match=r"missing values \(the number -9999\): set data"):
        views(file, section("image", range=(0, 1)))
    x[6, 0] = np.nan
    file = tiff(x, extratags=[(42113, 2, 0, "-9999", True)])
    with pytest.raises(Unreadable, match=r"\(NaN and the number -9999\): set data.nodata"):
        views(file, section("image", range=(0, 1)))
    bytes_too = tiff(np.zeros((32, 32), np.uint8), extratags=[(42113, 2, 0, "0", True)])
    with pytest.raises(Unreadable, match="missing values"):
        views(bytes_too, section("image"))
    metadata = '<GDALMetadata><Item name="SCALE" sample="0" role="scale">0.1</Item></GDALMetadata>'
    scaled = tiff(x, extratags=[(42112, 2, 0, metadata, True)])
    with pytest.raises(Unreadable, match="a scale or an offset of its values: read it by geotiff:"):
        views(scaled, section("image", range=(0, 1)))


def test_odd_types_and_numbers():
    far = np.array([[[5]], [[-(2**31)]]], np.int32)
    exists = values._equal(far, -(2.0**31))
    np.testing.assert_array_equal(
        values.scaled(far, ~exists, section(nodata=1.0)).ravel(), [5, np.nan]
    )
    masks = np.array([[[True]], [[False]]])
    assert values._equal(masks, -9999.0) is None and values._equal(far, np.inf) is None
    assert values.scaled(masks, None, section()).ravel().tolist() == [1, 0]
    window = section(range=(0, 1), clip=True)
    with pytest.raises(Unreadable, match="infinite values"):
        values.scaled(np.full((2, 1), np.inf), None, window)
    with pytest.raises(ValueError, match="range = 'data' was not measured"):
        values.scaled(far, None, section(range="data"))
    data = measured(section("image"), arrays.of(masks.reshape(2, 1), sides=2))
    assert data["range"] == (0, 1)


def test_bytes_and_numbers_of_volumes_have_one_scale():
    small = RNG.integers(0, 200, (32, 32), dtype=np.uint8)
    numbers = measured(section(), small.astype(np.int16))
    assert numbers["range"] == "numbers"
    for x in (small, small.astype(np.int16)):  # a run on numbers sees bytes as numbers
        np.testing.assert_array_equal(views(x, numbers)[0][..., 0], np.float32(small))
    of_bytes = measured(section(), small)
    assert of_bytes["range"] == (0, 255) and views(small, of_bytes)[0].dtype == np.uint8
    np.testing.assert_allclose(
        normalized(small, of_bytes),
        normalized(small.astype(np.int16), of_bytes),
        rtol=1e-4,
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="has more than 8 bits and 'test.0.' has 8"):
        measured(section(), small, small.astype(np.int16))


@pytest.mark.parametrize("shape, sides", [((13, 64, 80), 2), ((12, 500), 1), ((4, 16, 12, 14), 3)])
def test_arrays_that_look_channels_first_are_not_taken_for_others(shape, sides):
    x, size = np.zeros(shape, np.float32), shape[1:]
    modality = "signal" if sides == 1 else "volume"
    data = section(modality, size=size, channels=2)
    with pytest.raises(
        Unreadable, match=f"channels first, and {shape[0]} of them: set data.channels"
    ):
        views(x, data)
    with pytest.raises(Unreadable, match="first or last: set data.channel_axis="):
        views(x, section(modality, size=(8,) * sides, channels=shape[-1]))
    assert views(x, data | dict(bands=(1, 0)))[0].shape == (*size, 2)
    last = np.moveaxis(x, 0, -1)
    assert views(last, data | dict(bands=(1, 0)))[0].shape == (*size, 2)
