"""Learned tables of positions on another grid."""

import numpy as np
import pytest

from mae_jax.models import positions
from mae_jax.weights import resize_positions


def test_parts_of_separable_positions_are_resized_along_their_own_axes():
    time, space = positions.Separable(24).start((4, 3, 5)).values()
    old, new = (4, 3, 5), (8, 6, 5)
    later = resize_positions.resize_named("encoder/positions_time", time, old, new)
    wider = resize_positions.resize_named("encoder/positions_space", space, old, new)
    assert later.shape == (8, 24) and wider.shape == (1 + 30, 24)
    same = resize_positions.resize(np.concatenate([time[:1], time]), (4,), (8,))[1:]
    np.testing.assert_array_equal(later, same)
    np.testing.assert_array_equal(wider, resize_positions.resize(space, (3, 5), (6, 5)))
    np.testing.assert_array_equal(
        resize_positions.resize_named("x/positions_time", time, old, old), time
    )


def test_resizing_keeps_cls_and_what_is_constant_or_the_same():
    table = np.random.default_rng(0).normal(size=(13, 5)).astype(np.float32)
    np.testing.assert_array_equal(resize_positions.resize(table, (3, 4), (3, 4)), table)
    larger = resize_positions.resize(table, (3, 4), (6, 10))
    assert larger.shape == (61, 5)
    np.testing.assert_array_equal(larger[0], table[0])
    np.testing.assert_allclose(resize_positions.resize(np.ones((13, 5)), (3, 4), (7, 2)), 1)
    mirrored = np.concatenate([table[:1], table[1:].reshape(3, 4, 5)[:, ::-1].reshape(-1, 5)])
    grid = larger[1:].reshape(6, 10, 5)
    again = resize_positions.resize(mirrored, (3, 4), (6, 10))[1:].reshape(6, 10, 5)
    np.testing.assert_allclose(again[:, ::-1], grid, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"13 positions is not one of 1 class token\(s\) and a grid \(4, 4\)"
    ):
        resize_positions.resize(table, (4, 4), (2, 2))


@pytest.mark.parity
@pytest.mark.parametrize("new", [(14, 14), (24, 24), (5, 9), (7, 3)])
def test_resizing_is_pytorchs_bicubic(new):
    import torch

    table = np.random.default_rng(0).normal(size=(1 + 7 * 6, 4)).astype(np.float32)
    places = torch.tensor(table[1:].reshape(1, 7, 6, 4)).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(places, size=new, mode="bicubic", align_corners=False)
    theirs = theirs.permute(0, 2, 3, 1).reshape(-1, 4).numpy()
    np.testing.assert_allclose(resize_positions.resize(table, (7, 6), new)[1:], theirs, atol=1e-5)
