"""Learning-rate schedule and optimiser: rules over a tree of parameters."""

import jax
import optax


def cosine_schedule(
    base_learning_rate: float, batch_size: int, steps: int, warmup: int
) -> optax.Schedule:
    """Per step: linear from 0 to `base_learning_rate * batch_size / 256`, then half a cosine to 0.

    `steps` counts the warm-up in. The linear scaling rule is Goyal et al., arXiv 1706.02677.
    """
    peak = base_learning_rate * batch_size / 256
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, end_value=0.0)


DECAYED = {"kernel", "cls", "mask_token"}  # norms and biases are not, tokens are: as the reference


def decayed(params):
    """Which leaves weight decay applies to, by the last part of their names."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def adamw(
    schedule: optax.Schedule, *, b1: float, b2: float, weight_decay: float, clip: float
) -> optax.GradientTransformation:
    """AdamW, behind a clip of the gradient's global norm to `clip` unless that is 0."""
    tx = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(clip), tx) if clip else tx
