"""Linear functions of frozen features."""

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

from mae_jax.evaluators import classification, features, regression
from mae_jax.evaluators.evaluator import Context
from mae_jax.evaluators.feature_accuracy import FeatureAccuracy
from mae_jax.models import lars

SMALL = 2_000_000  # examples times classes up to which scikit-learn takes minutes at most
ITERATIONS = 1000  # of scikit-learn's solver, at most
ALPHAS = 10.0 ** np.arange(-4, 7)  # penalties of ridge regressions
_log = logging.getLogger(__name__)


class ClassScorer:
    """The accuracy of a linear classifier, by the solver "sklearn" or "lars".

    The solver "auto" is scikit-learn if that takes minutes at most.
    """

    what = "accuracy"
    name = "linear"

    def __init__(self, section: Mapping[str, Any], context: Context):
        self.solver = section["solver"]
        if self.solver == "auto":
            train = context.open(section["train"])
            count = min(len(train), section["examples"] or len(train))
            self.solver = "sklearn" if count * len(train.classes) <= SMALL else "lars"
        always = self.solver == "lars" and not section["standardize"]  # the recipe standardises
        self.titles = [f"linear ({self.solver}{', standardised' if always else ''})"]

    def __call__(self, *data: np.ndarray) -> tuple[dict[str, float], str]:
        if self.solver == "lars":
            return {self.name: self.by_lars(*data)}, ""
        score, converged = self.by_sklearn(*data)
        note = ""
        if not converged:
            note = f"the linear probe did not converge in {ITERATIONS:,} iterations"
            _log.warning(note)
        return {self.name: score}, note

    def by_lars(self, x, labels, test_x, test_labels) -> float:
        return lars_probe(x, labels, test_x, test_labels)

    def by_sklearn(self, x, labels, test_x, test_labels) -> tuple[float, bool]:
        """Return the score, and whether the solver converged."""
        return logistic_regression(x, labels, test_x, test_labels, ITERATIONS)


class ClassesScorer(ClassScorer):
    """The mean average precision of a logistic regression for each class."""

    what = "mAP"
    name = "linear_map"

    def by_lars(self, x, labels, test_x, test_labels) -> float:
        scores = lars_outputs(x, labels, test_x, labels.shape[1], _binary_loss)
        return classification.mean_average_precision(test_labels, scores)

    def by_sklearn(self, x, labels, test_x, test_labels) -> tuple[float, bool]:
        scores, converged = logistic_regressions(x, labels, test_x, iterations=ITERATIONS)
        return classification.mean_average_precision(test_labels, scores), converged


class NumberScorer:
    """R2 and the mean absolute error of a ridge regression."""

    what = "R2 and MAE"

    def __init__(self, section: Mapping[str, Any], context: Context):
        self.titles = ["linear (ridge) R2", "linear (ridge) MAE"]

    def __call__(self, x, labels, test_x, test_labels) -> tuple[dict[str, float], str]:
        found = regression.mean_scores(test_labels, ridge(x, labels, test_x))
        return {"linear_r2": found.r2, "linear_mae": found.mae}, ""


class LinearProbe(FeatureAccuracy):
    """How well a linear function of frozen features predicts labels."""

    scorers = {"class": ClassScorer, "classes": ClassesScorer, "number": NumberScorer}


def ridge(
    train: Float[np.ndarray, "n d"],
    train_labels: Float[np.ndarray, "n t"],
    test: Float[np.ndarray, "m d"],
    seed: int = 0,
) -> Float[np.ndarray, "m t"]:
    """Return the predictions of a ridge regression for each target.

    The penalty is one of `ALPHAS`: the one with the least squared error on a fifth of the training
    examples, drawn by `seed`, of the regression on the others. Examples whose target is NaN are
    left out.

    Raises:
      ValueError: fewer than two training examples have a target.
    """
    from sklearn.linear_model import Ridge

    train = train.astype(np.float64)
    predictions = np.empty((len(test), train_labels.shape[1]))
    order = np.random.default_rng(seed).permutation(len(train))
    for k, labels in enumerate(train_labels.T.astype(np.float64)):
        known = order[~np.isnan(labels[order])]
        if len(known) < 2:
            raise ValueError(f"a linear probe needs two training examples with target {k}")
        held, kept = np.split(known, [max(1, len(known) // 5)])
        fits = [Ridge(alpha).fit(train[kept], labels[kept]) for alpha in ALPHAS]
        errors = [np.mean((fit.predict(train[held]) - labels[held]) ** 2) for fit in fits]
        best = Ridge(ALPHAS[np.argmin(errors)]).fit(train[known], labels[known])
        predictions[:, k] = best.predict(test)
    return predictions


def logistic_regressions(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n classes"],
    test: Float[np.ndarray, "m d"],
    iterations: int = ITERATIONS,
) -> tuple[Float[np.ndarray, "m classes"], bool]:
    """Return the scores by a logistic regression for each class, and whether all converged.

    A class that is true of all training examples or of none has the same score everywhere.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    scores, converged = np.zeros((len(test), train_labels.shape[1])), True
    for k, labels in enumerate(train_labels.T):
        if labels.min() == labels.max():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe = LogisticRegression(max_iter=iterations, tol=1e-3).fit(train, labels)
        scores[:, k] = probe.decision_function(test)
        converged &= bool(np.max(probe.n_iter_) < iterations)
    return scores, converged


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
    epochs: int = 90,
) -> float:
    """Return the accuracy of a linear classifier trained by LARS, see `lars_outputs`."""
    loss = optax.softmax_cross_entropy_with_integer_labels
    classes = int(train_labels.max()) + 1
    outputs = lars_outputs(train, train_labels, test, classes, loss, epochs=epochs)
    return float((outputs.argmax(1) == test_labels).mean())


def _binary_loss(logits: Float[jax.Array, "b classes"], labels: Int[jax.Array, "b classes"]):
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean(-1)


def lars_outputs(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n *classes"],
    test: Float[np.ndarray, "m d"],
    outputs: int,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    epochs: int = 90,
    learning_rate: float = 6.4,
    seed: int = 0,
) -> Float[np.ndarray, "m outputs"]:
    """Return the outputs of a linear function trained as in He et al. 2021 (table 10).

    Features are standardised, as by the recipe's BatchNorm. With fewer examples than ImageNet has,
    the batch is smaller than the recipe's 16,384, so that an epoch keeps 78 steps. The learning
    rate is the recipe's, because LARS does not depend on the size of a gradient.

    Args:
      loss: of outputs [b outputs] and labels, for each example.
    """
    train, test = features.standardize(train, test)
    n = len(train)
    batch = min(n, 16_384, max(256, n // 78))
    tx, epoch = _lars_epoch(n, batch, epochs * (n // batch), learning_rate, loss)
    start, order = jax.random.split(jax.random.key(seed))
    kernel = 0.01 * jax.random.normal(start, (train.shape[1], outputs))
    head = {"kernel": kernel, "bias": jnp.zeros(outputs)}
    x, labels = jnp.asarray(train, jnp.float32), jnp.asarray(train_labels)
    opt_state = tx.init(head)
    for i in range(epochs):
        head, opt_state = epoch(head, opt_state, jax.random.fold_in(order, i), x, labels)
    kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
    return test @ kernel + bias


@functools.lru_cache(maxsize=8)
def _lars_epoch(
    n: int, batch: int, total: int, learning_rate: float, loss_of: Callable
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
                return loss_of(y, labels[chosen]).mean()

            updates, opt_state = tx.update(jax.grad(loss)(head), opt_state, head)
            return (optax.apply_updates(head, updates), opt_state), None

        batches = jax.random.permutation(key, n)[: steps * batch].reshape(steps, batch)
        return jax.lax.scan(step, (head, opt_state), batches)[0]

    return tx, epoch
