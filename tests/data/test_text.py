import pickle
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path

import numpy as np
import pytest

from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.modalities import text
from mae_jax.data.sources import text_files


def write(root, **sizes):
    for name, size in sizes.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.random.default_rng(size).integers(1, 256, size, np.uint8).tobytes())
    return str(root)


def test_files_follow_the_rules_of_folders(tmp_path):
    root = write(tmp_path, train__en__a_txt=10, train__fr__b_MD=20, test__fr__c_py=30, x_txt=5)
    write(tmp_path, train__en__picture_jpg=10, train__en__empty_txt=0)
    train, test = text_files.texts(root, "train"), text_files.texts(root, "test")
    assert [train.name(i) for i in range(len(train))] == [
        "train/en/a.txt[0:10]",
        "train/fr/b.MD[0:20]",
    ]
    assert test.names == ["test/fr/c.py[0:30]"]
    assert (train.labels, test.labels) == ((0, 1), (1,))
    assert train.classes == test.classes == ("en", "fr")
    assert train[1] == {"image": (tmp_path / "train/fr/b.MD").read_bytes(), "label": 1}
    assert pickle.loads(pickle.dumps(train))[1] == train[1]
    with pytest.raises(IndexError):
        train[2]


def test_pieces_are_the_file(tmp_path):
    root = write(tmp_path, a_txt=3 * text_files.PIECE + 5, b_txt=text_files.PIECE)
    source = text_files.texts(root, "all")
    parts = [source[i]["image"] for i in range(len(source))]
    assert len(parts) == 5
    assert b"".join(parts[:4]) == (tmp_path / "a.txt").read_bytes()
    assert parts[4] == (tmp_path / "b.txt").read_bytes()
    assert (
        max(map(len, parts)) <= text_files.PIECE and min(map(len, parts)) > 0.7 * text_files.PIECE
    )
    assert source.labels == (-1,) * 5


def test_a_single_file_is_split_by_its_bytes(tmp_path):
    write(tmp_path, corpus=300_001)  # a name without an extension
    whole = (tmp_path / "corpus").read_bytes()
    read = {}
    for split in ("train", "test", "validation", "all"):
        source = text_files.texts(f"{tmp_path}/corpus", split)
        read[split] = b"".join(source[i]["image"] for i in range(len(source)))
    assert read["train"] + read["test"] == read["all"] == whole
    assert read["validation"] == read["test"] and len(read["test"]) == 30_000


def test_files_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no texts in .*would end in txt, md"):
        text_files.texts(str(tmp_path), "train")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        text_files.texts(f"{tmp_path}/missing", "train")
    root = write(tmp_path, a_txt=0)
    for place in (root, f"{root}/a.txt"):
        with pytest.raises(ValueError, match="has no bytes for split 'all'"):
            text_files.texts(place, "all")
        with pytest.raises(ValueError, match="no split 'dev'"):
            text_files.texts(place, "dev")


def test_stdlib_is_the_library_without_its_tests():
    train, test = text_files.stdlib("train"), text_files.stdlib("test")
    files = [[name.partition("[")[0] for name in source.names] for source in (train, test)]
    names = [set(files[0]), set(files[1])]
    assert not names[0] & names[1]
    assert names[1] == {n for n in names[0] | names[1] if zlib.crc32(n.encode()) < 2**32 / 10}
    assert {"argparse.py", "json/decoder.py"} <= names[0] | names[1]
    banned = {"site-packages", "test", "tests", "idle_test", "__pycache__"}
    assert not any(banned & set(Path(name).parts) for name in names[0] | names[1])
    root = Path(sysconfig.get_path("stdlib"))
    assert min((root / name).stat().st_size for name in names[0] | names[1]) >= 512
    assert len(names[0]) > 300 and train.classes == () and set(train.labels) == {-1}
    i = files[0].index("heapq.py")
    assert train[i]["image"] == (root / "heapq.py").read_bytes()
    with pytest.raises(ValueError, match="no split 'val'"):
        sources.open_source("stdlib", "val", "text")


def test_stdlib_is_the_same_in_another_process():
    code = (
        "import zlib; from mae_jax.data.sources import text_files; s = text_files.stdlib('test'); "
        "print(zlib.crc32(repr([(s.name(i), s[i]) for i in range(len(s))]).encode()))"
    )
    printed = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(printed) == 1 and printed != {""}


def test_a_python_without_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="this Python has no .py files"):
        text_files.stdlib("train")


def train(data, rng, length):
    (window,) = text.train_views(data, dict(size=(length,), repeats=1), rng)
    return window


def middle(data, length):
    (window,) = text.eval_views(data, dict(size=(length,)))
    return window


def test_windows_lie_in_the_text_and_reach_all_of_it():
    data, rng, starts = bytes(range(10, 30)), np.random.default_rng(0), set()
    for _ in range(200):
        window = train(data, rng, 16)
        assert (window.shape, window.dtype, window.flags.writeable) == ((16, 1), np.int32, True)
        assert window.astype(np.uint8).tobytes() in data
        starts.add(int(window[0, 0]))
    assert starts == set(range(10, 15))
    assert middle(data, 16).astype(np.uint8).tobytes() == data[2:18]


def test_short_texts_are_filled_up_with_zeros():
    expected = [[97], [98], [99], [0], [0]]
    np.testing.assert_array_equal(middle(b"abc", 5), expected)
    np.testing.assert_array_equal(train(b"abc", np.random.default_rng(0), 5), expected)


def test_an_empty_text_is_unreadable():
    with pytest.raises(Unreadable, match="an empty text"):
        middle(b"", 5)
    with pytest.raises(Unreadable, match="an empty text"):
        train(b"", np.random.default_rng(0), 5)
