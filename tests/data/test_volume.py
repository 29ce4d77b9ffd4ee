import pickle
import zipfile

import numpy as np
import pytest

from mae_jax.data.array_io import npy
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.modalities import volume
from mae_jax.data.sources import array_files


def numbers(*shape, dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def train(array, rng, size, zoom=(1, 1)):
    data = dict(size=size, channels=array.shape[-1], zoom=zoom, repeats=1)
    (crop,) = volume.train_views(array, data, rng)
    return crop


def middle(array, size):
    (crop,) = volume.eval_views(array, dict(size=size, channels=array.shape[-1]))
    return crop


def decode(array, axes, channels):
    """All values of an array, as they are stored."""
    given = array if isinstance(array, np.ndarray) else str(array)
    opened = volume.open_values(given, dict(size=(1,) * axes, channels=channels))
    return opened.raw([slice(0, side) for side in opened.sides])[0]


def save(path, array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # numpy would add .npy to other names
        np.save(file, numbers(4, 4, 4) if array is None else array)
    return path


def test_files_follow_the_rules_of_folders(tmp_path):
    for file in ("train/ill/a.npy", "train/well/b.NPY", "val/ill/c.npy", "train/ill/.hidden.npy"):
        save(tmp_path / file)
    (tmp_path / "val/well").mkdir()
    np.savez(tmp_path / "val/well/d.npz", numbers(4, 4))
    (tmp_path / "train/ill/notes.txt").write_text("no array")
    train, test = (
        array_files.open_files("arrays", str(tmp_path), split) for split in ("train", "test")
    )
    assert (train.names, train.labels) == (("train/ill/a.npy", "train/well/b.NPY"), (0, 1))
    assert (test.names, test.labels) == (("val/ill/c.npy", "val/well/d.npz"), (0, 1))
    assert train.classes == test.classes == ("ill", "well")
    assert train[0] == {"image": str(tmp_path / "train/ill/a.npy"), "label": 0}
    assert pickle.loads(pickle.dumps(train))[1] == train[1]
    assert train.name(1) == "train/well/b.NPY"
    with pytest.raises(IndexError):
        train[2]


def test_files_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no arrays in .*would end in npy, npz"):
        array_files.open_files("arrays", str(tmp_path), "train")
    save(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="too few arrays for split 'test'"):
        array_files.open_files("arrays", str(tmp_path), "test")
    with pytest.raises(ValueError, match="no split 'dev'"):
        array_files.open_files("arrays", str(tmp_path), "dev")


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "f2", "<f8", "?"])
def test_a_crop_of_a_mapped_file_is_a_slice_of_the_array(tmp_path, dtype):
    array = numbers(7, 8, 9, 2, dtype=dtype)
    path = str(save(tmp_path / "a.npy", array))
    (crop,) = volume.eval_views(path, dict(size=(3, 4, 5), channels=2))
    np.testing.assert_array_equal(crop, array[2:5, 2:6, 2:7])
    assert crop.dtype == (np.uint8 if dtype == "u1" else np.float32)
    assert type(crop) is np.ndarray and crop.flags.writeable and crop.flags.owndata
    assert crop.dtype.isnative


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_channel_axis_may_be_missing_if_there_is_one_channel(axes):
    array = numbers(*(3, 4, 5)[:axes])
    decoded = decode(array, axes, 1)
    np.testing.assert_array_equal(decoded, array[..., None])
    assert decode(decoded, axes, 1).shape == decoded.shape


def test_npz(tmp_path):
    path, array = tmp_path / "a.npz", numbers(3, 3, 3)

    def holds(**arrays):
        np.savez_compressed(path, **arrays)
        return decode(path, 3, 1)[..., 0]

    np.testing.assert_array_equal(holds(whatever=array), array)
    np.testing.assert_array_equal(holds(spacing=np.ones(3), volume=array), array)
    np.testing.assert_array_equal(holds(volume=array + 1, arr_0=array + 2, image=array), array)
    with pytest.raises(Unreadable, match="holds 'x', 'y': save one array, or call it 'image'$"):
        holds(x=array, y=array)
    with pytest.raises(Unreadable, match="holds nothing"):
        holds()
    with zipfile.ZipFile(path, "w") as other:
        other.writestr("image.npy.txt", "text")
    with pytest.raises(Unreadable, match="holds 'image.npy.txt'"):
        decode(path, 3, 1)


def test_a_small_npz_does_not_unpack_to_anything(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, image=np.zeros((40, 40, 40)))
    assert decode(path, 3, 1).shape == (40, 40, 40, 1)
    monkeypatch.setattr(npy, "_MAX_UNPACKED", 500_000)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *args, **options: pytest.fail("read"))
    with pytest.raises(Unreadable, match="unpacks to 512128 bytes: .* save it as .npy"):
        decode(path, 3, 1)


@pytest.mark.parametrize(
    "array, axes, channels, message",
    [
        (
            numbers(4, 4, 7),
            2,
            10,
            r"an array of shape \(4, 4, 7\) has 7 channels, not 10: set data",
        ),
        (numbers(4, 4, 4), 3, 2, "has no axis for 2 channels: set data.channels=1$"),
        (numbers(4, 4), 3, 1, "has 2 axes, not 3 and one for channels: "),
        (numbers(4, 4, 4, 4, 4), 3, 4, "has 5 axes, not 3 and one for channels: "),
        (np.float32(3), 1, 1, "has 0 axes"),
        (numbers(4, 0, 4), 3, 1, r"shape \(4, 0, 4\) is empty"),
        (numbers(4, 4).astype(complex), 2, 1, "an array of complex128 holds no real numbers: "),
        (np.zeros((4, 4), "M8[s]"), 2, 1, "no real numbers"),
        (np.zeros((4, 4), [("a", "f4")]), 2, 1, "no real numbers"),
    ],
)
def test_wrong_arrays(tmp_path, array, axes, channels, message):
    for given in (np.asarray(array), save(tmp_path / "a.npy", array)):
        with pytest.raises(Unreadable, match=message) as caught:
            decode(given, axes, channels)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 150


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a file was unpickled",)


def test_nothing_is_unpickled(tmp_path):
    trap = np.array([Trap()], object)
    np.save(tmp_path / "a.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "b.npz", trap, allow_pickle=True)
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("a.npy", "b.npz"):
        with pytest.raises(
            Unreadable, match=r"damaged, or no numbers \(.*bject.*\): save it again"
        ):
            decode(tmp_path / name, 1, 1)
    with pytest.raises(Unreadable, match="not a .npy or .npz file"):
        decode(tmp_path / "c.npy", 1, 1)
    with pytest.raises(Unreadable, match="object holds no real numbers"):
        decode(trap, 1, 1)


def test_damaged_files(tmp_path):
    whole = save(tmp_path / "a.npy", numbers(5, 5)).read_bytes()
    np.savez_compressed(tmp_path / "b.npz", numbers(5, 5))
    packed = (tmp_path / "b.npz").read_bytes()
    for data in (whole, packed):
        for length in range(0, len(data), 7):
            (tmp_path / "cut.npy").write_bytes(data[:length])
            with pytest.raises(Unreadable, match="truncated|damaged"):
                decode(tmp_path / "cut.npy", 2, 1)
    spoilt = bytearray(packed)
    spoilt[60:80] = bytes(20)
    (tmp_path / "b.npz").write_bytes(spoilt)
    with pytest.raises(Unreadable, match="damaged.*: save it again"):
        decode(tmp_path / "b.npz", 2, 1)
    (tmp_path / "c.npy").write_text("a text that was renamed")
    with pytest.raises(Unreadable, match="not a .npy or .npz file.*: write it with numpy.save"):
        decode(tmp_path / "c.npy", 2, 1)
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "missing.npy", 2, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_values_must_be_finite_where_they_are_used(bad):
    array = np.zeros((6, 6, 1))
    array[0, 0] = bad
    assert middle(array, size=(4, 4)).max() == 0
    message = "missing values" if np.isnan(bad) else "infinite values|values beyond float32"
    with pytest.raises(Unreadable, match=message):
        middle(array, size=(6, 6))
    with pytest.raises(Unreadable, match=message):
        train(array, np.random.default_rng(0), size=(6, 6))


def test_random_crops_are_slices_from_every_start():
    array = numbers(5, 6, 7, 2)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        crop = train(array, rng, size=(3, 6, 5))
        start = np.unravel_index(int(crop.flat[0]), array.shape)
        z, y, x, _ = (int(s) for s in start)
        np.testing.assert_array_equal(crop, array[z : z + 3, y : y + 6, x : x + 5])
        seen.add((z, y, x))
    assert seen == {(z, 0, x) for z in range(3) for x in range(3)}


def test_a_crop_is_a_function_of_its_generator():
    array = numbers(9, 9, 1)
    crops = [train(array, np.random.default_rng(s), size=(4, 4), zoom=(0.5, 2)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert np.any(crops[0] != crops[2])


def test_small_arrays_are_continued_by_their_edges():
    array = numbers(3, 8, 1, dtype=np.uint8)
    crop = middle(array, size=(6, 4))
    np.testing.assert_array_equal(crop, array[[0, 0, 1, 2, 2, 2], 2:6])
    assert train(array, np.random.default_rng(0), size=(6, 4)).shape == (6, 4, 1)
    wide = train(array, np.random.default_rng(0), size=(6, 10))
    np.testing.assert_array_equal(wide, array[[0, 0, 1, 2, 2, 2]][:, [0, *range(8), 7]])


@pytest.mark.parametrize("factor", [2, 0.5])
def test_scale_is_how_much_a_crop_shows(factor):
    ramp = np.stack(np.meshgrid(np.arange(40), np.arange(40), indexing="ij"), axis=-1)
    rng = np.random.default_rng(0)
    crop = train(ramp, rng, size=(12, 16), zoom=(factor, factor))
    assert crop.shape == (12, 16, 2)
    inner = crop[2:-2, 2:-2]  # away from the edges, where the weights are cut
    np.testing.assert_allclose(np.diff(inner[..., 0], axis=0), factor, rtol=1e-5)
    np.testing.assert_allclose(np.diff(inner[..., 1], axis=1), factor, rtol=1e-5)


def test_zoom_is_log_uniform():
    rng, ramp = np.random.default_rng(0), np.arange(300.0).reshape(300, 1)
    crops = [train(ramp, rng, size=(100,), zoom=(0.5, 2)) for _ in range(2000)]
    steps = [crop[51, 0] - crop[50, 0] for crop in crops]
    shares = np.quantile(np.log2(steps), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(shares, [-1, -0.5, 0, 0.5, 1], atol=0.07)
