"""Batches of examples, in an order that depends only on (seed, step)."""

import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mae_jax.data.bad_examples import BadExamples, Unreadable
from mae_jax.data.sources.source import Example, Source, fixed_choice, length_of, read

_ATTEMPTS = 100  # examples that are tried for one row of a batch
# The keys of values [repeats, ...] in an example with `repeats` rows.
_OF_ROWS = {"image", "color", "spacing", "times"}
_log = logging.getLogger(__name__)

Rows = Sequence[int] | np.ndarray
TrainTransform = Callable[[Example, np.random.Generator], Example]


class Order(NamedTuple):
    """Which examples make which batch: each epoch is another permutation of the source."""

    batch_size: int  # of the global batch, over all hosts
    seed: int  # of the order and of the augmentations, 0 <= seed < 2**32
    repeats: int = 1  # consecutive rows that come from one example

    def indices(self, source: Source) -> Any:
        """Return the indices of the examples of all epochs, `indices[position]`."""
        import grain

        order: Any = grain.MapDataset.range(length_of(source)).seed(self.seed).shuffle().repeat()
        order[0]  # grain initialises itself at the first read, which threads must not do together
        return order

    def names(self, source: Source, step: int) -> list[str]:
        """Return the names of the examples of global batch `step`.

        Each example is named once, however often it is repeated. An unreadable example is named
        instead of its replacement.
        """
        indices, count = self.indices(source), self.batch_size // self.repeats
        return [source.name(indices[step * count + row]) for row in range(count)]


def training_batches(
    source: Source,
    transform: TrainTransform,
    order: Order,
    *,
    start: int = 0,
    rows: Rows | None = None,
    threads: int = 16,
    bad_examples: BadExamples | None = None,
) -> Iterator[Example]:
    """Yield endless batches `{"image": [b, *size, c], "label": [b]}` of a host's rows.

    Labels are int32 [b], or int32 [b, classes] or float32 [b, t], see `sources.Source`.

    Row r of global batch s, with its augmentation, is a function of (seed, s, r): `start=s` equals
    skipping s batches, the rows of a host are the same whoever reads the other rows, and `threads`
    changes only the speed. The threads end when the iterator is dropped, or by its `close()`.

    Args:
      transform: turns `source[i]` and a generator into an example of the batch; with repeats above
        1 it stacks "image" and "color".
      start: the first step.
      rows: the rows of the global batch that this host reads, in ascending order; None means all.
      threads: how many threads read and decode; with 0 the calling thread reads, only when asked.
      bad_examples: counts examples that cannot be read, which are then replaced. The replacement
        depends only on the row: threads, hosts and `start` do not matter.

    Raises:
      ValueError: the rows split an example, or the source is empty. The iterator raises it if an
        example, which the message names, cannot be read, or with `bad_examples` too many examples.
    """
    examples = _examples_of(rows, order.batch_size, order.repeats)
    batch_size, share = order.batch_size // order.repeats, len(examples)
    indices = order.indices(source)

    def load(i: int) -> Example:
        step, row = divmod(i, share)
        position = (start + step) * batch_size + int(examples[row])
        key = order.seed, position
        return _read_or_replace(source, indices[position], transform, key, bad_examples)

    return _batches(load, sys.maxsize, share, threads, order.repeats)


def evaluation_batches(
    source: Source,
    transform: Callable[[Example], Example],
    *,
    batch_size: int,
    rows: Rows | None = None,
    limit: int | None = None,
    threads: int = 16,
) -> Iterator[Example]:
    """Yield each example once, in order, in batches of one size with "valid" and "index".

    The examples are all, or a fixed random choice of `limit`; "index", int32 [b], is their index in
    the source. The last batch is filled up with copies of its last example, for which "valid",
    bool [b], is False. Over all batches and hosts each example is valid exactly once, and every
    host sees the same number of batches.

    An example that cannot be read, or whose label is none of the classes, is not valid, and the
    first readable example takes its place. A warning after the last batch counts such examples.

    Raises:
      ValueError: as `training_batches`. The iterator raises it if no example can be read.
    """
    places = _examples_of(rows, batch_size)
    chosen = fixed_choice(length_of(source), limit)
    share, batches = len(places), -(-len(chosen) // batch_size)
    left_out: dict[int, Unreadable] = {}
    searching = threading.Lock()
    substitute = functools.cache(lambda: _first_readable(source, transform, chosen))

    def load(i: int) -> Example:
        step, row = divmod(i, share)
        position = step * batch_size + int(places[row])
        index, valid = int(chosen[min(position, len(chosen) - 1)]), position < len(chosen)
        try:
            example = read(source, index, transform)
        except Unreadable as error:
            if valid:  # a copy that fills up the last batch does not count
                left_out[index] = error
            valid = False
            with searching:  # only one thread searches
                example = substitute()
        return {**example, "valid": valid, "index": np.int32(index)}

    def batches_and_warning() -> Iterator[Example]:
        yield from _batches(load, batches * share, share, threads)
        if left_out:
            first, dots = left_out[min(left_out)], ", ..." if len(left_out) > 1 else ""
            text = "%d of %d examples are left out: %s%s"
            _log.warning(text, len(left_out), len(chosen), first, dots)

    return batches_and_warning()


def _read_or_replace(
    source: Source,
    index: int,
    transform: TrainTransform,
    key: tuple[int, int],
    bad_examples: BadExamples | None,
) -> Example:
    """Read an example, or count it and read others, whose indices are a function of `key`."""
    for attempt in range(1, _ATTEMPTS + 1):
        rng = np.random.default_rng(key)
        try:
            return read(source, index, lambda example, rng=rng: transform(example, rng))
        except Unreadable as error:
            if bad_examples is None:
                raise
            last = error
            bad_examples.add(source.name(index), str(error.__cause__))
        index = int(np.random.default_rng((*key, attempt)).integers(len(source)))
    raise Unreadable(f"{_ATTEMPTS} examples in turn cannot be read; the last: {last}")


def _first_readable(
    source: Source, transform: Callable[[Example], Example], chosen: np.ndarray
) -> Example:
    first = None
    for index in chosen.tolist():
        try:
            return read(source, index, transform)
        except Unreadable as error:
            first = first or error
    raise Unreadable(f"none of {len(chosen)} examples can be read; the first: {first}")


def _examples_of(rows: Rows | None, batch_size: int, repeats: int = 1) -> np.ndarray:
    """Return the positions in a batch of the examples whose rows a host reads, by default all."""
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size} is below 1")
    if batch_size % repeats:
        raise ValueError(f"batch size {batch_size} is not a multiple of {repeats} repeats")
    rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    examples = rows[::repeats] // repeats
    if not np.array_equal(rows, (examples[:, None] * repeats + np.arange(repeats)).ravel()):
        raise ValueError(
            f"batch size {batch_size} gives a device another number of rows than a multiple of "
            f"{repeats} repeats: use a multiple of devices x repeats"
        )
    return examples


def in_order(load: Callable[[int], Any], count: int, threads: int, ahead: int) -> Any:
    """Return a grain data set of `load(0)`, ..., which threads read up to `ahead` in advance."""
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
    return grain.MapDataset.range(count).map(load).to_iter_dataset(options)


def _batches(
    load: Callable[[int], Example], length: int, size: int, threads: int, repeats: int = 1
) -> Iterator[Example]:
    # Threads work on single examples, so that memory holds few whole batches: the caller's, one
    # that waits and one that is being made.
    import grain

    examples = in_order(load, length, threads, min(size, 512))
    batches = examples.batch(size, batch_fn=functools.partial(_stack, repeats))
    if not threads:
        return iter(batches)
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1))


def _stack(repeats: int, examples: Sequence[Example]) -> Example:
    types = {example["image"].dtype for example in examples if "image" in example}
    if len(types) > 1:  # numpy would join bytes with numbers of another scale
        raise Unreadable(
            f"a batch holds examples of {' and '.join(sorted(map(str, types)))}: set data.range, "
            "which brings all of them to one scale"
        )
    batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    if repeats > 1:
        batch = {
            key: x.reshape(-1, *x.shape[2:]) if key in _OF_ROWS else np.repeat(x, repeats, axis=0)
            for key, x in batch.items()
        }
    dtype = np.float32 if batch["label"].dtype.kind == "f" else np.int32
    return {**batch, "label": batch["label"].astype(dtype)}
