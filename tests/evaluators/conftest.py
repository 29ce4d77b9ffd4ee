"""A small autoencoder and a small classifier, with what evaluators are built from."""

from collections.abc import Callable
from typing import Any

import jax
import pytest

from mae_jax import evaluators, tasks
from mae_jax.config import command_line, schema
from mae_jax.data import sources
from mae_jax.distributed import device_mesh

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def debug(name: str, **changes) -> Any:
    return schema.updated(command_line.load(f"configs/{name}.py:debug"), changes)


@pytest.fixture(scope="session")
def mesh():
    return device_mesh.make_mesh(-1, 1)


@pytest.fixture(scope="session")
def autoencoder():
    """Its model and variables."""
    task = tasks.build(debug("quickstart"), None, MEAN, STD)
    return task.model, jax.jit(task.init)(jax.random.key(0))


@pytest.fixture(scope="session")
def classifier():
    config = debug("finetune_quickstart", **{"model.head_std": 0.5})
    task = tasks.build(config, sources.open_source("synthetic", "train"), MEAN, STD)
    return task.model, jax.jit(task.init)(jax.random.key(0))


@pytest.fixture
def context(mesh) -> Callable[..., evaluators.Context]:
    """`context(model, **changes)` of the debug size; "same" means the generated pictures."""
    config = debug("quickstart")

    def make(model, **changes):
        fields = dict(data=config.data, mean=MEAN, std=STD, mesh=mesh, key=jax.random.key(7))
        fields |= dict(mask=config.mask)
        return evaluators.Context(model, **fields | changes)

    return make
