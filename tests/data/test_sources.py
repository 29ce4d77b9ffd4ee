import contextlib
import gzip
import io
import os
import pickle
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import samples


def jpeg(color=(10, 20, 30), size=(9, 7)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "JPEG")
    return out.getvalue()


def pixels(source, i):
    image = source[i]["image"]
    return image.tobytes() if isinstance(image, np.ndarray) else image


@pytest.mark.parametrize("spec", ["photos", "digits", "synthetic"])
def test_built_in_sources_are_fixed_labelled_and_disjoint(spec):
    train, test = sources.open_source(spec, "train"), sources.open_source(spec, "test")
    assert train.classes == test.classes
    for source in (train, test):
        labels = [source[i]["label"] for i in range(len(source))]
        assert set(labels) == set(range(len(source.classes)))
        copy = pickle.loads(pickle.dumps(source))
        assert [pixels(copy, i) for i in range(20)] == [pixels(source, i) for i in range(20)]
        assert len({source.name(i) for i in range(len(source))}) == len(source)
        with pytest.raises(IndexError):
            source[len(source)]
    seen = {pixels(train, i) for i in range(len(train))}
    shared = sum(pixels(test, i) in seen for i in range(len(test)))
    assert shared == 0


def test_photos_share_no_pixel_between_the_splits(monkeypatch):
    real = samples.photo

    def columns(name):
        shape = real(name).shape
        return np.broadcast_to(np.arange(shape[1])[:, None], shape)

    assert all(min(real(name).shape[:2]) <= 400 for name in samples.PHOTOS)
    splits = [sources.open_source("photos", split) for split in ("train", "test")]
    monkeypatch.setattr(samples, "photo", columns)
    for label in range(10):
        seen = []
        for source in splits:
            windows = [source[i] for i in range(label, len(source), 10)]
            assert {w["label"] for w in windows} == {label}
            assert {w["image"].shape for w in windows} == {(96, 96, 3)}
            seen.append({int(c) for w in windows for c in w["image"][0, :, 0]})
        assert not seen[0] & seen[1]
    assert [len(source) for source in splits] == [2000, 400]


def test_digits_cover_scikit_learn_once_and_evenly():
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    parts = [sources.open_source("digits", split) for split in ("train", "test")]
    found = [(pixels(p, i), p[i]["label"]) for p in parts for i in range(len(p))]
    scaled = np.rint(scans * 255 / 16).astype(np.uint8)
    assert sorted(found) == sorted((s.tobytes(), k) for s, k in zip(scaled, labels, strict=True))
    assert parts[0][0]["image"].shape == (8, 8)
    counts = [np.bincount([p[i]["label"] for i in range(len(p))]) for p in parts]
    np.testing.assert_allclose(counts[1] / (counts[0] + counts[1]), 0.2, atol=0.01)


def test_synthetic_is_jpeg_and_not_square():
    source = sources.open_source("synthetic", "test")
    with Image.open(io.BytesIO(source[3]["image"])) as picture:
        assert (picture.format, picture.size) == ("JPEG", (80, 64))
    assert (len(sources.open_source("synthetic", "train")), len(source)) == (64, 32)


def fill(root, *files):
    for k, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg((k % 256, k // 256, 0)))
    return f"folder:{root}"


def listing(source):
    names = [source.classes[k] if k >= 0 else None for k in source.labels]
    return dict(zip(source.names, names, strict=True))


def test_folder_with_a_sub_folder_for_each_split(tmp_path):
    spec = fill(tmp_path, "train/dog/b.JPG", "train/cat/a.png", "train/cat/deep/c.webp")
    fill(tmp_path, "val/dog/d.jpeg", "val/emu/e.jpg")
    fill(tmp_path, "devkit/x.jpg", "train/.hidden/x.jpg", "train/dog/._b.jpg")
    (tmp_path / "train/dog/readme.txt").write_text("no picture")
    (tmp_path / "train/empty").mkdir()
    train, test = sources.open_source(spec, "train"), sources.open_source(spec, "test")
    assert listing(train) == {
        "train/cat/a.png": "cat", "train/cat/deep/c.webp": "cat", "train/dog/b.JPG": "dog",
    }  # fmt: skip
    assert list(train.names) == sorted(train.names)
    assert listing(test) == {"val/dog/d.jpeg": "dog", "val/emu/e.jpg": "emu"}
    assert train.classes == test.classes == ("cat", "dog", "emu")
    assert sources.open_source(spec, "validation").names == test.names
    assert listing(sources.open_source(spec, "all")) == listing(train) | listing(test)
    assert train[2]["image"] == (tmp_path / "train/dog/b.JPG").read_bytes()
    assert pickle.loads(pickle.dumps(train))[1] == train[1]


def test_folder_prefers_the_split_by_its_own_name(tmp_path):
    spec = fill(tmp_path, "train/a.jpg", "val/b.jpg", "test/c.jpg")
    assert sources.open_source(spec, "test").names == ("test/c.jpg",)
    assert sources.open_source(spec, "validation").names == ("val/b.jpg",)
    assert sources.open_source(spec, "train")[0]["label"] == -1
    assert sources.open_source(spec, "train").classes == ()


def test_folder_without_splits_holds_out_a_tenth_that_does_not_move(tmp_path):
    files = [f"{kind}/{k}.jpg" for kind in ("car", "train") for k in range(150)]
    spec = fill(tmp_path, *files)
    train, test = sources.open_source(spec, "train"), sources.open_source(spec, "test")
    assert not set(train.names) & set(test.names)
    assert set(train.names) | set(test.names) == set(files)
    assert set(test.names) == {f for f in files if zlib.crc32(f.encode()) < 2**32 / 10}
    assert 15 < len(test) < 45
    assert train.classes == test.classes == ("car", "train")
    assert listing(test)[test.names[0]] == test.names[0].split("/")[0]
    before = set(test.names)
    fill(tmp_path, *(f"boat/{k}.jpg" for k in range(50)))
    assert before == {f for f in sources.open_source(spec, "test").names if "boat" not in f}
    assert len(sources.open_source(spec, "all")) == 350


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("seed", range(8))
def test_a_small_folder_has_both_splits(tmp_path, count, seed):
    spec = fill(tmp_path, *(f"{seed}-{k}.jpg" for k in range(count)))
    train, test = sources.open_source(spec, "train"), sources.open_source(spec, "test")
    assert len(train) >= 1 and len(test) >= 1 and len(train) + len(test) == count


def test_folder_follows_links_but_not_in_circles(tmp_path):
    spec = fill(tmp_path / "data", "a/x.jpg", "b/y.jpg")
    fill(tmp_path / "elsewhere", "z.jpg")
    for link, target in [("a/up", ".."), ("a/self", "."), ("a/b", "../b"), ("b/a", "../a")]:
        os.symlink(target, tmp_path / "data" / link)
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "c")
    os.symlink("nowhere", tmp_path / "data" / "broken.jpg")
    files = sources.open_source(spec, "all").names
    assert files == ("a/b/y.jpg", "a/x.jpg", "b/a/x.jpg", "b/y.jpg", "c/z.jpg")


def test_folder_skips_links_to_themselves_and_what_is_no_file(tmp_path):
    spec = fill(tmp_path, "a/x.jpg")
    for link in ("loop", "loop.jpg", "a/loop.png"):
        os.symlink(os.path.basename(link), tmp_path / link)
    os.mkfifo(tmp_path / "a" / "pipe.jpg")  # reading it would wait for ever
    (tmp_path / "a" / "folder.jpg").mkdir()
    assert sources.open_source(spec, "all").names == ("a/x.jpg",)


def test_folder_with_odd_names(tmp_path):
    names = ["new\nline", "ünïcode", os.fsdecode(b"bytes\xff"), "tab\t", "empty"]
    spec = fill(tmp_path, *(f"{name}/{name}.jpg" for name in names[:4]))
    (tmp_path / "empty").mkdir()
    source = sources.open_source(spec, "all")
    assert set(source.classes) == {"new\\nline", "ünïcode", "bytes\\udcff", "tab\\t"}
    for i in range(4):  # the label is that of the folder, and the file is found
        assert repr(source.name(i))[1:-1].startswith(source.classes[source[i]["label"]] + "/")
        assert source[i]["image"].startswith(b"\xff\xd8")
    "\n".join(source.classes).encode()  # a report


def test_a_folder_that_changes_is_what_it_was(tmp_path):
    source = sources.open_source(fill(tmp_path, "a.jpg", "b.jpg", "c.jpg"), "all")
    fill(tmp_path, "new.jpg")
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "b.jpg").mkdir()
    assert len(source) == 3 and source[2]["image"]
    for i in (0, 1):
        with pytest.raises(OSError):
            source[i]


def test_folder_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*missing"):
        sources.open_source(f"folder:{tmp_path}/missing", "train")
    with pytest.raises(FileNotFoundError, match="no pictures in .*jpg, jpeg, png"):
        sources.open_source(f"folder:{tmp_path}", "train")
    spec = fill(tmp_path / "one", "a.jpg")
    with pytest.raises(ValueError, match="too few pictures for split 'test': use 'all'"):
        sources.open_source(spec, "test")
    spec = fill(tmp_path / "half", "train/a.jpg", "train/b.jpg")
    with pytest.raises(ValueError, match="has train but no test or val or validation.*half/train'"):
        sources.open_source(spec, "test")
    assert len(sources.open_source(spec + "/train", "test")) == 1
    with pytest.raises(ValueError, match="no split 'dev': use train or test or validation or all"):
        sources.open_source(spec, "dev")


def write_idx(path, values):
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    data = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


IDX_NAMES = ["{}-images-idx3-ubyte.gz", "{}-labels-idx1-ubyte", "{}-images.idx3-ubyte"]


@pytest.fixture
def idx(tmp_path):
    rng = np.random.default_rng(0)
    values = {}
    for stem, count, names in [("train", 30, IDX_NAMES[:2]), ("t10k", 8, IDX_NAMES[2:0:-1])]:
        scans = rng.integers(0, 256, (count, 5, 4), np.uint8)
        labels = np.arange(count) % (7 if stem == "train" else 3)
        for name, array in zip(names, (scans, labels), strict=True):
            write_idx(tmp_path / name.format(stem), array)
        values[stem] = scans, labels
    return tmp_path, values


def test_idx_reads_plain_dotted_and_compressed_files(idx):
    root, values = idx
    for split, stem in [("train", "train"), ("test", "t10k")]:
        source = sources.open_source(f"idx:{root}", split)
        scans, labels = values[stem]
        assert len(source) == len(scans)
        for i in range(len(source)):
            np.testing.assert_array_equal(source[i]["image"], scans[i])
            assert source[i]["label"] == labels[i]
        assert source.classes == tuple("0123456")  # of the training labels, for both splits
        pickle.loads(pickle.dumps(source))


def test_idx_mistakes(idx):
    root, _ = idx
    spec = f"idx:{root}"
    labels, scans = root / "train-labels-idx1-ubyte", root / "train-images-idx3-ubyte.gz"
    whole, packed = labels.read_bytes(), scans.read_bytes()

    def refused(path, data, match):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=match):
            sources.open_source(spec, "train")

    refused(labels, whole[:-3], "should hold 30 = 30 bytes but holds 27: it is truncated")
    refused(labels, whole[:6], "is truncated: 6 bytes")
    refused(labels, b"\0\0\x0d\x01" + whole[4:], "starts with 00 00 0d 01, not 00 00 08 01")
    write_idx(labels, np.arange(29))
    refused(scans, packed, "30 images but 29 labels")
    refused(scans, packed[:-20], "is a broken gzip file")
    refused(scans, b"plain", "is a broken gzip file")
    head = bytes([0, 0, 8, 3]) + np.array([2, 4, 4], ">u4").tobytes()
    refused(scans, gzip.compress(head + bytes(2**24)), "= 32 bytes but holds more: it is")
    head = head[:4] + np.array([2**20, 2**10, 2**10], ">u4").tobytes()
    refused(scans, gzip.compress(head + bytes(9)), "should hold .* files of at most 4 GiB")
    scans.unlink()
    with pytest.raises(FileNotFoundError, match="no train-images-idx3-ubyte .or"):
        sources.open_source(spec, "train")
    with pytest.raises(ValueError, match="no split 'val': use train or test"):
        sources.open_source(spec, "val")


class TinyAnimals(tfds.core.GeneratorBasedBuilder):
    """Encoded pictures, so that writing them needs no TensorFlow either."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog", "emu"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "validation": self._generate_examples(3)}

    def _generate_examples(self, count):
        for k in range(count):
            yield k, {"image": io.BytesIO(jpeg((20 * k, 0, 0))), "label": k % 3}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    tfds.core.add_data_dir(root)  # what TFDS_DATA_DIR does when tfds is imported
    TinyAnimals(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def red(source):
    """The red level of each picture, which `TinyAnimals` counts up in steps of 20."""
    opened = (Image.open(io.BytesIO(source[i]["image"])) for i in range(len(source)))
    return [round(picture.getpixel((0, 0))[0] / 20) for picture in opened]


def test_tfds(prepared):
    source = sources.open_source("tfds:tiny_animals", "train")
    assert source.classes == ("cat", "dog", "emu")
    assert sorted(red(source)) == list(range(10))
    assert [source[i]["label"] for i in range(10)] == [k % 3 for k in red(source)]
    assert red(pickle.loads(pickle.dumps(source))) == red(source)
    assert len(sources.open_source("tfds:tiny_animals", "validation")) == 3
    assert red(sources.open_source("tfds:tiny_animals", "train[:20%]")) == red(source)[:2]


def test_tfds_mistakes(prepared):
    with pytest.raises(ValueError, match="Unknown split 'test'. Should be one of"):
        sources.open_source("tfds:tiny_animals", "test")
    with pytest.raises(ValueError, match="Dataset tiny_animal not found"):
        sources.open_source("tfds:tiny_animal", "train")
    with pytest.raises(FileNotFoundError, match="'tfds build cifar10 --file_format=array_record'"):
        sources.open_source("tfds:cifar10", "train")


@pytest.mark.parametrize("spec", ["tfds:tiny_animals", "array_record:x-{split}"])
def test_without_the_extra_tfds_it_is_named(spec, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorflow_datasets")]:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"pip install 'mae_jax\[tfds\]'"):
        sources.open_source(spec, "train")


def test_array_record_reads_what_tfds_writes(prepared):
    pattern = f"array_record:{prepared}/tiny_animals/1.0.0/*-{{split}}.array_record*"
    source = sources.open_source(pattern, "train")
    assert source.classes == ("cat", "dog", "emu")
    assert sorted(red(source)) == list(range(10))
    assert [source[i]["label"] for i in range(10)] == [k % 3 for k in red(source)]
    assert red(pickle.loads(pickle.dumps(source))) == red(source)
    assert len(sources.open_source(pattern, "validation")) == 3


def test_array_record_with_other_names_of_the_features(tmp_path):
    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for keys in [("image/encoded", "image/class/label"), ("image", None), (None, "label")]:
        example = tf_example_pb2.Example()
        if keys[0]:
            example.features.feature[keys[0]].bytes_list.value.append(b"data")
        if keys[1]:
            example.features.feature[keys[1]].int64_list.value.append(5)
        writer.write(example.SerializeToString())
    writer.close()
    source = sources.open_source(f"array_record:{tmp_path}/*", "train")
    assert source[0] == {"image": b"data", "label": 5}
    assert source[1] == {"image": b"data", "label": -1}
    assert source.classes == ()
    with pytest.raises(ValueError, match="no bytes feature 'image' .*: it has label"):
        source[2]


def test_damaged_array_record_is_refused_or_has_unreadable_records(tmp_path):
    path, rng, seen = tmp_path / "a.array_record", np.random.default_rng(0), set()
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for k in range(30):
        example = tf_example_pb2.Example()
        data = jpeg((8 * k, 0, 0), (90, 70)) + rng.bytes(500)
        example.features.feature["image"].bytes_list.value.append(data)
        writer.write(example.SerializeToString())
    writer.close()
    whole = path.read_bytes()
    for k in range(40):
        data = bytearray(whole[: rng.integers(len(whole))] if k % 4 == 0 else whole)
        at = rng.integers(len(data) + 1)
        data[at : at + 20] = rng.bytes(len(data[at : at + 20]))
        path.write_bytes(data)
        try:
            source = sources.open_source(f"array_record:{path}", "train")
        except ValueError as error:
            assert "cannot be read" in str(error)
            seen.add("refused")
            continue
        for i in range(len(source)):
            try:
                assert source[i]["image"]
            except Unreadable:
                seen.add("unreadable")
    assert seen == {"refused", "unreadable"}


def test_a_shard_that_is_missing_is_named(tmp_path):
    for k in (0, 1, 3):
        path = f"{tmp_path}/train-0000{k}-of-00004.array_record"
        with contextlib.closing(ArrayRecordWriter(path, "group_size:1")) as writer:
            writer.write(b"")
    with pytest.raises(
        FileNotFoundError, match="1 of the files are missing, such .*00002-of-00004"
    ):
        sources.open_source(f"array_record:{tmp_path}/{{split}}-*", "train")
    assert len(sources.open_source(f"array_record:{tmp_path}/{{split}}-0000[01]-*", "train")) == 2


def test_array_record_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file matches '.*/test-"):
        sources.open_source(f"array_record:{tmp_path}/{{split}}-*", "test")
    (tmp_path / "text").write_text("no records")
    with pytest.raises(ValueError, match="cannot be read"):
        sources.open_source(f"array_record:{tmp_path}/text", "train")


@pytest.mark.parametrize(
    "spec, split, message",
    [
        ("imagenet", "train", "unknown data 'imagenet': use one of photos, .*tfds:NAME"),
        ("", "train", "unknown data ''"),
        ("/some/where", "train", "unknown data .* folder:PATH"),
        ("digits", "val", "data 'digits' has no split 'val': use train or test"),
        ("digits:8", "train", "'digits' takes no place"),
        ("folder", "train", "needs a place: write 'folder:PATH'"),
        ("tfds:", "train", "needs a place: write 'tfds:NAME'"),
    ],
)
def test_wrong_specs(spec, split, message):
    with pytest.raises(ValueError, match=message):
        sources.open_source(spec, split)


def test_importing_is_cheap_and_changes_nothing():
    code = (
        "import sys, cv2; from PIL import Image\n"
        "before = cv2.getNumThreads(), Image.core.get_block_size(), Image.MAX_IMAGE_PIXELS\n"
        "import mae_jax.data.pipeline, mae_jax.data.statistics, mae_jax.data.prepare.writer\n"
        "from mae_jax.data.augment import randaugment\n"
        "from mae_jax.data import image_io\n"
        "core = Image.core\n"
        "read = lambda: (cv2.getNumThreads(), core.get_block_size(), Image.MAX_IMAGE_PIXELS)\n"
        "assert read() == before, read()\n"
        "print(*sys.modules)\n"
        "image_io.configure_libraries()\n"
        "assert read() == (1, 2**26, before[2]), read()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert done.returncode == 0 and "mae_jax.data.pipeline" in loaded, done.stderr
    assert not loaded & {"grain", "tensorflow_datasets", "sklearn", "skimage", "array_record"}
