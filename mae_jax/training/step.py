"""The training step, from a state and a batch to the next state and metrics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from mae_jax.tasks import Task
from mae_jax.training import optimizer


@struct.dataclass
class TrainState:
    """The arrays that change during training. `step` counts finished updates.

    The optimizer's state and the average cover only the trained parameters.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None  # moving average of the parameters, if the config asks for one
    stats: Any = None  # running statistics of a BatchNorm, if the model has one
    loss_ema: Any = None  # moving average of the loss; 0 before the first step

    @property
    def best(self) -> dict[str, Any]:
        """The variables to evaluate, for `model.apply`: the average if there is one."""
        params = self.params if self.ema is None else optimizer.merge(self.ema, self.params)
        return {"params": params} | ({} if self.stats is None else {"batch_stats": self.stats})


def make_init(
    task: Task, tx: optax.GradientTransformation, ema: float = 0.0
) -> Callable[[Any], TrainState]:
    """Return the function from the variables of a model to the state at step 0, to be jitted."""

    def init_state(variables: Any) -> TrainState:
        params, stats = variables["params"], variables.get("batch_stats")
        trained, _ = optimizer.split(params, task.trainable)
        average = trained if ema else None
        return TrainState(jnp.int32(0), params, tx.init(trained), average, stats, jnp.float32(0))

    return init_state


def start_from(state: TrainState, params: dict, trainable: str = ".*") -> TrainState:
    """Return the state at step 0 with other parameters, such as pre-trained ones."""
    trained, _ = optimizer.split(params, trainable)
    copy = lambda new, old: jax.device_put(jnp.copy(new), old.sharding)  # as the optimizer's state
    average = None if state.ema is None else jax.tree.map(copy, trained, state.ema)
    return state.replace(params=params, ema=average)  # pyright: ignore[reportAttributeAccessIssue]


def make_step(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    key: jax.Array,
    *,
    accumulation: int = 1,
    ema: float = 0.0,
    max_loss_ratio: float = 0.0,
    guard: bool = False,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """Return the function `state, batch -> state, metrics`, to be jitted with a donated state.

    The metrics are `loss`, `gradient_norm`, `gradient_norms` (of each block and of the other parts
    of the network), `learning_rate`, `bad_update` (0 or 1), and those of the task's loss.

    Args:
      task: `task.augment` draws all that is random for the *global* batch, before it is cut, from
        `fold_in(key, step)`: masks and mixing depend neither on devices nor on `accumulation`.
        Nothing is computed or kept for parameters that `task.trainable` does not match.
      schedule: the schedule of `tx`; its count is the step of the state.
      accumulation: parts of the batch that are computed one after the other, to the same result.
      ema: decay of a moving average of the parameters; 0 = none.
      max_loss_ratio: see `is_good`.
      guard: leave bad updates out: the state stays as it was, but for its step. Otherwise bad
        updates are applied and reported, and the optimizer need not wait for all gradients.
    """

    def step(state: Any, batch: dict):
        batch = task.augment(jax.random.fold_in(key, state.step), batch)
        trained, frozen = optimizer.split(state.params, task.trainable)
        loss = lambda trained, *rest: task.loss(optimizer.merge(trained, frozen), *rest)
        (value, (metrics, stats)), gradients = accumulate(
            loss, trained, state.stats, batch, accumulation
        )
        squares = squares_of(gradients)
        norm = jnp.sqrt(sum(squares.values()))
        good, loss_ema = is_good(value, norm, state.loss_ema, max_loss_ratio), state.loss_ema
        loss_ema = jnp.where(loss_ema == 0, value, 0.99 * loss_ema + 0.01 * value)
        updates, opt_state = tx.update(gradients, at_step(state.opt_state, state.step), trained)
        params: Any = optax.apply_updates(trained, updates)
        average = optax.incremental_update(params, state.ema, 1 - ema) if ema else None
        old = state.replace(step=state.step + 1, params=trained)
        new = TrainState(old.step, params, opt_state, average, stats, loss_ema)
        choose = lambda new, old: jnp.where(good, new, old) if guard else new
        # with JAX_ENABLE_X64 some values become float64: the state keeps its types
        new = jax.tree.map(lambda new, old: choose(new, old).astype(old.dtype), new, old)
        metrics |= {
            "loss": value,
            "gradient_norm": norm,
            "learning_rate": schedule(state.step),
            "bad_update": 1.0 - good,
            "gradient_norms": {part: jnp.sqrt(x) for part, x in squares.items()},
        }
        return new.replace(params=optimizer.merge(new.params, frozen)), metrics

    return step


def is_good(loss: jax.Array, norm: jax.Array, loss_ema: jax.Array, max_loss_ratio: float):
    """Return whether the loss and the gradient's norm are finite, and the loss is not a spike.

    A spike is above `max_loss_ratio` times the moving average (over 100 steps or so); 0 = never.
    """
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    if not max_loss_ratio:
        return is_finite
    return is_finite & ((loss_ema == 0) | (loss <= max_loss_ratio * loss_ema))


def at_step(opt_state: Any, step: jax.Array) -> Any:
    """Return the optimizer's state with the schedule's count set to `step`.

    optax counts the updates that were applied; the schedule also counts steps without an update.
    """
    is_schedule = lambda x: isinstance(x, optax.ScaleByScheduleState)
    set_count = lambda x: x._replace(count=step) if is_schedule(x) else x
    return jax.tree.map(set_count, opt_state, is_leaf=is_schedule)


def squares_of(gradients: Any) -> dict[str, jax.Array]:
    """Return the squared norm of each part of a network, such as `encoder/block_3`."""
    squares: dict[str, Any] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(gradients):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        part = "/".join(names[:2] if len(names) > 2 else names[:1])
        squares[part] = squares.get(part, 0.0) + jnp.square(x).sum()
    return squares


def accumulate(loss: Callable, params, stats, batch: dict, parts: int):
    """Return `((loss, (metrics, stats)), gradients)` of a batch, computed on `parts` equal parts.

    The parts come one after the other, and share the statistics `stats` of a BatchNorm.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return value_and_grad(params, stats, batch)
    # Part i is every parts-th sample: each device cuts its own share, nothing moves between them.
    cut = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total, part):
        (value, (metrics, _)), gradients = value_and_grad(params, stats, part)
        return jax.tree.map(jnp.add, total, (value, metrics, gradients)), None

    first = jax.tree.map(lambda x: x[0], cut)
    (value, (metrics, _)), _ = jax.eval_shape(value_and_grad, params, stats, first)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (value, metrics, params))
    total, _ = jax.lax.scan(add, zero, cut)
    value, metrics, gradients = jax.tree.map(lambda x: x / parts, total)
    return (value, (metrics, stats)), gradients
