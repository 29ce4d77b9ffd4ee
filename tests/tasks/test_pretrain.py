"""Pre-training: what is drawn for each example, and what is normalised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax import tasks
from mae_jax.config import command_line, schema
from mae_jax.config.errors import UserError
from mae_jax.data.augment import batch as augment
from mae_jax.data.augment import missing
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.models import build, masking, rules
from mae_jax.training import step

KEY = jax.random.key(7)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

SMALL = dict(modality="image", size=(32, 32), channels=3, repeats=1, center_crop=0.875, threads=2)


def config(**changes) -> schema.Config:
    return schema.updated(command_line.load("configs/quickstart.py:debug"), changes)


def test_flips_and_masks_are_drawn_per_sample():
    augmented = tasks.build(config(), None, MEAN, STD).augment
    image = np.tile(np.arange(32, dtype=np.uint8)[None, None, :, None], (64, 32, 1, 3))
    batch = augmented(jax.random.key(0), {"image": jnp.asarray(image)})
    flipped = np.asarray(batch["image"][:, 0, 0, 0] == 31)
    assert 16 < flipped.sum() < 48
    np.testing.assert_array_equal(batch["image"][flipped][:, :, ::-1], image[flipped])
    np.testing.assert_array_equal(batch["image"][~flipped], image[~flipped])
    assert len(np.unique(batch["scores"], axis=0)) == 64


def test_what_is_normalised():
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8))
    y = augment.normalize(x, MEAN, STD)
    np.testing.assert_allclose(y[..., 1], (np.asarray(x)[..., 1] / 255 - 0.5) / 0.25, atol=1e-5)
    z = augment.normalize(x.astype(jnp.float32), MEAN, STD)  # floats are taken as they are
    np.testing.assert_allclose(z[..., 1], (np.asarray(x)[..., 1] - 0.5) / 0.25, atol=1e-4)
    categories = x.astype(jnp.int32)
    np.testing.assert_array_equal(augment.normalize(categories, MEAN, STD), categories)


GROUPS = ((0,), (1, 2))


@pytest.mark.parametrize(
    "name, groups",
    [("random", ()), ("joint", ()), *((x, GROUPS) for x in ("block", "grid", "importance"))],
)
def test_signals_have_one_axis_and_channels_as_values_or_groups(name, groups):
    """Each mask suits one axis; a network that predicts the truth has no loss, in either form."""
    model = {"model.channel_groups": groups, "mask.name": name, "mask.ratio": 0.5}
    data = {"data.size": (32,), "data.channels": 3, "model.patch": (4,)}
    values = command_line.load("configs/signal_small.py:debug")
    checked = schema.updated(values, {**data, **model}, rules.RULES)
    net = build.autoencoder(checked.model)
    sampler = build.mask_sampler(checked.mask, net, checked.data.size)
    inputs = jax.random.normal(KEY, (2, 32, 3))
    mask = masking.from_scores(sampler.scores(KEY, inputs), sampler.keep)
    tokens = 8 * max(1, len(groups))
    assert (sampler.n, mask.visible.shape[1]) == (tokens, tokens // 2)
    truth = net.target(inputs, mask.masked)
    np.testing.assert_allclose(net.target.losses(truth, inputs, mask.masked), 0, atol=1e-10)
    np.testing.assert_allclose(net.target.to_inputs(truth, inputs, mask), inputs, atol=1e-6)
    hidden = net.target.masked_values(inputs, mask)
    counts = [(jnp.any(hidden[..., list(g)], -1).sum()) for g in groups or [(0, 1, 2)]]
    assert hidden.shape == inputs.shape and sum(counts) == 2 * tokens // 2 * 4
    apart = (hidden[..., 0] != hidden[..., 1]).any()
    assert bool(apart) == bool(groups) and (hidden[..., 1] == hidden[..., 2]).all()


def test_signals_refuse_the_masks_of_two_axes():
    values = command_line.load("configs/signal_small.py:debug")
    for name, modality in (("time", "audio"), ("tube", "video")):
        with pytest.raises(UserError, match=f"is for {modality}, and data.modality = 'signal'"):
            schema.updated(values, {"mask.name": name}, rules.RULES)


@functools.cache
def with_gaps():
    """The task, its parameters and an augmented batch, some of whose examples have no data."""
    task = tasks.build(config(**{"data.nodata": "nan", "model.depth": 1}), None, MEAN, STD)
    images = np.random.default_rng(0).random((8, 32, 32, 3), np.float32)
    images[1], images[4, 8:], images[6:, :, 10:] = np.nan, np.nan, np.nan
    images[4, :, 8:] = np.nan  # one patch is left, which is shown
    params = jax.jit(task.init)(KEY)["params"]
    return task, params, jax.jit(task.augment)(KEY, {"image": jnp.asarray(images)})


def test_the_loss_is_a_mean_over_examples_with_data():
    """However the batch is cut: into parts one after the other, or over devices."""
    task, params, batch = with_gaps()
    weight = np.asarray(batch["sample_weight"])
    np.testing.assert_allclose(weight, np.array([1, 0, 1, 1, 0, 1, 1, 1]) * 8 / 6, rtol=1e-6)
    results = lambda parts: jax.jit(
        lambda params, batch: step.accumulate(task.loss, params, None, batch, parts)
    )
    (loss, _), gradients = results(1)(params, batch)
    assert np.isfinite(loss) and all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    mesh = device_mesh.make_mesh(4, 1)
    spread = partitioning.place(jax.device_get(batch), mesh)
    for other, _ in (results(4)(params, batch), results(1)(params, spread)):
        np.testing.assert_allclose(other[0], loss, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
    jax.tree.map(close, results(4)(params, batch)[1], gradients)
    alone = jax.tree.map(lambda x: x[np.array([0, 2, 3, 5, 6, 7])], batch)
    ours = jax.jit(task.loss)(params, None, alone | {"sample_weight": np.ones(6, np.float32)})[0]
    np.testing.assert_allclose(ours, loss, rtol=1e-5)


def test_foreground_counts_more():
    """Values up to the threshold count as much as the config says."""
    data = {"nodata": "nan", "foreground": (0.5, 0.25)}
    image = np.array([[[[0.2], [0.5], [0.7], [np.nan]]]], np.float32)
    values, present, weight = missing.split(jnp.asarray(image), (0.4,), (0.2,), data)
    np.testing.assert_array_equal(weight[0, 0, :, 0], [0.25, 0.25, 1, 0])
    np.testing.assert_array_equal(present[0, 0, :, 0], [True, True, True, False])
    np.testing.assert_allclose(values[0, 0, :, 0], [-1, 0.5, 1.5, 0], atol=1e-5)
    pixels = jnp.asarray([[[[127], [128]]]], jnp.uint8)
    _, present, weight = missing.split(pixels, (0.4,), (0.2,), {"foreground": (0.5, 0.25)})
    assert present is None
    np.testing.assert_array_equal(weight[0, 0, :, 0], [0.25, 1])


def test_the_spacing_of_an_example_reaches_its_positions():
    """However the batch is cut; at the reference nothing changes."""
    changes = {"data.reference_spacing": (2.0, 2.0), "model.depth": 1}
    task = tasks.build(config(**changes), None, MEAN, STD)
    images = jnp.asarray(np.random.default_rng(0).random((4, 32, 32, 3), np.float32))
    params = jax.jit(task.init)(KEY)["params"]

    @functools.partial(jax.jit, static_argnums=1)
    def loss(spacing, parts=1):
        batch = task.augment(KEY, {"image": images, "spacing": spacing})
        return step.accumulate(task.loss, params, None, batch, parts)[0][0]

    fine, coarse = jnp.full((4, 2), 2.0), jnp.array([[2.0, 2.0]] * 3 + [[2.0, 9.0]])
    assert abs(loss(coarse) - loss(fine)) > 1e-6
    np.testing.assert_allclose(loss(coarse, 2), loss(coarse), rtol=1e-5)
