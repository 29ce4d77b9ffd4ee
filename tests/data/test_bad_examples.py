import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from etils import epath

from mae_jax.data.bad_examples import BadExamples, Unreadable


def test_each_example_is_counted_and_written_once(tmp_path):
    log = tmp_path / "unreadable.txt"
    found = BadExamples(range(1000), 0.5, log)
    assert not log.exists() and (found.count, found.share) == (0, 0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: found.add(f"{k % 40}.jpg", "broken"), range(400)))
    lines = log.read_text().splitlines()
    assert sorted(lines) == sorted(f"{k}.jpg\tbroken" for k in range(40))
    assert (found.count, found.share) == (40, 0.04)


NAMES = ["a\nb.jpg", "tab\t.jpg", "größe 🙂.jpg", os.fsdecode(b"\xff.jpg"), "it's.jpg", "b\\n.jpg"]


@pytest.mark.parametrize("end", ["", "torn", "torn\twithout an e"])
def test_a_run_that_goes_on_counts_on(tmp_path, end):
    log = tmp_path / "unreadable.txt"
    for name in NAMES:
        BadExamples(range(100), 0.5, log).add(name, "one\nreason\tonly")
    assert BadExamples(range(100), 0.5, log).count == len(NAMES)
    with log.open("a") as f:
        f.write(end)  # the process died while it wrote
    again = BadExamples(range(100), 0.5, str(log))
    for name in [*NAMES, "new.jpg"]:
        again.add(name, "another reason")
    assert again.count == len(NAMES) + 1
    lines = log.read_text().split("\n")
    assert len(lines) == len(NAMES) + 2 and lines.pop() == ""
    assert {line.count("\t") for line in lines} == {1}
    assert lines[2] == "größe 🙂.jpg\tone reason only" and lines[0] == "a\\nb.jpg\tone reason only"


def test_too_many_are_one_sentence(tmp_path):
    log = tmp_path / "unreadable.txt"
    found = BadExamples(range(100), 0.04, log)
    for k in range(4):
        found.add(f"{k}.jpg", "broken")
    with pytest.raises(Unreadable) as error:
        found.add("4.jpg", "broken")
    assert str(error.value) == (
        "5 of 100 examples cannot be read: '0.jpg' (broken), '1.jpg' (broken), '2.jpg' (broken), "
        f"...; {log} lists all of them. That is more than data.max_bad_fraction = 0.04 allows: "
        "repair the files and delete unreadable.txt, remove them and start in another work "
        "directory, or raise data.max_bad_fraction"
    )
    with pytest.raises(Unreadable, match="5 of 100"):  # before the first step of the next start
        BadExamples(range(100), 0.04, log)
    assert BadExamples(range(100), 0.05, log).count == 5
    with pytest.raises(Unreadable, match=r"1 of 9 examples cannot be read: 'x' \(y\). That is"):
        BadExamples(range(9), 0.0).add("x", "y")


def test_a_log_that_cannot_be_written_is_written_later(tmp_path, caplog):
    log = tmp_path / "later" / "unreadable.txt"
    found = BadExamples(range(10), 1, log)
    found.add("a", "x")
    assert "cannot write" in caplog.text and found.count == 1
    log.parent.mkdir()
    found.add("b", "x")
    assert log.read_text() == "a\tx\nb\tx\n"


def test_a_bucket_gets_the_whole_log_each_time(monkeypatch):
    written = {}

    class Bucket:
        name = "unreadable.txt"
        exists = lambda self: bool(written)
        read_bytes = lambda self: written["text"].encode()
        write_text = lambda self, text: written.update(text=text)
        __str__ = lambda self: "gs://bucket/unreadable.txt"

    monkeypatch.setattr(epath, "Path", lambda path: Bucket())
    for name in "ab":
        BadExamples(range(9), 1, "gs://bucket/unreadable.txt").add(name, "x")
    assert written["text"] == "a\tx\nb\tx\n"
