"""Metrics of a run: `metrics.jsonl`, TensorBoard and pictures."""

import contextlib
import io
import json
import logging
import math
import os
import tempfile
import time
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mae_jax.output import files

_log = logging.getLogger(__name__)


class MetricWriter:
    """Appends records to `metrics.jsonl` and to a TensorBoard file; nothing if not `primary`.

    A run that resumes from step `start` drops the records after it: those steps come again. Object
    stores cannot append: unless `is_local`, files are written elsewhere, and `upload` copies them.
    """

    def __init__(self, directory: epath.Path, start: int, primary: bool, is_local: bool = True):
        self.directory, self.primary, self.local = directory, primary, directory
        remote = directory / "metrics.jsonl"
        text = remote.read_bytes().decode(errors="replace") if remote.exists() else ""
        if primary and not is_local:
            self.local = epath.Path(tempfile.mkdtemp())
            (self.local / "metrics.jsonl").write_text(text)
        self.lines = text.splitlines(keepends=True)
        self.is_whole = True  # the file has all lines
        self.drop(start)

    @property
    def path(self) -> epath.Path:
        return self.local / "metrics.jsonl"

    def drop(self, step: int) -> None:
        """Forget the records after `step`, but not the events before the last record that stays.

        A rewind counts as a record of the step that it went back to.
        """
        lines = self.lines
        kept = [step_of(line) <= step for line in lines]
        stays = lambda line: (_rewound_to(line) if _is_event(line) else step_of(line)) <= step
        last = max((i for i, line in enumerate(lines) if stays(line)), default=-1)
        self.lines = [
            line for i, line in enumerate(lines) if kept[i] or _is_event(line) and i <= last
        ]
        if not self.primary:
            return
        if self.lines != lines:
            files.write_whole(self.path, "".join(self.lines))
        self.events = None
        try:
            self.events = EventFile(self.local / "tensorboard")
            if step:
                self.events.purge(step + 1)
        except OSError as error:
            _log.warning("no files for TensorBoard: %s", error)

    def write(self, step: int, record: dict[str, float], **event: str) -> None:
        """Append one record: numbers by name, and texts, which stand in `metrics.jsonl` alone."""
        if not self.primary:
            return
        line = json.dumps({"step": step, **finite(record), **event}) + "\n"
        self.lines.append(line)
        try:
            if self.is_whole:
                with self.path.open("a") as f:
                    f.write(line)
            else:
                files.write_whole(self.path, "".join(self.lines))
            self.is_whole = True
        except OSError as error:  # a full disk, say: all is written with the next record
            if self.is_whole:
                _log.warning("%s cannot be written for now: %s", self.path, error)
            self.is_whole = False
        if self.events is not None and record:
            with contextlib.suppress(OSError):  # a full disk: metrics.jsonl has it all
                self.events.write(step, record)

    def event(self, step: int, kind: str, text: str, **numbers: float) -> None:
        """Record and show something out of the ordinary."""
        self.write(step, numbers, event=kind, text=text)
        _log.info("step %d: %s", step, text)

    def upload(self) -> None:
        """Copy what was written to the bucket, if the run is in one."""
        if not self.primary or self.local == self.directory:
            return
        written = [self.path, *([self.events.path] if self.events else [])]
        for path in written:
            copy = self.directory / path.relative_to(self.local)
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
            except OSError as error:  # it is uploaded with the next save
                _log.warning("%s cannot be written for now: %s", copy, error)

    def close(self) -> None:
        """Remove what was written elsewhere."""
        if self.local != self.directory:
            self.local.rmtree()

    def picture(self, name: str, picture: Image.Image | None) -> None:
        """Write `pictures/name`; None is no picture."""
        if not self.primary or picture is None:
            return
        buffer = io.BytesIO()  # one write, on a local disk or in a bucket
        picture.save(buffer, format="PNG")
        try:
            (self.directory / "pictures").mkdir(parents=True, exist_ok=True)
            (self.directory / "pictures" / name).write_bytes(buffer.getvalue())
        except OSError as error:  # no reason to stop
            _log.warning("the picture %s could not be written: %s", name, error)

    def is_evaluated(self, step: int) -> bool:
        """Whether there is a record of an evaluation at `step`, which has no learning rate."""
        return any(
            step_of(line) == step and not {"learning_rate", "event"} & json.loads(line).keys()
            for line in self.lines
        )

    def text(self, name: str, text: str) -> None:
        """Write a text file."""
        if self.primary:
            files.write_whole(self.directory / name, text)


class EventFile:
    """A new file of scalars for TensorBoard, written synchronously. OSError: the disk."""

    def __init__(self, folder: epath.Path):
        # imported here: a second that only a run needs
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._writer = event_pb2, summary_pb2, RecordWriter
        unique = f"{time.time():017.6f}.{os.getpid()}.{time.monotonic_ns()}"
        self.path = folder / f"events.out.tfevents.{unique}"  # sorted as they were begun
        folder.mkdir(parents=True, exist_ok=True)
        self._append(file_version="brain.Event:2")

    def write(self, step: int, record: dict[str, float]) -> None:
        with np.errstate(over="ignore"):  # a number that is too large becomes infinite
            values = [
                self._summary.Summary.Value(tag=tag, simple_value=float(np.float32(x)))
                for tag, x in record.items()
            ]
        self._append(step=step, summary=self._summary.Summary(value=values))

    def purge(self, step: int) -> None:
        """Let TensorBoard forget what it knows from this step on."""
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._append(step=step, session_log=start)

    def _append(self, **fields: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **fields)
        with self.path.open("ab") as file:
            self._writer(file).write(event.SerializeToString())


def finite(record: Any) -> Any:
    """Nested metrics, with None for numbers that JSON does not have."""
    if isinstance(record, dict):
        return {name: finite(x) for name, x in record.items()}
    return None if isinstance(record, float) and not math.isfinite(record) else record


def step_of(line: str) -> float:
    """The step of a record; infinite if the line is none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the line that was being written when a run died
        return float("inf")


def _is_event(line: str) -> bool:
    return '"event": ' in line and step_of(line) < float("inf")


def _rewound_to(line: str) -> float:
    return json.loads(line).get("rewound_to", float("inf"))


def read(directory: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a work directory, in order."""
    path = epath.Path(directory) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def series(records: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric over a run."""
    chosen = [record for record in records if name in record]
    return [record["step"] for record in chosen], [record[name] for record in chosen]
