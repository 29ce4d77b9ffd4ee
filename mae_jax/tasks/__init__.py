"""Tasks: pre-training, classification and regression."""

from mae_jax.data.target_scale import TargetScale
from mae_jax.tasks import classify, pretrain, regress
from mae_jax.tasks.task import Task

TASKS = {"pretrain": pretrain.build, "classify": classify.build, "regress": regress.build}


def build(config, source, mean, std, targets: TargetScale | None = None) -> Task:
    """Build the task that a config describes.

    Args:
      source: the training examples; a classifier has their classes.
      mean, std: statistics of each channel, of inputs in [0, 1].
      targets: the scale of the numbers that a regressor predicts.

    Raises:
      ValueError: the examples do not fit the task.
    """
    return TASKS[config.task](config, source, mean, std, *([targets] if targets else []))
