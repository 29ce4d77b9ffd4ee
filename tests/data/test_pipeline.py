import itertools
import logging
import pickle
import threading
import time

import numpy as np
import pytest

from mae_jax.data import bad_examples, pipeline, sources, statistics
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import crop, decode
from mae_jax.data.modalities import transforms

IMAGE = dict(
    modality="image",
    size=(8, 8),
    channels=3,
    repeats=1,
    crop_scale=(0.2, 1),
    crop_ratio=(0.75, 4 / 3),
    center_crop=0.875,
)


class Numbers:
    """Example i is a picture of the number i."""

    classes = ()

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        assert 0 <= i < self.length
        return {"image": np.full((2, 3, 1), i, np.uint8), "label": i}

    def name(self, i):
        return f"number {i}"


def keep(example):
    return example


def jitter(example, rng):
    return {**example, "image": rng.integers(0, 256, (2, 3, 1), np.uint8)}


def pixels(channels):
    return dict(modality="image", channels=channels, threads=4)


def share(host, hosts, batch_size=4):
    """Each hosts-th row of a batch, as on a slice whose topology the mesh follows."""
    return np.arange(batch_size)[host::hosts]


def joined(parts):
    """The batches of which each host has its share."""
    put = lambda rows: np.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:])
    return [
        {key: put([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]


def train(length=10, count=8, batch_size=4, seed=7, **options):
    order, options = pipeline.Order(batch_size, seed), {"threads": 3, **options}
    batches = pipeline.training_batches(Numbers(length), jitter, order, **options)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


def test_batches_have_the_promised_shapes():
    batch = train(count=1)[0]
    assert set(batch) == {"image", "label"}
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 2, 3, 1), np.uint8)
    assert (batch["label"].shape, batch["label"].dtype) == ((4,), np.int32)


def test_order_and_randomness_are_a_function_of_the_seed():
    assert_same(train(), train())
    other = train(seed=8)
    assert any((a["label"] != b["label"]).any() for a, b in zip(train(), other, strict=True))
    assert any((a["image"] != b["image"]).any() for a, b in zip(train(), other, strict=True))


@pytest.mark.parametrize("threads", [0, 1, 16])
def test_threads_do_not_change_the_batches(threads):
    assert_same(train(threads=threads), train())


@pytest.mark.parametrize("start", [1, 5, 1000])
def test_start_equals_skipping(start):
    if start < 100:
        assert_same(train(start=start, count=3), train(count=start + 3)[start:])
    assert_same(train(start=start + 2, count=3), train(start=start, count=5)[2:])


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_batches_of_the_hosts_make_the_batch_of_one(hosts):
    parts = [train(rows=share(host, hosts), start=2) for host in range(hosts)]
    assert_same(joined(parts), train(start=2))


@pytest.mark.parametrize("length", [1, 5, 10, 64])
def test_every_epoch_is_another_permutation(length):
    labels = np.concatenate([b["label"] for b in train(length, count=4 * length, batch_size=2)])
    epochs = labels.reshape(8, length)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(length), (8, 1)))
    if length >= 5:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 8
        assert (np.diff(epochs[0]) != 1).any()


def test_each_repetition_of_an_example_is_augmented_anew():
    seen = {b["image"][r].tobytes() for b in train(length=3, count=12) for r in range(4)}
    assert len(seen) == 48


def test_examples_are_read_in_parallel_but_not_far_ahead():
    running, most, reads, lock, first = 0, 0, 0, threading.Lock(), threading.Barrier(4)

    def counted(example, rng):
        nonlocal running, most, reads
        with lock:
            running, reads = running + 1, reads + 1
            most, wait = max(most, running), reads <= 4
        if wait:
            first.wait(timeout=60)  # ends only once four threads read at the same time
        with lock:
            running -= 1
        return example

    batches = pipeline.training_batches(Numbers(50), counted, pipeline.Order(8, 0), threads=4)
    for _ in range(4):
        next(batches)
    time.sleep(0.2)  # reading on would have the time to get too far
    assert most == 4
    assert reads <= 8 * (4 + 3) + 8  # one waits, one is blocked, one is being read
    batches.close()


def test_close_and_garbage_collection_end_the_threads():
    def ours():
        return {t for t in threading.enumerate() if "grain" in t.name}

    before = ours()
    closed = pipeline.training_batches(Numbers(9), jitter, pipeline.Order(2, 0))
    next(closed)
    dropped = pipeline.training_batches(Numbers(9), jitter, pipeline.Order(2, 0))
    next(dropped)
    assert ours() - before
    closed.close()
    del dropped
    deadline = time.time() + 5
    while ours() - before and time.time() < deadline:
        time.sleep(0.01)
    assert not ours() - before


class Damaged(Numbers):
    """Numbers of which some cannot be read, each in one of the two ways."""

    def __init__(self, length, bad):
        super().__init__(length)
        self.bad = bad

    def __getitem__(self, i):
        if i in self.bad:
            raise (Unreadable if i % 2 else OSError)(f"broken {i}")
        return super().__getitem__(i)


def train_damaged(bad=(2, 5), count=8, limit=0.5, **options):
    source = Damaged(12, bad)
    found = bad_examples.BadExamples(source, limit)
    options = {"threads": 3, "bad_examples": found, **options}
    batches = pipeline.training_batches(source, jitter, pipeline.Order(4, 7), **options)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken, found


def test_others_take_the_places_of_unreadable_examples_and_the_rest_stays():
    good, none = train_damaged(bad=())
    mended, found = train_damaged()
    replaced = 0
    for a, b in zip(good, mended, strict=True):
        lost = np.isin(a["label"], (2, 5))
        assert not np.isin(b["label"], (2, 5)).any()
        np.testing.assert_array_equal(a["label"][~lost], b["label"][~lost])
        np.testing.assert_array_equal(a["image"], b["image"])  # the draws of the same place
        replaced += lost.sum()
    assert (none.count, none.share, found.count, found.share) == (0, 0, 2, 2 / 12)
    assert replaced >= 4  # two epochs and two thirds
    others = [b["label"][np.isin(a["label"], (2, 5))] for a, b in zip(good, mended, strict=True)]
    assert len(set(np.concatenate(others).tolist())) > 2  # not always the same


def test_places_of_unreadable_examples_do_not_depend_on_threads_hosts_or_the_start():
    straight, _ = train_damaged()
    for threads in (0, 1, 2):
        assert_same(train_damaged(threads=threads)[0], straight)
    assert_same(train_damaged(start=3, count=5)[0], straight[3:])
    parts = [train_damaged(rows=share(host, 2))[0] for host in range(2)]
    assert_same(joined(parts), straight)


def test_without_threads_the_caller_reads_and_no_further_than_asked():
    readers, reads = set(), []

    def seen(example, rng):
        readers.add(threading.current_thread())
        reads.append(example["label"])
        return example

    batches = pipeline.training_batches(Numbers(9), seen, pipeline.Order(4, 0), threads=0)
    next(batches)
    assert readers == {threading.current_thread()} and len(reads) == 4
    batches.close()


def test_labels_that_are_no_classes_are_unreadable():
    source = Numbers(5)
    source.classes = tuple("abc")
    found = bad_examples.BadExamples(source, 1)
    options = dict(threads=2, bad_examples=found)
    batches = pipeline.training_batches(source, jitter, pipeline.Order(4, 0), **options)
    assert {label for _ in range(25) for label in next(batches)["label"].tolist()} == {0, 1, 2}
    assert found.count == 2
    batches.close()


def test_too_many_unreadable_examples_end_the_run_and_nothing_readable_at_once():
    with pytest.raises(Unreadable, match="of 12 examples cannot be read: 'number"):
        train_damaged(bad=(2, 5), count=20, limit=0.1)
    match = r"100 examples in turn cannot be read; the last: cannot read 'number \d+': broken"
    with pytest.raises(Unreadable, match=match):
        train_damaged(bad=range(12), limit=1)


@pytest.mark.parametrize("repeats", [1, 2])
def test_names_are_those_of_the_batch(repeats):
    stack = lambda example, rng: {**example, "image": np.stack([example["image"]] * repeats)}
    order = pipeline.Order(6, 3, repeats)
    transform = jitter if repeats == 1 else stack
    batches = pipeline.training_batches(Numbers(10), transform, order)
    for step, batch in enumerate(itertools.islice(batches, 5)):
        names = order.names(Numbers(10), step)
        assert names == [f"number {label}" for label in batch["label"][::repeats]]
    batches.close()


def evaluate(length, **options):
    options = {"batch_size": 4, "threads": 3, **options}
    return list(pipeline.evaluation_batches(Numbers(length), keep, **options))


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 11])
def test_evaluation_sees_every_example_once(length, hosts):
    parts = [evaluate(length, rows=share(host, hosts)) for host in range(hosts)]
    assert {len(part) for part in parts} == {-(-length // 4)}
    batches = [batch for part in parts for batch in part]
    assert {batch["image"].shape for batch in batches} == {(4 // hosts, 2, 3, 1)}
    assert {batch["valid"].dtype for batch in batches} == {np.dtype(bool)}
    assert {batch["index"].dtype for batch in batches} == {np.dtype(np.int32)}
    index, label, valid = (
        np.concatenate([b[key] for b in batches]) for key in ("index", "label", "valid")
    )
    assert sorted(index[valid]) == list(range(length))
    np.testing.assert_array_equal(label, index)
    assert (index[~valid] == length - 1).all()


def test_evaluation_is_in_order():
    batches = evaluate(11)
    flat = np.concatenate([batch["label"][batch["valid"]] for batch in batches])
    np.testing.assert_array_equal(flat, np.arange(11))
    assert_same(evaluate(11, threads=1), batches)


def test_evaluation_limit_is_a_fixed_choice_without_a_period():
    batches = evaluate(200, limit=20)
    labels = np.concatenate([batch["label"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    assert len(labels) == 20 == len(set(labels.tolist()))
    np.testing.assert_array_equal(index, labels)  # here the label is the number
    assert (np.diff(labels) > 0).all() and len(set(labels % 10)) > 5
    assert_same(evaluate(200, limit=20), batches)
    assert_same(evaluate(5, limit=9), evaluate(5))


@pytest.mark.parametrize("bad", [(0,), (10,), (3, 4, 5, 6, 7), (0, 1, 2, 9, 10)])
@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_leaves_unreadable_examples_out(bad, hosts, caplog):
    batches = []
    for host in range(hosts):
        batches += pipeline.evaluation_batches(
            Damaged(11, bad), keep, batch_size=4, rows=share(host, hosts), threads=3
        )
    assert {batch["image"].shape for batch in batches} == {(4 // hosts, 2, 3, 1)}
    index, label, valid = (
        np.concatenate([b[key] for b in batches]) for key in ("index", "label", "valid")
    )
    assert sorted(index[valid]) == [i for i in range(11) if i not in bad]
    np.testing.assert_array_equal(label[valid], index[valid])
    said = sum(record.args[0] for record in caplog.records)
    assert said == len(bad) and {record.levelno for record in caplog.records} == {logging.WARNING}


def test_evaluation_leaves_labels_out_that_are_no_classes(caplog):
    source = Numbers(6)
    source.classes = ("a", "b", "c", "d")
    (batch,) = pipeline.evaluation_batches(source, keep, batch_size=8, threads=2)
    assert batch["index"][batch["valid"]].tolist() == [0, 1, 2, 3]
    message = "2 of 6 examples are left out: cannot read 'number 4': its label 4 is "
    (record,) = caplog.records
    assert record.getMessage() == message + "not one of 4 classes, ..."
    source.classes = ()
    (batch,) = pipeline.evaluation_batches(source, keep, batch_size=8, threads=2)
    assert batch["valid"].sum() == 6 and len(caplog.records) == 1


def test_nothing_readable_is_one_sentence():
    source = Damaged(5, range(5))
    with pytest.raises(Unreadable, match="none of 5 examples can be read; the first: cannot"):
        list(pipeline.evaluation_batches(source, keep, batch_size=2, threads=3))
    with pytest.raises(Unreadable, match="none of 5 examples can be read; the first: cannot"):
        statistics.measure(source, pixels(1))
    with pytest.raises(Unreadable, match="none of 5 examples can be read; the first: cannot"):
        statistics.resolve_range(source, pixels(1))


def mean_std(*arguments, **options):
    measured = statistics.measure(*arguments, **options)
    return measured["mean"], measured["std"]


def test_mean_and_deviation_leave_unreadable_examples_out():
    values = np.delete(np.arange(20), [3, 6]) / 255
    mean, std = mean_std(Damaged(20, (3, 6)), pixels(1))
    np.testing.assert_allclose((mean, std), ([values.mean()], [values.std()]), rtol=1e-12)


def test_mistakes():
    make = lambda order, **options: pipeline.training_batches(
        Numbers(3), jitter, pipeline.Order(*order), **options
    )
    with pytest.raises(ValueError, match="batch size 5 is not a multiple of 2 repeats"):
        make((5, 0, 2))
    with pytest.raises(ValueError, match="batch size 4 gives a device another number of rows"):
        make((4, 0, 2), rows=[0, 3])
    with pytest.raises(ValueError, match="batch size 0 is below 1"):
        make((0, 0))
    with pytest.raises(ValueError, match="no examples"):
        pipeline.training_batches(Numbers(0), jitter, pipeline.Order(1, 0))
    with pytest.raises(ValueError, match="limit 0 leaves no examples"):
        pipeline.evaluation_batches(Numbers(3), keep, batch_size=1, limit=0)


@pytest.mark.parametrize("size, channels", [((32, 32), 3), ((24, 40), 1), ((16, 16), 4)])
def test_views_from_bytes_to_batches(size, channels):
    source = sources.open_source("synthetic", "train")
    transform = pickle.loads(
        pickle.dumps(transforms.train_transform(IMAGE | dict(size=size, channels=channels)))
    )
    batches = pipeline.training_batches(source, transform, pipeline.Order(4, 0))
    assert next(batches)["image"].shape == (4, *size, channels)
    batches.close()
    transform = pickle.loads(
        pickle.dumps(transforms.eval_transform(IMAGE | dict(size=size, channels=channels)))
    )
    for number, batch in enumerate(pipeline.evaluation_batches(source, transform, batch_size=16)):
        assert batch["image"].dtype == np.uint8
        example = source[16 * number + 3]
        picture = crop.center_crop(decode.decode(example["image"], channels), size, 0.875)
        np.testing.assert_array_equal(batch["image"][3], picture)
        assert batch["label"][3] == example["label"]
    assert number == 3


def test_a_broken_picture_is_named(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "broken.jpg").write_bytes(b"nonsense")
    source = sources.open_source(f"folder:{tmp_path}", "all")
    message = "cannot read 'cat/broken.jpg': not a picture in a known format"
    transform = transforms.train_transform(IMAGE)
    with pytest.raises(ValueError, match=message):
        next(pipeline.training_batches(source, transform, pipeline.Order(1, 0)))
    with pytest.raises(ValueError, match=message):
        next(pipeline.evaluation_batches(source, transforms.eval_transform(IMAGE), batch_size=1))
    (tmp_path / "cat" / "broken.jpg").unlink()
    with pytest.raises(ValueError, match="cannot read 'cat/broken.jpg': .*No such file"):
        mean_std(source, pixels(3))


def test_mean_and_deviation_are_those_of_all_pixels():
    source = sources.open_source("synthetic", "train")
    pictures = [decode.decode(source[i]["image"], 3) for i in range(len(source))]
    values = np.stack(pictures).reshape(-1, 3) / 255
    mean, std = mean_std(source, pixels(3))
    assert all(isinstance(value, float) for value in (*mean, *std))
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, values.std(0), rtol=1e-12)
    few = mean_std(source, pixels(3), limit=10)
    assert few != (mean, std) and few == mean_std(source, pixels(3), limit=10)
    gray, _ = mean_std(source, pixels(1), limit=10)
    assert len(gray) == 1


def test_a_constant_channel_can_be_divided_by():
    assert mean_std(Numbers(1), pixels(1)) == ((0.0,), (1 / 255,))
