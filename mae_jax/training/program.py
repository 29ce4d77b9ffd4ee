"""The compiled step of a config, for training, planning, benchmarks and tests."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from mae_jax.distributed import partitioning
from mae_jax.tasks import Task
from mae_jax.training import optimizer
from mae_jax.training.step import TrainState, make_init, make_step


class Program(NamedTuple):
    """The functions that a run executes, jitted for a mesh of devices."""

    init: Callable[[jax.Array], TrainState]  # key -> state, created in shards
    step: Any  # state (donated), batch -> state, metrics
    abstract: TrainState  # the shapes of the state, with their shardings


def make_program(
    config, task: Task, mesh: Mesh, schedule: optax.Schedule, key: jax.Array
) -> Program:
    """Build the program of a config; all randomness of its steps comes from `key`.

    Raises:
      ValueError: `task.trainable` matches no parameter.
    """
    options, recovery = config.optimizer, config.recovery
    tx = optimizer.make_optimizer(options, schedule, task.decayed, config.model.depth)
    step = make_step(
        task,
        tx,
        schedule,
        key,
        accumulation=config.accumulation,
        ema=options.ema,
        max_loss_ratio=recovery.max_loss_ratio,
        guard=recovery.max_skipped_updates > 0,
    )
    return jit_program(make_init(task, tx, options.ema), step, mesh, options.shard)


def jit_program(init: Callable, step: Callable, mesh: Mesh, shard_optimizer: bool) -> Program:
    """Jit `init` and `step` for a mesh; no device ever holds more than its own shards.

    `shard_optimizer` shards the optimizer's moments and the average of the parameters over all
    devices, even if each device has a copy of the parameters.
    """
    abstract = partitioning.placed(jax.eval_shape(init, jax.random.key(0)), mesh, shard_optimizer)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)

    def step_on_mesh(state, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `partitioning.spread`
            return step(state, batch)

    jitted_step = jax.jit(
        step_on_mesh,
        donate_argnums=0,
        in_shardings=(shardings, partitioning.batched(mesh)),
        out_shardings=(shardings, partitioning.replicated(mesh)),
    )
    return Program(jax.jit(init, out_shardings=shardings), jitted_step, abstract)
