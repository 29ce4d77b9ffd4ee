import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.data.augment import coordinates
from mae_jax.models import build, masking, positions


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


# --- coordinates

DATA = dict(size=(8, 12), reference_spacing=(2.0, 2.0))


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 4)])
def test_whole_coordinates_are_indices(grid):
    """Also where only the last axes have coordinates, as with channel groups."""
    index = [jnp.arange(n, dtype=jnp.float32)[None] for n in grid]
    for places in (index, index[1:] or index):
        table = positions.sincos_at(places, grid, 24)
        np.testing.assert_allclose(table[0], positions.sincos(grid, 24), atol=1e-5)


def test_coordinates_are_in_steps_of_the_reference():
    """A coarse input has the positions of every second patch; each axis has its own spacing."""
    batch = {"spacing": jnp.array([[2.0, 2.0], [4.0, 6.0]])}
    rows, columns = coordinates.of_batch(batch, DATA, (4, 4))
    np.testing.assert_allclose(rows, [[0, 1], [0, 2]])
    np.testing.assert_allclose(columns, [[0, 1, 2], [0, 3, 6]])
    table = positions.sincos_at((rows, columns), (2, 3), 16)[1].reshape(2, 3, 16)
    fine = positions.sincos((3, 7), 16).reshape(3, 7, 16)
    np.testing.assert_allclose(table, fine[::2, ::3], atol=1e-5)
    assert coordinates.of_batch(batch, {"size": (8, 12)}, (4, 4)) is None


def test_time_stamps_are_means_of_patches():
    data = dict(size=(6,), reference_spacing=(0.5,))
    times = jnp.array([np.arange(6) * 0.5, [0, 0.5, 1, 4, 4.5, 5]], jnp.float32)
    (ours,) = coordinates.of_batch({"times": times}, data, (3,))
    np.testing.assert_allclose(ours, [[0, 1], [0, 8 / 3]], atol=1e-6)


@pytest.mark.parametrize("groups", [(), ((0,), (1, 2))])
def test_the_reference_spacing_changes_nothing(groups):
    """The network, its decoder and a classifier; another spacing changes them."""
    fields = dict(patch=(4, 4), width=24, depth=1, heads=2, channel_groups=groups)
    decoder = dict(decoder_width=16, decoder_depth=1, decoder_heads=2)
    model = build.autoencoder(fields | decoder)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 12, 3)), jnp.float32)
    scores = jax.random.uniform(jax.random.key(0), (2, 6 * max(1, len(groups))))
    mask = masking.from_scores(scores, 3)
    variables = jax.jit(model.init)(jax.random.key(1), images, mask)

    @jax.jit
    def loss(spacing):
        places = coordinates.of_batch({"spacing": spacing}, DATA, model.patch)
        return model.apply(variables, images, mask, None, places).losses

    plain = jax.jit(model.apply)(variables, images, mask).losses
    changed = loss(jnp.array([[2.0, 2.0], [2.0, 3.0]]))
    np.testing.assert_allclose(loss(jnp.full((2, 2), 2.0)), plain, rtol=1e-5)
    np.testing.assert_allclose(changed[0], plain[0], rtol=1e-5)
    assert abs(changed[1] - plain[1]) > 1e-5
    classifier = build.classifier(fields | {"learned_positions": False})
    variables = jax.jit(classifier.init)(jax.random.key(1), images)
    places = coordinates.of_batch({"spacing": jnp.full((2, 2), 2.0)}, DATA, (4, 4))
    ours = jax.jit(lambda x: classifier.apply(variables, x, coordinates=places))(images)
    np.testing.assert_allclose(ours, jax.jit(classifier.apply)(variables, images), atol=1e-5)


def test_learned_tables_and_other_grids_refuse_coordinates():
    places = (jnp.zeros((1, 2)), jnp.zeros((1, 3)))
    for table in (
        positions.Learned(16),
        positions.Separable(16),
        positions.Fixed(16, formula=positions.interleaved),
    ):
        with pytest.raises(ValueError, match="use model.learned_positions=False"):
            table.init(jax.random.key(0), (2, 3), places)
    with pytest.raises(ValueError, match=r"are not those of a grid \(2, 4\)"):
        positions.Fixed(16).apply({}, (2, 4), places)
