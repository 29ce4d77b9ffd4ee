import base64
import json
import pickle
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from mae_jax.data import array_io
from mae_jax.data.array_io import zarr as zarr_io
from mae_jax.data.bad_examples import Unreadable

PART = (slice(1, 3), slice(0, 4), slice(2, 5))


def numbers(*shape, dtype="float32"):
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


@pytest.fixture(params=[2, 3])
def group(tmp_path, request):
    return zarr.create_group(tmp_path / "a.zarr", zarr_format=request.param)


def add(group, key, values, attributes=None, **options):
    options = dict(chunks=(2,) * values.ndim, attributes=attributes or {}) | options
    group.create_array(key, data=values, **options)


def opened(group, key=""):
    root = str(group.store.root)
    return zarr_io.open_array(f"{root}::{key}" if key else root)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "f2", "<f8", "?", "u8"])
def test_parts_are_slices_of_every_type(group, dtype):
    values = numbers(5, 6, 7, dtype=dtype)
    add(group, "g/x", values)
    array = pickle.loads(pickle.dumps(array_io.open_array(f"{group.store.root}::/g/x")))
    assert (array.shape, array.sides, array.nodata) == ((5, 6, 7), None, ())
    part = array.read(PART)
    assert part.dtype == array.dtype == group["g/x"].dtype
    np.testing.assert_array_equal(part, values[PART])
    np.testing.assert_array_equal(array.read(array.whole), values)


def test_shards(tmp_path):
    store = zarr.create_group(tmp_path / "a.zarr")
    add(store, "x", numbers(8, 8, 8), chunks=(2, 2, 2), shards=(4, 4, 4))
    np.testing.assert_array_equal(opened(store, "x").read(PART), numbers(8, 8, 8)[PART])


def test_the_only_array(group):
    add(group, "g/x", numbers(3, 4))
    add(group, "g/label", np.arange(3))
    names = dict(attributes={"_ARRAY_DIMENSIONS": ["lat"]})
    if group.metadata.zarr_format == 3:
        names = dict(dimension_names=["lat"])
    add(group, "g/lat", np.arange(3), **names)
    assert opened(group).shape == (3, 4)
    assert sorted(zarr_io.list_keys(str(group.store.root))) == ["g/label", "g/x"]
    add(group, "y", numbers(2))
    with pytest.raises(Unreadable, match="the file holds 'g/x', 'y': name one array"):
        opened(group)
    for key in ("g", "z"):
        with pytest.raises(Unreadable, match=f"'{key}' is no array; the store holds 'g/label', 'g"):
            opened(group, key)
    with pytest.raises(Unreadable, match="no readable Zarr store"):
        opened(group, "../a.zarr/y")


def test_attributes_and_fill_values_of_missing_values(group):
    add(group, "x", numbers(3, 4, dtype="i2"), dict(nodata=-1), fill_value=-9999)
    assert opened(group, "x").nodata == (-9999, -1)
    add(group, "y", numbers(3, 4))
    assert opened(group, "y").nodata == ()
    add(group, "z", numbers(3, 4), fill_value=np.nan)
    np.testing.assert_equal(opened(group, "z").nodata, (np.nan,))
    coded = base64.b64encode(struct.pack("<d", -9999)).decode()  # as xarray does in format 3
    add(group, "w", numbers(3, 4), {"_FillValue": coded})
    assert opened(group, "w").nodata == (-9999,)


def test_scales_are_applied_and_missing_values_become_nan(group):
    stored = numbers(3, 4, dtype="i2")
    stored[1, 2] = -1
    add(group, "x", stored, dict(scale_factor=0.01, add_offset=273.15, _FillValue=-1))
    array = opened(group, "x")
    right = (stored * 0.01 + 273.15).astype(np.float32)
    right[1, 2] = np.nan
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array.read(array.whole), right)


def test_what_is_written_is_read(tmp_path):
    path, values = str(tmp_path / "b.zarr"), numbers(5, 6, 7)
    zarr_io.write(path, values, dict(crs="EPSG:4326", _FillValue=-1.0))
    array = zarr_io.open_array(path)
    assert array.nodata == (-1,) and zarr_io.list_keys(path) == ("",)
    np.testing.assert_array_equal(array.read(array.whole), values)
    assert zarr.open_array(path, mode="r").attrs["crs"] == "EPSG:4326"
    assert [p.name for p in tmp_path.iterdir()] == ["b.zarr"]
    with pytest.raises(Unreadable, match="the store is one array|no array"):
        zarr_io.open_array(f"{path}::x")


def test_a_store_takes_the_place_of_another_whole_or_not_at_all(tmp_path, monkeypatch):
    path, values = str(tmp_path / "b.zarr"), numbers(5, 6, 7)
    zarr_io.write(path, dict(x=values, y=values), {})
    zarr_io.write(path, values + 1, {})
    held = lambda: zarr_io.open_array(path).read((slice(0, 5), slice(0, 6), slice(0, 7)))
    np.testing.assert_array_equal(held(), values + 1)
    with pytest.raises(AttributeError):  # half of it is written then
        zarr_io.write(path, dict(x=values, y=object()), {})
    real = Path.rename

    def fail(self, target):
        if self.name.endswith(".tmp"):
            raise OSError("not now")
        return real(self, target)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="not now"):
        patched.setattr(Path, "rename", fail)
        zarr_io.write(path, values + 2, {})
    np.testing.assert_array_equal(held(), values + 1)
    assert [p.name for p in tmp_path.iterdir()] == ["b.zarr"]
    (tmp_path / "notes").mkdir()
    with pytest.raises(FileExistsError, match="notes' is no Zarr store: remove it"):
        zarr_io.write(str(tmp_path / "notes"), values, {})


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_hostile_arrays(group):
    add(group, "complex", np.ones(3, "c8"))
    add(group, "strings", np.array(["a", "b"]))
    for key in ("complex", "strings"):
        with pytest.raises(Unreadable, match="holds no real numbers"):
            opened(group, key)
    group.create_array("none", shape=(3, 0), chunks=(1, 1), dtype="f4")
    with pytest.raises(Unreadable, match="is empty"):
        opened(group, "none")
    group.create_array("huge", shape=(10**6,) * 3, chunks=(100,) * 3, dtype="f8")
    array = opened(group, "huge")
    assert array.read((slice(5, 7),) * 3).shape == (2, 2, 2)
    with pytest.raises(Unreadable, match="a part of .* above 1 GiB"):
        array.read(array.whole)
    group.create_array("bomb", shape=(10**5,) * 2, chunks=(10**5,) * 2, dtype="f8")
    with pytest.raises(Unreadable, match="a chunk of .* above 1 GiB"):
        opened(group, "bomb")


def test_no_codec_runs_code(tmp_path):
    store = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    add(store, "x", numbers(3, 4))
    place = tmp_path / "a.zarr/x/.zarray"
    metadata = json.loads(place.read_text())
    for codec, message in (("pickle", "pickle"), ("base64", "coded by base64: write it by zstd")):
        place.write_text(json.dumps(metadata | {"compressor": {"id": codec}}))
        with pytest.raises(Unreadable, match=message):
            opened(store, "x")


def test_hostile_stores(tmp_path, group):
    add(group, "x", numbers(3, 4), chunks=(3, 4))
    start = time.monotonic()
    (chunk,) = (tmp_path / "a.zarr/x").rglob(
        "0.0" if (tmp_path / "a.zarr/.zgroup").exists() else "0/0"
    )
    array = opened(group, "x")
    for content in (b"", b"text", chunk.read_bytes()[:9]):
        chunk.write_bytes(content)
        with pytest.raises(Unreadable, match="no readable Zarr store"):
            array.read(array.whole)
    for name in (".zarray", "zarr.json"):
        if (metadata := tmp_path / "a.zarr/x" / name).exists():
            text = metadata.read_text()
            for content in ("", "text", text[:50], text.replace("shape", "form"), "[]"):
                metadata.write_text(content)
                with pytest.raises(Unreadable) as caught:
                    opened(group, "x")
                assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "text.zarr").write_text("text")
    for name in ("empty", "text"):
        with pytest.raises(Unreadable, match="no Zarr store: its folder would hold zarr.json"):
            zarr_io.open_array(str(tmp_path / f"{name}.zarr"))
    with pytest.raises(FileNotFoundError):
        zarr_io.open_array(str(tmp_path / "missing.zarr"))
    assert time.monotonic() - start < 3


def test_without_zarr(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"pip install 'mae_jax\[zarr\]'"):
        zarr_io.open_array(str(tmp_path / "a.zarr"))
