import numpy as np
import pytest

from mae_jax.models import positions


def test_column_first_then_row_each_sin_then_cos():
    """Written out from the paper's reference layout, one entry at a time."""
    rows, columns, width = 3, 5, 16
    table = positions.sincos((rows, columns), width).reshape(rows, columns, width)
    for row in range(rows):
        for column in range(columns):
            for i in range(width // 4):
                frequency = 1 / 10000 ** (i / (width / 4))
                expected = [
                    np.sin(column * frequency),
                    np.cos(column * frequency),
                    np.sin(row * frequency),
                    np.cos(row * frequency),
                ]
                actual = table[row, column, i :: width // 4]
                np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_one_axis_is_the_transformers_table():
    table = positions.sincos((7,), 8)
    np.testing.assert_allclose(table[:, 0], np.sin(np.arange(7)), atol=1e-6)
    np.testing.assert_allclose(table[:, 4], np.cos(np.arange(7)), atol=1e-6)


def test_three_axes_fill_what_divides_and_leave_the_rest_zero():
    table = positions.sincos((2, 3, 4), 512)
    assert table.shape == (24, 512)
    assert (table[:, 510:] == 0).all()
    grid = table.reshape(2, 3, 4, 512)
    assert (grid[..., :170] == grid[:1, :1, :, :170]).all()  # the last axis comes first
    assert (grid[..., 340:510] == grid[:, :1, :1, 340:510]).all()
    assert len(np.unique(table, axis=0)) == 24


def test_too_narrow():
    with pytest.raises(ValueError, match="width 3 is too small"):
        positions.sincos((2, 2), 3)


def test_resizing_keeps_cls_and_what_is_constant_or_the_same():
    table = np.random.default_rng(0).normal(size=(13, 5)).astype(np.float32)
    np.testing.assert_array_equal(positions.resize(table, (3, 4), (3, 4)), table)
    larger = positions.resize(table, (3, 4), (6, 10))
    assert larger.shape == (61, 5)
    np.testing.assert_array_equal(larger[0], table[0])
    np.testing.assert_allclose(positions.resize(np.ones((13, 5)), (3, 4), (7, 2)), 1)
    mirrored = np.concatenate([table[:1], table[1:].reshape(3, 4, 5)[:, ::-1].reshape(-1, 5)])
    grid = larger[1:].reshape(6, 10, 5)
    again = positions.resize(mirrored, (3, 4), (6, 10))[1:].reshape(6, 10, 5)
    np.testing.assert_allclose(again[:, ::-1], grid, atol=1e-6)
    with pytest.raises(ValueError, match=r"13 positions is not one of cls and a grid \(4, 4\)"):
        positions.resize(table, (4, 4), (2, 2))


@pytest.mark.parity
@pytest.mark.parametrize("new", [(14, 14), (24, 24), (5, 9), (7, 3)])
def test_resizing_is_pytorchs_bicubic(new):
    import torch

    table = np.random.default_rng(0).normal(size=(1 + 7 * 6, 4)).astype(np.float32)
    places = torch.tensor(table[1:].reshape(1, 7, 6, 4)).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(places, size=new, mode="bicubic", align_corners=False)
    theirs = theirs.permute(0, 2, 3, 1).reshape(-1, 4).numpy()
    np.testing.assert_allclose(positions.resize(table, (7, 6), new)[1:], theirs, atol=1e-5)
