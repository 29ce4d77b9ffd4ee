"""The schedule of the learning rate, and optimizers with rules over the names of parameters."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from mae_jax.models import lars


def cosine_schedule(
    base_learning_rate: float, batch_size: int, steps: int, warmup: int, final: float = 0.0
) -> optax.Schedule:
    """Return a schedule: linear to `base_learning_rate * batch_size / 256`, then half a cosine.

    The cosine ends at `final`, which is not scaled by the batch. `steps` includes the warm-up. The
    linear scaling rule is that of Goyal et al., arXiv 1706.02677.
    """
    peak = base_learning_rate * batch_size / 256
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, end_value=final)


def extended(
    schedule: optax.Schedule, longer: optax.Schedule, step: int, rise: int
) -> optax.Schedule:
    """Return `schedule` up to `step` and `longer` after it, without a jump between them.

    Their difference at `step` is closed linearly within `rise` steps. A cosine that had ended rises
    again, to its value in the longer run: re-warming, as in Ibrahim et al., arXiv 2403.08763. If
    both are the same up to `step`, as in the warm-up, `longer` is returned.
    """
    until, gap = jnp.arange(step), jnp.asarray(longer(step)) - jnp.asarray(schedule(step))
    if gap == 0 and jnp.array_equal(schedule(until), longer(until)):
        return longer

    def value(count):
        left = 1 - jnp.clip((count - step) / rise, 0, 1)
        return jnp.where(count <= step, schedule(count), longer(count) - gap * left)

    return value


def make_optimizer(
    options: Mapping[str, Any], schedule: optax.Schedule, decayed: Collection[str], depth: int
) -> optax.GradientTransformation:
    """Build the optimizer that the section `optimizer` of a config describes.

    Args:
      decayed: see `adamw`.
      depth: number of the encoder's blocks, for the layer decay.
    """
    if options.get("name") == "lars":
        momentum, weight_decay = options["momentum"], options["weight_decay"]
        return lars.optimizer(schedule, momentum=momentum, weight_decay=weight_decay)
    names = ("b1", "b2", "weight_decay", "clip", "mu_dtype", "layer_decay")
    options = {name: options[name] for name in names if name in options}
    return adamw(schedule, **options, decayed=decayed, depth=depth)


def adamw(
    schedule: optax.Schedule,
    *,
    clip: float,
    decayed: Collection[str],
    layer_decay: float = 1.0,
    depth: int = 0,
    **options: Any,
) -> optax.GradientTransformation:
    """Build AdamW behind a clip of the gradient's global norm to `clip`; 0 clips none.

    Args:
      decayed: last parts of the names of parameters with weight decay.
      layer_decay: the learning rate of layer l of `depth` blocks is multiplied by
        `layer_decay ** (depth + 1 - l)`, see `layer_of`.
      options: options of `optax.adamw`.
    """
    mask = lambda params: by_name(lambda name: name.split("/")[-1] in decayed, params)
    parts: list[Any] = [optax.clip_by_global_norm(clip)] if clip else []
    parts.append(optax.adamw(schedule, mask=mask, **options))
    if layer_decay != 1:
        # behind AdamW: the reference scales the learning rate, and so the weight decay as well
        scale = lambda name: layer_decay ** (depth + 1 - layer_of(name, depth))
        scaled = lambda updates, _: jax.tree.map(jnp.multiply, updates, by_name(scale, updates))
        parts.append(optax.stateless(scaled))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def layer_of(name: str, depth: int) -> int:
    """Return the reference's number of a parameter's layer: 0, i + 1 in block i, or depth + 1.

    Source: BEiT (arXiv 2106.08254) and He et al. 2021, appendix A.2.
    """
    if block := re.match(r"encoder/block_(\d+)/", name):
        return int(block[1]) + 1
    first = r"encoder/(cls|registers|positions(_\w+)?|embedding/.*)$"
    return 0 if re.match(first, name) else depth + 1


def by_name(rule: Callable[[str], Any], params):
    """Return a tree of `rule(name)`, with names such as `encoder/block_3/mlp/fc1/kernel`."""
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(lambda path, _: rule(name(path)), params)


def split(params: dict, trainable: str) -> tuple[dict, dict]:
    """Return the parameters whose whole names match the expression `trainable`, and the others.

    Raises:
      ValueError: no name matches.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    trained = {name: x for name, x in flat.items() if re.fullmatch(trainable, name)}
    if not trained:
        raise ValueError(
            f"trainable = {trainable!r} matches no parameter: they are called "
            f"{next(iter(flat))} ... {list(flat)[-1]}"
        )
    frozen = {name: x for name, x in flat.items() if name not in trained}
    unflatten = lambda tree: traverse_util.unflatten_dict(tree, sep="/")
    return unflatten(trained), unflatten(frozen)


def merge(trained: dict, frozen: dict) -> dict:
    """Return the parameters of both dicts, as before `split`; `trained` wins over `frozen`."""
    flatten = lambda tree: traverse_util.flatten_dict(tree, sep="/")
    return traverse_util.unflatten_dict(flatten(frozen) | flatten(trained), sep="/")
