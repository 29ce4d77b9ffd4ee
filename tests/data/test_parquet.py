"""Rows of Parquet files: `parquet:PATH`."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from mae_jax.data import pipeline, sources
from mae_jax.data.bad_examples import Unreadable

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(path, columns, metadata=None, rows=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    parquet.write_table(table.replace_schema_metadata(metadata), path, row_group_size=rows)
    return f"parquet:{path}"


def hugging_face(features) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def test_rows_of_hugging_face(tmp_path, caplog):
    metadata = hugging_face({"label": {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}})
    for split, count in (("train", 5), ("validation", 3)):
        images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(count)]
        labels = [0, 1, -1, 1, 1][:count]
        path = tmp_path / f"data/{split}-00000-of-00001.parquet"
        write(path, {"image": images, "label": labels}, metadata)
    (tmp_path / "README.md").write_text("")
    train = sources.open_source(f"parquet:{tmp_path}", "train")
    test = sources.open_source(f"parquet:{tmp_path}", "test")
    assert (len(train), len(test)) == (5, 3)
    assert train.classes == test.classes == ("cat", "dog", "emu")  # which has no emu
    assert [train[i] for i in (4, 0, 2)] == [
        {"image": png(4), "label": 1}, {"image": png(0), "label": 0}, {"image": png(2), "label": -1}
    ]  # fmt: skip
    assert train.name(4) == "train-00000-of-00001.parquet[4]"
    assert pickle.loads(pickle.dumps(test))[1] == test[1]
    assert "names of its files say their splits, train of 1, validation of 1" in caplog.text
    pattern = f"parquet:{tmp_path}/data/{{split}}-*.parquet"
    assert sources.open_source(pattern, "validation").names == test.names
    assert len(sources.open_source(pattern, "all")) == 8


def test_files_agree_on_the_names_of_classes(tmp_path):
    """A number would mean two classes."""
    kinds = lambda *names: {"label": {"names": names, "_type": "ClassLabel"}}
    columns, image = {"image": [png(0)] * 2, "label": [0, 1]}, {"other": {"_type": "Image"}}
    write(tmp_path / "train.parquet", columns, hugging_face(kinds("cat", "dog")))
    write(tmp_path / "test.parquet", columns, hugging_face(kinds("cat", "dog") | image))
    assert sources.open_source(f"parquet:{tmp_path}", "test").classes == ("cat", "dog")
    for metadata in (hugging_face(kinds("dog", "cat")), None):
        write(tmp_path / "test.parquet", columns, metadata)
        with pytest.raises(ValueError, match="have different names of the classes in column 'labe"):
            sources.open_source(f"parquet:{tmp_path}", "train")


def test_a_split_column_groups_and_folds(tmp_path):
    count = 300
    columns = {"image": [b"x"] * count, "fold": [i % 3 for i in range(count)]}
    spec = write(tmp_path / "a.parquet", columns, rows=100)
    assert len(sources.open_source(spec, "not_fold:1")) == 200
    spec = write(
        tmp_path / "b.parquet", {**columns, "group": [f"p{i // 10}" for i in range(count)]}
    )
    with pytest.raises(ValueError, match="has group 'p0' in"):
        sources.open_source(spec, "all")
    spec = write(
        tmp_path / "b.parquet", {"image": [b"x"] * 9, "split": ["dev", "train", "dev"] * 3}
    )
    assert len(sources.open_source(spec, "dev")) == 6


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8, np.bool])
def test_arrays(tmp_path, dtype):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(5, 2, 3, 4)) * 50).astype(dtype)
    lists = pa.array(values.tolist(), pa.list_(pa.list_(pa.list_(pa.from_numpy_dtype(dtype)))))
    columns = {"image": lists, "signal": [x.ravel().tolist() for x in values.astype(float)]}
    if dtype is not np.bool:
        columns["tensor"] = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    spec = write(tmp_path / "a.parquet", columns)
    for column in {*columns} - {"signal"}:
        source = sources.open_source(f"{spec}::{column}", "all", "volume")
        for i in (3, 0, 4, 1):
            image = source[i]["image"]
            assert image.dtype == dtype
            np.testing.assert_array_equal(image, values[i])
    source = sources.open_source(f"{spec}::signal", "all", "signal")
    np.testing.assert_array_equal(source[2]["image"], values[2].ravel())


def test_labels_of_any_column(tmp_path):
    columns = {
        "img": [b"a", b"b", b"c"],
        "fine": ["x", None, "y"],
        "tags": [["p"], [], ["q", "p"]],
        "age": [1.5, None, 3.0],
        "target": [1, 2, 3],
        "when": [None, None, None],
    }
    spec = write(tmp_path / "a.parquet", columns)
    opened = lambda columns: sources.open_source(f"{spec}::{columns}", "all")
    fine, tags, age, target = map(opened, ("img,fine", "img,tags", "img,age", "img"))
    assert fine.classes == ("x", "y") and [fine[i]["label"] for i in range(3)] == [0, -1, 1]
    assert sources.is_multilabel(tags) and tags[2]["label"].tolist() == [1, 1]
    assert age.targets == ("age",)
    np.testing.assert_array_equal([age[i]["label"][0] for i in range(3)], [1.5, np.nan, 3.0])
    assert target.targets == ("target",) and target[2]["label"] == np.float32([3])
    with pytest.raises(ValueError, match="no column 'image': name one of img, fine, tags"):
        sources.open_source(spec, "all")
    with pytest.raises(ValueError, match="no column 'color': name one of img"):
        opened("img,color")
    with pytest.raises(ValueError, match="column 'when' of type null is no labels"):
        opened("img,when")


def test_bytes_of_npy_files_texts_and_sounds(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.arange(6).reshape(2, 3))
    spec = write(tmp_path / "a.parquet", {"image": [stream.getvalue(), stream.getvalue()[:90]]})
    source = sources.open_source(spec, "all", "volume")
    np.testing.assert_array_equal(source[0]["image"], [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(Unreadable, match="damaged, or no numbers"):
        source[1]
    spec = write(tmp_path / "b.parquet", {"text": ["grün", "b"]})
    assert sources.open_source(spec, "all", "text")[0]["image"] == "grün".encode()


@pytest.mark.parametrize(
    "cells, message",
    [
        ([[[1, 2], [3]]], "rows of different lengths"),
        ([[[1, 2], None]], "rows of different lengths"),
        ([[1, None, 3]], "whole numbers has missing values"),
        ([None], "the row is empty here"),
        ([{"bytes": None, "path": "/etc/passwd"}], "a path and no bytes"),
        ([["a", "b"]], "no array of numbers"),
        ([5], "a value of type int64 is no input"),
    ],
)
def test_bad_cells_are_bad_examples(tmp_path, cells, message):
    source = sources.open_source(write(tmp_path / "a.parquet", {"image": cells}), "all")
    with pytest.raises(Unreadable, match=message):
        pipeline.read(source, 0, lambda example: example)


def test_damaged_files(tmp_path):
    spec, path = (
        write(
            tmp_path / "a.parquet",
            {"image": [*np.random.default_rng(0).bytes(9000).partition(b"\0")] * 3},
        ),
        tmp_path / "a.parquet",
    )
    content = path.read_bytes()
    damaged = {
        "no.parquet": b"nonsense",
        "half.parquet": content[: len(content) // 2],
        "e.parquet": b"",
    }
    for name, part in damaged.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(ValueError, match=f"{name}' is damaged, or no Parquet file"):
            sources.open_source(f"parquet:{tmp_path / name}", "all")
    with pytest.raises(FileNotFoundError, match="no file"):
        sources.open_source(f"parquet:{tmp_path}/missing", "all")
    path.write_bytes(content[:4] + bytes(50) + content[54:])
    source = sources.open_source(spec, "all")
    with pytest.raises(
        Unreadable, match=r"cannot read 'a.parquet\[0\]': row group 0 .* is damaged"
    ):
        pipeline.read(source, 0, lambda example: example)


@pytest.mark.parametrize(
    "label, message", [(-2, "label -2 is no number"), (3, "label 3 is no number")]
)
def test_numbers_of_no_class(tmp_path, label, message):
    metadata = hugging_face({"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}})
    spec = write(tmp_path / "a.parquet", {"image": [b""] * 2, "label": [0, label]}, metadata)
    with pytest.raises(ValueError, match=message):
        sources.open_source(spec, "all")


def test_floats_are_no_classes(tmp_path):
    spec = write(tmp_path / "a.parquet", {"image": [b""] * 2, "label": [0.0, None]})
    with pytest.raises(ValueError, match="column 'label' of type double is no labels"):
        sources.open_source(spec, "all")
