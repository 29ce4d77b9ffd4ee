"""Nearest neighbours are those of a stable sort, whatever the devices and the blocks."""

import jax
import numpy as np
import pytest

from mae_jax.distributed import device_mesh
from mae_jax.evaluators import neighbours

RNG = np.random.default_rng(0)


def mesh_of(*shape):
    return device_mesh.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])


@pytest.mark.parametrize("keys, queries", [(2**16, 1024), (7, 5)])
def test_equally_similar_ones_keep_their_order(keys, queries, monkeypatch):
    """Of signs, whose similarities are exact and often equal: then the first vector counts."""
    gallery, x = (RNG.choice([-1.0, 1.0], (n, 4)) for n in (50, 23))
    gallery[3] = 0
    monkeypatch.setattr(neighbours, "KEYS", keys)
    monkeypatch.setattr(neighbours, "QUERIES", queries)
    exact = (x / 2) @ (gallery / 2).T
    order = np.argsort(-exact, axis=1, kind="stable")
    for k in (9, 50):
        similarity, index = neighbours.nearest(gallery, x, k)
        np.testing.assert_array_equal(index, order[:, :k])
        np.testing.assert_array_equal(similarity, np.take_along_axis(exact, order, 1)[:, :k])


@pytest.mark.parametrize("metric, dtype", [("cosine", np.float32), ("euclidean", np.float16)])
def test_the_exact_neighbours_to_the_bit_on_any_devices(metric, dtype, monkeypatch):
    monkeypatch.setattr(neighbours, "KEYS", 64)
    gallery = RNG.normal(size=(300, 24)).astype(dtype)
    gallery[200] = gallery[100]  # on another device
    x = np.concatenate([RNG.normal(size=(20, 24)), gallery[100:101]]).astype(np.float32)
    found = [
        neighbours.Gallery(gallery, mesh_of(*shape), metric).search(x, 5)
        for shape in ((1, 1, 1), (1, 2, 2))
    ]
    exact = gallery.astype(np.float64)
    if metric == "cosine":
        unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
        scores = unit(x) @ unit(exact).T
    else:
        scores = -np.linalg.norm(x[:, None] - exact, axis=2)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    for similarity, index in found:
        np.testing.assert_array_equal(index, order)
        assert index[-1, :2].tolist() == [100, 200]
        expected = np.take_along_axis(scores, order, 1)
        np.testing.assert_allclose(similarity, expected, atol=2e-3 if metric != "cosine" else 1e-6)
        np.testing.assert_array_equal(similarity, found[0][0])
    monkeypatch.setattr(neighbours, "QUERIES", 8)  # another batch of queries
    similarity, index = neighbours.Gallery(gallery, mesh_of(4, 1, 1), metric).search(x, 5)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(similarity, found[0][0])


def test_each_device_holds_a_part(monkeypatch):
    monkeypatch.setattr(neighbours, "KEYS", 64)
    gallery = neighbours.Gallery(RNG.normal(size=(300, 8)), mesh_of(4, 1, 1))
    parts = [shard.data.shape for shard in gallery.blocks.addressable_shards]
    assert parts == [(2, 64, 8)] * 4  # 8 blocks for 300 vectors


def test_few_vectors():
    gallery = neighbours.Gallery(np.eye(3))
    similarity, index = gallery.search(np.eye(3)[1:], 20)
    np.testing.assert_array_equal(index, [[1, 0, 2], [2, 0, 1]])
    np.testing.assert_array_equal(similarity[:, 0], 1)
    assert neighbours.Gallery(np.empty((0, 3))).search(np.eye(3), 5)[1].shape == (3, 0)
    assert gallery.search(np.empty((0, 3)), 2)[1].shape == (0, 2)


def test_what_cannot_be_compared_is_refused():
    gallery = neighbours.Gallery(np.eye(3))
    with pytest.raises(ValueError, match=r"queries of shape \(2, 4\)"):
        gallery.search(np.ones((2, 4)), 1)
    with pytest.raises(ValueError, match="vector 1 of the queries is not finite"):
        gallery.search(np.array([[0.0] * 3, [0, np.nan, 0]]), 1)
    with pytest.raises(ValueError, match="vector 0 of the gallery is not finite"):
        neighbours.Gallery(np.full((1, 3), np.inf))
    with pytest.raises(ValueError, match="metric = 'l1' is none of cosine, euclidean"):
        neighbours.Gallery(np.eye(3), metric="l1")
