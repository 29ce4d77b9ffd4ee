"""Dense features: those of tiles, without seams, where the patches of the input lie."""

import functools

import jax
import numpy as np
import pytest
import tiny_models

import mae_jax
from mae_jax.data import arrays
from mae_jax.data.arrays import Frame
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import device_mesh
from mae_jax.evaluators import components, dense, features, held_out, tiles
from mae_jax.models import build, masking

RNG = np.random.default_rng(0)
DATA = dict(modality="volume", size=(16, 16), channels=3, threads=2, repeats=1)
SIZES = dict(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture(scope="module")
def network():
    model = tiny_models.model("autoencoder")
    return model, jax.tree.map(lambda x: 0.2 * x, tiny_models.random_params(model))


@pytest.fixture(scope="module")
def extract(network):
    """The features [*cells d] of an array, by the last block."""
    model, params = network

    @functools.cache  # compiled once
    def extractor(devices, data, *sizes):
        mesh = device_mesh.make_mesh(devices=jax.devices()[:devices])
        transform = held_out.EvalTransform(DATA | dict(data), (0.5,) * 3, (0.25,) * 3)
        return dense.DenseExtractor(model, features.Feature(), transform, mesh, *sizes)

    def run(x, overlap=0.5, devices=4, batch_size=256, **data):
        made = extractor(devices, tuple(data.items()), overlap, batch_size)
        return made({"params": params}, x)

    return run


def tokens_of(model, params, x) -> np.ndarray:
    """The tokens [b n d] of the patches of normalised inputs, by hand."""
    encode = jax.jit(lambda x: model.apply({"params": params}, x, method="encode")[0])
    return np.asarray(encode((x - 0.5) / 0.25))[:, 1:]


def pixels(*sides) -> np.ndarray:
    return RNG.random((*sides, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "cells, tile, overlap", [(17, 8, 0.5), (5, 8, 0.5), (30, 7, 0.3), (9, 1, 0)]
)
def test_tiles_cover_an_axis(cells, tile, overlap):
    tiling = tiles.cut((cells,), (tile,), overlap)
    covered = np.zeros(max(cells, tile), int)
    for (start,) in tiling.starts:
        covered[start : start + tile] += 1
        assert start == 0 or start + tile <= cells
    assert covered.min() >= 1 and len(set(tiling.starts)) == len(tiling.starts)


def test_windows_of_half_an_overlap_sum_to_one():
    tiling = tiles.cut((24, 24), (8, 8), 0.5)
    total = np.zeros((24, 24))
    for y, x in tiling.starts:
        total[y : y + 8, x : x + 8] += tiles.window((8, 8))
    np.testing.assert_allclose(total[4:-4, 4:-4], 1, rtol=1e-6)
    assert tiles.window((1, 3)).min() > 0


@pytest.mark.parametrize("cells", [(9, 14), (3, 20), (8, 8), (25, 3)])
def test_a_blend_is_the_weighted_mean_of_all_tiles(cells):
    """Row blocks give what one large array would, and equal tiles give exactly what they hold."""
    tiling = tiles.cut(cells, (8, 6), 0.4)
    values = [RNG.normal(size=(8, 6, 2, 3)).astype(np.float32) for _ in tiling.starts]
    values[0][:2, :, 1] = np.nan
    sides = tuple(map(max, cells, (8, 6)))
    total, weight = np.zeros((*sides, 2, 3)), np.zeros((*sides, 2, 1))
    for (y, x), tile in zip(tiling.starts, values, strict=True):
        own = tiles.window((8, 6))[..., None, None] * ~np.isnan(tile[..., :1])
        total[y : y + 8, x : x + 6] += own * np.nan_to_num(tile)
        weight[y : y + 8, x : x + 6] += own
    with np.errstate(invalid="ignore"):
        expected = (total / weight)[: cells[0], : cells[1]]
    np.testing.assert_allclose(np.concatenate([*tiles.blend(values, tiling)]), expected, atol=1e-5)
    ones = [np.full((8, 6, 1, 1), np.float32(0.1))] * len(values)
    assert (np.concatenate([*tiles.blend(ones, tiling)]) == np.float32(0.1)).all()


def test_an_input_of_one_tile_has_its_tokens(network, extract):
    model, params = network
    x = pixels(16, 16)
    found = extract(x).values
    expected = tokens_of(model, params, x[None]).reshape(4, 4, -1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(extract(x, batch_size=1, overlap=0).values, found)


def test_what_is_shifted_by_a_step_has_the_same_features(extract):
    """All tiles see the positions of the model's own grid."""
    x = pixels(48, 40)
    found, shifted = extract(x).values, extract(x[8:]).values
    np.testing.assert_allclose(shifted[2:], found[4:], atol=1e-4)
    assert np.abs(extract(x[4:]).values[2:] - found[3:]).max() > 0.01


def test_there_are_no_seams(extract):
    """Neighbours on two sides of a tile's end differ as others do; without overlap they jump."""
    x = 0.5 + 0.01 * pixels(64, 64)

    def ratio(overlap, period):
        found = extract(x, overlap).values
        steps = np.sqrt(np.square(np.diff(found, axis=1)).sum(-1)).mean(0)  # [columns - 1]
        border = np.arange(1, 16) % period == 0
        return steps[border].mean() / steps[~border].mean()

    assert ratio(0.5, 2) < 1 and ratio(0.5, 4) < 1
    assert ratio(0.0, 4) > 1.15


def test_any_number_of_devices_gives_the_same(extract):
    x = pixels(37, 50)
    one = extract(x, devices=1, batch_size=3).values
    np.testing.assert_allclose(extract(x).values, one, atol=1e-4)
    assert one.shape == (9, 12, 24)


def test_small_inputs_are_continued_at_their_end(extract):
    x = pixels(9, 24)
    padded = np.pad(x[:8], ((0, 8), (0, 0), (0, 0)), "edge")
    whole = np.pad(x, ((0, 7), (0, 0), (0, 0)), "edge")
    found = extract(x).values
    assert found.shape == (2, 6, 24)
    np.testing.assert_allclose(found, extract(whole).values[:2], atol=1e-4)
    assert np.abs(found - extract(padded).values[:2]).max() < 1


def test_inputs_that_do_not_fit(extract):
    with pytest.raises(Unreadable, match=r"size \(3, 20\) is smaller than a patch \(4, 4\)"):
        extract(pixels(3, 20), channel_axis="last")
    with pytest.raises(Unreadable, match="2 channels, not 3"):
        extract(np.zeros((20, 20, 2), np.float32))
    with pytest.raises(ValueError, match="overlap = 1 must be from 0 up to"):
        extract(pixels(20, 20), overlap=1)
    with pytest.raises(ValueError, match="of images, volumes and signals, not of text"):
        extract(pixels(20, 20), modality="text")
    with pytest.raises(Unreadable, match="features are not finite"):
        extract(1e38 * pixels(20, 20))


def test_only_parts_of_large_arrays_are_read(extract):
    x, asked = pixels(64, 32), []

    def read(part):
        asked.append(arrays.lengths(part, x.shape))
        return x[part]

    frame = Frame(np.diag([2.0, 3.0, 1.0]), "", corner=False)
    array = arrays.Array(x.shape, x.dtype, read, 2, spacing=(2.0, 3.0), frame=frame)
    found = extract(array)
    assert {*asked} == {(16, 16, 3)}
    np.testing.assert_allclose(found.values, extract(x).values, atol=1e-4)
    assert found.spacing == (8.0, 12.0) and found.frame is not None
    np.testing.assert_array_equal(found.frame.affine, [[8, 0, 3], [0, 12, 4.5], [0, 0, 1]])
    assert extract(array, spacing=(0.5, 0.25)).spacing == (8.0, 12.0)  # the file's comes first
    assert extract(x, spacing=(0.5, 0.25)).spacing == (2.0, 1.0)


@pytest.mark.parametrize(
    "size, patch, sides", [((32,), (4,), (50,)), ((8, 8, 8), (4,) * 3, (9, 8, 14))]
)
def test_other_numbers_of_axes(size, patch, sides):
    fields = dict(patch=patch, width=24, depth=1, heads=3, classes=0)
    model = build.model("Classifier", fields)
    params = tiny_models.random_params(model, size, 2)
    x = RNG.random((*sides, 2)).astype(np.float32)
    found = mae_jax.embed(x, model, params, dense=True, size=size, mean=(0, 0), std=(1, 1))
    assert found.values.shape == (*(n // 4 for n in sides), 24)
    first = mae_jax.embed(
        x[tuple(slice(n) for n in size)],
        model,
        params,
        dense=True,
        size=size,
        mean=(0, 0),
        std=(1, 1),
    )
    corner = (0,) * len(size)
    np.testing.assert_allclose(found.values[corner], first.values[corner], atol=1e-3)


def test_channel_groups_lie_side_by_side():
    fields = tiny_models.TINY | dict(channel_groups=((0, 1), (2,)), classes=0, pooling="cls")
    model = build.model("Classifier", fields)
    params = tiny_models.random_params(model)
    x = pixels(16, 16)
    found = mae_jax.embed(x, model, params, dense=True, modality="volume", **SIZES).values
    groups = tokens_of(model, params, x[None]).reshape(2, 4, 4, 24)
    np.testing.assert_allclose(found, np.concatenate([*groups], -1), atol=1e-3)


def test_components_are_those_of_a_singular_value_decomposition():
    x = (RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6)) + 7).astype(np.float32)
    parts = [x[:20].reshape(4, 5, 6), np.full((2, 6), np.nan, np.float32), x[20:]]
    found = components.fit(parts, 3)
    u, s, directions = np.linalg.svd(x - x.mean(0, dtype=np.float64), full_matrices=False)
    np.testing.assert_allclose(found.shares, (s**2 / (s**2).sum())[:3], rtol=1e-6)
    projected = found.project(x)
    np.testing.assert_allclose(np.abs(projected), np.abs(u * s)[:, :3], atol=1e-4)
    largest = np.abs(directions[:3]).argmax(1)
    assert (found.directions[largest, range(3)] > 0).all()
    assert np.isnan(found.project(parts[1])).all() and projected.dtype == np.float32
    with pytest.raises(ValueError, match="7 components of 50 feature vectors with 6 numbers"):
        components.fit(parts, 7)


def test_python_takes_paths_arrays_and_lists(network, tmp_path):
    model, params = network
    x = RNG.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    for i, picture in enumerate(x):
        np.save(tmp_path / f"{i}.npy", picture)
    paths = [str(tmp_path / f"{i}.npy") for i in range(3)]
    known = dict(SIZES, center_crop=1.0)
    table = mae_jax.embed(paths, model, params, **known)
    np.testing.assert_allclose(table, tokens_of(model, params, x / 255).mean(1), atol=1e-4)
    np.testing.assert_allclose(mae_jax.embed(x[1], model, params, **known), table[1], atol=1e-5)
    maps = mae_jax.embed(paths, model, params, dense=True, **known)
    for found, row in zip(maps, table, strict=True):
        np.testing.assert_allclose(found.values.mean((0, 1)), row, atol=1e-4)

    file = tiny_models.export(
        tmp_path / "m.safetensors",
        *tiny_models.MODELS["autoencoder"],
        params,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    for center_crop in (1.0, 0.875):
        kept = known | dict(center_crop=center_crop)
        expected = mae_jax.embed(paths[0], model, params, **kept)
        given = {} if center_crop == 0.875 else dict(center_crop=center_crop)
        np.testing.assert_allclose(mae_jax.embed(paths[0], file, **given), expected, atol=1e-4)
    with pytest.raises(ValueError, match="does not say mean, std of its inputs: give them"):
        mae_jax.embed(paths[0], model, params, size=(16, 16))
    (tmp_path / "1.npy").write_bytes(b"nothing")
    with pytest.raises(Unreadable, match="1.npy': not a .npy"):
        mae_jax.embed(paths, model, params, **known)


def test_patches_without_data_have_no_features(extract, network):
    """The others are those of an encoder that does not see what is missing."""
    model, params = network
    x = pixels(16, 16)
    x[4:8, :4], x[0, 0] = np.nan, np.nan
    found = extract(x, nodata="nan").values
    absent = np.zeros((4, 4), bool)
    absent[1, 0] = True
    np.testing.assert_array_equal(np.isnan(found).any(-1), absent)
    filled, mask = np.nan_to_num((x - 0.5) / 0.25)[None], masking.whole(~absent.reshape(1, 16))
    tokens, _ = model.apply({"params": params}, filled, mask, method="encode")
    expected = np.asarray(tokens)[0, 1:].reshape(4, 4, -1)
    np.testing.assert_allclose(found[~absent], expected[~absent], atol=1e-4)


def test_what_is_beyond_an_input_is_missing(extract):
    """A small input has the features of its own patches alone; missing values cross all tiles."""
    x = pixels(8, 40)
    x[4:, 12:20] = np.nan
    found = extract(x, nodata="nan").values
    other = np.concatenate([x, np.full((8, 40, 3), np.nan, np.float32)])
    np.testing.assert_allclose(found, extract(other, nodata="nan").values[:2], atol=1e-5)
    absent = np.zeros((2, 10), bool)
    absent[1, 3:5] = True
    np.testing.assert_array_equal(np.isnan(found).all(-1), absent)
    assert np.isnan(extract(np.full_like(x, np.nan), nodata="nan").values).all()


def test_signals_with_times_end_where_their_times_do():
    fields = dict(patch=(4,), width=24, depth=1, heads=3, classes=0)
    model = build.model("Classifier", fields)
    params = tiny_models.random_params(model, (16,), 1)
    x = np.stack([RNG.random(40), np.cumsum(RNG.random(40))], -1).astype(np.float32)
    known = dict(size=(16,), mean=(0,), std=(1,), bands=(0,), channel_axis="last")
    known |= dict(time_band=1, reference_spacing=(1,))
    found = mae_jax.embed(x, model, params, dense=True, **known).values
    assert found.shape == (10, 24) and np.isfinite(found).all()
    with pytest.raises(Unreadable, match="of length 12 has no times beyond its end: choose a size"):
        mae_jax.embed(x[:12], model, params, dense=True, **known)
