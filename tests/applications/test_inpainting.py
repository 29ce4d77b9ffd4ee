"""Inpainting: given pixels stay, masked ones have no influence, and tiles leave no seams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from PIL import Image

from mae_jax.applications import restore
from mae_jax.applications.restore import joining, masks, pyramid
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import device_mesh
from mae_jax.evaluators import loaded_model
from mae_jax.models import build, masking

RNG = np.random.default_rng(0)
SIZES = dict(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, threads=1)


@pytest.fixture(scope="module")
def network():
    kind, fields = tiny_models.MODELS["autoencoder"]
    model = build.model(kind, fields | dict(depth=1, decoder_depth=1))
    return model, jax.tree.map(lambda x: 0.2 * x, tiny_models.random_params(model))


@pytest.fixture(scope="module")
def inpainter(network):
    """`inpainter(devices, overlap, batch_size)`, each compiled once; floats stay as they are."""

    @functools.cache
    def make(devices=1, overlap=0.5, batch_size=1, reach=4.0, **data):
        loaded = loaded_model.of(*network, **SIZES, range="dtype", **data)
        mesh = device_mesh.make_mesh(devices=jax.devices()[:devices])
        return restore.Inpainter(loaded._replace(mesh=mesh), overlap, batch_size, reach)

    return make


def picture(*shape, dtype=np.float32) -> np.ndarray:
    x = RNG.random(shape)
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    return (x * (info.max - info.min) + info.min if info else x).astype(dtype)


def holes(*sides, share=0.02) -> np.ndarray:
    """Random pixels, and a box."""
    masked = RNG.random(sides) < share
    masked[3:9, 5:12] = True
    return masked


def by_hand(network, x, masked) -> np.ndarray:
    """The prediction for one picture of 16 x 16, in [0, 1]."""
    model, params = network
    x = jnp.asarray(x, jnp.float32)[None]
    scores = masking.pixels(jnp.asarray(masked)[None], (4, 4))
    mask = masking.from_scores(scores, int((scores == 0).sum()))

    def predict(x):
        out = model.apply({"params": params}, x, mask)
        return model.target.to_inputs(out.prediction, x, mask)

    return np.asarray(jax.jit(predict)((x - 0.5) / 0.25))[0] * 0.25 + 0.5


def test_a_picture_of_one_tile_has_the_prediction_of_the_model(network, inpainter):
    x, masked = picture(16, 16, 3), holes(16, 16)
    expected = np.where(masked[..., None], by_hand(network, x, masked), x)
    joined = joining.join(expected[masked], x, masked, 4.0)
    np.testing.assert_allclose(inpainter()(x, masked)[masked], joined, rtol=1e-5, atol=1e-5)
    found = inpainter(reach=0)(x, masked)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found - x)[masked].min() > 0


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8"])
def test_given_pixels_keep_their_bits_and_masked_ones_have_no_influence(inpainter, dtype):
    x, masked = picture(30, 37, 3, dtype=dtype), holes(30, 37)
    before = x.copy()
    found = inpainter()(x, masked)
    assert (found.dtype, found.shape) == (x.dtype, x.shape)
    np.testing.assert_array_equal(found[~masked], x[~masked])
    np.testing.assert_array_equal(x, before)
    assert (found != x)[masked].any(-1).mean() > 0.9
    other = x.copy()
    other[masked] = np.nan if other.dtype.kind == "f" else 7
    np.testing.assert_array_equal(inpainter()(other, masked), found)


def test_whole_numbers_are_rounded_in_their_own_units(inpainter):
    x, masked = picture(16, 16, 3, dtype="u2"), holes(16, 16)
    found = inpainter()(x, masked)
    expected = np.rint(65535 * inpainter()(x / np.float32(65535), masked).astype(float))
    assert np.abs(found - expected.clip(0, 65535)).max() <= 1


def test_compilations_are_bounded_whatever_the_masks(network):
    loaded = loaded_model.of(*network, **SIZES)
    loaded = loaded._replace(mesh=device_mesh.make_mesh(devices=jax.devices()[:1]))
    made = restore.Inpainter(loaded, batch_size=32)
    made._predict = jax.jit(lambda variables, batch, size: batch["image"], static_argnums=2)
    for side in (16, 20, 33, 60):
        for share in (0.0, 0.01, 0.03, 0.1):
            made(picture(side, 90 - side, 3, dtype="u1"), holes(side, 90 - side, share=share))
    assert made._predict._cache_size() == 8  # 1, 4, 16 or 32 tiles, with up to half or all masked


def test_any_number_of_devices_and_tiles_in_a_batch_give_the_same(inpainter):
    x, masked = picture(40, 30, 3), holes(40, 30, share=0.01)
    found = inpainter()(x, masked)
    np.testing.assert_allclose(inpainter(4, batch_size=4)(x, masked), found, rtol=1e-5, atol=1e-5)


def test_there_are_no_seams(network):
    """Tiles that say different things are blended: no step is above a fifth of the difference."""
    x, masked = picture(16, 160, 3), np.zeros((16, 160), bool)
    masked[6:10] = True

    def steps(overlap):
        """The steps along the hole, of tiles that each predict their own mean value."""
        loaded = loaded_model.of(*network, **SIZES, range="dtype")
        made = restore.Inpainter(loaded, overlap, reach=0)
        made._predict = lambda variables, batch, size: jnp.broadcast_to(
            batch["image"].mean((1, 2), keepdims=True), batch["image"].shape
        )
        return np.abs(np.diff(made(x, masked)[6:10], axis=1)).max((0, 2))  # [columns - 1]

    jumps = steps(0.0)
    assert (np.flatnonzero(jumps) == np.arange(15, 159, 16)).all()
    assert steps(0.5).max() < 0.2 * jumps.max() and (steps(0.5) > 0).mean() > 0.9


def test_a_hole_larger_than_a_tile_is_filled(inpainter):
    x, masked = np.full((70, 80, 3), 0.25, np.float32), np.zeros((70, 80), bool)
    masked[10:60, 10:70] = True
    found = inpainter()(x, masked)
    assert np.isfinite(found).all()
    assert (found[masked] != found[masked][0]).any()


def test_a_mask_with_a_pixel_in_each_patch_is_filled_from_the_pixels_between(inpainter):
    x, masked = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), bool)
    x[...] = np.arange(32)[:, None, None] * 4
    masked[1::3, 1::3] = True
    found = inpainter()(x, masked).astype(int)
    assert np.abs(found - x)[1:-1].max() <= 3


def test_what_the_model_does_not_see_of_a_level(inpainter):
    values = np.arange(35, dtype=np.float32).reshape(5, 7, 1)
    masked = np.zeros((5, 7), bool)
    masked[:2, :3] = masked[4, 6] = True
    values[0, 3] = values[2:4, 4:6] = np.nan
    level = pyramid.Level(values, masked).halved()
    assert level.values.shape == (3, 4, 1) and level.depth == 1
    assert level.masked.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert level.values[0, 1] == 10  # the only one of four that is given
    assert np.isnan(level.values[1, 2]) and level.values[2, 0] == 28.5
    ramp = np.arange(4.0, dtype=np.float32).reshape(4, 1, 1) + np.zeros((1, 3, 1), np.float32)
    found = pyramid.Level(ramp, ramp[..., 0] < 0).enlarged([np.array([2, 3]), np.array([4, 1])])
    np.testing.assert_allclose(found[:, 0], [0.75, 1.25])


@pytest.mark.parametrize("sides", [(40,), (20, 30), (8, 9, 10)])
def test_predictions_are_joined_to_the_pixels_around_them(sides):
    """An error that is the same everywhere vanishes at the border, and fades into the hole."""
    x = RNG.normal(size=(*sides, 2)).astype(np.float32)
    masked = np.zeros(sides, bool)
    masked[tuple(slice(2, -2) for _ in sides)] = True
    wrong = x[masked] + [[3.0, 0.0]]
    smooth = np.zeros_like(x)
    found = np.zeros(sides)
    found[masked] = joining.join(smooth[masked] + 3, smooth, masked, 2.0)[:, 0]
    middle = tuple(n // 2 for n in sides)
    border = tuple(2 if i == 0 else n for i, n in enumerate(middle))
    assert found[masked].min() >= 0 and found[masked].max() <= 3
    assert found[border] < 1.8 and found[middle] > found[border]
    far = joining.join(wrong, np.where(masked[..., None], x, np.nan), masked, 2.0)
    np.testing.assert_allclose(far, wrong, rtol=1e-5)  # nothing is given around the hole
    exact = joining.join(smooth[masked], smooth, masked, 2.0)
    np.testing.assert_array_equal(exact, 0)


def test_a_join_solves_its_equations():
    x, masked = picture(9, 12, 1), holes(9, 12, share=0.2)
    result = RNG.random((masked.sum(), 1)).astype(np.float32)
    filled = x.copy()
    filled[masked] = joining.join(result, x, masked, 3.0)
    change, before = np.zeros((9, 12)), x.copy()
    before[masked] = result
    change = (filled - before)[..., 0]
    for y, z in np.argwhere(masked):
        total = change[y, z] / 9
        for i, j in ((y - 1, z), (y + 1, z), (y, z - 1), (y, z + 1)):
            if 0 <= i < 9 and 0 <= j < 12:
                total += (
                    change[y, z] - change[i, j] if masked[i, j] else filled[y, z, 0] - x[i, j, 0]
                )
        assert abs(total) < 1e-4


def test_a_picture_smaller_than_a_tile(inpainter):
    x, masked = picture(9, 14, 3, dtype="u1"), np.zeros((9, 14), bool)
    masked[2:4, 6:] = True
    found = inpainter()(x, masked)
    np.testing.assert_array_equal(found[~masked], x[~masked])


def test_missing_values_stay_missing_where_they_are_given(inpainter):
    x, masked = picture(24, 24, 3), holes(24, 24, share=0)
    x[10:18, 12:] = x[4, 6] = np.nan
    with pytest.raises(Unreadable, match="data.nodata"):
        inpainter()(x, masked)
    found = inpainter(nodata="nan")(x, masked)
    np.testing.assert_array_equal(found[~masked], x[~masked])
    assert np.isfinite(found[masked]).all()
    x[~masked] = np.nan
    with pytest.raises(ValueError, match="nothing can be predicted"):
        inpainter(nodata="nan")(x, masked)


def test_gray_and_opaque_pictures_of_a_model_of_colors(inpainter, tmp_path):
    gray, masked = picture(16, 20, dtype="u1"), holes(16, 20)
    found = inpainter()(gray, masked)
    assert found.shape == gray.shape
    color = inpainter()(np.stack([gray] * 3, -1), masked)[masked] @ [0.299, 0.587, 0.114]
    assert np.abs(found[masked] - color).max() <= 1.01
    opaque = np.dstack([picture(16, 20, 3, dtype="u1"), np.full((16, 20), 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "a.png")
    found = inpainter()(tmp_path / "a.png", masked)
    assert found.shape == opaque.shape and (found[..., 3] == 255).all()
    np.testing.assert_array_equal(found[..., :3], inpainter()(opaque[..., :3], masked))


def test_pictures_that_the_model_would_not_restore(inpainter):
    clear = picture(16, 16, 4, dtype="u1")
    for x, match in (
        (clear, "without transparency"),
        (picture(16, 16, 2), "without other channels"),
        (picture(16, 16, 3) > 0.5, "save it as uint8"),
        (picture(3, 16, 3), "smaller than a patch"),
    ):
        with pytest.raises(Unreadable, match=match):
            inpainter()(x, holes(*x.shape[:2]))


def test_masks_that_fill_nothing_or_all_or_another_size(inpainter):
    x = picture(16, 16, 3)
    for masked, match in (
        (np.zeros((16, 16)), "0 everywhere"),
        (np.ones((16, 16)), "masks all pixels"),
        (holes(16, 20), r"of size \(16, 20\) and the picture of \(16, 16\)"),
    ):
        with pytest.raises(ValueError, match=match):
            inpainter()(x, masked)


def test_models_that_predict_no_pixels(network):
    kind, fields = tiny_models.MODELS["autoencoder"]
    for changes, match in (
        (dict(norm_pix=True), "norm_pix=False"),
        (dict(target_stride=(2, 2)), "every"),
    ):
        model = build.model(kind, fields | changes)
        with pytest.raises(ValueError, match=match):
            restore.inpaint(model, {}, picture(16, 16, 3), holes(16, 16), **SIZES)


def test_masks_in_files(tmp_path, caplog):
    masked, data = holes(20, 30), dict(modality="image", size=(16, 16))
    black = masked.astype(np.uint8) * 255
    color = np.stack([black] * 3, -1)
    opaque = np.dstack([color, np.full_like(black, 255)])
    for i, x in enumerate((black, color, opaque)):
        Image.fromarray(x).save(tmp_path / f"{i}.png")
        np.testing.assert_array_equal(masks.read(tmp_path / f"{i}.png", data), masked)
    np.save(tmp_path / "a.npy", masked)
    for given in (str(tmp_path / "a.npy"), masked, masked[..., None] * 0.5):
        np.testing.assert_array_equal(masks.read(given, data), masked)
    assert not caplog.text
    of_pillow = np.asarray(Image.fromarray(masked))  # its True is the byte 255, which XLA misreads
    assert masks.read(of_pillow, data).view(np.uint8).max() == 1
    soft = black.copy()
    soft[0, :3] = 9
    assert masks.read(soft, data)[0, :3].all()
    assert "other than 0 and 255: all but 0 are filled" in caplog.text
    Image.fromarray(black).save(tmp_path / "lossy.jpg", quality=50)
    clear = opaque.copy()
    clear[2, 2, 3] = 0
    for given, match in (
        (str(tmp_path / "lossy.jpg"), "save the mask as PNG"),
        (clear, "transparent pixels"),
        (color * np.array([1, 0, 0], np.uint8), "channels that differ"),
        (np.full((20, 30), np.nan), "not finite"),
        (masked[0], "no mask of 2 sides"),
    ):
        with pytest.raises(Unreadable, match=match):
            masks.read(given, data)
