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
    """Per step: linear from 0 to `base_learning_rate * batch_size / 256`, then half a cosine.

    It ends at `final`, which is not scaled by the batch. `steps` counts the warm-up in. The linear
    scaling rule is Goyal et al., arXiv 1706.02677.
    """
    peak = base_learning_rate * batch_size / 256
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, end_value=final)


def make_optimizer(
    options: Mapping[str, Any], schedule: optax.Schedule, decayed: Collection[str], depth: int
) -> optax.GradientTransformation:
    """The optimizer that the section `optimizer` of a config describes.

    Args:
      decayed: see `adamw`.
      depth: blocks of the encoder, for the layer decay.
    """
    if options.get("name") == "lars":
        momentum, weight_decay = options["momentum"], options["weight_decay"]
        return lars.optimizer(schedule, momentum=momentum, weight_decay=weight_decay)
    names = ("b1", "b2", "weight_decay", "clip", "mu_dtype", "layer_decay")
    chosen = {name: options[name] for name in names if name in options}
    return adamw(schedule, **chosen, decayed=decayed, depth=depth)


def adamw(
    schedule: optax.Schedule,
    *,
    clip: float,
    decayed: Collection[str],
    layer_decay: float = 1.0,
    depth: int = 0,
    **options: Any,
) -> optax.GradientTransformation:
    """AdamW, behind a clip of the gradient's global norm to `clip` unless that is 0.

    Args:
      decayed: last parts of the names that weight decay applies to.
      layer_decay: the learning rate of layer l of `depth` blocks is multiplied by
        `layer_decay ** (depth + 1 - l)`, see `layer_of`.
      options: of `optax.adamw`.
    """
    mask = lambda params: by_name(lambda name: name.split("/")[-1] in decayed, params)
    parts: list[Any] = [optax.clip_by_global_norm(clip)] if clip else []
    parts.append(optax.adamw(schedule, mask=mask, **options))
    if layer_decay != 1:
        # behind AdamW, because the reference scales the rate, which its weight decay follows
        scale = lambda name: layer_decay ** (depth + 1 - layer_of(name, depth))
        scaled = lambda updates, _: jax.tree.map(jnp.multiply, updates, by_name(scale, updates))
        parts.append(optax.stateless(scaled))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def layer_of(name: str, depth: int) -> int:
    """The reference's number of a parameter's layer: embeddings 0, block i is i + 1, the rest last.

    Source: BEiT (arXiv 2106.08254) and He et al. 2021, appendix A.2.
    """
    if block := re.match(r"encoder/block_(\d+)/", name):
        return int(block[1]) + 1
    return 0 if re.match(r"encoder/(cls|positions(_\w+)?|embedding/.*)$", name) else depth + 1


def by_name(rule: Callable[[str], Any], params):
    """A tree of `rule(name)`, with names such as `encoder/block_3/attention/query/kernel`."""
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(lambda path, _: rule(name(path)), params)


def split(params: dict, trainable: str) -> tuple[dict, dict]:
    """The parameters whose whole name the expression `trainable` matches, and the frozen rest.

    Raises:
      ValueError: it matches none.
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
    """The inverse of `split`; where both have a parameter, `trained` counts."""
    flatten = lambda tree: traverse_util.flatten_dict(tree, sep="/")
    return traverse_util.unflatten_dict(flatten(frozen) | flatten(trained), sep="/")
