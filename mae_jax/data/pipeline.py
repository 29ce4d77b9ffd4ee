"""Batches of pictures, in an order that is a function of (seed, step) alone."""

import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mae_jax.data.bad_examples import Damage
from mae_jax.data.image_io import decode
from mae_jax.data.sources import Source
from mae_jax.data.unreadable import Unreadable

Example = dict[str, Any]
_ATTEMPTS = 100  # examples that are tried for one place in a batch
_log = logging.getLogger(__name__)
OF_ROWS = {"image", "colour"}  # an example that makes several rows has of these [repeats, ...]


def training_batches(
    source: Source,
    transform: Callable[[Example, np.random.Generator], Example],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    host: int = 0,
    hosts: int = 1,
    threads: int = 16,
    repeats: int = 1,
    damage: Damage | None = None,
) -> Iterator[Example]:
    """Endless batches `{"image": uint8 [b, *size, c], "label": int32 [b]}` of this host's share.

    Each epoch is another permutation of the source. Row r of global batch s is a function of
    (seed, s, r), its augmentation too: `start=s` equals skipping s batches, the hosts' batches one
    after the other equal the batch of a single host, and `threads` only changes the speed. The
    iterator has a `close()`, which ends its threads; so does dropping it.

    Args:
      source: what to read.
      transform: makes one example, `transform(source[i], generator)`.
      batch_size: of all hosts together.
      seed: of the order and of the augmentations, 0 <= seed < 2**32.
      start: the first step.
      host: which share this is, of `hosts`.
      threads: that read and decode; 0 reads in the calling thread, and only when asked.
      repeats: rows that come from one example, one after the other; if there are several,
        `transform` gives what is in `OF_ROWS` stacked.
      damage: where examples that cannot be read are counted, and others take their places. Which
        is a function of the place alone: threads, hosts and `start` do not matter.

    Raises:
      ValueError: a batch that the hosts cannot share, or an empty source; from the iterator, an
        example that cannot be read, with its name, or with `damage` too many of them.
    """
    share = _share(batch_size, host, hosts)
    if share % repeats:
        raise ValueError(
            f"batch size {batch_size} is not a multiple of {hosts} host(s) x {repeats} repeats"
        )
    batch_size, share = batch_size // repeats, share // repeats
    order = _order(source, seed)

    def load(i: int) -> Example:
        step, row = divmod(i, share)
        position = (start + step) * batch_size + host * share + row
        index = order[position]
        for attempt in range(1, _ATTEMPTS + 1):
            rng = np.random.default_rng((seed, position))
            try:
                return _read(source, index, lambda example, rng=rng: transform(example, rng))
            except Unreadable as error:
                if damage is None:
                    raise
                last = error
                damage.add(source.name(index), str(error.__cause__))
            index = int(np.random.default_rng((seed, position, attempt)).integers(len(source)))
        raise Unreadable(f"{_ATTEMPTS} examples in turn cannot be read; the last: {last}")

    return _batches(load, sys.maxsize, share, threads, repeats)


def names(source: Source, *, batch_size: int, seed: int, step: int, repeats: int = 1) -> list[str]:
    """The examples that global batch `step` of `training_batches` draws, in its order.

    Each is there once, however often it is repeated. What cannot be read is named, not what takes
    its place.
    """
    order, count = _order(source, seed), batch_size // repeats
    return [source.name(order[step * count + row]) for row in range(count)]


def evaluation_batches(
    source: Source,
    transform: Callable[[Example], Example],
    *,
    batch_size: int,
    host: int = 0,
    hosts: int = 1,
    limit: int | None = None,
    threads: int = 16,
) -> Iterator[Example]:
    """One pass in order, in batches of one size: those of training plus "valid" and "index".

    `"index"`: int32 [b] is the number of the example in the source; evaluated are all, or a fixed
    random choice of `limit`. The last batch is filled up with its last example again, where
    `"valid"`: bool [b] is False: over all batches and hosts each example is valid exactly once, and
    every host sees the same number of batches.

    An example that cannot be read, or whose label is none of the classes, is not valid: the first
    one that can be read stands in its place. The last batch logs how many there were.

    Raises:
      ValueError: as `training_batches`; from the iterator, no example can be read.
    """
    share = _share(batch_size, host, hosts)
    chosen = _choose(_length(source), limit)
    batches = -(-len(chosen) // batch_size)
    left_out: dict[int, Unreadable] = {}
    searching = threading.Lock()

    @functools.cache
    def readable() -> Example:
        first = None
        for index in chosen.tolist():
            try:
                return _read(source, index, transform)
            except Unreadable as error:
                first = first or error
        raise Unreadable(f"none of {len(chosen)} examples can be read; the first: {first}")

    def load(i: int) -> Example:
        step, row = divmod(i, share)
        position = step * batch_size + host * share + row
        index, valid = int(chosen[min(position, len(chosen) - 1)]), position < len(chosen)
        try:
            example = _read(source, index, transform)
        except Unreadable as error:
            left_out[index], valid = error, False
            with searching:  # a single thread looks for it
                example = readable()
        return {**example, "valid": valid, "index": np.int32(index)}

    def reported() -> Iterator[Example]:
        yield from _batches(load, batches * share, share, threads)
        if left_out:
            first, more = left_out[min(left_out)], ", ..." if len(left_out) > 1 else ""
            text = "%d of %d examples are left out of the figures: %s%s"
            _log.warning(text, len(left_out), len(chosen), first, more)

    return reported()


def mean_std(
    source: Source,
    channels: int,
    limit: int = 2000,
    threads: int = 16,
    values: Callable[[Example], np.ndarray] | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, over all values of `limit` examples.

    The examples are a fixed random choice, without those that cannot be read. A constant channel
    gets 1/255, so that one can divide.

    Args:
      values: array `[*size, channels]` of an example, by default its pixels; uint8 is taken to
        [0, 1], others as they are.

    Raises:
      ValueError: none of these examples can be read, or the source is empty.
    """
    values = values or (lambda example: decode.decode(example["image"], channels))

    def moments(i: int) -> list[np.ndarray] | Unreadable:
        """Count, mean and sum of squares around it of each channel, of parts of an example."""
        try:
            x = _read(source, int(i), values).reshape(-1, channels)
        except Unreadable as error:
            return error
        parts = []
        for y in np.array_split(x, 1 + x.size // 2**22):  # as float64, a large picture is too large
            y = y.astype(np.float64) / (255 if y.dtype == np.uint8 else 1)
            mean = y.mean(0)
            parts.append(np.stack([np.full(channels, len(y)), mean, ((y - mean) ** 2).sum(0)]))
        return parts

    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = list(pool.map(moments, _choose(_length(source), limit)))
    parts = [part for parts in found if isinstance(parts, list) for part in parts]
    if not parts:
        raise Unreadable(f"none of {len(found)} examples can be read; the first: {found[0]}")
    counts, means, squares = np.array(parts).swapaxes(0, 1)  # each [n c]
    mean = (counts * means).sum(0) / counts.sum(0)
    variance = (squares + counts * (means - mean) ** 2).sum(0) / counts.sum(0)
    return tuple(mean.tolist()), tuple(np.maximum(np.sqrt(variance), 1 / 255).tolist())


def _share(batch_size: int, host: int, hosts: int) -> int:
    if batch_size < 1 or batch_size % hosts:
        below, above = batch_size // hosts * hosts, (batch_size // hosts + 1) * hosts
        ways = f"{below} or {above}" if below > 0 else f"{above}"
        raise ValueError(f"batch size {batch_size} cannot be shared by {hosts} hosts: use {ways}")
    if not 0 <= host < hosts:
        raise ValueError(f"host {host} is not one of {hosts} hosts, which count from 0")
    return batch_size // hosts


def _length(source: Source) -> int:
    if not len(source):
        raise ValueError("the data has no examples: use another split")
    return len(source)


def _order(source: Source, seed: int) -> Any:
    """Of the examples of all epochs: `order[position]`."""
    import grain

    order: Any = grain.MapDataset.range(_length(source)).seed(seed).shuffle().repeat()
    order[0]  # grain sets itself up at the first read, which threads must not do at the same time
    return order


def _choose(length: int, limit: int | None) -> np.ndarray:
    # random, because even spacing can fall in step with the classes of a source, as of `photos`
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} leaves no examples: use None for all of them")
    if limit is None or limit >= length:
        return np.arange(length)
    return np.sort(np.random.default_rng(0).choice(length, limit, replace=False, shuffle=False))


def _read(source: Source, i: int, transform: Callable[[Example], Any]) -> Any:
    try:
        example, classes = source[i], len(source.classes)
        label = example["label"]
        if np.ndim(label) == 0 and (label < -1 or classes and label >= classes):
            raise Unreadable(f"its label {label} is not one of {classes} classes")
        return transform(example)
    except (Unreadable, OSError) as error:
        raise Unreadable(f"cannot read {source.name(i)!r}: {error}") from error


def _batches(
    load: Callable[[int], Example], length: int, size: int, threads: int, repeats: int = 1
) -> Iterator[Example]:
    # threads work on single examples, so that few whole batches are in memory: the caller's, one
    # that waits and one in the making
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
