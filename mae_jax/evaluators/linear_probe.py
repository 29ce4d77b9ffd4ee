"""Linear classifiers of frozen features."""

import functools
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from mae_jax.evaluators import features
from mae_jax.evaluators.evaluator import Context
from mae_jax.evaluators.feature_accuracy import FeatureAccuracy
from mae_jax.models import lars

SMALL = 2_000_000  # examples times classes up to which scikit-learn takes minutes at most
ITERATIONS = 1000  # of scikit-learn's solver, at most
_log = logging.getLogger(__name__)


class LinearProbe(FeatureAccuracy):
    """The accuracy of a linear classifier, by the solver "sklearn" or "lars".

    The solver "auto" is scikit-learn if that takes minutes at most.
    """

    def __init__(self, section: Mapping[str, Any], context: Context):
        super().__init__(section, context)
        self.solver = section["solver"]
        if self.solver == "auto":
            train = context.open(section["train"])
            count = min(len(train), section["examples"] or len(train))
            self.solver = "sklearn" if count * len(train.classes) <= SMALL else "lars"
        always = self.solver == "lars" and not section["standardize"]  # the recipe standardises
        self.titles = [f"linear ({self.solver}{', standardised' if always else ''})"]

    def score(self, *data: np.ndarray) -> tuple[dict[str, float], str]:
        if self.solver == "lars":
            return {"linear": lars_probe(*data)}, ""
        accuracy, converged = logistic_regression(*data, iterations=ITERATIONS)
        note = ""
        if not converged:
            note = f"the linear probe did not converge in {ITERATIONS:,} iterations"
            _log.warning(note)
        return {"linear": accuracy}, note


def logistic_regression(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    iterations: int = ITERATIONS,
) -> tuple[float, bool]:
    """Return the accuracy of a logistic regression (L2, C = 1), and whether it converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # The accuracy does not change any more long before scikit-learn's own tolerance of 1e-4.
        probe = LogisticRegression(max_iter=iterations, tol=1e-3).fit(train, train_labels)
    converged = bool(np.max(probe.n_iter_) < iterations)
    return float(probe.score(test, test_labels)), converged


def lars_probe(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    *,
    epochs: int = 90,
    learning_rate: float = 6.4,
    seed: int = 0,
) -> float:
    """Return the accuracy of a linear classifier trained as in He et al. 2021 (table 10).

    Features are standardised, as by the recipe's BatchNorm. With fewer examples than ImageNet has,
    the batch is smaller than the recipe's 16,384, so that an epoch keeps 78 steps. The learning
    rate is the recipe's, because LARS does not depend on the size of a gradient.
    """
    train, test = features.standardize(train, test)
    n, classes = len(train), int(train_labels.max()) + 1
    batch = min(n, 16_384, max(256, n // 78))
    tx, epoch = _lars_epoch(n, batch, epochs * (n // batch), learning_rate)
    start, order = jax.random.split(jax.random.key(seed))
    kernel = 0.01 * jax.random.normal(start, (train.shape[1], classes))
    head = {"kernel": kernel, "bias": jnp.zeros(classes)}
    x, labels = jnp.asarray(train, jnp.float32), jnp.asarray(train_labels)
    opt_state = tx.init(head)
    for i in range(epochs):
        head, opt_state = epoch(head, opt_state, jax.random.fold_in(order, i), x, labels)
    kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
    return float(((test @ kernel + bias).argmax(1) == test_labels).mean())


@functools.lru_cache(maxsize=8)
def _lars_epoch(
    n: int, batch: int, total: int, learning_rate: float
) -> tuple[optax.GradientTransformation, Callable]:
    """Return LARS for `total` steps, and a function that trains an epoch, compiled once."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, total // 9, total)
    tx = lars.optimizer(schedule, momentum=0.9, weight_decay=0.0)
    steps = n // batch

    @jax.jit
    def epoch(head, opt_state, key, x, labels):
        def step(carry, chosen):
            head, opt_state = carry

            def loss(head):
                y = x[chosen] @ head["kernel"] + head["bias"][None]
                return optax.softmax_cross_entropy_with_integer_labels(y, labels[chosen]).mean()

            updates, opt_state = tx.update(jax.grad(loss)(head), opt_state, head)
            return (optax.apply_updates(head, updates), opt_state), None

        batches = jax.random.permutation(key, n)[: steps * batch].reshape(steps, batch)
        return jax.lax.scan(step, (head, opt_state), batches)[0]

    return tx, epoch
