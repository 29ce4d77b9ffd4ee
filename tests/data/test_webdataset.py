"""Examples in tar files: `webdataset:GLOB`."""

import gzip
import io
import json
import pickle
import tarfile

import numpy as np
import pytest

from mae_jax.data import pipeline, sources
from mae_jax.data.bad_examples import Unreadable


def npy(values) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def write(path, members: dict[str, bytes], kind=tarfile.REGTYPE, form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            info.linkname = "/etc/passwd" if kind != tarfile.REGTYPE else ""
            tar.addfile(info, io.BytesIO(content))
    return f"webdataset:{path}"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_keys_inputs_and_numbers_of_classes(tmp_path, form, caplog):
    long = "deep/" * 12 + "name"
    for shard in range(3):
        members = {"./": b""} if shard < 0 else {}
        for i in range(4):
            key = f"{long}{shard}{i}"
            members |= {
                f"{key}.jpg": f"picture {shard} {i}".encode(),
                f"{key}.cls": b"%d\n" % (i % 3),
            }
        write(tmp_path / f"a-{shard:03}.tar", members | {"alone.txt": b"text"}, form=form)
    source = sources.open_source(f"webdataset:{tmp_path}/a-{{000..002}}.tar", "all")
    assert len(source) == 12 and source.classes == ("0", "1", "2")
    for row in (11, 0, 5):
        shard, i = divmod(row, 4)
        assert source[row] == {"image": f"picture {shard} {i}".encode(), "label": i % 3}
        assert source.name(row) == f"a-{shard:03}.tar/{long}{shard}{i}"
    assert pickle.loads(pickle.dumps(source))[7] == source[7]
    assert "3 keys have no input and are left out" in caplog.text
    sides = [sources.open_source(f"webdataset:{tmp_path}", s).names for s in ("train", "test")]
    assert sorted([*sides[0], *sides[1]]) == sorted(source.names) and min(map(len, sides)) > 0
    with pytest.raises(
        FileNotFoundError, match="2 of the files .* are missing, such as .*a-003.tar"
    ):
        sources.open_source(f"webdataset:{tmp_path}/a-{{000..004}}.tar", "all")


def test_splits_by_pattern_and_labels_in_json(tmp_path):
    for split in ("train", "val"):
        members = {}
        for i in range(3):
            of_key = {"labels": [["wet"], ["cold", "wet"], []][i], "target": i / 2, "caption": "x"}
            members |= {
                f"{i}.npy": npy(np.full((2, 2), i)),
                f"{i}.json": json.dumps(of_key).encode(),
            }
        write(tmp_path / f"{split}-0.tar", members)
    for spec in (f"webdataset:{tmp_path}/{{split}}-*.tar", f"webdataset:{tmp_path}"):
        source = sources.open_source(spec, "test", "volume")
        assert source.names == ("val-0.tar/0", "val-0.tar/1", "val-0.tar/2")
        assert source.classes == ("cold", "wet")
        assert [source[i]["label"].tolist() for i in range(3)] == [[0, 1], [1, 1], [0, 0]]
        np.testing.assert_array_equal(source[2]["image"], [[2, 2], [2, 2]])
        numbers = sources.open_source(f"{spec}::npy,target", "train", "volume")
        assert [numbers[i]["label"].tolist() for i in range(3)] == [[0], [0.5], [1]]


def test_the_ending_chooses_the_input(tmp_path):
    members = {
        "a.left.png": b"left",
        "a.right.png": b"right",
        "b.png": b"b",
        "b.jpg": b"b",
        "b.cls": b"x",
    }
    spec = write(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match="inputs png and jpg for the key 'b': name one by ::png"):
        sources.open_source(spec, "all")
    assert sources.open_source(f"{spec}::right.png", "all")[0]["image"] == b"right"
    assert sources.open_source(f"{spec}::jpg", "all").classes == ("x",)
    with pytest.raises(ValueError, match="no members that end in wav, flac"):
        sources.open_source(spec, "all", "audio")


@pytest.mark.parametrize("names", ["a.png a.cls a.png", "a.png a.PNG", "a.png b.png a.cls b.cls"])
def test_members_of_a_key_come_once_and_together(tmp_path, names):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in names.split():
            tar.addfile(tarfile.TarInfo(name))
    twice = names.split()[2 if "cls" in names else 1]
    with pytest.raises(ValueError, match=f"has the member '{twice}' twice, or apart from others"):
        sources.open_source(f"webdataset:{tmp_path}/a.tar", "all")


def test_hostile_archives(tmp_path):
    path = tmp_path / "a.tar"
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        with pytest.raises(ValueError, match="'x.png', which is a link, a device or sparse"):
            sources.open_source(write(path, {"x.png": b""}, kind=kind), "all")
    spec = write(path, {"../../x.png": b"picture", "/etc/y.png": b"picture"})
    assert sources.open_source(spec, "all").names == ("a.tar/../../x", "a.tar//etc/y")
    spec = write(path, {f"{i}.png": bytes(3000) for i in range(3)})
    content = path.read_bytes()
    for bad in (content[:5000], content[:4500], b"nonsense" * 200, gzip.compress(content), b""):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="a.tar' is damaged, compressed or no tar file"):
            sources.open_source(spec, "all")
    path.write_bytes(content)
    source = sources.open_source(spec, "all")
    path.write_bytes(content[:5000])
    with pytest.raises(Unreadable, match="cannot read 'a.tar/1': .*ends in the middle"):
        pipeline.read(source, 1, lambda example: example)


@pytest.mark.parametrize(
    "members, message",
    [
        ({"a.png": b"", "a.json": b"{"}, "a.tar/a.json is no JSON"),
        ({"a.png": b"", "a.json": b'{"label": {}}'}, "has label {}: a class is"),
        ({"a.png": b"", "a.json": b'{"label": 1.5}'}, "has label 1.5: a class is"),
        ({"a.png": b"", "a.json": b'{"target": "x"}'}, "has target 'x': a class is"),
        ({"a.png": b"", "a.json": b'{"target": 1e999}'}, "target of example 0 is infinite"),
        ({"a.png": b"", "a.cls": b"1", "b.png": b"", "b.cls": b"x"}, "labels are of several types"),
        ({"a.png": b"", "a.cls": b"-3"}, "label -3 is no number"),
        ({"a.png": b"", "a.cls": b"123456789"}, "label 123456789 is no number"),
    ],
)
def test_mistakes_in_labels(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        sources.open_source(write(tmp_path / "a.tar", members), "all")
