import concurrent.futures
import gc
import os
import pickle

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from mae_jax.data import array_io, arrays, sources
from mae_jax.data.array_io import zarr as zarr_io

VALUES = np.arange(40 * 3 * 4, dtype=np.float32).reshape(40, 3, 4)
LABELS = np.where(np.arange(40) % 4 == 3, -1, np.arange(40) % 4)


@pytest.fixture
def stacks(tmp_path):
    """One file of each format that holds 40 examples, and their labels."""
    np.save(tmp_path / "a.npy", VALUES)
    np.savez(tmp_path / "a.npz", x=VALUES, label=LABELS)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["g/x"], file["g/labels"] = VALUES, LABELS
    store = zarr.create_group(tmp_path / "a.zarr")
    store.create_array("g/x", data=VALUES)
    store.create_array("g/label", data=LABELS)
    return tmp_path


def read(source, i):
    value = source[i]["image"]
    return value.read(value.whole)


@pytest.mark.parametrize(
    "kind, file, key",
    [
        ("npy", "a.npy", ""),
        ("arrays", "a.npy", ""),
        ("npz", "a.npz", ""),
        ("npz", "a.npz", "::x"),
        ("hdf5", "a.h5", ""),
        ("hdf5", "a.h5", "::g/x"),
        ("zarr", "a.zarr", ""),
        ("zarr", "a.zarr", "::/g/x"),
    ],
)
def test_the_items_of_one_file(stacks, kind, file, key):
    place = stacks / file
    train, test = (
        sources.open_source(f"{kind}:{place}{key}", split) for split in ("train", "test")
    )
    names = [source.name(i) for source in (train, test) for i in range(len(source))]
    assert sorted(names) == sorted(f"{place.name}[{i}]" for i in range(40))
    assert len(train) > 30 > len(test) > 0
    copy = pickle.loads(pickle.dumps(test))
    for i in range(len(test)):
        number = int(test.name(i).partition("[")[2][:-1])
        assert isinstance(test[i]["image"], arrays.Array)
        np.testing.assert_array_equal(read(copy, i), VALUES[number])
        if file == "a.npy":
            assert test[i]["label"] == -1 and test.classes == ()
        else:
            assert test.classes == ("0", "1", "2")
            assert test[i]["label"] == (-1 if number % 4 == 3 else number % 4) == test.labels[i]
    part = test[0]["image"].read((slice(1, 2), slice(0, 3)))
    np.testing.assert_array_equal(part, read(test, 0)[1:2, :3])


def test_labels_that_are_numbers(tmp_path):
    np.savez(tmp_path / "a.npz", x=VALUES, label=np.arange(40) / 4)
    source = sources.open_source(f"npz:{tmp_path}/a.npz", "all")
    assert sources.label_kind(source) == "number"
    assert (source.targets, source.classes) == (("label",), ())
    assert source[9]["label"].tolist() == [2.25]


@pytest.mark.parametrize("labels", [np.arange(39), np.zeros((40, 2), int)])
def test_labels_of_another_shape(tmp_path, labels):
    np.savez(tmp_path / "a.npz", x=VALUES, label=labels)
    with pytest.raises(ValueError, match=r"the labels 'label' have shape .*, not \(40,\): correct"):
        sources.open_source(f"npz:{tmp_path}/a.npz", "train", modality="volume")


def test_folders_have_an_example_for_each_file(tmp_path):
    for i, name in enumerate(("train/ill", "train/well", "val/ill")):
        (tmp_path / name).mkdir(parents=True)
        tifffile.imwrite(tmp_path / name / "a.tif", VALUES[i])
        np.savez(tmp_path / name / "b.npz", x=VALUES[i], y=VALUES[i] + 1)
        store = zarr.create_group(tmp_path / name / "c.zarr")
        store.create_array("x", data=VALUES[i])

    def listing(spec, split="train", modality="image"):
        source = sources.open_source(spec, split, modality=modality)
        assert source.classes == ("ill", "well")
        return {name: source[i] for i, name in enumerate(source.names)}

    root = str(tmp_path)
    assert listing(f"geotiff:{root}") == {
        "train/ill/a.tif": {"image": f"{root}/train/ill/a.tif", "label": 0},
        "train/well/a.tif": {"image": f"{root}/train/well/a.tif", "label": 1},
    }
    found = listing(f"zarr:{root}::x", "test", "signal")
    assert found == {"val/ill/c.zarr": {"image": f"{root}/val/ill/c.zarr::x", "label": 0}}
    found = listing(f"npz:{root}::y")["train/well/b.npz"]["image"]
    opened = array_io.open_array(found)
    np.testing.assert_array_equal(opened.read(opened.whole), VALUES[1] + 1)
    names = [
        f"train/{kind}/{file}" for kind in ("ill", "well") for file in ("a.tif", "b.npz", "c.zarr")
    ]
    assert list(listing(f"arrays:{root}", modality="volume")) == names


def test_one_picture_is_one_example(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VALUES[0])
    source = sources.open_source(f"geotiff:{tmp_path}/a.tif", "train")
    assert (len(source), source[0]) == (1, {"image": f"{tmp_path}/a.tif", "label": -1})
    assert source.name(0) == "a.tif"
    assert len(sources.open_source(f"geotiff:{tmp_path}/a.tif", "all")) == 1
    with pytest.raises(ValueError, match="is one array, which is no example of split 'test'"):
        sources.open_source(f"geotiff:{tmp_path}/a.tif", "test")


def test_mistakes(stacks):
    for spec, error, message in (
        (f"hdf5:{stacks}/b.h5", FileNotFoundError, "there is no folder"),
        (f"zarr:{stacks}/none", FileNotFoundError, "there is no folder"),
        (f"geotiff:{stacks}", FileNotFoundError, "no arrays in .* would end in tif, tiff"),
        (f"hdf5:{stacks}/a.h5::y", ValueError, "'y' is no array; the file holds 'g/labels', 'g/x'"),
        (f"hdf5:{stacks}/a.npy", ValueError, "no readable HDF5 file"),
        (f"npz:{stacks}/a.npz::y", ValueError, "holds 'x', 'label', not 'y'"),
    ):
        with pytest.raises(error, match=message) as caught:
            sources.open_source(spec, "train")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no split 'dev'"):
        sources.open_source(f"npy:{stacks}/a.npy", "dev")
    np.save(stacks / "one.npy", np.float32(3))
    with pytest.raises(ValueError, match="the array is one number"):
        sources.open_source(f"npy:{stacks}/one.npy", "train")
    with pytest.raises(ValueError, match="data.modality = 'image' or 'volume', not 'signal'"):
        sources.open_source(f"geotiff:{stacks}", "train", modality="signal")


def test_a_store_of_one_array(tmp_path):
    zarr_io.write(str(tmp_path / "a.zarr"), VALUES, {})
    source = sources.open_source(f"zarr:{tmp_path}/a.zarr", "all")
    np.testing.assert_array_equal(read(source, 7), VALUES[7])


def open_files(folder):
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return [link for link in links if os.path.realpath(link).startswith(str(folder))]


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="the system does not list open files"
)
@pytest.mark.parametrize("file", ["a.h5::g/x", "a.zarr::g/x", "a.npy", "a.tif", "stack.tif"])
def test_threads_read_the_same_array_and_no_file_stays_open(stacks, file):
    values = VALUES if file != "a.tif" else np.moveaxis(VALUES, 0, -1)
    tifffile.imwrite(stacks / "stack.tif", VALUES, compression="zlib", photometric="minisblack")
    tifffile.imwrite(stacks / "a.tif", VALUES, planarconfig="separate", photometric="minisblack")
    array = array_io.open_array(f"{stacks}/{file}")

    def check(i):
        part = (slice(i % 3, i % 3 + 1), *array.whole[1:])
        return np.array_equal(array.read(part), values[part])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(60)))
    del array, check
    gc.collect()
    assert not open_files(stacks)
