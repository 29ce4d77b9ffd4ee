"""Where numbers go: the screen, `metrics.jsonl` and TensorBoard."""

import contextlib
import io
import json
import math
from typing import Any

from etils import epath
from PIL import Image

from mae_jax.output import console, files
from mae_jax.training import board


class Writer:
    """Writes a work directory's records, TensorBoard files and pictures; nothing if not `primary`.

    A run that resumes from step `start` drops the records after it: those steps come again.
    """

    def __init__(self, workdir: epath.Path, start: int, primary: bool):
        self.workdir, self.primary = workdir, primary
        self.path = workdir / "metrics.jsonl"
        self.local = "://" not in str(workdir)
        self.whole = True  # the file has all lines
        self.drop(start)

    def drop(self, step: int, keep_events: bool = False) -> None:
        """Forget the records after `step`.

        Events, which say what went wrong, stay if they came before the last record that stays, as
        those of a rewind; or all of them.
        """
        text = self.path.read_bytes().decode(errors="replace") if self.path.exists() else ""
        lines = text.splitlines(keepends=True)
        good = [step_of(line) <= step for line in lines]
        last = max((i for i, x in enumerate(good) if x and not _is_event(lines[i])), default=-1)
        self.lines = [
            line
            for i, line in enumerate(lines)
            if good[i] or _is_event(line) and (keep_events or i < last)
        ]
        if not self.primary:
            return
        if self.lines != lines:
            files.write_whole(self.path, "".join(self.lines))
        self.board = None
        try:
            self.board = board.Board(self.workdir / "tensorboard")
            if step:
                self.board.purge(step + 1)
        except OSError as error:
            console.tell(f"no files for TensorBoard: {error}")

    def write(self, step: int, record: dict[str, float], **event: str) -> None:
        """Append one record, numbers by name, to `metrics.jsonl` and to TensorBoard.

        Args:
          event: texts, which stand in `metrics.jsonl` alone.
        """
        if not self.primary:
            return
        line = json.dumps({"step": step, **finite(record), **event}) + "\n"
        self.lines.append(line)
        try:
            if self.local and self.whole:
                with self.path.open("a") as f:
                    f.write(line)
            else:  # object stores cannot append
                files.write_whole(self.path, "".join(self.lines))
            self.whole = True
        except OSError as error:  # a full disk, say: it is written with the next record
            if self.whole:
                console.tell(f"{self.path} cannot be written for now: {error}")
            self.whole = False
        if self.board is not None and record:
            with contextlib.suppress(OSError):  # a full disk: metrics.jsonl has it all
                self.board.write(step, record)

    def picture(self, name: str, picture: Image.Image | None) -> None:
        if self.primary and picture is not None:
            buffer = io.BytesIO()  # one write, on a local disk or in a bucket
            picture.save(buffer, format="PNG")
            try:
                (self.workdir / "pictures").mkdir(parents=True, exist_ok=True)
                (self.workdir / "pictures" / name).write_bytes(buffer.getvalue())
            except OSError as error:  # no reason to stop
                console.tell(f"the picture {name} could not be written: {error}")

    def evaluated(self, step: int) -> bool:
        """Whether there is a record of an evaluation at `step`, which has no learning rate."""
        return any(
            step_of(line) == step and not {"learning_rate", "event"} & json.loads(line).keys()
            for line in self.lines
        )

    def text(self, name: str, text: str) -> None:
        if self.primary:
            files.write_whole(self.workdir / name, text)


def finite(record: Any) -> Any:
    """Nested figures with None for those that JSON has no number for."""
    if isinstance(record, dict):
        return {name: finite(x) for name, x in record.items()}
    return None if isinstance(record, float) and not math.isfinite(record) else record


def step_of(line: str) -> float:
    """Of a record; infinite if it is none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the line that was being written when a run died
        return float("inf")


def _is_event(line: str) -> bool:
    return '"event": ' in line and step_of(line) < float("inf")


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a work directory, in order."""
    path = epath.Path(workdir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def series(records: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one figure over a run."""
    chosen = [record for record in records if name in record]
    return [record["step"] for record in chosen], [record[name] for record in chosen]
