"""LARS (You et al., arXiv 1708.03888), which trains linear probes with large batches."""

import jax
import optax


def optimizer(
    schedule: optax.Schedule, *, momentum: float, weight_decay: float, trust: float = 0.001
) -> optax.GradientTransformation:
    """Return LARS as the reference trains linear probes with it.

    Kernels are decayed and scaled by the trust ratio, biases are neither; momentum is kept of the
    scaled gradients and the learning rate comes last.
    """
    matrices = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, matrices),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust), matrices),
        optax.trace(momentum),
        optax.scale_by_learning_rate(schedule),
    )
