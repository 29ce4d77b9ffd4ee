"""Held-out losses: each example counts once, and the baselines are what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax import evaluators
from mae_jax.data import sources
from mae_jax.data.augment import batch as augment
from mae_jax.data.modalities import transforms
from mae_jax.evaluators import features, held_out, visualize
from mae_jax.models import build, masking, patches

SECTION = dict(type="reconstruction", source="same", split="test", examples=32, batch_size=8)


def built(context, pictures=1, source=None, **changes):
    """A reconstruction evaluator, maybe of another source."""
    section = SECTION | dict(pictures=pictures) | changes
    (entry,) = evaluators.build({"reconstruction": section}, context)
    if source is not None:
        entry.evaluator.source = source
    return entry.evaluator


class SomeUnreadable:
    """The test pictures, of which some cannot be read."""

    def __init__(self, *bad):
        self.bad, self.source = set(bad), sources.open_source("synthetic", "test")
        self.classes, self.name = self.source.classes, self.source.name

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        return self.source[i] if i not in self.bad else {"image": b"", "label": 0}


def test_unreadable_examples_are_left_out_of_all_metrics(autoencoder, context, mesh, caplog):
    source, some = SomeUnreadable(), {0, 9, 10, 31}
    model, variables = autoencoder
    evaluator = built(context(model), source=source)
    every = evaluator.losses(variables)
    source.bad = some
    others = evaluator.losses(variables)
    source.bad = set(range(32)) - some
    these = evaluator.losses(variables)
    assert [count for _, _, count in (every, others, these)] == [32, 28, 4]
    for i in range(2):  # of the network and of the guess
        mean = (28 * others[i] + 4 * these[i]) / 32
        np.testing.assert_allclose(mean, every[i], rtol=1e-5)
        assert abs(others[i] - every[i]) > 1e-4
    assert "4 of 32 examples are left out" in caplog.text
    transform = context(model).transform
    table = features.Extractor(None, [features.Feature()], transform, mesh)(None, source, 0, 8)
    assert table.index.tolist() == sorted(some)
    assert table.labels.tolist() == [source.source[i]["label"] for i in sorted(some)]


def test_losses_by_hand(autoencoder, context):
    """One example at a time, in numpy: the same masks, the same mean, no padding."""
    model, variables = autoencoder
    given = context(model)
    loss, guess_loss, _ = built(given).losses(variables)
    source = sources.open_source("synthetic", "test")
    transform = transforms.eval_transform(given.data)
    sampler = build.mask_sampler(given.mask, model, (32, 32))
    apply = jax.jit(lambda x, mask: model.apply(variables, x, mask).loss)
    ours, baseline = [], []
    for i in range(32):
        image = jnp.asarray(transform(source[i])["image"])[None]
        image = augment.normalize(image, given.mean, given.std)
        scores = jax.random.uniform(jax.random.fold_in(given.key, i), (sampler.n,))
        mask = masking.from_scores(scores[None], sampler.keep)
        ours.append(apply(image, mask))
        x = np.asarray(patches.patchify(image, (8, 8))[0])
        guess = x[mask.visible[0]].mean(0)
        baseline.append(np.square(x[mask.masked[0]] - guess).mean())
    np.testing.assert_allclose(loss, np.mean(ours), rtol=1e-5)
    np.testing.assert_allclose(guess_loss, np.mean(baseline), rtol=1e-5)


def test_every_example_counts_once_whatever_the_batch(autoencoder, context):
    model, variables = autoencoder
    whole = built(context(model)).losses(variables)
    for batch_size in (20, 64):
        other = built(context(model), batch_size=batch_size, examples=0).losses(variables)
        assert other == pytest.approx(whole, rel=1e-5)


def test_the_report_has_its_baselines(autoencoder, context):
    model, variables = autoencoder
    untrained = jax.tree.map(lambda x: 0.5 * x, variables)
    evaluator = built(context(model))
    metrics = evaluator.report(variables, untrained).metrics
    loss, guess, _ = evaluator.losses(variables)
    assert metrics["loss_untrained"] == pytest.approx(evaluator.losses(untrained)[0])
    assert metrics["loss_trained"] == pytest.approx(loss) != metrics["loss_untrained"]
    assert metrics["loss_visible_mean"] == pytest.approx(guess)
    followed = evaluator.evaluate(variables).metrics
    assert followed == {"test_loss": metrics["loss_trained"]} and followed.items() < metrics.items()
    assert "untrained" not in evaluator.report(variables).text


def test_the_picture_shows_what_is_masked_and_what_is_predicted(autoencoder, context):
    """Columns original | masked | reconstruction; visible patches are the same in all three."""
    model, variables = autoencoder
    picture = built(context(model), pictures=2).evaluate(variables).pictures["reconstruction"]
    sheet = np.asarray(picture).astype(int)
    cell = 128 + 4
    left = [4 + i * cell for i in range(3)]
    original, masked, reconstruction = (sheet[24 : 24 + 128, x : x + 128] for x in left)
    grey = (masked == 128).all(-1).reshape(4, 32, 4, 32).all((1, 3))  # patches of 8 pixels, x 4
    assert grey.sum() == 12
    same = (original == reconstruction).all(-1).reshape(4, 32, 4, 32).all((1, 3))
    np.testing.assert_array_equal(same, ~grey)


def test_the_same_source_needs_splits():
    data = dict(train=dict(source="array_record:/x/*", split="train"), modality="image")
    with pytest.raises(ValueError, match="names the same records for every split"):
        held_out.open_part(dict(source="same", split="test"), data)


def test_losses_are_means_over_what_exists(autoencoder, context):
    """An example without data counts neither for the network nor for the guess."""
    model, variables = autoencoder
    given = context(model)
    evaluator = built(given)
    evaluator.transform = given.transform._replace(data={**given.data, "nodata": "nan"})
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    images[1], images[2, :, 8:] = np.nan, np.nan
    batch = dict(image=jnp.asarray(images), index=jnp.arange(4), valid=jnp.ones(4, bool))
    sums, arrays = evaluator._measure(variables, batch)
    assert sums[2] == 3 and np.isfinite(sums).all()
    inputs, _, outputs = map(np.asarray, arrays)
    np.testing.assert_array_equal(np.isnan(inputs), np.isnan(images[:1]))
    assert np.isfinite(outputs[:1]).all()
    without = batch | {"valid": jnp.array([True, False, True, True])}
    np.testing.assert_array_equal(evaluator._measure(variables, without)[0], sums)
    gaps = batch | {"valid": jnp.array([False, True, False, False])}
    assert not np.asarray(evaluator._measure(variables, gaps)[0]).any()


def test_missing_values_are_white():
    original = np.random.default_rng(0).random((1, 8, 8, 1), np.float32)
    original[0, :4], masked = np.nan, np.zeros((1, 8, 8, 1), bool)
    for modality in ("image", "volume"):
        picture = visualize.reconstruction(original, masked, original, modality, (0.0,), (1.0,))
        tile = np.asarray(picture)[24 : 24 + 60, 4 : 4 + 120]
        assert (tile == 255).all()
