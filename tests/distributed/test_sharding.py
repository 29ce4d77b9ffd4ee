"""Eight devices train as one does, whatever the mesh; each holds its share, by the table."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mae_jax.distributed import device_mesh, partitioning, processes

ROOT = Path(__file__).parents[2]
MESHES = [
    dict(data=8),
    dict(fsdp=8),
    dict(data=2, tensor=4, attention="pallas"),
    dict(data=8, shard=True),
    dict(data=2, fsdp=2, tensor=2, shard=True, scan=True, remat="inputs", depth=2),
]


def on_one(mesh: dict) -> dict:
    """One device, with as many blocks as on this mesh."""
    return {"depth": mesh.get("depth", 1)}


@pytest.fixture(scope="module")
def runs():
    """What each mesh computes and holds, and one device, by its options."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    several = [dict(depth=1), dict(depth=2), *MESHES]
    command = [sys.executable, ROOT / "tests" / "mesh_shapes.py", json.dumps(several)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(map(str, several), json.loads(done.stdout), strict=True))


@pytest.mark.optimised
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_eight_devices_train_as_one(runs, mesh):
    one, run = runs[str(on_one(mesh))], runs[str(mesh)]
    np.testing.assert_allclose(run["losses"], one["losses"], rtol=1e-5)
    assert one["losses"][-1] < one["losses"][0]
    for name, (norm, projection) in one["gradients"].items():
        if not name.endswith("key/bias"):  # it cancels in the softmax: all is rounding
            np.testing.assert_allclose(
                run["gradients"][name],
                [norm, projection],
                rtol=1e-5,
                atol=2e-5 * norm,
                err_msg=name,
            )


def test_each_device_holds_its_share(runs):
    held = {mesh: run["held"] for mesh, run in runs.items()}
    assert held[str(dict(data=8))] == [1, 1]
    params, moments = held[str(dict(data=8, shard=True))]
    assert params == 1 and moments < 0.2  # 1/8, and what 8 does not divide
    assert held[str(dict(fsdp=8))][0] < 0.2
    params, moments = held[str(MESHES[-1])]
    assert params < 0.4 and moments < 0.2


def mesh_of(data, fsdp, tensor):
    return jax.sharding.AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"))


def test_the_table_names_heads_and_the_width_of_the_mlp():
    mesh = mesh_of(2, 4, 2)
    spec = lambda name, *shape, **more: partitioning.spec_of(f"encoder/{name}", shape, mesh, **more)
    assert spec("block_0/attention/query/kernel", 768, 768) == P("fsdp", "tensor")
    assert spec("block_0/attention/out/kernel", 768, 768) == P("tensor", "fsdp")
    assert spec("block_0/mlp/fc1/bias", 3072) == P("tensor")
    assert spec("block_0/mlp/fc2/bias", 768) == P(None)
    assert spec("block_0/norm1/scale", 768) == P(None)
    # what an axis does not divide stays whole on it
    assert spec("block_0/mlp/fc1/kernel", 770, 3072) == P(None, "tensor")
    # ZeRO-1 cuts what is left, an axis that is whole before one that is cut
    moment = lambda *shape: spec("0/mu/block_0/mlp/fc1/kernel", *shape, spread=True)
    assert moment(768, 3072) == P("fsdp", ("tensor", "data"))
    assert moment(768, 3073) == P(("fsdp", "data"), None)
    assert spec("embedding/kernel", 588, 1280, spread=True) == P("data", "fsdp")


def test_a_parameter_and_its_moments_are_cut_alike():
    mesh = mesh_of(1, 2, 2)
    name, shape = "encoder/block_3/mlp/fc1/kernel", (768, 3072)
    assert partitioning.spec_of(f"opt_state/0/mu/{name}", shape, mesh) == partitioning.spec_of(
        f"params/{name}", shape, mesh
    )


class Chip(NamedTuple):
    """As much of a TPU v5e as arranging asks for."""

    id: int
    process_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    slice_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def test_on_a_slice_the_devices_that_talk_most_are_neighbours():
    """Sixteen chips in a square, four to a host."""
    places = [(x, y) for y in range(4) for x in range(4)]
    chips = [Chip(i, x // 2 + 2 * (y // 2), (x, y, 0)) for i, (x, y) in enumerate(places)]
    arranged = device_mesh._arrange(chips, (4, 4, 1))
    assert {chip.id for chip in arranged.flat} == set(range(16))
    for group in arranged[..., 0]:  # along fsdp
        coords = np.array([chip.coords for chip in group])
        assert (np.abs(np.diff(coords, axis=0)).sum(1) == 1).all()


def test_row_i_of_a_batch_is_example_i_whatever_the_order_of_the_devices():
    devices = np.array(jax.devices())[[2, 0, 3, 1]].reshape(2, 2, 1)
    mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"))
    batch = {"image": np.arange(24).reshape(8, 3), "label": np.arange(8)}
    placed = partitioning.place(batch, mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
    assert placed["label"].sharding == partitioning.batched(mesh)
    rows = [shard.data.tolist() for shard in placed["label"].addressable_shards]
    assert sorted(rows) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    np.testing.assert_array_equal(partitioning.local_rows(mesh, 8), np.arange(8))


@pytest.mark.parametrize(
    "count, index, words",
    [("two", "0", "JAX_NUM_PROCESSES = 'two' must be a whole"), ("2", "2", "must be below")],
)
def test_processes_that_cannot_be(count, index, words, monkeypatch):
    names = dict(COORDINATOR_ADDRESS="127.0.0.1:1", NUM_PROCESSES=count, PROCESS_ID=index)
    for name, value in names.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    with pytest.raises(ValueError, match=words):
        processes.start_processes()


def test_a_mesh_that_does_not_fit():
    with pytest.raises(ValueError, match="mesh.tensor = 3 do not fill the 4"):
        device_mesh.make_mesh(tensor=3)
