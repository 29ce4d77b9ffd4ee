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

    init_variables: Callable[[jax.Array], Any]  # key -> variables of the model, born in shards
    init_state: Callable[[Any], TrainState]  # variables (donated) -> state at step 0
    step: Any  # state (donated), batch -> state, metrics
    abstract: TrainState  # the shapes of the state, with their shardings

    def init(self, key: jax.Array) -> TrainState:
        """Return the state at step 0, created in shards."""
        return self.init_state(self.init_variables(key))


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
    init_state = make_init(task, tx, options.ema)
    return jit_program(task.init, init_state, step, mesh, options.shard)


def jit_program(
    init_variables: Callable,
    init_state: Callable,
    step: Callable,
    mesh: Mesh,
    shard_optimizer: bool,
) -> Program:
    """Jit the functions of a program for a mesh; no device ever holds more than its own shards.

    `shard_optimizer` shards the optimizer's moments and the average of the parameters over all
    devices, even if each device has a copy of the parameters.
    """
    shardings_of = lambda tree: jax.tree.map(lambda x: x.sharding, tree)
    variables = partitioning.placed(jax.eval_shape(init_variables, jax.random.key(0)), mesh)
    abstract = partitioning.placed(jax.eval_shape(init_state, variables), mesh, shard_optimizer)
    shardings = shardings_of(abstract)

    def step_on_mesh(state, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `partitioning.spread`
            return step(state, batch)

    jitted_step = jax.jit(
        step_on_mesh,
        donate_argnums=0,
        in_shardings=(shardings, partitioning.batched(mesh)),
        out_shardings=(shardings, partitioning.replicated(mesh)),
    )
    jitted_init = jax.jit(init_state, donate_argnums=0, out_shardings=shardings)
    # Compiling this takes longer than running it, and at level 1 the result has the same bits.
    # Without most optimisations, as in the tests, the level is 0 already.
    slow = jax.default_backend() == "cpu" and not jax.config.read("jax_disable_most_optimizations")
    quickly = {"xla_backend_optimization_level": 1} if slow else None
    jitted_variables = jax.jit(
        init_variables, out_shardings=shardings_of(variables), compiler_options=quickly
    )
    return Program(jitted_variables, jitted_init, jitted_step, abstract)
