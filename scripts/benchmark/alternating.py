"""Time several programs in alternating rounds, so that a noisy machine hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Contender(NamedTuple):
    """A program that does one step after the other.

    `dispatch` starts a step and may return before the step is done. `wait` blocks until that step
    is done, and returns its loss, on the device (or any number that shows that it was computed).
    """

    name: str
    dispatch: Callable[[], Any]
    wait: Callable[[Any], Any]
    parameters: int = 0  # that it trains
    memory: int | None = None  # the most bytes it took on the device, if that is known


def one_round(contender: Contender, steps: int) -> tuple[float, float]:
    """Return the seconds of a step, the mean of `steps` consecutive ones, and the last loss.

    All steps are dispatched before the last one is waited for, so the device never waits for
    Python. A step that only fills caches comes before them. Nothing is left running.
    """
    last = contender.dispatch()
    contender.wait(last)
    begin = time.perf_counter()
    for _ in range(steps):
        last = contender.dispatch()
    loss = contender.wait(last)
    return (time.perf_counter() - begin) / steps, float(loss)


def alternate(
    contenders: Sequence[Contender], rounds: int, steps: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the seconds of a step in every round, and the last loss, of each contender.

    Every second round goes through the contenders backwards, so that a slow drift hits all alike.
    A round that is not counted comes first.
    """
    seconds, losses = {contender.name: [] for contender in contenders}, {}
    for contender in contenders:
        one_round(contender, 1)
    for number in range(rounds):
        for contender in contenders[:: -1 if number % 2 else 1]:
            taken, losses[contender.name] = one_round(contender, steps)
            seconds[contender.name].append(taken)
    return seconds, losses


def ratios(other: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Return how many times as long the other contender takes, round by round."""
    return [theirs / own for theirs, own in zip(other, ours, strict=True)]


def metrics(seconds: Sequence[float], batch_size: int) -> dict:
    """Summarise the rounds of one contender."""
    middle = statistics.median(seconds)
    return {
        "step_milliseconds": 1e3 * middle,
        "step_milliseconds_fastest": 1e3 * min(seconds),
        "step_milliseconds_slowest": 1e3 * max(seconds),
        "images_per_second": batch_size / middle,
        "rounds_milliseconds": [1e3 * second for second in seconds],
    }
