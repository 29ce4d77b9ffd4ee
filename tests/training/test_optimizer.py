import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.tasks import pretrain
from mae_jax.training import optimizer


def test_the_schedule_is_the_references_per_step():
    """Linear warm-up from 0, then half a cosine to 0, at 1.5e-4 * 4096 / 256 for ImageNet."""
    per_epoch, epochs, warmup = 312, 800, 40
    schedule = optimizer.cosine_schedule(1.5e-4, 4096, epochs * per_epoch, warmup * per_epoch)
    peak = 1.5e-4 * 16
    for step in [0, 1, 100, 12479, 12480, 12481, 100_000, 249_599, 249_600]:
        epoch = step / per_epoch
        if epoch < warmup:
            expected = peak * epoch / warmup
        else:
            expected = peak * 0.5 * (1 + np.cos(np.pi * (epoch - warmup) / (epochs - warmup)))
        np.testing.assert_allclose(schedule(step), expected, rtol=2e-5, atol=1e-10)


def test_one_step_is_adamw_by_hand():
    params = {"kernel": jnp.ones((2, 2)), "cls": jnp.ones((1, 2)), "bias": jnp.ones(2)}
    gradients = jax.tree.map(lambda x: 0.5 * x, params)
    tx = optimizer.adamw(
        lambda step: 0.1, b1=0.9, b2=0.95, weight_decay=0.05, clip=0.0, decayed=pretrain.DECAYED
    )
    updates, _ = tx.update(gradients, tx.init(params), params)
    # bias-corrected, the first step is lr * sign(gradient), and decay is on what is not 1-D
    for name, decay in (("kernel", 0.05), ("cls", 0.05), ("bias", 0.0)):
        np.testing.assert_allclose(updates[name], -0.1 * (1 + decay), rtol=1e-6)


@pytest.mark.parametrize("clip", [0.0, 1e-9])
def test_clip(clip):
    """AdamW does not feel the size of its first gradient, unless it is near its epsilon."""
    params = {"kernel": jnp.ones((2, 2))}
    tx = optimizer.adamw(lambda step: 0.1, b1=0.9, b2=0.95, weight_decay=0.0, clip=clip, decayed=())
    updates, _ = tx.update({"kernel": jnp.full((2, 2), 7.0)}, tx.init(params), params)
    expected = 0.1 * (0.5e-9 / (0.5e-9 + 1e-8) if clip else 1)
    np.testing.assert_allclose(updates["kernel"], -expected, rtol=1e-4)
