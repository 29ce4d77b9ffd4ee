"""Denoising: blind spots, the strength of noise, adaptation, types."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_models
from PIL import Image
from scipy import ndimage
from skimage import data, restoration

from mae_jax.applications import denoise as command
from mae_jax.applications import restore
from mae_jax.applications.restore import noise
from mae_jax.applications.restore.adaptation import Adapter
from mae_jax.applications.restore.denoising import Denoiser, Options
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import decode, encode
from mae_jax.distributed import device_mesh
from mae_jax.evaluators import loaded_model
from mae_jax.models import build

KIND, FIELDS = tiny_models.MODELS["autoencoder"]
SHOWN = dict(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def on(devices, model, **data) -> loaded_model.LoadedModel:
    """A model of random parameters on some devices."""
    random = tiny_models.random_params(model, channels=len(data["mean"]))
    is_scale = lambda path: path[-1].key == "scale"
    params = jax.tree_util.tree_map_with_path(lambda p, x: 0.2 * x + is_scale(p), random)
    loaded = loaded_model.of(model, params, **data, threads=0)
    return loaded._replace(mesh=device_mesh.make_mesh(devices=jax.devices()[:devices]))


@pytest.fixture(scope="module")
def loaded():
    return on(1, tiny_models.model("autoencoder"), **SHOWN)


@pytest.fixture(scope="module")
def blind(loaded):
    return Denoiser(loaded, Options(combine=False, overlap=0.5))


@pytest.fixture(scope="module")
def denoiser(loaded, blind):
    """It also looks at the noisy values."""
    denoiser = Denoiser(loaded, Options(overlap=0.5))
    denoiser._predict = blind._predict
    return denoiser


def picture(shape=(21, 26, 3), dtype=np.uint8):
    x = np.random.default_rng(0).integers(0, 256, shape)
    return x.astype(dtype)


# --- blind spots


def predicted(denoiser, x) -> np.ndarray:
    return denoiser.predict(denoiser.loaded.params, denoiser.inputs.open(x))


def test_no_value_has_a_part_in_its_own_prediction(blind):
    """Another value changes predictions around it by tiles, and its own not in any bit."""
    x = picture()
    y = predicted(blind, x)
    assert y.shape == (21, 26, 3) and np.isfinite(y).all()
    for place in ((0, 0), (9, 13), (20, 25)):
        changed = x.copy()
        changed[place] += 128
        z = predicted(blind, changed)
        np.testing.assert_array_equal(z[place], y[place])
        assert (z != y).mean() > 0.05


def test_tiles_that_do_not_overlap_cover_a_picture(loaded, blind):
    alone = Denoiser(loaded, Options(combine=False, overlap=0))
    alone._predict = blind._predict
    assert np.isfinite(predicted(alone, picture((40, 33, 3)))).all()


def test_patches_are_shared_out_among_groups_that_fit(loaded):
    found = Denoiser(on(1, loaded.model, **SHOWN | dict(size=(28, 28))))
    assert found.scores.shape == (7, 1, 49) and found.keep == 42


def test_places_of_the_patch_grid_differ_between_tiles(blind, monkeypatch):
    found, whole = [], blind._tiles
    monkeypatch.setattr(blind, "_tiles", lambda *args: found.append(args[-1]) or whole(*args))
    predicted(blind, picture((40, 40, 3)))
    assert {corner[0] % 4 for corner in found[0].starts} == {0, 1, 2}


def test_a_result_does_not_depend_on_the_batch_or_the_devices(blind):
    many = on(4, blind.loaded.model, **SHOWN)
    other = Denoiser(many, dataclasses.replace(blind.options, batch_size=3))
    x = picture()
    np.testing.assert_allclose(predicted(other, x), predicted(blind, x), rtol=1e-4, atol=1e-5)


# --- sigma


@pytest.mark.parametrize("sigma", [5, 15, 40])
def test_sigma_is_that_of_scikit_image(sigma):
    clean = data.camera()[:300, :301].astype(float)[..., None]
    noisy = clean + np.random.default_rng(1).normal(0, sigma, clean.shape)
    found = noise.estimate(noisy)[0]
    assert abs(found / restoration.estimate_sigma(noisy[..., 0]) - 1) < 0.05
    assert abs(found / sigma - 1) < 0.15


def test_sigma_is_that_of_each_channel_and_of_any_number_of_sides():
    x = np.random.default_rng(2).normal(0, (3, 30), (60, 31, 32, 2)) + 100
    np.testing.assert_allclose(noise.estimate(x), (3, 30), rtol=0.05)
    x[:30] = np.nan
    np.testing.assert_allclose(noise.estimate(x), (3, 30), rtol=0.05)
    x[:30] = 7  # an empty border
    np.testing.assert_allclose(noise.estimate(x), (3, 30), rtol=0.05)
    with pytest.raises(Unreadable, match="too small"):
        noise.estimate(np.ones((8, 3, 1)))


def test_sigma_is_that_before_noise_is_clipped():
    x = np.repeat([[0.0], [120.0]], 64, 0)[..., None] + np.zeros((128, 128, 1))
    noisy = (x + np.random.default_rng(5).normal(0, 20, x.shape)).clip(0, 255)
    np.testing.assert_allclose(noise.estimate(noisy), 20, rtol=0.05)


def test_both_together_are_nearer_than_each():
    """Half of the prediction is wrong by more than the noise, the other half by less."""
    draw, sigma = np.random.default_rng(3), np.array([1.0])
    clean = np.zeros((64, 64, 1))
    noisy = clean + draw.normal(0, 1, clean.shape)
    prediction = (
        clean + draw.normal(0, 1, clean.shape) * np.where(np.arange(64) < 32, 3, 0.3)[None, :, None]
    )
    error = lambda x: np.square(x - clean).mean()
    both = noise.combine(noisy, prediction, sigma)
    assert error(both) < 0.7 * min(error(noisy), error(prediction))
    np.testing.assert_array_equal(noise.combine(noisy, prediction, 0 * sigma), noisy)
    noisy[:5] = np.nan
    part = noise.combine(noisy, prediction, sigma)
    assert np.isnan(part[:5]).all() and not np.isnan(part[5:]).any()


# --- adaptation


@pytest.fixture(scope="module")
def texture():
    """A gray picture that repeats itself, and the same with noise, float64."""
    draw = np.random.default_rng(4)
    clean = np.tile(draw.uniform(20, 235, (4, 4)), (8, 8))
    return clean, clean + draw.normal(0, 40, clean.shape)


@pytest.fixture(scope="module")
def adapting():
    fields = dict(width=32, heads=2, depth=1, decoder_width=32, decoder_depth=1, mlp_ratio=1.0)
    model = build.model(KIND, FIELDS | fields)
    loaded = on(1, model, size=(16, 16), mean=(127.5,), std=(90.0,), range="dtype")
    denoiser = Denoiser(loaded, Options(steps=100, sigma=40, batch_size=8, overlap=0.5))
    denoiser.adapter = Adapter(denoiser.inputs, denoiser.keep, learning_rate=5e-3)
    return denoiser


def test_adaptation_lowers_the_error_to_the_clean_picture(adapting, texture):
    """A model of random parameters learns from one noisy picture; a clean one is never seen."""
    clean, noisy = texture
    error = lambda x: np.square(x - clean).mean()
    found = adapting(noisy).values
    blurred = min(error(ndimage.gaussian_filter(noisy, s)) for s in np.arange(0.3, 1.5, 0.1))
    assert error(found) < 0.7 * min(blurred, error(noisy))
    assert found.dtype == np.float64 and found.shape == (32, 32)


def test_adaptation_is_the_same_for_a_seed(adapting, texture):
    opened = adapting.inputs.open(texture[1])
    adapt = lambda seed: adapting.adapter(adapting.loaded.params, opened, 2, seed)
    one, again, other = adapt(1), adapt(1), adapt(2)
    tiny_models.equal(one, again)
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))
    start = jax.tree.leaves(adapting.loaded.params)
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(one), start, strict=True))


# --- types and units


UNITS = {np.uint16: (0, 65535), np.int16: (-1000, 1550), np.float32: (-1.0, 4.1)}


@pytest.mark.parametrize("dtype", UNITS)
def test_a_picture_in_other_units_is_denoised_alike(denoiser, dtype):
    x, (low, high) = picture(), UNITS[dtype]
    expected = denoiser(x)
    units = on(1, denoiser.loaded.model, **SHOWN, range=(low, high))
    found = Denoiser(units, denoiser.options)((low + x / 255 * (high - low)).astype(dtype))
    assert found.values.dtype == dtype and found.values.shape == x.shape
    scale = (high - low) / 255
    found_bytes = ((found.values - low) / scale).clip(0, 255)
    np.testing.assert_allclose(found_bytes, expected.values, atol=0.6)
    np.testing.assert_allclose(np.divide(found.sigma, scale), expected.sigma, rtol=0.01)


def test_gray_is_shown_as_colors_and_stays_gray(blind):
    x = picture((21, 26))
    found = blind(x)
    assert found.values.shape == x.shape and found.values.dtype == np.uint8
    assert len(found.sigma) == 1 and abs(found.sigma[0] / 74 - 1) < 0.15  # of uniform bytes
    colors = blind(np.repeat(x[..., None], 3, -1)).values
    inside = ((colors > 0) & (colors < 255)).all(-1)
    expected = colors @ (0.299, 0.587, 0.114)
    np.testing.assert_allclose(found.values[inside], expected[inside], atol=1.01)


def test_missing_values_stay_missing(loaded):
    model = on(1, loaded.model, **SHOWN, range=(0, 255), nodata=-1)
    x = picture(dtype=np.int16)
    x[3:9, 5:7], x[12] = -1, 0
    found = Denoiser(model, Options(overlap=0.5))(x).values
    np.testing.assert_array_equal(found == -1, x == -1)


def test_a_picture_without_noise_stays(denoiser):
    x = np.full((20, 20, 3), 77, np.uint8)
    found = denoiser(x)
    assert found.sigma == (0, 0, 0)
    np.testing.assert_array_equal(found.values, x)


# --- the command


def test_the_command_writes_the_type_of_the_file(loaded, tmp_path, monkeypatch, capsys):
    checkpoint, image, to = (str(tmp_path / x) for x in ("model.safetensors", "a.tif", "b.tif"))
    tiny_models.export(Path(checkpoint), KIND, FIELDS, loaded.params)
    deep = picture((20, 20, 3)).astype(np.uint16) * 257
    encode.write(image, deep)
    shown = ["--size=16,16", "--mean=.5,.5,.5", "--std=.25,.25,.25", "--data-field=range=dtype"]
    usual = [f"--checkpoint={checkpoint}", f"--image={image}", f"--to={to}", *shown]
    more = ["--steps=1", "--sigma=5000", "--overlap=0.5", "--batch-size=4", "--overwrite"]
    more += [f"--json={tmp_path / 'c.json'}", f"--side-by-side={tmp_path / 'd.png'}"]
    monkeypatch.setattr("sys.argv", ["denoise", *usual, *more])
    command.main()
    assert "20x20x3 uint16, noise of sigma 5000, 5000, 5000 (given)" in capsys.readouterr().out
    about = json.loads((tmp_path / "c.json").read_text())
    assert about["sigma"] == [5000] * 3 and about["steps"] == 1
    found = decode.bands(Path(to).read_bytes())
    assert found.dtype == np.uint16 and found.shape == deep.shape and (found != deep).any()
    with Image.open(tmp_path / "d.png") as sheet:
        assert sheet.width > 2 * 20
    monkeypatch.setattr("sys.argv", ["denoise", *usual])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2 and "--overwrite" in capsys.readouterr().err


# --- mistakes


def test_mistakes_are_told(loaded, blind):
    with pytest.raises(Unreadable, match=r"choose a smaller size .* such as \(12, 16\)"):
        blind(picture((15, 40, 3)))
    norm_pix = build.model(KIND, FIELDS | dict(norm_pix=True))
    with pytest.raises(ValueError, match="norm_pix=False"):
        restore.denoise(norm_pix, loaded.params, picture(), **SHOWN)
    with pytest.raises(ValueError, match="no decoder"):
        restore.denoise(tiny_models.model("classifier"), loaded.params, picture(), **SHOWN)
    with pytest.raises(ValueError, match="covers all"):
        restore.denoise(loaded.model, loaded.params, picture(), **SHOWN | dict(size=(4, 4)))
    with pytest.raises(ValueError, match="target_stride"):
        strided = build.model(KIND, FIELDS | dict(target_stride=(2, 1)))
        restore.denoise(strided, loaded.params, picture(), **SHOWN)
    with pytest.raises(ValueError, match="sigma = -1"):
        restore.denoise(loaded.model, loaded.params, picture(), **SHOWN, sigma=-1)
    with pytest.raises(ValueError, match="seed = -1"):
        restore.denoise(loaded.model, loaded.params, picture(), **SHOWN, seed=-1)
    with pytest.raises(Unreadable, match="missing values"):
        floats = np.full((20, 20, 3), np.nan)
        restore.denoise(loaded.model, loaded.params, floats, **SHOWN, range="dtype")
    with pytest.raises(Unreadable, match="data.clip=False"):
        clipped = SHOWN | dict(range=(0, 200), clip=True)
        restore.denoise(loaded.model, loaded.params, picture(), **clipped)
