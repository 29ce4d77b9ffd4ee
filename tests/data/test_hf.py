"""Data sets that Hugging Face's `datasets` saved to a disk: `hf:PATH`."""

import io
import pickle
import socket

import numpy as np
import pytest
from PIL import Image

from mae_jax.data import sources

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def dataset(count, **features):
    rows = {
        "image": [{"bytes": png(i), "path": None} for i in range(count)],
        "label": [i % 2 for i in range(count)],
    }
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "emu"])}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def test_splits_and_classes(tmp_path):
    datasets.DatasetDict(train=dataset(5), validation=dataset(3)).save_to_disk(tmp_path / "d")
    train, test = (sources.open_source(f"hf:{tmp_path}/d", s) for s in ("train", "test"))
    assert (len(train), len(test)) == (5, 3)
    assert train.classes == test.classes == ("cat", "dog", "emu")
    assert [train[i] for i in (4, 0, 3)] == [
        {"image": png(4), "label": 0}, {"image": png(0), "label": 0}, {"image": png(3), "label": 1}
    ]  # fmt: skip
    assert test.names == ("validation[0]", "validation[1]", "validation[2]")
    assert pickle.loads(pickle.dumps(test))[2] == test[2]
    with pytest.raises(
        ValueError, match="no split 'dev': its splits are train, validation and all"
    ):
        sources.open_source(f"hf:{tmp_path}/d", "dev")


def test_splits_agree_on_the_names_of_classes(tmp_path):
    other = dataset(3).cast_column("label", datasets.ClassLabel(names=["dog", "cat", "emu"]))
    datasets.DatasetDict(train=dataset(5), validation=other).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match="'train' and 'validation' have different names of the cl"):
        sources.open_source(f"hf:{tmp_path}/d", "train")


def test_a_data_set_without_splits_and_a_choice_of_rows(tmp_path):
    dataset(40).filter(lambda row: row["label"]).save_to_disk(tmp_path / "d")
    whole = sources.open_source(f"hf:{tmp_path}/d", "all")
    assert [whole[i] for i in (0, 19)] == [{"image": png(k), "label": 1} for k in (1, 39)]
    parts = [sources.open_source(f"hf:{tmp_path}/d", split) for split in ("train", "test")]
    assert sum(map(len, parts)) == 20 and min(map(len, parts)) > 0


def test_parquet_and_arrow_files(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        (tmp_path / "p" / split).mkdir(parents=True)
        dataset(count).to_parquet(tmp_path / "p" / split / "0.parquet")
        dataset(count).save_to_disk(tmp_path / "saved")
        (arrow,) = (tmp_path / "saved").glob("*.arrow")
        (tmp_path / "a").mkdir(exist_ok=True)
        arrow.rename(tmp_path / "a" / f"x-{split}.arrow")
    (tmp_path / "p" / "x.py").write_text("raise SystemExit('a script was run')")
    for place in "pa":
        source = sources.open_source(f"hf:{tmp_path}/{place}", "test")
        assert [source[i] for i in (1, 0)] == [
            {"image": png(1), "label": 1}, {"image": png(0), "label": 0}
        ]  # fmt: skip
        assert source.classes == ("cat", "dog", "emu")


def test_arrays_and_several_labels(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    names = datasets.List(datasets.ClassLabel(names=["wet", "cold"]))
    features = datasets.Features({"x": datasets.Array2D((2, 4), "float32"), "tags": names})
    rows = {"x": [*values], "tags": [[0], [], [1, 0]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "d")
    source = sources.open_source(f"hf:{tmp_path}/d::x,tags", "all", "volume")
    np.testing.assert_array_equal([source[i]["image"] for i in range(3)], values)
    assert source[0]["image"].dtype == np.float32
    assert source.classes == ("wet", "cold")
    assert [source[i]["label"].tolist() for i in range(3)] == [[1, 0], [0, 0], [1, 1]]


def test_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nothing is downloaded"):
        sources.open_source("hf:user/name", "train")
    (tmp_path / "x.py").write_text("raise SystemExit('a script was run')")
    with pytest.raises(FileNotFoundError, match="holds no data set, or not all of its files"):
        sources.open_source(f"hf:{tmp_path}", "train")
    dataset(3).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match="no column 'img': name one of image, label"):
        sources.open_source(f"hf:{tmp_path}/d::img", "train")
    (arrow,) = (tmp_path / "d").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:300])
    with pytest.raises(ValueError, match="is damaged, or no data set"):
        sources.open_source(f"hf:{tmp_path}/d", "train")
    arrow.unlink()
    with pytest.raises(FileNotFoundError, match="not all of its files"):
        sources.open_source(f"hf:{tmp_path}/d", "train")
