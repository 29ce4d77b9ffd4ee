"""The choice of `data.examples`: balanced over classes, and contained in every larger choice."""

import itertools

import numpy as np
import pytest

from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable


class Labelled:
    """Examples with these labels, which only reading tells; None cannot be read."""

    def __init__(self, given, classes):
        self.given, self.classes, self.reads = given, tuple(map(str, range(classes))), 0

    def __len__(self):
        return len(self.given)

    def __getitem__(self, i):
        self.reads += 1
        if self.given[i] is None:
            raise Unreadable("broken")
        return {"image": b"", "label": self.given[i]}

    def name(self, i):
        return f"example {i}"


def choose(source, count, **options):
    part = sources.subset(source, count, **options)
    assert len(part) == count and part.classes == source.classes
    chosen = [int(part.name(k).split()[1]) for k in range(count)]
    assert chosen == sorted(set(chosen))
    return chosen


def uniform(length, count):
    return sorted(np.random.default_rng(0).permutation(length)[:count].tolist())


RARE = np.random.default_rng(1).choice(4, 400, p=[0.6, 0.3, 0.05, 0.05]).tolist()


@pytest.mark.parametrize("count", [1, 3, 4, 5, 40, 47])
def test_each_class_has_the_same_number_up_to_one(count):
    assert min(np.bincount(RARE)) >= 12
    labels = [RARE[i] for i in choose(Labelled(RARE, 4), count)]
    counts = np.bincount(labels, minlength=4)
    assert counts.max() - counts.min() <= 1
    assert choose(Labelled(RARE, 4), count) == choose(Labelled(RARE, 4), count)


def test_a_smaller_choice_is_contained_in_every_larger_one():
    """Also where rare classes, and in the end all labels, run out."""
    given = [*RARE[:60], *[-1] * 10, *[None] * 5]
    choices = [set(choose(Labelled(given, 4), count)) for count in range(1, 76)]
    assert all(few < more for few, more in itertools.pairwise(choices))
    assert choices[-1] == set(range(75))
    assert choices[59] == set(range(60))  # examples without a label come last


def test_a_class_that_runs_out_leaves_its_places_to_the_others():
    given = [0] * 3 + [1] * 50 + [2] * 50
    counts = np.bincount([given[i] for i in choose(Labelled(given, 4), 43)])
    assert counts.tolist() == [3, 20, 20]


def test_few_labels_are_read_of_many_examples():
    many = Labelled(np.random.default_rng(0).integers(0, 10, 100_000).tolist(), 10)
    chosen = choose(many, 100)
    assert many.reads < 1000
    known = Labelled(many.given, 10)
    known.labels = many.given  # as a folder knows them without reading
    assert choose(known, 100) == chosen and known.reads <= 1


def test_without_classes_or_with_several_labels_the_choice_is_uniform():
    expected = uniform(400, 30)
    assert choose(Labelled(RARE, 4), 30) != expected
    assert choose(Labelled(RARE, 4), 30, balanced=False) == expected
    assert choose(Labelled([-1] * 400, 0), 30) == expected
    assert choose(Labelled([np.array([1, 0])] * 400, 2), 30) == expected


def test_all_examples_and_too_many():
    source = Labelled(RARE, 4)
    assert sources.subset(source, 0) is source
    assert choose(source, 400) == list(range(400))
    with pytest.raises(ValueError, match="data.examples = 401, but there are only 400: use 0"):
        sources.subset(source, 401)


@pytest.mark.parametrize("spec, modality", [("photos", "image"), ("pans", "video")])
def test_built_in_sources(spec, modality):
    source = sources.open_source(spec, "train", modality)
    part = sources.subset(source, 30)
    counts = np.bincount([part[i]["label"] for i in range(30)], minlength=len(source.classes))
    assert counts.max() - counts.min() <= 1
