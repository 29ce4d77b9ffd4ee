"""Batches of examples, in an order that is a function of (seed, step) alone."""

import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mae_jax.data.bad_examples import BadExamples, Unreadable
from mae_jax.data.sources.source import Example, Source, fixed_choice, length_of, read

_ATTEMPTS = 100  # examples that are tried for one row of a batch
_log = logging.getLogger(__name__)
OF_ROWS = {"image", "color"}  # values of an example with `repeats` rows that are [repeats, ...]


def training_batches(
    source: Source,
    transform: Callable[[Example, np.random.Generator], Example],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    rows: Sequence[int] | np.ndarray | None = None,
    threads: int = 16,
    repeats: int = 1,
    bad_examples: BadExamples | None = None,
) -> Iterator[Example]:
    """Yield endless batches `{"image": [b, *size, c], "label": int32 [b]}` of a host's rows.

    Each epoch is another permutation of the source. Row r of global batch s, with its augmentation,
    is a function of (seed, s, r): `start=s` equals skipping s batches, the rows of a
    host are the same whoever reads the others, and `threads` changes only the speed. The iterator
    has a `close()`, which ends its threads; so does dropping it. There are many parameters because
    all of them except the first two and the last are single numbers of a config or a process.

    Args:
      source: where the examples come from.
      transform: turns `source[i]` and a generator into an example of the batch.
      batch_size: the size of the global batch, over all hosts.
      seed: the seed of the order and of the augmentations, 0 <= seed < 2**32.
      start: the first step.
      rows: those of the global batch that this host reads, in ascending order; None means all.
      threads: how many threads read and decode; with 0 the calling thread reads, only when asked.
      repeats: how many consecutive rows come from one example; above 1, `transform` stacks the
        values that `OF_ROWS` names.
      bad_examples: counts examples that cannot be read, which are then replaced. The replacement is
        a function of the row alone: threads, hosts and `start` do not matter.

    Raises:
      ValueError: the rows split an example, or the source is empty; from the iterator, an
        example cannot be read, with its name, or with `bad_examples` too many of them.
    """
    examples = _examples_of(rows, batch_size, repeats)
    batch_size, share = batch_size // repeats, len(examples)
    order = _order(source, seed)

    def load(i: int) -> Example:
        step, row = divmod(i, share)
        position = (start + step) * batch_size + int(examples[row])
        return _read_or_replace(source, order[position], transform, (seed, position), bad_examples)

    return _batches(load, sys.maxsize, share, threads, repeats)


def names(source: Source, *, batch_size: int, seed: int, step: int, repeats: int = 1) -> list[str]:
    """Return the names of the examples that `training_batches` draws for global batch `step`.

    Each example is named once, however often it is repeated. An unreadable example is named instead
    of its replacement.
    """
    order, count = _order(source, seed), batch_size // repeats
    return [source.name(order[step * count + row]) for row in range(count)]


def evaluation_batches(
    source: Source,
    transform: Callable[[Example], Example],
    *,
    batch_size: int,
    rows: Sequence[int] | np.ndarray | None = None,
    limit: int | None = None,
    threads: int = 16,
) -> Iterator[Example]:
    """Yield each example once, in order, in batches of one size with "valid" and "index".

    Evaluated are all examples, or a fixed random choice of `limit`; `"index"`: int32 [b] is their
    index in the source. The last batch is filled up with copies of its last example, for which
    `"valid"`: bool [b] is False. Over all batches and hosts each example is valid exactly once, and
    every host sees the same number of batches.

    An example that cannot be read, or whose label is none of the classes, is not valid, and the
    first readable example takes its place. A warning after the last batch says how many there were.

    Raises:
      ValueError: as `training_batches`; from the iterator, no example can be read.
    """
    places = _examples_of(rows, batch_size)
    share = len(places)
    chosen = fixed_choice(length_of(source), limit)
    batches = -(-len(chosen) // batch_size)
    left_out: dict[int, Unreadable] = {}
    searching = threading.Lock()

    @functools.cache
    def readable() -> Example:
        first = None
        for index in chosen.tolist():
            try:
                return read(source, index, transform)
            except Unreadable as error:
                first = first or error
        raise Unreadable(f"none of {len(chosen)} examples can be read; the first: {first}")

    def load(i: int) -> Example:
        step, row = divmod(i, share)
        position = step * batch_size + int(places[row])
        index, valid = int(chosen[min(position, len(chosen) - 1)]), position < len(chosen)
        try:
            example = read(source, index, transform)
        except Unreadable as error:
            if valid:  # and not a copy that fills the last batch up
                left_out[index] = error
            valid = False
            with searching:  # only one thread searches
                example = readable()
        return {**example, "valid": valid, "index": np.int32(index)}

    def batches_and_warning() -> Iterator[Example]:
        yield from _batches(load, batches * share, share, threads)
        if left_out:
            first, more = left_out[min(left_out)], ", ..." if len(left_out) > 1 else ""
            text = "%d of %d examples are left out of the figures: %s%s"
            _log.warning(text, len(left_out), len(chosen), first, more)

    return batches_and_warning()


def _read_or_replace(
    source: Source,
    index: int,
    transform: Callable[[Example, np.random.Generator], Example],
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


def _examples_of(
    rows: Sequence[int] | np.ndarray | None, batch_size: int, repeats: int = 1
) -> np.ndarray:
    """The places of the examples in a batch of which a host reads these rows, by default all."""
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size} is below 1")
    if batch_size % repeats:
        raise ValueError(f"batch size {batch_size} is not a multiple of {repeats} repeats")
    found = np.arange(batch_size) if rows is None else np.asarray(rows)
    examples = found[::repeats] // repeats
    whole = (examples[:, None] * repeats + np.arange(repeats)).ravel()
    if not np.array_equal(found, whole):
        raise ValueError(
            f"batch size {batch_size} gives a device another number of rows than a multiple of "
            f"{repeats} repeats: use a multiple of devices x repeats"
        )
    return examples


def _order(source: Source, seed: int) -> Any:
    """Return the indices of the examples of all epochs, `order[position]`."""
    import grain

    order: Any = grain.MapDataset.range(length_of(source)).seed(seed).shuffle().repeat()
    order[0]  # grain initialises itself at the first read, which threads must not do together
    return order


def _batches(
    load: Callable[[int], Example], length: int, size: int, threads: int, repeats: int = 1
) -> Iterator[Example]:
    # Threads work on single examples, so that memory holds few whole batches: the caller's, one
    # that waits and one that is being made.
    import grain

    reading = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(threads, min(size, 512))
    )
    examples = grain.MapDataset.range(length).map(load).to_iter_dataset(reading)
    batches = examples.batch(size, batch_fn=functools.partial(_stack, repeats))
    if not threads:
        return iter(batches)
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1))


def _stack(repeats: int, examples: Sequence[Example]) -> Example:
    batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    if repeats > 1:
        batch = {
            key: x.reshape(-1, *x.shape[2:]) if key in OF_ROWS else np.repeat(x, repeats, axis=0)
            for key, x in batch.items()
        }
    return {**batch, "label": batch["label"].astype(np.int32)}
