"""Linear classifiers of frozen features."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int


def linear(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
) -> float:
    """Accuracy of a logistic regression (scikit-learn, L2 with C = 1); standardise first."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(max_iter=200).fit(train, train_labels)
    return float(probe.score(test, test_labels))


def fit_lars(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    *,
    epochs: int = 90,
    learning_rate: float = 6.4,
    seed: int = 0,
) -> float:
    """Accuracy of a linear classifier trained as He et al. 2021 do (table 10); standardise first.

    Standardised features are what the recipe's BatchNorm makes of features that do not change. With
    fewer than ImageNet's examples the batch is smaller than the recipe's 16,384, for as many steps
    in an epoch (78), and the learning rate stays that of the recipe, 6.4: LARS does not feel the
    size of a gradient, and with the linear rule it would hardly move.
    """
    n, classes = len(train), int(train_labels.max()) + 1
    batch = min(n, 16_384, max(256, n // 78))
    steps = n // batch
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, epochs * steps // 9, epochs * steps
    )
    tx = lars(schedule, momentum=0.9, weight_decay=0.0)
    start, order = jax.random.split(jax.random.key(seed))
    head = {
        "kernel": 0.01 * jax.random.normal(start, (train.shape[1], classes)),
        "bias": jnp.zeros(classes),
    }
    logits = lambda head, x: x @ head["kernel"] + head["bias"][None]

    @jax.jit
    def epoch(head, opt_state, key, x, labels):
        def step(carry, chosen):
            head, opt_state = carry

            def loss(head):
                y = logits(head, x[chosen])
                return optax.softmax_cross_entropy_with_integer_labels(y, labels[chosen]).mean()

            updates, opt_state = tx.update(jax.grad(loss)(head), opt_state, head)
            return (optax.apply_updates(head, updates), opt_state), None

        batches = jax.random.permutation(key, n)[: steps * batch].reshape(steps, batch)
        return jax.lax.scan(step, (head, opt_state), batches)[0]

    x, labels = jnp.asarray(train, jnp.float32), jnp.asarray(train_labels)
    opt_state = tx.init(head)
    for i in range(epochs):
        head, opt_state = epoch(head, opt_state, jax.random.fold_in(order, i), x, labels)
    kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
    return float(((test @ kernel + bias).argmax(1) == test_labels).mean())


def lars(
    schedule: optax.Schedule, *, momentum: float, weight_decay: float, trust: float = 0.001
) -> optax.GradientTransformation:
    """LARS (You et al., arXiv 1708.03888) as the reference probes with it.

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
