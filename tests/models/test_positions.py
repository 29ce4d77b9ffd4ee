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
    with pytest.raises(ValueError, match="width = 3 is too small"):
        positions.sincos((2, 2), 3)
