"""Properties of the model; numeric parity with another implementation is in test_parity.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models import build, masking, patches

TINY = dict(width=24, depth=2, heads=3, decoder_width=16, decoder_depth=1, decoder_heads=2)


@functools.cache
def tiny(patch=(4, 4), size=(12, 16), channels=3, b=4, norm_pix=True):
    """A model, random parameters, images and a mask."""
    model = build.autoencoder(dict(patch=patch, norm_pix=norm_pix, **TINY))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(b, *size, channels)), jnp.float32)
    n = int(np.prod(patches.grid_of(size, patch)))
    mask = masking.from_scores(jnp.asarray(rng.random((b, n))), masking.keep_count(n, 0.75))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, mask)["params"]
    draw = lambda x: np.float32(0.3 * rng.normal(size=x.shape))
    return model, jax.tree.map(draw, shapes), images, mask


@functools.cache
def compiled(model, method):
    return jax.jit(functools.partial(model.apply, method=method))


def run(model, params, *inputs, method=None):
    return compiled(model, method)({"params": params}, *inputs)


@pytest.mark.parametrize(
    "patch, size, channels",
    [((3,), (24,), 1), ((4, 4), (12, 16), 3), ((2, 4), (8, 8), 5), ((2, 4, 4), (4, 8, 12), 1)],
)
@pytest.mark.parametrize("norm_pix", [True, False])
def test_the_loss_is_the_mean_squared_error_on_masked_patches(patch, size, channels, norm_pix):
    model, params, images, mask = tiny(patch, size, channels, norm_pix=norm_pix)
    out, mask = jax.device_get((run(model, params, images, mask), mask))
    b, m = mask.masked.shape
    assert out.prediction.shape == (b, m, np.prod(patch) * channels)
    errors = []
    for sample in range(b):
        x = np.asarray(patches.patchify(images, patch)[sample], np.float64)
        for row, place in enumerate(mask.masked[sample]):
            target = x[place]
            if norm_pix:
                target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            errors.append(np.mean((out.prediction[sample, row] - target) ** 2))
    np.testing.assert_allclose(out.loss, np.mean(errors), rtol=1e-5)
    np.testing.assert_allclose(out.losses, np.reshape(errors, (b, m)).mean(1), rtol=1e-5)


def test_masked_patches_have_no_gradient_into_the_latent():
    model, params, images, mask = tiny()

    def latent(images):
        tokens, _ = run(model, params, images, mask, method="encode")
        return jnp.sin(tokens).sum()

    gradient = patches.patchify(jax.jit(jax.grad(latent))(images), model.patch)
    size = jnp.abs(gradient).max(-1)  # [b n]
    masked = np.asarray(masking.masked_map(mask)) == 1
    assert (size[masked] == 0).all()
    assert (size[~masked] > 0).all()


def test_masked_patches_do_not_change_the_prediction():
    model, params, images, mask = tiny()
    x = patches.patchify(images, model.patch)
    noise = 9.0 * masking.masked_map(mask)[..., None] * jnp.ones_like(x)
    other = patches.unpatchify(x + noise, model.patch, images.shape[1:-1])
    a, b = (run(model, params, i, mask).prediction for i in (images, other))
    np.testing.assert_array_equal(a, b)


def test_the_order_of_the_visible_patches_does_not_matter():
    model, params, images, mask = tiny()
    shuffled = masking.Mask(mask.visible[:, ::-1], mask.masked[:, ::-1], mask.n)
    a = run(model, params, images, mask)
    b = run(model, params, images, shuffled)
    np.testing.assert_allclose(a.prediction, b.prediction[:, ::-1], atol=2e-5)
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)


def test_a_mask_for_other_samples_or_another_grid_is_refused():
    model, params, images, mask = tiny()
    for other in (images[:1], images[:, :8]):
        with pytest.raises(ValueError, match="the mask is for 4 samples of 12 patches"):
            model.apply({"params": params}, other, mask)


def test_samples_do_not_see_each_other():
    model, params, images, mask = tiny()
    alone = run(model, params, images[:1], masking.Mask(mask.visible[:1], mask.masked[:1], mask.n))
    together = run(model, params, images, mask)
    np.testing.assert_allclose(alone.prediction[0], together.prediction[0], atol=1e-5)


def test_the_encoder_on_a_whole_image_and_on_all_patches_agree():
    model, params, images, _ = tiny()
    n = 12
    everything = masking.Mask(
        visible=jnp.tile(jnp.arange(n)[::-1], (4, 1)), masked=jnp.zeros((4, 0), jnp.int32), n=n
    )
    whole, maps = run(model, params, images, method="encode")
    masked, _ = run(model, params, images, everything, method="encode")
    assert whole.shape == (4, 1 + n, TINY["width"])
    np.testing.assert_allclose(whole[:, 1:], masked[:, 1:][:, ::-1], atol=1e-5)
    assert len(maps) == 3 and maps[0].shape == whole.shape  # the embedding and two blocks


def test_the_encoder_works_on_another_size():
    """Positions are computed from the input, so a square model takes a non-square picture."""
    model, params, _, _ = tiny()
    tokens, _ = run(model.encoder, params["encoder"], jnp.ones((1, 8, 40, 3)))
    assert tokens.shape == (1, 21, TINY["width"])


def test_named_intermediates():
    model, params, images, mask = tiny()
    out = run(model, params, images, mask)
    tokens, maps = run(model, params, images, mask, method="encode")
    names = ("embedding", "block_0", "block_1", "norm")
    assert set(out.intermediates) == {f"encoder/{name}" for name in names}
    for name, x in zip(names, [*maps, tokens], strict=True):
        np.testing.assert_array_equal(out.intermediates[f"encoder/{name}"], x)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_reconstruct(norm_pix):
    """A perfect prediction gives the picture; a wrong one leaves the visible patches alone."""
    model, _, images, mask = tiny(norm_pix=norm_pix)
    x, target = patches.patchify(images, model.patch), model.target(images, mask.masked)
    perfect = model.target.to_inputs(target, images, mask)
    np.testing.assert_allclose(perfect, images, atol=1e-5)
    wrong = patches.patchify(model.target.to_inputs(target + 1, images, mask), model.patch)
    changed = np.abs(np.asarray(wrong - x)).max(-1) > 1e-3
    np.testing.assert_array_equal(changed, np.asarray(masking.masked_map(mask)) == 1)


def test_initial_values(key):
    """Xavier on every matrix, as if q, k and v were one; bias 0; tokens N(0, .02)."""
    sizes = dict(width=64, depth=1, heads=4, decoder_width=64, decoder_depth=1, decoder_heads=4)
    model = build.autoencoder(dict(patch=(4, 4), **sizes))
    images = jnp.zeros((1, 16, 16, 3))
    mask = masking.from_scores(jnp.zeros((1, 16)), 4)
    params = jax.jit(model.init)(key, images, mask)["params"]
    block = params["encoder"]["block_0"]
    for kernel, rows, columns in [
        (params["encoder"]["embedding"]["kernel"], 48, 64),
        (block["attention"]["query"]["kernel"], 64, 3 * 64),  # one [d, 3d] matrix
        (block["attention"]["value"]["kernel"], 64, 3 * 64),
        (block["attention"]["out"]["kernel"], 64, 64),
        (block["mlp"]["fc1"]["kernel"], 64, 256),
        (params["decoder"]["head"]["kernel"], 64, 48),
    ]:
        limit = np.sqrt(6 / (rows + columns))
        assert np.abs(kernel).max() <= limit
        np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.05)
    for token in (params["encoder"]["cls"], params["decoder"]["mask_token"]):
        assert token.shape == (1, 64)
        np.testing.assert_allclose(token.std(), 0.02, rtol=0.35)
    assert not np.any(block["attention"]["query"]["bias"])
    assert "positions" not in str(jax.tree.structure(params))


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters():
    model, params, images, mask = tiny()
    half = build.autoencoder(dict(patch=(4, 4), dtype="bfloat16", **TINY))
    a, b = (run(m, params, images, mask) for m in (model, half))
    assert b.loss.dtype == b.prediction.dtype == jnp.float32
    assert b.intermediates["encoder/norm"].dtype == jnp.bfloat16
    np.testing.assert_allclose(a.loss, b.loss, rtol=0.03)
    fresh = jax.eval_shape(half.init, jax.random.key(0), images, mask)["params"]
    assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
