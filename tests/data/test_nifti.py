import gzip
import os
import pickle
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest

from mae_jax.data import array_io, cache, sources
from mae_jax.data.array_io import nifti
from mae_jax.data.arrays import Frame
from mae_jax.data.bad_examples import Unreadable

AFFINE = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -20], [0, 0, 3, 7], [0, 0, 0, 1]])
PART = (slice(1, 4), slice(0, 3), slice(2, 5))


def volume(shape=(5, 4, 6), dtype=np.int16):
    return np.random.default_rng(0).integers(-1000, 3000, shape).astype(dtype)


def save(path, values, kind=nibabel.Nifti1Image):
    nibabel.save(kind(values, AFFINE), path)
    return str(path)


# nibabel leaves it to Python to close a `.mgh` file
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.mgh", "a.hdr", "A.NII.GZ"])
def test_parts_are_those_of_the_stored_volume(tmp_path, name):
    values = volume()
    kind = nibabel.Nifti1Pair if name.endswith("hdr") else nibabel.Nifti1Image
    path = save(tmp_path / name, values, kind=nibabel.MGHImage if "mg" in name else kind)
    array = pickle.loads(pickle.dumps(array_io.open_array(path)))
    assert (array.shape, array.sides, array.dtype) == (values.shape, 3, np.int16)
    whole, part = array.read(array.whole), array.read(PART)
    assert whole.dtype == part.dtype == np.int16
    np.testing.assert_array_equal(whole, values)
    np.testing.assert_array_equal(part, values[PART])
    np.testing.assert_allclose(array.spacing, (1.5, 2, 3))
    np.testing.assert_allclose(array.frame.affine, AFFINE)
    assert not array.frame.corner


def test_a_fourth_axis_is_of_channels_and_a_fifth_only_of_vectors(tmp_path):
    values = volume((5, 4, 6, 3))
    for shape in [(5, 4, 6, 3), (5, 4, 6, 1, 3)]:
        array = nifti.open_array(save(tmp_path / "a.nii", values.reshape(shape)))
        assert (array.shape, array.sides, len(array.spacing)) == ((5, 4, 6, 3), 3, 3)
        np.testing.assert_array_equal(array.read((*PART, slice(1, 3))), values[PART][..., 1:3])
    array = nifti.open_array(save(tmp_path / "a.nii", values[..., :1]))
    np.testing.assert_array_equal(array.read(array.whole), values[..., :1])
    array = nifti.open_array(save(tmp_path / "a.nii", values[..., 0, 0]))
    assert (array.shape, array.sides, array.spacing) == ((5, 4), 2, (1.5, 2.0))
    np.testing.assert_array_equal(array.read(array.whole), values[..., 0, 0])
    with pytest.raises(Unreadable, match=r"shape \(5, 4, 3, 2, 3\) is no volume"):
        nifti.open_array(save(tmp_path / "a.nii", volume((5, 4, 3, 2, 3))))


def test_the_same_number_has_the_same_value_in_all_files(tmp_path):
    # 40 Hounsfield units, stored with another slope and beside another brightest voxel
    for name, bright, slope, inter in [("a", 1000, 1, -1024), ("b", 3000, 0.5, -1000)]:
        stored = np.full((4, 4, 4), round((40 - inter) / slope), np.int16)
        stored[1, 2, 3] = round((bright - inter) / slope)
        image = nibabel.Nifti1Image(stored, AFFINE)
        nibabel.save(image, tmp_path / f"{name}.nii")
        raw = bytearray((tmp_path / f"{name}.nii").read_bytes())
        raw[112:120] = struct.pack("<ff", slope, inter)  # nibabel would divide what it saves
        (tmp_path / f"{name}.nii").write_bytes(raw)
        array = nifti.open_array(tmp_path / f"{name}.nii")
        values = array.read(array.whole)
        assert array.dtype == values.dtype == np.float32
        assert values[0, 0, 0] == 40 and values[1, 2, 3] == bright
        reference = nibabel.load(tmp_path / f"{name}.nii").get_fdata()
        np.testing.assert_array_equal(values, reference)
    wide = nifti.open_array(save(tmp_path / "c.nii", volume(dtype=np.int32)))
    assert wide.dtype == np.int32


def test_units_become_millimetres(tmp_path):
    image = nibabel.Nifti1Image(volume(), AFFINE)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    array = nifti.open_array(tmp_path / "a.nii")
    np.testing.assert_allclose(array.spacing, (0.0015, 0.002, 0.003))
    np.testing.assert_allclose(array.frame.affine[:3], AFFINE[:3] / 1000)


def test_a_compressed_volume_is_unpacked_once_and_memory_is_bounded(tmp_path, monkeypatch):
    paths = [save(tmp_path / f"{i}.nii.gz", volume() + np.int16(i)) for i in range(3)]
    opened = []
    real = gzip.GzipFile.__init__
    monkeypatch.setattr(
        gzip.GzipFile, "__init__", lambda *a, **k: (opened.append(a), real(*a, **k))[1]
    )
    monkeypatch.setattr(nifti, "_CACHE", cache.Cache(2 * volume().nbytes))
    arrays = [nifti.open_array(path) for path in paths]
    opened.clear()
    with ThreadPoolExecutor(8) as pool:  # which all want the same volumes at once
        [*pool.map(lambda i: arrays[i // 8 % 2].read(PART), range(64))]
    assert len(opened) == 2
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(array.read(PART), volume()[PART] + i)
    arrays[2].read(PART)
    assert len(opened) == 3
    arrays[0].read(PART)  # which the third volume has replaced
    assert len(opened) == 4
    monkeypatch.setattr(nifti, "_MAX_HELD", 1)  # a larger volume is read without being held
    for count in (5, 6):
        np.testing.assert_array_equal(arrays[1].read(PART), volume()[PART] + 1)
        assert len(opened) == count


def header_with(path, shape):
    raw = bytearray(path.read_bytes())
    raw[40:56] = struct.pack("<8h", len(shape), *shape, *[1] * (7 - len(shape)))
    return bytes(raw)


def hostile(path):
    save(path, volume((20, 20, 20)))
    good = path.read_bytes()
    packed = gzip.compress(good)
    flipped = bytearray(packed)
    flipped[-6] ^= 255  # the checksum
    rgb = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb, AFFINE), path.with_name("rgb.nii"))
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((3, 3, 3), np.complex64), AFFINE), path.with_name("c.nii")
    )
    return {
        "cut.nii": good[:-100],
        "header.nii": good[:200],
        "empty.nii": b"",
        "text.nii": b"no volume at all\n" * 40,
        "terabytes.nii": header_with(path, (32767, 32767, 32767)),
        "terabytes.nii.gz": gzip.compress(header_with(path, (32767, 32767, 32767))),
        "negative.nii": header_with(path, (20, -20, 20)),
        "many.nii.gz": gzip.compress(header_with(path, (20, 20, 40))),  # fewer than promised
        "cut.nii.gz": packed[:-3000],
        "flipped.nii.gz": bytes(flipped),
        "text.nii.gz": b"no volume at all\n" * 40,
        "text.mgz": gzip.compress(b"no volume at all\n" * 40),
        "alone.hdr": good[:348].replace(b"n+1\0", b"ni1\0"),
        "rgb.nii": path.with_name("rgb.nii").read_bytes(),
        "c.nii": path.with_name("c.nii").read_bytes(),
    }


def test_damaged_files_are_one_sentence(tmp_path):
    for name, content in hostile(tmp_path / "good.nii").items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Unreadable) as error, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = nifti.open_array(tmp_path / name)
            array.read(tuple(slice(0, 2) for _ in array.shape))
        text = str(error.value)
        assert "\n" not in text and len(text) < 330 and ": " in text, (name, text)
    with pytest.raises(FileNotFoundError):
        nifti.open_array(tmp_path / "missing.nii")


def test_written_features_have_the_frame_of_their_volume(tmp_path):
    frame = nifti.open_array(save(tmp_path / "a.nii", volume((8, 8, 6)))).frame
    features = np.random.default_rng(0).normal(size=(4, 4, 2, 5)).astype(np.float32)
    for name in ("f.nii", "f.nii.gz"):
        nifti.write(tmp_path / name, features, frame.strided((2, 2, 3)))
        image = nibabel.load(tmp_path / name)
        np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), features)
        np.testing.assert_allclose(image.header.get_zooms()[:3], (3, 4, 9))
        # the centre of the first 2 x 2 x 3 voxels
        centre = AFFINE @ [0.5, 0.5, 1, 1]
        np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], centre, atol=1e-5)
        assert image.header.get_xyzt_units()[0] == "mm"
    corner = Frame(np.diag([2.0, 3.0, 4.0, 1.0]))
    nifti.write(tmp_path / "g.nii", features, corner)
    np.testing.assert_allclose(nibabel.load(tmp_path / "g.nii").affine[:3, 3], (1, 1.5, 2))
    nifti.write(tmp_path / "h.nii", np.zeros((40000, 1, 1, 1), np.float32), None)  # above NIfTI-1
    assert nibabel.load(tmp_path / "h.nii").shape == (40000, 1, 1, 1)
    with pytest.raises(ValueError, match=r"\(4, 4, 5\) have not three sides"):
        nifti.write(tmp_path / "i.nii", features[:, :, 0], frame)


def test_files_that_come_with_nibabel_are_read_as_nibabel_reads_them():
    root = os.path.join(os.path.dirname(nibabel.__file__), "tests", "data")
    ends = ("nii", "nii.gz", "mgz", "hdr")
    refused, equal = [], 0
    for name in sorted(name for name in os.listdir(root) if name.endswith(ends)):
        path = os.path.join(root, name)
        try:
            array = nifti.open_array(path)
            values = array.read(array.whole)
        except Unreadable:
            refused.append(name)
            continue
        image = nibabel.load(path)
        np.testing.assert_array_equal(values, image.get_fdata().astype(array.dtype))
        np.testing.assert_allclose(array.frame.affine, image.affine)
        equal += 1
    # headers without their values, and a matrix of connections
    assert refused == ["analyze.hdr", "nifti1.hdr", "nifti2.hdr", "row_major.dconn.nii"]
    assert equal == 8


def test_a_source_has_volumes_by_folder(tmp_path):
    for name in ("old/a.nii", "old/b.nii.gz", "young/c.mgz", "young/d.NII.GZ", "young/e.tar.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("tar.gz"):
            (tmp_path / name).write_bytes(b"")
        else:
            kind = nibabel.MGHImage if name.endswith("mgz") else nibabel.Nifti1Image
            save(tmp_path / name, volume(), kind=kind)
    source = sources.open_source(f"nifti:{tmp_path}", "all", "volume")
    assert source.classes == ("old", "young") and len(source) == 4
    assert [source[i]["label"] for i in range(4)] == [0, 0, 1, 1]
    for i in range(4):
        assert array_io.open_array(source[i]["image"]).shape == (5, 4, 6)
    one = sources.open_source(f"nifti:{tmp_path}/old/a.nii", "train", "volume")
    assert (len(one), one.name(0), one[0]["label"]) == (1, "a.nii", -1)
    assert array_io.open_array(pickle.loads(pickle.dumps(one))[0]["image"]).shape == (5, 4, 6)
    with pytest.raises(ValueError, match="is one array, which is no example of split 'test'"):
        sources.open_source(f"nifti:{tmp_path}/old/a.nii", "test", "volume")
    with pytest.raises(FileNotFoundError, match="no folder"):
        sources.open_source(f"nifti:{tmp_path}/none", "train", "volume")
