"""Batches of pictures, in an order that is a function of (seed, step) alone."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mae_jax.data import images
from mae_jax.data.sources import Source

Example = dict[str, Any]


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
      threads: pictures that are read and decoded at a time.

    Raises:
      ValueError: a batch that the hosts cannot share, or an empty source; from the iterator, a
        picture that cannot be read, with its name.
    """
    import grain

    share = _share(batch_size, host, hosts)
    order: Any = grain.MapDataset.range(_length(source)).seed(seed).shuffle().repeat()
    order[0]  # grain sets itself up at the first read, which threads must not do at the same time

    def load(i: int) -> Example:
        step, row = divmod(i, share)
        position = (start + step) * batch_size + host * share + row
        rng = np.random.default_rng((seed, position))
        return _read(source, order[position], lambda example: transform(example, rng))

    return _batches(load, sys.maxsize, share, threads)


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

    Raises:
      ValueError: as `training_batches`.
    """
    share = _share(batch_size, host, hosts)
    chosen = _choose(_length(source), limit)
    batches = -(-len(chosen) // batch_size)

    def load(i: int) -> Example:
        step, row = divmod(i, share)
        position = step * batch_size + host * share + row
        index = min(position, len(chosen) - 1)
        example = _read(source, int(chosen[index]), transform)
        number = np.int32(chosen[index])
        return {**example, "valid": position < len(chosen), "index": number}

    return _batches(load, batches * share, share, threads)


def train_transform(
    size: tuple[int, int], channels: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Callable[[Example, np.random.Generator], Example]:
    """Decode and `images.random_resized_crop` to uint8 [*size, channels]."""
    return functools.partial(_train, size=size, channels=channels, scale=scale, ratio=ratio)


def test_transform(
    size: tuple[int, int], channels: int, share: float
) -> Callable[[Example], Example]:
    """Decode and `images.center_crop` to uint8 [*size, channels]."""
    return functools.partial(_test, size=size, channels=channels, share=share)


test_transform.__test__ = False  # pytest would collect it in every module that imports it


def mean_std(
    source: Source, channels: int, limit: int = 2000, threads: int = 16
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1], over all pixels of `limit` pictures.

    The pictures are a fixed random choice. A constant channel gets 1/255, so that one can divide.
    """

    def histogram(i: int) -> np.ndarray:
        pixels = _read(source, int(i), lambda e: images.decode(e["image"], channels))
        columns = pixels.reshape(-1, channels).T
        return np.stack([np.bincount(column, minlength=256) for column in columns])

    with ThreadPoolExecutor(max(1, threads)) as pool:
        counts = np.sum(
            list(pool.map(histogram, _choose(_length(source), limit))), axis=0
        )  # [c 256]
    values = np.arange(256) / 255
    total = counts.sum(-1)
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(-1) / total
    return tuple(mean.tolist()), tuple(np.maximum(np.sqrt(variance), 1 / 255).tolist())


def _train(example: Example, rng: np.random.Generator, *, size, channels, scale, ratio) -> Example:
    pixels = images.decode(example["image"], channels)
    return {**example, "image": images.random_resized_crop(pixels, size, scale, ratio, rng)}


def _test(example: Example, *, size, channels, share) -> Example:
    pixels = images.decode(example["image"], channels)
    return {**example, "image": images.center_crop(pixels, size, share)}


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


def _choose(length: int, limit: int | None) -> np.ndarray:
    # random, because even spacing can fall in step with the classes of a source, as of `photos`
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} leaves no examples: use None for all of them")
    if limit is None or limit >= length:
        return np.arange(length)
    return np.sort(np.random.default_rng(0).choice(length, limit, replace=False, shuffle=False))


def _read(source: Source, i: int, transform: Callable[[Example], Any]) -> Any:
    try:
        return transform(source[i])
    except (images.Unreadable, OSError) as error:
        raise images.Unreadable(f"cannot read {source.name(i)!r}: {error}") from error


def _batches(
    load: Callable[[int], Example], length: int, size: int, threads: int
) -> Iterator[Example]:
    # threads work on single examples, so that few whole batches are in memory: the caller's, one
    # that waits and one in the making
    import grain

    reading = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(threads, min(size, 512))
    )
    examples = grain.MapDataset.range(length).map(load).to_iter_dataset(reading)
    batches = examples.batch(size, batch_fn=_stack)
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1))


def _stack(examples: Sequence[Example]) -> Example:
    batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    return {**batch, "label": batch["label"].astype(np.int32)}
