import io
import shutil
import struct
import sys
import time

import numpy as np
import pytest
from etils import epath
from PIL import Image
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from mae_jax.evaluators import visualize
from mae_jax.output import console, tables
from mae_jax.training import metric_writer
from mae_jax.training import progress as progresss


def written(writer, path):
    writer.write(1, {"loss": 2.0})
    writer.write(2, {"loss": 1.0, "knn": 0.5})
    return metric_writer.read(path)


def test_records_are_appended_and_read_back(tmp_path):
    expected = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "knn": 0.5}]
    assert written(metric_writer.Writer(epath.Path(tmp_path), 0, True), tmp_path) == expected
    assert metric_writer.series(expected, "knn") == ([2], [0.5])


def test_a_bucket_that_cannot_append(tmp_path):
    """Object stores take whole files: the second record must not lose the first."""
    writer = metric_writer.Writer(epath.Path(tmp_path), 0, True)
    writer.local = False
    assert [record["step"] for record in written(writer, tmp_path)] == [1, 2]


def scalars(path) -> list[tuple[int, str, float]]:
    """What TensorBoard shows: of all files in order, without what a later one purges."""
    shown = []
    for file in sorted((path / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime_ns):
        raw = file.read_bytes()
        while raw:
            size = struct.unpack("<Q", raw[:8])[0]
            data = raw[12 : 12 + size]
            sums = [struct.pack("<I", masked_crc32c(x)) for x in (raw[:8], data)]
            assert sums == [raw[8:12], raw[12 + size : 16 + size]]
            event, raw = event_pb2.Event.FromString(data), raw[16 + size :]
            if event.session_log.status == event_pb2.SessionLog.START:
                shown = [x for x in shown if x[0] < event.step]
            shown += [(event.step, x.tag, x.simple_value) for x in event.summary.value]
    return shown


def test_tensorboard_shows_the_same(tmp_path):
    writer = metric_writer.Writer(epath.Path(tmp_path), 0, True)
    writer.write(1, {"loss": 2.0})
    writer.write(2, {"loss": 1.0, "knn": 0.5})
    writer.drop(1)
    writer.write(2, {"loss": 0.25})
    assert scalars(tmp_path) == [(1, "loss", 2.0), (2, "loss", 0.25)]


def test_tensorboard_of_large_steps_many_names_and_a_bucket(tmp_path):
    writer = metric_writer.Writer(epath.Path(tmp_path), 0, True)
    writer.board.local = False  # object stores take whole files
    record = {f"name/é{i}": float(2**i) for i in range(40)}
    writer.write(2**40, record)
    writer.write(2**40 + 1, {"loss": 1e300})
    expected = [(2**40, name, x) for name, x in record.items()]
    assert scalars(tmp_path) == [*expected, (2**40 + 1, "loss", float("inf"))]


def test_a_full_disk_stops_nothing_and_loses_nothing(tmp_path, capsys):
    """The place of the records is taken for a while, that of TensorBoard's for ever."""
    writer = metric_writer.Writer(epath.Path(tmp_path), 0, True)
    writer.write(1, {"loss": 2.0})
    shutil.rmtree(tmp_path / "tensorboard")
    (tmp_path / "metrics.jsonl").rename(tmp_path / "kept")
    (tmp_path / "metrics.jsonl").mkdir()
    writer.write(2, {"loss": 1.0})
    writer.write(3, {"loss": 0.5})
    assert capsys.readouterr().err.count("cannot be written for now") == 1
    (tmp_path / "metrics.jsonl").rmdir()
    writer.write(4, {"loss": 0.25})
    assert [record["step"] for record in metric_writer.read(tmp_path)] == [1, 2, 3, 4]


def test_events_stay_when_a_run_goes_back(tmp_path):
    writer = metric_writer.Writer(epath.Path(tmp_path), 0, True)
    writer.write(1, {"loss": 2.0})
    writer.write(2, {}, event="skipped", text="nan")
    writer.write(3, {"loss": 1.0})
    assert not writer.evaluated(2)
    writer.drop(1, keep_events=True)
    assert [record["step"] for record in metric_writer.read(tmp_path)] == [1, 2]
    writer.write(2, {"loss": 1.0})  # the event stands before it, and does not come again
    writer.write(4, {}, event="skipped", text="nan")
    writer.drop(2)  # as after a resume
    assert [record["step"] for record in metric_writer.read(tmp_path)] == [1, 2, 2]
    writer.drop(0)
    assert metric_writer.read(tmp_path) == []


def test_a_damaged_file_of_records_is_mended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n\xff\xfe\n[]\n5\n{"step": "x"}\n{"step": 3}\n')
    metric_writer.Writer(epath.Path(tmp_path), 2, True)
    assert metric_writer.read(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_screen_that_cannot_be_written_stops_nothing(monkeypatch):
    with open("/dev/full", "wb", buffering=0) as raw:
        full = io.TextIOWrapper(raw, write_through=True)
        monkeypatch.setattr(sys, "stderr", full)
        monkeypatch.setattr(sys, "stdout", full)
        console.tell("lost")
        progresss.Progress(start=0, total=9, images=1, quiet=False).say("lost")
        monkeypatch.undo()
        with pytest.raises(OSError):
            print("it is full", file=full, flush=True)


def test_resuming_drops_what_comes_again(tmp_path):
    written(metric_writer.Writer(epath.Path(tmp_path), 0, True), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 3, "lo')
    metric_writer.Writer(epath.Path(tmp_path), 1, True)
    assert metric_writer.read(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_only_the_first_process_writes(tmp_path):
    writer = metric_writer.Writer(epath.Path(tmp_path), 0, False)
    writer.write(1, {"loss": 1.0})
    writer.text("report.txt", "text")
    writer.picture("a.png", Image.new("RGB", (2, 2)))
    assert list(tmp_path.iterdir()) == []


def test_progress_in_lines_without_a_terminal(capsys):
    progress = progresss.Progress(start=10, total=100, images=32, quiet=False)
    with progress.paused():
        pass
    shown = progress.show(20, 0.5, 1e-3)
    assert shown["images_per_second"] > 0 and shown["input_wait"] == 0
    line = capsys.readouterr().out
    assert line.startswith("step 20/100  loss 0.5000  lr 1.00e-03  ") and "left" in line
    assert "input-bound" not in line


def test_progress_says_when_the_input_is_too_slow(capsys):
    progress = progresss.Progress(start=0, total=100, images=32, quiet=False)
    with progress.paused(), progress.waiting():  # while compiling nobody counts
        time.sleep(0.05)
    with progress.waiting():
        time.sleep(0.05)
    assert 0.5 < progress.show(1, 0.5, 1e-3)["input_wait"] <= 1
    assert "input-bound: " in capsys.readouterr().out
    time.sleep(0.05)
    assert progress.show(2, 0.5, 1e-3)["input_wait"] == 0


def test_table_and_duration():
    assert tables.table([["a", "bb"], ["long name", "1"]]) == "a          bb\nlong name   1"
    assert tables.duration(3 * 3600 + 62) == "3:01:02"


def test_columns_of_gray_and_many_channels():
    gray = np.full((2, 8, 12, 1), 200, np.uint8)
    many = np.zeros((2, 8, 12, 5), np.uint8)
    sheet = np.asarray(visualize.columns({"gray": gray, "many": many}))
    area = 2 * (8 * 11) * (12 * 11)  # two pictures, each pixel enlarged to 11 x 11
    for value, x in ((200, 4), (0, 4 + 12 * 11 + 4)):
        assert (sheet[24:, x : x + 12 * 11] == value).all(-1).sum() == area
