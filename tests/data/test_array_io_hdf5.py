import pickle
import sys
import time

import h5py
import numpy as np
import pytest

from mae_jax.data import array_io, arrays
from mae_jax.data.array_io import hdf5
from mae_jax.data.bad_examples import Unreadable

PART = (slice(1, 3), slice(0, 4), slice(2, 5))


def numbers(*shape, dtype="float32"):
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        yield file


def opened(file, key=""):
    file.flush()
    return hdf5.open_array(f"{file.filename}::{key}" if key else file.filename)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "f2", "<f8", "?", "u8"])
@pytest.mark.parametrize("options", [{}, dict(chunks=(2, 3, 4), compression="gzip")])
def test_parts_are_slices_of_every_type(tmp_path, file, dtype, options):
    values = numbers(5, 6, 7, dtype=dtype)
    file.create_dataset("group/x", data=values, **options)
    file.close()
    array = array_io.open_array(f"{tmp_path}/a.h5::/group/x")
    array = pickle.loads(pickle.dumps(array))
    assert (array.shape, array.dtype, array.sides, array.nodata) == ((5, 6, 7), dtype, None, ())
    part = array.read(PART)
    assert part.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(part, values[PART])
    np.testing.assert_array_equal(array.read(array.whole), values)


def test_the_only_array(file):
    file["g/x"], file["g/label"], file["g/names"] = numbers(3, 4), np.arange(3), ["a", "b"]
    file["g/lat"] = np.arange(3)
    file["g/lat"].make_scale("lat")
    assert opened(file).shape == (3, 4)
    assert hdf5.list_keys(file.filename) == ("g/label", "g/x")
    file["y"] = numbers(2)
    with pytest.raises(Unreadable, match="the file holds 'g/x', 'y': name one array, as in FILE::"):
        opened(file)
    with pytest.raises(Unreadable, match="'g' is no array; the file holds 'g/label', 'g/x', 'y'"):
        opened(file, "g")
    for key in ("z", "g/x/y", "g/../y"):
        with pytest.raises(Unreadable, match=f"'{key}' is no array"):
            opened(file, key)


@pytest.mark.parametrize("name", ["_FillValue", "missing_value", "nodata"])
def test_attributes_of_missing_values(file, name):
    file["x"] = numbers(3, 4, dtype="i2")
    file["x"].attrs[name] = np.array([-9999, -1], "i2")
    assert opened(file, "x").nodata == (-9999, -1)
    assert opened(file, "x").dtype == np.int16


def test_scales_are_applied_and_missing_values_become_nan(file):
    stored = numbers(3, 4, dtype="i2")
    stored[1, 2] = -32768
    file["x"] = stored
    file["x"].attrs.update(scale_factor=0.01, add_offset=[273.15], _FillValue=np.int16(-32768))
    array = opened(file, "x")
    right = (stored * 0.01 + 273.15).astype(np.float32)
    right[1, 2] = np.nan
    np.testing.assert_equal(array.nodata, (np.nan,))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array.read(array.whole), right)
    file["y"] = np.array([2**31 - 1], "i4")
    file["y"].attrs["scale_factor"] = 0.5
    assert opened(file, "y").read((slice(0, 1),)) == np.float64([2**30 - 0.5])


def test_unsigned_numbers(file):
    file["x"] = np.array([1, -2, -1], "i2")
    file["x"].attrs.update(_Unsigned="true", _FillValue=np.int16(-1))
    array = opened(file, "x")
    assert (array.dtype, array.nodata) == (np.uint16, (65535,))
    np.testing.assert_array_equal(array.read(array.whole), [1, 65534, 65535])


def test_attributes_that_are_no_numbers(file):
    file["x"] = numbers(3)
    file["x"].attrs["scale_factor"] = "twice"
    with pytest.raises(Unreadable, match="scale_factor, add_offset, .* are no numbers"):
        opened(file, "x")


def test_links_stay_in_the_file(tmp_path, file):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = numbers(4)
    file["x"] = numbers(4)
    file["g/soft"], file["g/up"] = h5py.SoftLink("/x"), h5py.SoftLink("soft")
    np.testing.assert_array_equal(opened(file, "g/up").read((slice(0, 4),)), numbers(4))
    file["out"] = h5py.ExternalLink("other.h5", "/x")
    file["root"] = h5py.ExternalLink("other.h5", "/")
    file["through"] = h5py.SoftLink("/root/x")
    file["loop"] = h5py.SoftLink("/loop")
    for key in ("out", "root/x", "through"):
        with pytest.raises(Unreadable, match="links to another file, which is not read"):
            opened(file, key)
    with pytest.raises(Unreadable, match="a link to itself"):
        opened(file, "loop")
    assert opened(file).shape == (4,)  # links are no arrays of the file


def test_data_in_other_files_is_not_read(tmp_path, file):
    (tmp_path / "secret").write_bytes(bytes(16))
    file.create_dataset("raw", (4,), "f4", external=[("secret", 0, 16)])
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = numbers(4)
    for key, name in (("virtual", "other.h5"), ("own", ".")):
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(name, "x", shape=(4,))
        file.create_virtual_dataset(key, layout)
    file["x"] = numbers(4)
    for key in ("raw", "virtual"):
        with pytest.raises(Unreadable, match="lies in other files, which are not read"):
            opened(file, key)
    np.testing.assert_array_equal(opened(file, "own").read((slice(0, 4),)), numbers(4))


def test_hostile_arrays(file):
    file["strings"], file["none"], file["null"] = ["a"], np.ones((3, 0)), h5py.Empty("f4")
    file["complex"], file["pairs"] = np.ones(3, "c8"), np.ones(3, [("a", "f4"), ("b", "i4")])
    file.create_dataset("objects", (2,), h5py.vlen_dtype(np.float32))
    file.create_dataset("references", (2,), h5py.ref_dtype)
    for key in ("strings", "complex", "pairs", "objects", "references"):
        with pytest.raises(Unreadable, match="holds no real numbers"):
            opened(file, key)
    for key in ("none", "null"):
        with pytest.raises(Unreadable, match="is empty"):
            opened(file, key)
    file.create_dataset("huge", (10**6,) * 3, "f8")
    array = opened(file, "huge")
    assert array.read((slice(5, 7),) * 3).shape == (2, 2, 2)
    with pytest.raises(Unreadable, match="a part of .* above 1 GiB: split the array"):
        array.read(array.whole)
    file.create_dataset("bomb", (2**28, 4), "f4", chunks=(2**26, 4 + 4), maxshape=(None, 8))
    file.create_dataset("packed", (2**29,), "f4", chunks=(2**29,), compression="gzip")
    with pytest.raises(Unreadable, match="a chunk of .* above 1 GiB"):
        opened(file, "packed")


def test_hostile_files(tmp_path, file):
    file.create_dataset("x", data=numbers(200, 200), chunks=(50, 50), compression="gzip")
    file.close()
    data = (tmp_path / "a.h5").read_bytes()
    spoilt = bytearray(data)
    spoilt[-3000:] = b"\xff" * 3000
    start = time.monotonic()
    for content in (
        b"",
        b"text",
        b"CDF\x01" + bytes(99),
        data[:100],
        data[: len(data) // 2],
        spoilt,
    ):
        (tmp_path / "bad.h5").write_bytes(content)
        with pytest.raises(Unreadable, match="no readable HDF5 file") as caught:
            array = hdf5.open_array(f"{tmp_path}/bad.h5::x")
            array.read(array.whole)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert time.monotonic() - start < 2
    with pytest.raises(FileNotFoundError):
        hdf5.open_array(str(tmp_path / "missing.h5"))


def test_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'mae_jax\[hdf5\]'"):
        hdf5.open_array(str(tmp_path / "a.h5"))


def test_items():
    array = arrays.item(arrays.of(numbers(4, 5, 6)), 2)
    np.testing.assert_array_equal(array.read((slice(1, 3), slice(0, 6))), numbers(4, 5, 6)[2, 1:3])
    assert array.shape == (5, 6)


def test_arrays_of_matlab_are_told_to_be_reversed(tmp_path, caplog):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.zeros((3, 5, 4))
        file["x"].attrs["MATLAB_class"] = np.bytes_("double")
    assert array_io.open_array(f"{tmp_path}/a.h5::x").shape == (3, 5, 4)
    assert "what is (h, w, c) there is read as [c, w, h]" in caplog.text
