"""The step is the same whatever the devices and however the batch is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mae_jax import tasks
from mae_jax.config import command_line, schema
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.training import optimizer, program, step

STEPS, BATCH = 3, 16


MEAN, STD = (0.5,) * 3, (0.25,) * 3


@functools.cache
def config(**changes) -> schema.Config:
    changes = {"model.depth": 1} | changes
    return schema.updated(command_line.load("configs/quickstart.py:debug"), changes)


@functools.cache
def task() -> tasks.Task:
    return tasks.build(config(), None, MEAN, STD)


def batch(i: int) -> dict:
    rng = np.random.default_rng(i)
    images = rng.integers(0, 256, (BATCH, *config()["data"]["size"], 3), dtype=np.uint8)
    return {"image": images, "label": np.zeros(BATCH, np.int32)}


def run(data=1, fsdp=1, accumulation=1, ema=0.0):
    """Losses and the last state after a few steps."""
    mesh = device_mesh.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
    options = config(accumulation=accumulation, **{"optimizer.ema": ema})
    schedule = optimizer.cosine_schedule(0.05, BATCH, 10, 0)
    made = program.make_program(options, task(), mesh, schedule, jax.random.key(1))
    state, update = made.init(jax.random.key(0)), made.step
    losses, states = [], [jax.device_get(state)]
    for i in range(STEPS):
        state, metrics = update(state, partitioning.place(batch(i), mesh))
        losses.append(float(metrics["loss"]))
        kernel = state.params["encoder"]["block_0"]["mlp"]["fc1"]["kernel"]
        moment = state.opt_state[0].mu["encoder"]["block_0"]["mlp"]["fc1"]["kernel"]
        for x in (kernel, moment):  # each device holds its share and no more
            assert x.addressable_shards[0].data.size == x.size // fsdp
        states.append(jax.device_get(state))  # the next step takes its memory
    return losses, states


@pytest.fixture(scope="module")
def plain():
    return run()


@pytest.mark.parametrize("data, fsdp, accumulation", [(1, 1, 4), (2, 2, 2)])
def test_the_curve_does_not_depend_on_devices_or_accumulation(
    plain, data, fsdp, accumulation, monkeypatch
):
    monkeypatch.setattr(partitioning, "SMALL", 0)  # cut the parameters of a tiny network too
    losses, states = run(data, fsdp, accumulation)
    np.testing.assert_allclose(losses, plain[0], rtol=1e-5)
    assert losses[-1] < losses[0]
    leaves = jax.tree_util.tree_leaves_with_path
    for (path, a), (_, b) in zip(
        leaves(states[-1].params), leaves(plain[1][-1].params), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # a bias on all keys of a query cancels in the softmax: AdamW walks on its rounding errors
        if not name.endswith("key/bias"):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=5e-5, err_msg=name)


def test_each_step_draws_other_masks():
    """With the same batch and a learning rate of nearly 0, only the masks change the loss."""
    mesh = device_mesh.make_mesh(1, devices=jax.devices()[:1])
    made = program.make_program(config(), task(), mesh, lambda step: 0.0, jax.random.key(1))
    state, update = made.init(jax.random.key(0)), made.step
    state, first = update(state, batch(0))
    state, second = update(state, batch(0))
    assert int(state.step) == 2
    assert first["loss"] != second["loss"]


def test_the_moving_average():
    _, states = run(ema=0.75)
    expected = jax.tree.map(np.asarray, states[0].params)
    for state in states[1:]:
        expected = jax.tree.map(
            lambda a, p: 0.75 * a + 0.25 * np.asarray(p), expected, state.params
        )
    for a, b in zip(jax.tree.leaves(states[-1].ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert states[-1].best == {"params": states[-1].ema}


def test_accumulation_equals_the_big_batch_in_gradients():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)

    def loss(w, stats, batch):
        y = batch["x"] @ w
        return jnp.square(jnp.sin(y)).mean(), ({"mean": y.mean()}, stats)

    whole = step.accumulate(loss, jnp.ones(3), jnp.int32(0), {"x": x}, 1)
    for parts in (2, 3, 12):
        cut = step.accumulate(loss, jnp.ones(3), jnp.int32(0), {"x": x}, parts)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_mesh_that_does_not_fit():
    with pytest.raises(
        ValueError, match="mesh.data = 3, mesh.fsdp = 1 and mesh.tensor = 1 do not fill the 4"
    ):
        device_mesh.make_mesh(3, 1)
    with pytest.raises(ValueError, match="whose product divides 4"):
        device_mesh.make_mesh(-1, 3)


def small(schedule=lambda step: 0.1, tx=optax.adam, **options):
    """A step of one number that a batch pulls towards its own, and its first state."""
    loss = lambda params, stats, batch: (
        jnp.square(params["net"]["part"]["w"][None] - batch["image"]).mean(),
        ({}, None),
    )
    params = {"net": {"part": {"w": jnp.ones(3)}}}
    one = tasks.Task(None, lambda key: {"params": params}, lambda x, rng: x, lambda key, x: x, loss)
    key, tx = jax.random.key(0), tx(schedule)
    options = dict(ema=0.9, guard=True) | options
    return step.make_init(one, tx, options["ema"])(one.init(key)), jax.jit(
        step.make_step(one, tx, schedule, key, **options)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])  # 1e30 squared is not finite
def test_an_update_that_is_not_finite_is_left_out(bad):
    state, update = small()
    good = {"image": jnp.full((4, 3), 2.0)}
    before, _ = update(state, good)
    after, metrics = update(before, {"image": good["image"].at[0, 0].set(bad)})
    assert metrics["bad_update"] == 1 and not np.isfinite(metrics["gradient_norm"])
    assert int(after.step) == int(before.step) + 1
    jax.tree.map(np.testing.assert_array_equal, after, before.replace(step=after.step))
    again, metrics = update(after, good)
    assert metrics["bad_update"] == 0
    expected, _ = update(before, good)  # as if the bad batch had never been
    jax.tree.map(np.testing.assert_array_equal, again.params, expected.params)


def test_without_the_guard_it_is_said_and_done():
    state, update = small(guard=False)
    after, metrics = update(state, {"image": jnp.full((4, 3), jnp.nan)})
    assert metrics["bad_update"] == 1 and np.isnan(after.params["net"]["part"]["w"]).all()


def test_a_bad_update_moves_neither_the_schedule_nor_the_rate_that_is_logged():
    """The rate that is used is that of the step, and so is the logged one."""
    rate = lambda step: step + 1.0
    state, update = small(rate, lambda schedule: optax.sgd(schedule))
    good, bad = ({"image": jnp.full((4, 3), x)} for x in (2.0, np.nan))
    for i, batch in enumerate([good, bad, bad, good]):
        before, gradient = state.params["net"]["part"]["w"], 2 / 3
        state, metrics = update(state, batch)
        assert metrics["learning_rate"] == i + 1
        moved = before - state.params["net"]["part"]["w"]
        used = moved / (gradient * (before - 2.0))
        np.testing.assert_allclose(used, 0 if batch is bad else i + 1, rtol=1e-4)


def test_a_loss_far_above_the_usual_one_is_left_out():
    state, update = small(max_loss_ratio=3.0)
    good, spike = ({"image": jnp.full((4, 3), x)} for x in (2.0, 9.0))
    for _ in range(3):
        state, metrics = update(state, good)
        assert metrics["bad_update"] == 0
    after, metrics = update(state, spike)
    assert metrics["bad_update"] == 1 and metrics["loss"] > 3 * state.loss_ema
    jax.tree.map(np.testing.assert_array_equal, after, state.replace(step=after.step))
    _, metrics = small()[1](state, spike)
    assert metrics["bad_update"] == 0


def test_on_good_data_the_step_is_one_written_without_guard_and_norms(plain):
    """Up to rounding, which XLA does differently in another program."""
    mesh = device_mesh.make_mesh(1, 1, devices=jax.devices()[:1])
    schedule = optimizer.cosine_schedule(0.05, BATCH, 10, 0)
    tx = optimizer.make_optimizer(config().optimizer, schedule, task().decayed, 1)

    def update(state, batch):
        batch = task().augment(jax.random.fold_in(jax.random.key(1), state.step), batch)
        (value, _), gradients = jax.value_and_grad(task().loss, has_aux=True)(
            state.params, None, batch
        )
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return step.TrainState(state.step + 1, params, opt_state), {"loss": value}

    init = step.make_init(task(), tx)
    jitted = program.jit_program(task().init, init, update, mesh, False)
    state, update, (losses, states) = jitted.init(jax.random.key(0)), jitted.step, plain
    for i in range(STEPS):
        state, metrics = update(state, partitioning.place(batch(i), mesh))
        np.testing.assert_allclose(metrics["loss"], losses[i], rtol=1e-6)
    state, expected = jax.device_get(state), states[-1].replace(loss_ema=None)
    leaves = jax.tree_util.tree_leaves_with_path
    for (path, x), (_, y) in zip(leaves(state), leaves(expected), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith("key/bias"):  # its gradient is all rounding, see above
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=5e-5, err_msg=name)


def test_the_parts_of_the_gradient_are_named():
    gradients = {
        "encoder": {"block_0": {"a": jnp.full(4, 3.0), "b": jnp.ones(1)}},
        "w": jnp.ones(2),
    }
    squares = step.squares_of(gradients)
    assert {name: float(x) for name, x in squares.items()} == {"encoder/block_0": 37, "w": 2}


def test_the_state_keeps_its_types_where_64_bits_are_the_default():
    """JAX_ENABLE_X64=1: the compiled step takes the state that the step before returned."""
    with jax.enable_x64(True):
        mesh = device_mesh.make_mesh(1, devices=jax.devices()[:1])
        schedule = optimizer.cosine_schedule(0.05, BATCH, 10, 2)
        made = program.make_program(config(), task(), mesh, schedule, jax.random.key(1))
        after, _ = jax.eval_shape(made.step, made.abstract, batch(0))
    types = lambda state: jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert types(after) == types(made.abstract)
