"""The progress of a run, on a terminal or in a log."""

import contextlib
import sys
import time

from tqdm import tqdm

from mae_jax.output import console, tables


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
            left = tables.duration((self.total - step) * self.images / rate)
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
            console.tell(text, error=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
