import pickle
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mae_jax.data import array_io
from mae_jax.data.array_io import npy
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import encoded

PART = (slice(1, 3), slice(0, 4), slice(2, 5))


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "f2", "<f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_parts_of_a_mapped_file_are_slices(tmp_path, dtype, order):
    values = np.arange(5 * 6 * 7).reshape(5, 6, 7).astype(dtype, order=order)
    np.save(tmp_path / "a.npy", values)
    array = pickle.loads(pickle.dumps(array_io.open_array(tmp_path / "a.npy")))
    assert (array.shape, array.dtype, array.sides) == (values.shape, values.dtype, None)
    part = array.read(PART)
    assert isinstance(part, np.memmap) and part.dtype == values.dtype
    np.testing.assert_array_equal(part, values[PART])
    np.testing.assert_array_equal(array.read(array.whole), values)


def test_keys_of_an_archive(tmp_path):
    path, values = tmp_path / "a.npz", np.arange(24.0).reshape(2, 3, 4)
    np.savez_compressed(path, x=values, y=values + 1, label=np.arange(2))
    opened = npy.open_array(f"{path}::y")
    np.testing.assert_array_equal(opened.read((slice(0, 1), *opened.whole[1:])), values[:1] + 1)
    assert npy.list_keys(str(path)) == ("x", "y", "label")
    with pytest.raises(Unreadable, match="holds 'x', 'y', 'label': save one array"):
        npy.open_array(str(path))
    with pytest.raises(Unreadable, match="holds 'x', 'y', 'label', not 'z': give the key"):
        npy.open_array(f"{path}::z")
    np.savez(path, x=values, label=np.arange(2))
    np.testing.assert_array_equal(npy.open_array(str(path)).read(opened.whole), values)
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(Unreadable, match="a .npy file has no key 'x'"):
        npy.open_array(f"{tmp_path}/a.npy::x")


def header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_hostile_files(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "strings.npy", np.array(["text"]))
    np.save(tmp_path / "complex.npy", np.ones(3, complex))
    np.save(tmp_path / "none.npy", np.ones((3, 0, 2)))
    np.save(tmp_path / "whole.npy", np.ones((30, 30)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:900])
    (tmp_path / "text.npy").write_text("a text that was renamed")
    (tmp_path / "empty.npz").write_bytes(b"")
    huge = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000, 100)}\n"
    (tmp_path / "huge.npy").write_bytes(header(huge) + b"\0" * 80)
    (tmp_path / "junk.npy").write_bytes(header("{" + "\0\x01\n" * 2000))
    (tmp_path / "code.npy").write_bytes(header("__import__('os').abort()\n"))
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", header(huge) + b"\0" * 2**20)
    start = time.monotonic()
    for name in ("objects", "strings", "complex", "none", "cut", "text", "huge", "code", "junk"):
        with pytest.raises(Unreadable) as caught:
            npy.open_array(str(tmp_path / f"{name}.npy"))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    for name in ("empty", "bomb"):
        with pytest.raises(Unreadable):
            npy.open_array(str(tmp_path / f"{name}.npz"))
    assert time.monotonic() - start < 2
    with pytest.raises(FileNotFoundError):
        npy.open_array(str(tmp_path / "missing.npy"))


def test_headers_of_files_and_of_their_contents_are_parsed_one_at_a_time(tmp_path, monkeypatch):
    """numpy's parser shares a counter among threads, and fails on good files then."""
    np.save(tmp_path / "a.npy", np.ones((30, 30)))
    content, at_once, most, real = (tmp_path / "a.npy").read_bytes(), [], [], np.load

    def load(*arguments, **options):
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.005)
        at_once.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(np, "load", load)
    with ThreadPoolExecutor(4) as pool:
        path = str(tmp_path / "a.npy")
        calls = [(encoded.value, content), (npy.open_array, path)] * 8
        arrays = [*pool.map(lambda call: call[0](call[1]), calls)]
    assert len(most) == 16 and max(most) == 1
    assert {array.shape for array in arrays} == {(30, 30)}


def test_a_file_that_becomes_shorter(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((30, 30)))
    array = npy.open_array(str(tmp_path / "a.npy"))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:900])
    with pytest.raises(Unreadable, match="has become shorter"):
        array.read(array.whole)


def test_an_unknown_ending(tmp_path):
    with pytest.raises(Unreadable, match="files of arrays end in npy, npz, tif"):
        array_io.open_array("a.xyz::KEY")
