"""Training batches, which a thread reads and moves to the devices ahead of time."""

import collections
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from mae_jax.data import bad_examples, pipeline
from mae_jax.distributed import partitioning

AHEAD = 2  # batches on the devices beside the batch of the current step


class Batches:
    """The training batches of a config, from any position in their order.

    Args:
      source, transform: see `pipeline.training_batches`.
      log: the file that names the examples that cannot be read.
    """

    def __init__(self, config, source, transform, mesh: Mesh, log: epath.Path):
        self.source, self.transform, self.mesh = source, transform, mesh
        self.bad_examples = bad_examples.BadExamples(source, config.data.max_bad_fraction, log)
        self.threads = config.data.threads
        self.order = pipeline.Order(config.batch_size, config.seed, config.data.repeats)

    def at(self, position: int) -> Iterator[dict[str, jax.Array]]:
        """Return the batches from `position` on, as arrays on the devices."""
        rows = partitioning.local_rows(self.mesh, self.order.batch_size)
        batches = self._read(self.order, start=position, rows=rows, threads=self.threads)
        return (partitioning.place(batch, self.mesh) for batch in batches)

    def names(self, position: int) -> list[str]:
        """Return the names of the examples of the batch at `position`."""
        return self.order.names(self.source, position)

    def check(self) -> None:
        """Read one example, or raise Unreadable, before the minutes of compiling."""
        next(self._read(self.order._replace(batch_size=self.order.repeats), threads=0))

    def _read(self, order: pipeline.Order, **options: Any) -> Iterator[dict]:
        return pipeline.training_batches(
            self.source, self.transform, order, bad_examples=self.bad_examples, **options
        )


class Prefetcher:
    """A thread that reads the next `count` batches, a few ahead."""

    def __init__(self, batches: Iterator[dict[str, jax.Array]], count: int):
        self.batches, self.remaining = batches, count
        self.reader, self.ahead = futures.ThreadPoolExecutor(1), collections.deque()
        for _ in range(AHEAD):
            self._read()

    def _read(self) -> None:
        if self.remaining:
            self.remaining -= 1
            self.ahead.append(self.reader.submit(next, self.batches))

    @property
    def is_ready(self) -> bool:
        return self.ahead[0].done()

    def next(self, stopped: Callable[[], Any]) -> dict[str, jax.Array] | None:
        """Wait for the next batch and return it, or None once `stopped()` is true."""
        self._read()
        while not self.is_ready:
            if stopped():
                return None
            futures.wait([self.ahead[0]], timeout=1)  # a batch may never come
        return self.ahead.popleft().result()

    def close(self) -> None:
        self.reader.shutdown(wait=False, cancel_futures=True)
