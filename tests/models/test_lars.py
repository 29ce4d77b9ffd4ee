import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.models import lars


def test_lars_by_hand():
    """Two steps with another learning rate each: momentum is kept of scaled gradients."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    rates = [0.3, 0.7]
    tx = lars.optimizer(lambda i: jnp.array(rates)[i], momentum=0.9, weight_decay=0.01)
    ours = jax.tree.map(jnp.asarray, params)
    state = tx.init(ours)
    velocity = {name: np.zeros_like(x) for name, x in params.items()}
    for rate in rates:
        gradients = {name: rng.normal(size=x.shape) for name, x in params.items()}
        updates, state = tx.update(jax.tree.map(jnp.asarray, gradients), state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        for name, g in gradients.items():
            if name == "kernel":
                g = g + 0.01 * params[name]
                g = g * 0.001 * np.linalg.norm(params[name]) / np.linalg.norm(g)
            velocity[name] = 0.9 * velocity[name] + g
            params[name] = params[name] - rate * velocity[name]
    for name, x in params.items():
        np.testing.assert_allclose(ours[name], x, rtol=1e-5)
