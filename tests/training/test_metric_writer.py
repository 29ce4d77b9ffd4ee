"""Metrics as a user, a program and TensorBoard read them."""

import shutil

import pytest
from etils import epath
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mae_jax.training import metric_writer


@pytest.fixture
def writer(tmp_path):
    return metric_writer.MetricWriter(epath.Path(tmp_path), 0, True)


def written(writer, path):
    writer.write(1, {"loss": 2.0})
    writer.write(2, {"loss": 1.0, "knn": 0.5})
    return metric_writer.read(path)


def test_records_are_appended_and_read_back(writer, tmp_path):
    expected = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "knn": 0.5}]
    assert written(writer, tmp_path) == expected
    assert metric_writer.series(expected, "knn") == ([2], [0.5])


def test_a_bucket_is_written_when_the_run_saves(tmp_path):
    """Object stores take whole files: nothing is written for each record."""
    bucket = epath.Path(tmp_path / "bucket")
    writer = metric_writer.MetricWriter(bucket, 0, True, is_local=False)
    writer.write(1, {"loss": 2.0})
    assert not bucket.exists()
    writer.upload()
    writer.write(2, {"loss": 1.0})
    assert [r["step"] for r in metric_writer.read(bucket)] == [1]
    writer.upload()
    assert [r["step"] for r in metric_writer.read(bucket)] == [1, 2]
    assert scalars(bucket) == {"loss": [(1, 2.0), (2, 1.0)]}
    again = metric_writer.MetricWriter(bucket, 1, True, is_local=False)
    again.write(2, {"loss": 0.5})
    again.upload()
    assert [r["loss"] for r in metric_writer.read(bucket)] == [2.0, 0.5]


def scalars(path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows, by its own reader."""
    found = EventAccumulator(str(path / "tensorboard")).Reload()
    return {tag: [(x.step, x.value) for x in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_shows_the_same(writer, tmp_path):
    written(writer, tmp_path)
    writer.drop(1)
    writer.write(2, {"loss": 0.25})
    assert scalars(tmp_path) == {"loss": [(1, 2.0), (2, 0.25)], "knn": []}


def test_tensorboard_of_large_steps_and_many_names(writer, tmp_path):
    record = {f"name/é{i}": float(2**i) for i in range(40)}
    writer.write(2**40, record)
    writer.write(2**40 + 1, {"loss": 1e300})
    expected = {name: [(2**40, x)] for name, x in record.items()}
    assert scalars(tmp_path) == {**expected, "loss": [(2**40 + 1, float("inf"))]}


def test_a_full_disk_stops_nothing_and_loses_nothing(writer, tmp_path, caplog):
    """The place of the records is taken for a while, that of TensorBoard's for ever."""
    writer.write(1, {"loss": 2.0})
    shutil.rmtree(tmp_path / "tensorboard")
    (tmp_path / "metrics.jsonl").rename(tmp_path / "kept")
    (tmp_path / "metrics.jsonl").mkdir()
    writer.write(2, {"loss": 1.0})
    writer.write(3, {"loss": 0.5})
    assert caplog.text.count("cannot be written for now") == 1
    (tmp_path / "metrics.jsonl").rmdir()
    writer.write(4, {"loss": 0.25})
    assert [record["step"] for record in metric_writer.read(tmp_path)] == [1, 2, 3, 4]


def test_events_stay_when_a_run_goes_back(writer, tmp_path):
    writer.write(1, {"loss": 2.0})
    writer.write(2, {}, event="skipped", text="nan")
    writer.write(3, {"loss": 1.0})
    assert not writer.is_evaluated(2)
    writer.event(3, "rewound", "back to step 1", rewound_to=1)
    for _ in range(2):  # at once, and when the run that was killed after it goes on
        writer.drop(1)
        assert [record["step"] for record in metric_writer.read(tmp_path)] == [1, 2, 3]
        writer.event(2, "skipped", "comes again")
    writer.write(2, {"loss": 1.0})  # the event stands before it, and does not come again
    writer.write(4, {}, event="skipped", text="nan")
    writer.drop(2)  # as after a resume
    assert [record["step"] for record in metric_writer.read(tmp_path)] == [1, 2, 3, 2, 2]
    writer.drop(0)
    assert metric_writer.read(tmp_path) == []


def test_a_damaged_file_of_records_is_mended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n\xff\xfe\n[]\n5\n{"step": "x"}\n{"step": 3}\n')
    metric_writer.MetricWriter(epath.Path(tmp_path), 2, True)
    assert metric_writer.read(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_resuming_drops_what_comes_again(writer, tmp_path):
    written(writer, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 3, "lo')
    metric_writer.MetricWriter(epath.Path(tmp_path), 1, True)
    assert metric_writer.read(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_only_the_first_process_writes(tmp_path):
    writer = metric_writer.MetricWriter(epath.Path(tmp_path), 0, False)
    writer.write(1, {"loss": 1.0})
    writer.text("report.txt", "text")
    writer.picture("a.png", Image.new("RGB", (2, 2)))
    assert list(tmp_path.iterdir()) == []
