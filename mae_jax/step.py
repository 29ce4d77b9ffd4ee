"""The training step: state and batch in, next state and figures out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
    """All that changes during training. `step` counts finished updates."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None  # moving average of the parameters, when the config asks for one

    @property
    def best(self):
        """The parameters to evaluate: the average where there is one."""
        return self.params if self.ema is None else self.ema


def make_init(
    init: Callable[[jax.Array], Any], tx: optax.GradientTransformation, ema: float = 0.0
) -> Callable[[jax.Array], TrainState]:
    """`key -> state` at step 0, to be jitted with the shardings of the state."""

    def init_state(key: jax.Array) -> TrainState:
        params = init(key)
        return TrainState(jnp.int32(0), params, tx.init(params), params if ema else None)

    return init_state


def make_step(
    augment: Callable[[jax.Array, dict], dict],
    loss: Callable[[Any, dict], jax.Array],
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    key: jax.Array,
    accumulation: int = 1,
    ema: float = 0.0,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """`state, batch -> state, figures`, to be jitted with a donated state.

    Args:
      augment: draws all that is random, for the *global* batch and before it is cut, from
        `fold_in(key, step)`: masks and crops depend neither on devices nor on `accumulation`.
      loss: of an augmented batch or of a part of it, a mean over samples.
      accumulation: parts that the batch is computed in, one after the other: the same result.
      ema: decay of a moving average of the parameters; 0 = none.
    """

    def step(state: TrainState, batch: dict):
        batch = augment(jax.random.fold_in(key, state.step), batch)
        value, gradients = accumulate(loss, state.params, batch, accumulation)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = optax.incremental_update(params, state.ema, 1 - ema) if ema else None
        figures = {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, params, opt_state, average), figures

    return step


def accumulate(loss: Callable, params, batch: dict, parts: int):
    """Loss and gradients of a batch, computed on `parts` equal parts of it one after the other."""
    value_and_grad = jax.value_and_grad(loss)
    if parts == 1:
        return value_and_grad(params, batch)
    # Part i is every parts-th sample: each device cuts its own share, nothing moves between them.
    cut = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    add = lambda total, part: (jax.tree.map(jnp.add, total, value_and_grad(params, part)), None)
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, zero, cut)
    return jax.tree.map(lambda x: x / parts, total)
