"""Tasks: pre-training and classification."""

from mae_jax.tasks import classify, pretrain
from mae_jax.tasks.task import Task

TASKS = {"pretrain": pretrain.build, "classify": classify.build}


def build(config, source, mean, std) -> Task:
    """Build the task that a config describes.

    Args:
      source: the training examples; a classifier has their classes.
      mean, std: statistics of each channel, of inputs in [0, 1].

    Raises:
      ValueError: the examples do not fit the task.
    """
    return TASKS[config.task](config, source, mean, std)
