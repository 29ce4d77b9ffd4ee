"""Train a tiny model on meshes of 8 devices, and on one: `python tests/mesh_shapes.py` prints what
`test_sharding.py` compares, as JSON."""

import json
import sys

import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", 8)

from mae_jax import tasks  # noqa: E402
from mae_jax.config import command_line, schema  # noqa: E402
from mae_jax.distributed import device_mesh, partitioning  # noqa: E402
from mae_jax.training import optimizer, program  # noqa: E402

BATCH, STEPS = 16, 3
partitioning.SMALL = 0  # cut the parameters of a tiny network too


def batch(i: int) -> dict:
    rng = np.random.default_rng(i)
    images = rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)
    return {"image": images, "label": np.zeros(BATCH, np.int32)}


def named(tree) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def directed(x: np.ndarray) -> list[float]:
    """The norm and a projection on a fixed random direction, which tells what stands where."""
    direction = np.random.default_rng(0).normal(size=x.shape)
    return [float(np.linalg.norm(x)), float((x * direction).sum())]


def train(data=1, fsdp=1, tensor=1, shard=False, **model) -> dict:
    """Losses, the first gradients, and how much of the state device 0 holds."""
    config = command_line.load("configs/quickstart.py:debug")
    model = dict(width=32, depth=1, heads=4) | model
    model |= dict(decoder_width=32, decoder_depth=1, decoder_heads=4)
    changes = {f"model.{name}": value for name, value in model.items()}
    changes |= {"data.size": (32, 32), "optimizer.shard": shard}
    config = schema.updated(config, changes)
    devices = jax.devices()[: data * fsdp * tensor]
    mesh = device_mesh.make_mesh(data, fsdp, tensor, devices=devices)
    task = tasks.build(config, None, (0.5,) * 3, (0.25,) * 3)
    schedule = optimizer.cosine_schedule(0.05, BATCH, 10, 0)
    made = program.make_program(config, task, mesh, schedule, jax.random.key(1))
    state = made.init(jax.random.key(0))
    losses = []
    for i in range(STEPS):
        state, figures = made.step(state, partitioning.place(batch(i), mesh))
        losses.append(float(figures["loss"]))
        if i == 0:  # after one step the first moment is a tenth of the gradient
            gradients = {name: directed(x) for name, x in named(state.opt_state[0].mu).items()}

    def held(tree):
        leaves = jax.tree.leaves(tree)
        return sum(x.addressable_shards[0].data.size for x in leaves) / sum(x.size for x in leaves)

    return {
        "losses": losses,
        "gradients": gradients,
        "held": [held(state.params), held(state.opt_state)],
    }


if __name__ == "__main__":
    print(json.dumps([train(**options) for options in json.loads(sys.argv[1])]))
