"""Where numbers go: the screen, `metrics.jsonl` and TensorBoard."""

import contextlib
import io
import json
import math
import sys
import time
from typing import Any

from etils import epath
from PIL import Image
from tqdm import tqdm

from mae_jax import board


def tell(text: str, error: bool = True) -> None:
    """A line on stderr, or on stdout; what cannot be written there, as on a full disk, is lost."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr if error else sys.stdout, flush=True)


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
            write_whole(self.path, "".join(self.lines))
        self.board = None
        try:
            self.board = board.Board(self.workdir / "tensorboard")
            if step:
                self.board.purge(step + 1)
        except OSError as error:
            tell(f"no files for TensorBoard: {error}")

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
                write_whole(self.path, "".join(self.lines))
            self.whole = True
        except OSError as error:  # a full disk, say: it is written with the next record
            if self.whole:
                tell(f"{self.path} cannot be written for now: {error}")
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
                tell(f"the picture {name} could not be written: {error}")

    def evaluated(self, step: int) -> bool:
        """Whether there is a record of an evaluation at `step`, which has no learning rate."""
        return any(
            step_of(line) == step and not {"learning_rate", "event"} & json.loads(line).keys()
            for line in self.lines
        )

    def text(self, name: str, text: str) -> None:
        if self.primary:
            write_whole(self.workdir / name, text)


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


def write_whole(path: epath.Path, text: str) -> None:
    """All of the text or nothing of it, whenever the process dies."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def read_json(path: epath.Path) -> dict[str, Any]:
    """A JSON object from a file. ValueError: it is damaged; with its name."""
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
        problem = "it is no object"
    except ValueError as error:
        problem = f"it is not JSON: {error}"
    raise ValueError(f"{path} is damaged ({problem}): put back what was there")


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a work directory, in order."""
    path = epath.Path(workdir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


class Progress:
    """A bar with speed and time left on a terminal, plain lines elsewhere, nothing if `quiet`."""

    def __init__(self, start: int, total: int, images: int, quiet: bool):
        self.total, self.images, self.quiet = total, images, quiet
        self.shown, self.shown_at, self.waited = start, time.perf_counter(), 0.0
        terminal = sys.stderr.isatty() and not quiet
        self.bar = tqdm(total=total, initial=start, unit="step") if terminal else None

    def again(self, step: int) -> None:
        """The run has gone back to `step`."""
        self.shown, self.shown_at, self.waited = step, time.perf_counter(), 0.0
        self.advance(step)

    def advance(self, step: int) -> None:
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def show(self, step: int, loss: float, learning_rate: float) -> dict[str, float]:
        """Show these numbers and, since numbers were last shown, the images per second and the
        share of the time that the devices waited for data; returns these two."""
        now = time.perf_counter()
        rate = (step - self.shown) * self.images / (now - self.shown_at)
        wait = self.waited / (now - self.shown_at)
        self.shown, self.shown_at, self.waited = step, now, 0.0
        text = f"loss {loss:.4f}  lr {learning_rate:.2e}  {rate:,.0f} images/s"
        if wait > 0.1:
            text += f"  input-bound: the devices wait for data {wait:.0%} of the time"
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            left = duration((self.total - step) * self.images / rate)
            self.say(f"step {step}/{self.total}  {text}  {left} left")
        return {"images_per_second": rate, "input_wait": wait}

    @contextlib.contextmanager
    def waiting(self):
        """What happens inside is waiting for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self):
        """What happens inside (an evaluation, a save) is not counted as training time."""
        began, waited = time.perf_counter(), self.waited
        yield
        self.shown_at += time.perf_counter() - began
        self.waited = waited

    def say(self, text: str) -> None:
        """A line that does not tear the bar."""
        if self.bar is not None:
            tqdm.write(text, file=sys.stderr)
        elif not self.quiet:
            tell(text, error=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def series(records: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one figure over a run."""
    chosen = [record for record in records if name in record]
    return [record["step"] for record in chosen], [record[name] for record in chosen]


def table(rows: list[list[str]]) -> str:
    """Text in aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [x.rjust(w) for x, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def listed(figures: dict[str, float]) -> str:
    """`test_loss 0.4123  knn 0.8710` on one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in figures.items())


def amount(value: float | None, unit: str = "B") -> str:
    """`19.1 GFLOP`: at least three digits, with the prefix that fits."""
    if value is None:
        return "unknown"
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            value /= scale
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {prefix}{unit}"
    return f"{value:.0f} {unit}"
