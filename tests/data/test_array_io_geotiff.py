import pickle
import sys
import time

import numpy as np
import pytest
import rasterio
import tifffile
from rasterio.enums import ColorInterp

from mae_jax.data import array_io, arrays, notices
from mae_jax.data.array_io import geotiff, tiff
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import decode

PART = (slice(3, 9), slice(2, 13), slice(1, 3))
PLACE = rasterio.Affine(30, 0, 500_000, 0, -30, 4_000_000)


def numbers(*shape, dtype="float32"):
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


def save(path, values, masked=None, scales=None, offsets=None, colors=None, **options):
    """Write bands [h, w, c]."""
    height, width, count = values.shape
    options = dict(crs="EPSG:32633", transform=PLACE) | options
    shape = dict(height=height, width=width, count=count, dtype=values.dtype)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(
            path, "w", driver="GTiff", photometric="minisblack", **shape, **options
        ) as d:
            d.write(np.moveaxis(values, -1, 0))
            if masked is not None:
                d.write_mask(masked)
            if scales:
                d.scales, d.offsets = scales, offsets
            if colors:
                d.colorinterp = colors
    return str(path)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "i8"])
@pytest.mark.parametrize(
    "options",
    [{}, dict(tiled=True, blockxsize=16, blockysize=16, compress="lzw", interleave="band")],
)
def test_parts_are_slices_of_every_type(tmp_path, dtype, options):
    values = numbers(20, 24, 4, dtype=dtype)
    path = save(tmp_path / "a.tif", values, **options)
    array = pickle.loads(pickle.dumps(array_io.open_array(path)))
    assert (array.shape, array.dtype, array.sides) == ((20, 24, 4), np.dtype(dtype), 2)
    assert (array.nodata, array.valid) == ((), None)
    np.testing.assert_array_equal(array.read(array.whole), values)
    part = array.read(PART)
    assert part.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(part, values[PART])


def test_many_bands_and_the_place(tmp_path):
    turned = rasterio.Affine(24, -36, 500_000, -18, -48, 4_000_000)
    array = geotiff.open_array(save(tmp_path / "a.tif", numbers(6, 7, 224), transform=turned))
    assert array.shape == (6, 7, 224)
    np.testing.assert_allclose(array.spacing, (60, 30))
    for row, column in ((0, 0), (5, 3)):
        world = array.frame.affine @ [row, column, 1]
        east, north = 24 * column - 36 * row + 500_000, -18 * column - 48 * row + 4_000_000
        np.testing.assert_allclose(world, [east, north, 1])
    assert array.frame.corner and rasterio.CRS.from_wkt(array.frame.crs) == rasterio.CRS.from_epsg(
        32633
    )


def test_a_picture_without_a_place(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", numbers(6, 7, 12), photometric="minisblack", planarconfig="contig"
    )
    array = geotiff.open_array(str(tmp_path / "a.tif"))
    assert (array.shape, array.frame, array.spacing) == ((6, 7, 12), None, None)


@pytest.mark.parametrize("nodata", [-9999.0, np.nan])
def test_nodata(tmp_path, nodata):
    values = numbers(6, 7, 2)
    values[1, 2] = nodata
    array = geotiff.open_array(save(tmp_path / "a.tif", values, nodata=nodata))
    np.testing.assert_equal(array.nodata, (nodata,))
    np.testing.assert_array_equal(array.read(array.whole), values)
    assert array.valid is None


def test_scales_are_applied_and_missing_values_become_nan(tmp_path):
    stored = numbers(6, 7, 3, dtype="i2")
    stored[0, 0] = -1
    scales, offsets = (0.5, 1, 0.001), (10, 0, -1)
    path = save(tmp_path / "a.tif", stored, nodata=-1, scales=scales, offsets=offsets)
    array = geotiff.open_array(path)
    right = (stored * np.array(scales) + offsets).astype(np.float32)
    right[0, 0] = np.nan
    assert array.dtype == np.float32
    np.testing.assert_equal(array.nodata, (np.nan,))
    np.testing.assert_array_equal(array.read(array.whole), right)
    np.testing.assert_array_equal(array.read(PART[:1] + PART[1:]), right[3:9, 2:13, 1:3])


def test_a_mask_inside_of_the_file(tmp_path):
    mask = numbers(20, 24) % 3 > 0
    values = numbers(20, 24, 3, dtype="u2")
    array = geotiff.open_array(save(tmp_path / "a.tif", values, masked=mask))
    assert array.shape == (20, 24, 3) and array.nodata == ()
    np.testing.assert_array_equal(
        array.valid(PART), np.broadcast_to(mask[..., None], (20, 24, 3))[PART]
    )
    np.testing.assert_array_equal(array.read(array.whole), values)


@pytest.mark.parametrize("is_alpha", [True, False])
def test_a_band_is_transparency_only_where_the_file_says_so(tmp_path, is_alpha):
    values = numbers(20, 24, 4, dtype="u1")
    last = ColorInterp.alpha if is_alpha else ColorInterp.undefined
    colors = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, last)
    options = dict(alpha="unspecified") if is_alpha else {}
    array = geotiff.open_array(save(tmp_path / "a.tif", values, colors=colors, **options))
    if not is_alpha:
        assert array.shape == (20, 24, 4) and array.valid is None
        return
    assert array.shape == (20, 24, 3)
    np.testing.assert_array_equal(array.read(array.whole), values[..., :3])
    np.testing.assert_array_equal(
        array.valid(PART), np.repeat(values[PART[:2]][..., 3:] > 0, 2, -1)
    )


def test_unspecified_extra_samples_are_a_band(tmp_path):  # the case `nir`
    values = numbers(8, 8, 4, dtype="u1")
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[0])
    array = geotiff.open_array(str(tmp_path / "a.tif"))
    assert array.valid is None
    np.testing.assert_array_equal(array.read(array.whole), values)


@pytest.mark.parametrize("corner", [True, False])
def test_written_features_lie_in_the_place(tmp_path, corner):
    values = numbers(30, 40, 5)
    values[0, 0] = np.nan
    frame = geotiff.open_array(save(tmp_path / "a.tif", numbers(30, 40, 1))).frame
    if not corner:
        affine = frame.affine.copy()
        affine[:2, 2] += affine[:2, :2] @ [0.5, 0.5]
        frame = frame._replace(affine=affine, corner=False)
    geotiff.write(str(tmp_path / "b.tif"), values, frame, nodata=np.nan)
    with rasterio.open(tmp_path / "b.tif") as back:
        assert back.transform == PLACE and back.crs == rasterio.CRS.from_epsg(32633)
        assert back.dtypes == ("float32",) * 5 and np.isnan(back.nodata)
        assert (back.profile["tiled"], back.profile["compress"]) == (True, "deflate")
        np.testing.assert_array_equal(np.moveaxis(back.read(), 0, -1), values)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "b.tif"]
    with pytest.raises(ValueError, match=r"values of shape \(30, 40\) are no bands"):
        geotiff.write(str(tmp_path / "b.tif"), values[..., 0], frame)


def test_files_beside_it_are_neither_read_nor_written(tmp_path):
    path = save(tmp_path / "a.tif", numbers(6, 7, 1, dtype="u1"))
    band = "<PAMRasterBand band='1'><NoDataValue>7</NoDataValue></PAMRasterBand>"
    (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>")
    (tmp_path / "a.tif.msk").write_text("<VRTDataset rasterXSize='7' rasterYSize='6'/>")
    array = geotiff.open_array(path)
    assert array.nodata == () and array.valid is None
    array.read(array.whole)
    assert len([*tmp_path.iterdir()]) == 3


VRT = """<VRTDataset rasterXSize="7" rasterYSize="6"><VRTRasterBand dataType="Byte" band="1">
<SimpleSource><SourceFilename>{}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""


def test_hostile_files(tmp_path):
    good = save(tmp_path / "good.tif", numbers(40, 50, 3), compress="deflate")
    data = (tmp_path / "good.tif").read_bytes()
    hostile = dict(
        vrt=VRT.format(good).encode(),
        text=b"a text that was renamed",
        empty=b"",
        png=b"\x89PNG\r\n\x1a\n" + bytes(100),
        header=data[:200],
        magic=data[:8],
    )
    start = time.monotonic()
    for name, content in hostile.items():
        (tmp_path / f"{name}.tif").write_bytes(content)
        with pytest.raises(Unreadable, match="no readable TIFF file") as caught:
            geotiff.open_array(str(tmp_path / f"{name}.tif"))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(Unreadable, match="no readable TIFF file"):
        array = geotiff.open_array(str(tmp_path / "cut.tif"))
        array.read(array.whole)
    save(tmp_path / "complex.tif", numbers(4, 4, 1, dtype="c8"))
    with pytest.raises(Unreadable, match="complex64 holds no real numbers"):
        geotiff.open_array(str(tmp_path / "complex.tif"))
    huge = dict(height=300_000, width=1_000_000, count=4, dtype="float64", sparse_ok=True)
    options = dict(tiled=True, blockxsize=32768, blockysize=32768, bigtiff="yes")
    rasterio.open(
        tmp_path / "huge.tif", "w", driver="GTiff", transform=PLACE, **huge, **options
    ).close()
    with pytest.raises(Unreadable, match="above 1 GiB"):
        geotiff.open_array(str(tmp_path / "huge.tif"))
    for missing in ("missing.tif", "/vsicurl/http://localhost/a.tif", "GTIFF_DIR:1:good.tif"):
        with pytest.raises(FileNotFoundError):
            geotiff.open_array(str(tmp_path / missing) if missing[0] == "m" else missing)
    with pytest.raises(Unreadable, match="has no key 'x'"):
        geotiff.open_array(f"{good}::x")
    assert time.monotonic() - start < 5


def test_thousands_of_bands_are_described_at_once(tmp_path):
    values = numbers(2, 2, 2**14, dtype="u1")
    options = dict(photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    start = time.process_time()
    array = geotiff.open_array(str(tmp_path / "a.tif"))
    assert array.shape == values.shape and time.process_time() - start < 3
    part = (slice(0, 2), slice(0, 2), slice(70, 75))
    np.testing.assert_array_equal(array.read(part), values[part])


def test_a_large_part_is_refused(tmp_path, monkeypatch):
    array = geotiff.open_array(save(tmp_path / "a.tif", numbers(20, 24, 3)))
    monkeypatch.setattr(arrays, "_MOST_BYTES", 20 * 24 * 3 * 4 - 1)
    with pytest.raises(Unreadable, match=r"a part of shape \(20, 24, 3\) takes 5760 bytes at once"):
        array.read(array.whole)
    array.read(PART)


@pytest.fixture
def without_rasterio(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)


def test_pages_are_a_stack(tmp_path):
    values, path = numbers(5, 20, 24, dtype="u2"), str(tmp_path / "a.tif")
    for options in (dict(), dict(compression="zlib"), dict(imagej=True, metadata=dict(axes="ZYX"))):
        tifffile.imwrite(path, values, photometric="minisblack", **options)
        array = pickle.loads(pickle.dumps(geotiff.open_array(path)))
        assert (array.shape, array.dtype, array.sides) == (values.shape, np.dtype("u2"), 3)
        part = (slice(1, 3), slice(4, 9), slice(0, 24))
        np.testing.assert_array_equal(array.read(part), values[part])
    tifffile.imwrite(path, values, imagej=True, metadata=dict(axes="CYX"))
    array = geotiff.open_array(path)
    assert (array.shape, array.sides) == ((20, 24, 5), 2)
    np.testing.assert_array_equal(array.read(PART), np.moveaxis(values, 0, -1)[PART])
    stack = numbers(3, 4, 20, 24, dtype="u1")
    tifffile.imwrite(path, stack, imagej=True, metadata=dict(axes="ZCYX"))
    array = geotiff.open_array(path)
    assert (array.shape, array.sides) == ((3, 20, 24, 4), 3)
    np.testing.assert_array_equal(
        array.read((slice(1, 2), *PART)), np.moveaxis(stack, 1, -1)[1:2][(slice(None), *PART)]
    )
    tifffile.imwrite(
        path, numbers(2, 3, 4, 8, 9, dtype="u1"), imagej=True, metadata=dict(axes="TZCYX")
    )
    with pytest.raises(Unreadable, match="has axes TZCYX: save pages") as caught:
        print(geotiff.open_array(path))
    with tifffile.TiffWriter(path) as file:
        file.write(values[0])
        file.write(values[0, :5])
    with pytest.raises(Unreadable, match="holds 2 pictures of different shapes"):
        geotiff.open_array(path)
    assert "\n" not in str(caught.value)


def test_a_stack_that_imagej_describes_by_one_page_is_whole(tmp_path, caplog, monkeypatch):
    """And `folder:`, which reads a page, says so."""
    values, path = numbers(5, 20, 24, dtype="u2"), tmp_path / "a.tif"
    tifffile.imwrite(path, values, imagej=True, truncate=True, metadata=dict(axes="ZYX"))
    array = geotiff.open_array(str(path))
    assert array.sides == 3
    np.testing.assert_array_equal(array.read(array.whole), values)
    monkeypatch.setattr(notices, "_told", set())
    np.testing.assert_array_equal(decode.bands(path.read_bytes())[..., 0], values[0])
    assert "of TIFF files with several pages only the first is read" in caplog.text


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_where_0_is_white_the_numbers_stay_and_that_is_said(dtype, tmp_path, caplog, monkeypatch):
    values, path = numbers(20, 24, dtype=dtype), tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="miniswhite")
    for open_array in (geotiff.open_array, tiff.open_array):
        monkeypatch.setattr(notices, "_told", set())
        caplog.clear()
        array = open_array(str(path))
        np.testing.assert_array_equal(array.read(array.whole).reshape(values.shape), values)
        assert "0 is white" in caplog.text
    caplog.clear()
    monkeypatch.setattr(notices, "_told", set())
    found = decode.bands(path.read_bytes())[..., 0]
    np.testing.assert_array_equal(found, 255 - values if dtype == "u1" else values)
    assert ("0 is white" in caplog.text) == (dtype == "u2")


def test_plain_files_without_rasterio(tmp_path, without_rasterio):
    values, path = numbers(20, 24, 4, dtype="i2"), str(tmp_path / "a.tif")
    for options in ({}, dict(byteorder=">"), dict(compression="zlib"), dict(tile=(16, 16))):
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig", **options)
        array = geotiff.open_array(path)
        assert (array.shape, array.dtype, array.sides) == (values.shape, np.dtype("i2"), 2)
        np.testing.assert_array_equal(array.read(PART), values[PART])
    planes = np.ascontiguousarray(np.moveaxis(values, -1, 0))
    tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate")
    np.testing.assert_array_equal(geotiff.open_array(path).read(PART), values[PART])


def test_what_rasterio_is_needed_for(tmp_path, monkeypatch):
    values = numbers(20, 24, 1, dtype="i2")
    mask = np.ones((20, 24), bool)
    made = dict(
        mask=save(tmp_path / "mask.tif", values, masked=mask),
        scales=save(tmp_path / "scales.tif", values, scales=(2,), offsets=(0,)),
        alpha=save(tmp_path / "alpha.tif", np.repeat(values, 2, -1), alpha="yes"),
        imagecodecs=save(tmp_path / "lzw.tif", values, compress="lzw"),
    )
    nodata = save(tmp_path / "nodata.tif", values, nodata=-1)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    for path in made.values():
        with pytest.raises(Unreadable, match=r"pip install 'mae_jax\[geotiff\]'") as caught:
            array = geotiff.open_array(path)
            array.read(array.whole)
        assert "\n" not in str(caught.value)
    array = geotiff.open_array(nodata)
    assert (array.nodata, array.spacing) == ((-1.0,), (30, 30))
    with pytest.raises(ImportError, match=r"pip install 'mae_jax\[geotiff\]'"):
        geotiff.write(str(tmp_path / "b.tif"), values, None)
    for content in (b"", b"text that was renamed", (tmp_path / "lzw.tif").read_bytes()[:100]):
        (tmp_path / "bad.tif").write_bytes(content)
        with pytest.raises(Unreadable, match="no readable TIFF file"):
            geotiff.open_array(str(tmp_path / "bad.tif"))
    with pytest.raises(FileNotFoundError):
        geotiff.open_array(str(tmp_path / "missing.tif"))
