"""Metrics of a run: `metrics.jsonl`, TensorBoard and pictures."""

import contextlib
import io
import json
import logging
import math
import os
import time
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mae_jax.output import files

_log = logging.getLogger(__name__)


class MetricWriter:
    """Appends records to `metrics.jsonl` and to a TensorBoard file; nothing if not `primary`.

    A run that resumes from step `start` drops the records after it, because those steps come again.
    Object stores cannot append: unless `is_local`, the files are written whole by `upload`.
    """

    def __init__(self, directory: epath.Path, start: int, primary: bool, is_local: bool = True):
        self.directory, self.primary, self.is_local = directory, primary, is_local
        self.path = directory / "metrics.jsonl"
        text = self.path.read_bytes().decode(errors="replace") if self.path.exists() else ""
        self.lines = text.splitlines(keepends=True)
        self.is_whole = True  # the file has all lines
        self.drop(start)

    def drop(self, step: int) -> None:
        """Forget the records after `step`, but not the events before the last record that stays.

        A rewind counts as a record of the step that it went back to.
        """
        records = [parsed(line) for line in self.lines]
        ends = [r.get("rewound_to", math.inf) if "event" in r else r["step"] for r in records]
        last = max((i for i, end in enumerate(ends) if end <= step), default=-1)
        lines = [
            line
            for i, (line, record) in enumerate(zip(self.lines, records, strict=True))
            if record["step"] <= step or "event" in record and i <= last
        ]
        self.lines, before = lines, self.lines
        if not self.primary:
            return
        if self.lines != before and self.is_local:
            files.write_whole(self.path, "".join(self.lines))
        self.events = None
        try:
            self.events = EventFile(self.directory / "tensorboard", self.is_local)
            if step:
                self.events.purge(step + 1)
        except OSError as error:
            _log.warning("no files for TensorBoard: %s", error)

    def write(self, step: int, record: dict[str, float], **event: str) -> None:
        """Append one record: numbers by name, and texts, which stand in `metrics.jsonl` alone."""
        if not self.primary:
            return
        self.lines.append(json.dumps({"step": step, **finite(record), **event}) + "\n")
        if self.is_local:
            self._store()
        if self.events is not None and record:
            with contextlib.suppress(OSError):  # a full disk: metrics.jsonl has it all
                self.events.write(step, record)

    def event(self, step: int, kind: str, text: str, **numbers: float) -> None:
        """Record and show something out of the ordinary."""
        self.write(step, numbers, event=kind, text=text)
        _log.info("step %d: %s", step, text)

    def upload(self) -> None:
        """Write the files of a run in a bucket."""
        if self.primary and not self.is_local:
            self._store()
            if self.events is not None:
                with contextlib.suppress(OSError):  # they are written with the next save
                    self.events.flush()

    def _store(self) -> None:
        """Append the last line to the file, or write all lines where that is not possible."""
        try:
            if self.is_local and self.is_whole:
                with self.path.open("a") as file:
                    file.write(self.lines[-1])
            else:
                self.directory.mkdir(parents=True, exist_ok=True)
                files.write_whole(self.path, "".join(self.lines))
            self.is_whole = True
        except OSError as error:  # a full disk, say: all is written with the next record
            if self.is_whole:
                _log.warning("%s cannot be written for now: %s", self.path, error)
            self.is_whole = False

    def picture(self, name: str, picture: Image.Image) -> None:
        """Write `pictures/name`."""
        if not self.primary:
            return
        buffer = io.BytesIO()  # one write, on a local disk or in a bucket
        picture.save(buffer, format="PNG")
        try:
            (self.directory / "pictures").mkdir(parents=True, exist_ok=True)
            (self.directory / "pictures" / name).write_bytes(buffer.getvalue())
        except OSError as error:  # no reason to stop
            _log.warning("the picture %s could not be written: %s", name, error)

    def text(self, name: str, text: str) -> None:
        """Write a text file."""
        if self.primary:
            files.write_whole(self.directory / name, text)

    def is_evaluated(self, step: int) -> bool:
        """Whether there is a record of an evaluation at `step`, which has no learning rate."""
        records = (parsed(line) for line in self.lines)
        return any(x["step"] == step and not {"learning_rate", "event"} & x.keys() for x in records)


class EventFile:
    """A new file of scalars for TensorBoard, written synchronously. OSError: the disk."""

    def __init__(self, folder: epath.Path, is_local: bool):
        # imported late, because this takes a second that only a run needs
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self.is_local = event_pb2, summary_pb2, is_local
        unique = f"{time.time():017.6f}.{os.getpid()}.{time.monotonic_ns()}"
        self.path = folder / f"events.out.tfevents.{unique}"  # sorted as they were begun
        self._buffer = io.BytesIO()
        self._records = RecordWriter(self._buffer)
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
        self._records.write(event.SerializeToString())
        if self.is_local:
            self.flush()

    def flush(self) -> None:
        """Append what is new to the file, or write all of it in a bucket."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab" if self.is_local else "wb") as file:
            file.write(self._buffer.getvalue())
        if self.is_local:
            self._buffer.seek(0)
            self._buffer.truncate()


def finite(record: Any) -> Any:
    """Nested metrics, with None for numbers that JSON does not have."""
    if isinstance(record, dict):
        return {name: finite(x) for name, x in record.items()}
    return None if isinstance(record, float) and not math.isfinite(record) else record


def parsed(line: str) -> dict[str, Any]:
    """A record; its step is infinite if the line is none, such as one that a dying run began."""
    try:
        record = json.loads(line)
        return record | {"step": float(record["step"])}
    except (ValueError, KeyError, TypeError):
        return {"step": math.inf}


def read(directory: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a work directory, in order."""
    path = epath.Path(directory) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def series(records: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric over a run."""
    chosen = [record for record in records if name in record]
    return [record["step"] for record in chosen], [record[name] for record in chosen]
