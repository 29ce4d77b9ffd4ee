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
    """The records of a run in `metrics.jsonl` and TensorBoard; only `primary` writes.

    A run that resumes from step `start` drops the records after it, because those steps come again.
    Object stores cannot append: unless `is_local`, `upload` writes whole files.
    """

    def __init__(self, directory: epath.Path, start: int, primary: bool, is_local: bool = True):
        self.directory, self.primary, self.is_local = directory, primary, is_local
        self.path = directory / "metrics.jsonl"
        text = self.path.read_bytes().decode(errors="replace") if self.path.exists() else ""
        self.lines = text.splitlines(keepends=True)
        self.is_complete = True  # the file has all lines
        self.drop(start)

    def drop(self, step: int) -> None:
        """Drop the records after `step`, but no event before the last record that stays.

        A rewind counts as a record of the step that it went back to.
        """
        records = [parsed(line) for line in self.lines]
        ends = [r.get("rewound_to", math.inf) if "event" in r else r["step"] for r in records]
        last = max((i for i, end in enumerate(ends) if end <= step), default=-1)
        lines = [
            line
            for i, (line, record) in enumerate(zip(self.lines, records, strict=True))
            if record["step"] <= step or ("event" in record and i <= last)
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
        """Append a record of numbers by name, and of texts, which only `metrics.jsonl` holds."""
        if not self.primary:
            return
        self.lines.append(json.dumps({"step": step, **finite(record), **event}) + "\n")
        if self.is_local:
            self._store()
        if self.events is not None and record:
            with contextlib.suppress(OSError):  # on a full disk metrics.jsonl has all records
                self.events.write(step, record)

    def event(self, step: int, kind: str, text: str, **numbers: float) -> None:
        """Record and log an unusual event."""
        self.write(step, numbers, event=kind, text=text)
        _log.info("step %d: %s", step, text)

    def upload(self) -> None:
        """Write the files of a run in a bucket."""
        if self.primary and not self.is_local:
            self._store()
            if self.events is not None:
                with contextlib.suppress(OSError):  # the next save writes all events
                    self.events.flush()

    def _store(self) -> None:
        """Append the last line to the file, or write all lines if appending is not enough."""
        try:
            if self.is_local and self.is_complete:
                with self.path.open("a") as file:
                    file.write(self.lines[-1])
            else:
                self.directory.mkdir(parents=True, exist_ok=True)
                files.write_whole(self.path, "".join(self.lines))
            self.is_complete = True
        except OSError as error:  # such as a full disk: the next record writes all lines
            if self.is_complete:
                _log.warning("%s cannot be written for now: %s", self.path, error)
            self.is_complete = False

    def picture(self, name: str, picture: Image.Image) -> None:
        """Write `pictures/name`."""
        if not self.primary:
            return
        buffer = io.BytesIO()  # one write, on a local disk or in a bucket
        picture.save(buffer, format="PNG")
        try:
            (self.directory / "pictures").mkdir(parents=True, exist_ok=True)
            (self.directory / "pictures" / name).write_bytes(buffer.getvalue())
        except OSError as error:  # a run does not end for a picture
            _log.warning("the picture %s could not be written: %s", name, error)

    def text(self, name: str, text: str) -> None:
        """Write a text file."""
        if self.primary:
            files.write_whole(self.directory / name, text)

    def is_evaluated(self, step: int) -> bool:
        """Return whether `step` has a record of an evaluation, which has no learning rate."""
        records = [record for record in map(parsed, self.lines) if record["step"] == step]
        return any(not {"learning_rate", "event"} & record.keys() for record in records)


class EventFile:
    """A new file of scalars for TensorBoard, written synchronously. Its methods raise OSError."""

    def __init__(self, folder: epath.Path, is_local: bool):
        # imported late, because the import takes a second
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self.is_local = event_pb2, summary_pb2, is_local
        unique = f"{time.time():017.6f}.{os.getpid()}.{time.monotonic_ns()}"
        self.path = folder / f"events.out.tfevents.{unique}"  # names sort by the time of creation
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
        """Let TensorBoard drop the records from this step on."""
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._append(step=step, session_log=start)

    def _append(self, **fields: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())
        if self.is_local:
            self.flush()

    def flush(self) -> None:
        """Append the new records to the file, or write the whole file in a bucket."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab" if self.is_local else "wb") as file:
            file.write(self._buffer.getvalue())
        if self.is_local:
            self._buffer.seek(0)
            self._buffer.truncate()


def finite(record: Any) -> Any:
    """Return nested metrics, with None for numbers that JSON does not have."""
    if isinstance(record, dict):
        return {name: finite(x) for name, x in record.items()}
    return None if isinstance(record, float) and not math.isfinite(record) else record


def parsed(line: str) -> dict[str, Any]:
    """Return the record of a line; its step is infinite if the line is damaged or unfinished."""
    try:
        record = json.loads(line)
        return record | {"step": float(record["step"])}
    except (ValueError, KeyError, TypeError):
        return {"step": math.inf}


def read(directory: epath.PathLike) -> list[dict[str, Any]]:
    """Return the records of a work directory, in order."""
    path = epath.Path(directory) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def series(records: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of one metric over a run."""
    chosen = [record for record in records if name in record]
    return [record["step"] for record in chosen], [record[name] for record in chosen]
