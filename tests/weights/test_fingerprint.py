"""A fingerprint tells every bit and every place, and not the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mae_jax.distributed import device_mesh
from mae_jax.weights import fingerprint


def of(x) -> list[int]:
    return fingerprint.of({"x": jnp.asarray(x)})[0]["x"]


def values(dtype) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 40)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32, np.uint8])
def test_every_flipped_bit_is_seen(dtype):
    x = values(dtype)
    raw, true = x.tobytes(), of(x)
    for place in np.random.default_rng(1).choice(8 * len(raw), 40, replace=False):
        damaged = bytearray(raw)
        damaged[place // 8] ^= 1 << place % 8
        assert of(np.frombuffer(bytes(damaged), x.dtype).reshape(x.shape)) != true


@pytest.mark.parametrize("bit", [31, 30, 0])
def test_flips_of_the_same_bit_do_not_cancel(bit):
    """Of two values, and of all of them: at bit 31 the array is negated."""
    x, rng = values(np.float32), np.random.default_rng(2)
    flip = lambda chosen: (x.view(np.uint32) ^ (chosen.astype(np.uint32) << bit)).view(np.float32)
    for _ in range(30):
        two = np.zeros(x.size, bool)
        two[rng.choice(x.size, 2, replace=False)] = True
        assert of(flip(two.reshape(x.shape))) != of(x)
    assert of(flip(np.ones(x.shape, bool))) != of(x)


def test_places_count():
    x = values(np.float32)
    assert of(x[::-1]) != of(x)
    swapped = x.copy()
    swapped[0, 0], swapped[5, 39] = x[5, 39], x[0, 0]
    assert of(swapped) != of(x)
    assert of(np.float32(-0.0)) != of(np.float32(0.0))


@pytest.mark.parametrize("spec", [P(), P("data"), P(None, ("data", "fsdp")), P("fsdp", "data")])
def test_the_mesh_does_not_count(spec):
    x = values(np.float32).reshape(8, 30).repeat(4, 1)
    mesh = device_mesh.make_mesh(data=2, fsdp=2)
    assert of(jax.device_put(x, NamedSharding(mesh, spec))) == of(x)


def test_what_is_not_finite_is_named():
    x = values(np.float32)
    tree = {"good": x, "steps": np.int32(3), "bad": {"worse": np.where(x == x.max(), np.nan, x)}}
    assert fingerprint.of(tree)[1] == ["bad/worse"]


def test_many_arrays_of_one_mesh():
    """Sums over devices, one after the other: at once they would wait for each other's threads."""
    mesh = device_mesh.make_mesh(data=2, fsdp=2)
    place = NamedSharding(mesh, P(None, "fsdp"))
    tree = {str(i): jax.device_put(values(np.float32) + i, place) for i in range(60)}
    sums, _ = fingerprint.of(tree)
    assert len({tuple(x) for x in sums.values()}) == 60
