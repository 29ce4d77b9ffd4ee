"""The progress of a run: a bar on a terminal, lines in a log elsewhere."""

import contextlib
import logging
import sys
import time

from tqdm import tqdm

from mae_jax.output import tables

_log = logging.getLogger(__name__)


class Progress:
    """The display of a run's progress, speed and remaining time; nothing is shown if `quiet`.

    The run goes from step `start` to step `total`; `examples` is the number of examples of a step.
    """

    def __init__(self, start: int, total: int, examples: int, quiet: bool):
        self.total, self.examples, self.quiet = total, examples, quiet
        self.shown, self.shown_at, self.waited = start, time.perf_counter(), 0.0
        terminal = sys.stderr.isatty() and not quiet
        self.bar = tqdm(total=total, initial=start, unit="step") if terminal else None

    def rewind(self, step: int) -> None:
        self.shown, self.shown_at, self.waited = step, time.perf_counter(), 0.0
        self.advance(step)

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def show(self, step: int, loss: float, learning_rate: float) -> dict[str, float]:
        """Show the loss, the learning rate and the speed since the last call.

        Returns:
          `images_per_second`, and `input_wait`, the share of the time in which the devices waited
          for data.
        """
        now = time.perf_counter()
        rate = (step - self.shown) * self.examples / (now - self.shown_at)
        wait = self.waited / (now - self.shown_at)
        self.shown, self.shown_at, self.waited = step, now, 0.0
        text = f"loss {loss:.4f}  lr {learning_rate:.2e}  {rate:,.0f} examples/s"
        if wait > 0.1:
            text += f"  input-bound: the devices wait for data {wait:.0%} of the time"
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        elif not self.quiet:
            remaining = tables.duration((self.total - step) * self.examples / rate)
            _log.info("step %d/%d  %s  %s left", step, self.total, text, remaining)
        return {"images_per_second": rate, "input_wait": wait}

    @contextlib.contextmanager
    def waiting(self):
        """Count the time inside as waiting for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self):
        """Do not count the time inside, such as that of an evaluation or a save."""
        began, waited = time.perf_counter(), self.waited
        yield
        self.shown_at += time.perf_counter() - began
        self.waited = waited

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
