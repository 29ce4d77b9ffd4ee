"""Cross-attention and partial decoding, channel groups, strided targets, bytes, positions."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mae_jax.models import build, channel_groups, masking, patches, positions

TINY = dict(width=24, depth=1, heads=3, decoder_width=16, decoder_depth=1, decoder_heads=2)


@functools.cache
def built(size=(12, 16), channels=3, b=4, ratio=0.75, **fields):
    """A model, random parameters, images and a mask."""
    model = build.autoencoder({"patch": (4, 4)} | TINY | fields)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(b, *size, channels)), jnp.float32)
    if vocab_size := fields.get("vocab_size"):
        images = jnp.asarray(rng.integers(0, vocab_size, (b, *size, channels)), jnp.int32)
    n = math.prod(model.grid(size))
    mask = masking.from_scores(jnp.asarray(rng.random((b, n))), masking.keep_count(n, ratio))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, mask)["params"]
    draw = lambda x: jnp.asarray(np.float32(0.3 * rng.normal(size=x.shape)))
    return model, jax.tree.map(draw, shapes), images, mask


@functools.cache
def compiled(model):
    return jax.jit(model.apply)


def run(model, params, images, mask):
    return compiled(model)({"params": params}, images, mask)


def gradients(model, params, images, mask) -> dict:
    loss = lambda params: model.apply({"params": params}, images, mask).loss
    return traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")


KINDS: dict[str, dict] = {
    "self": {},
    "own cls": dict(decoder="own_cls"),
    "no cls": dict(cls_tokens=0, position_formula="interleaved", norm_pix="channel"),
    "8 cls, registers": dict(cls_tokens=8, register_tokens=4, learned_positions=True),
    "cross": dict(decoder="cross", final_norm=False),
    "cross, normed": dict(decoder="cross"),
    "groups": dict(channel_groups=((0, 2), (1,))),
    "groups, pixels": dict(channel_groups=((0, 2), (1,)), norm_pix=False),
    "every second row": dict(target_stride=(2, 1)),
    "spread rows": dict(target_stride=(2, 1), target_spread=True),
    "separable": dict(learned_positions=True, separable_positions=True),
    "bytes": dict(vocab_size=5, norm_pix=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind):
    for name, gradient in jax.device_get(gradients(*built(**KINDS[kind]))).items():
        assert np.isfinite(gradient).all(), name
        # a constant added to all keys of a query cancels in the softmax
        if not name.endswith("attention/key/bias"):
            assert np.abs(gradient).max() > 1e-7, name


# --- cross-attention


def test_mask_tokens_of_the_cross_decoder_do_not_see_each_other():
    """The position of a masked token changes the prediction of this token and of no other."""
    for decoder in ("cross", "self"):
        model, params, images, mask = built(decoder=decoder, learned_positions=True)
        places = params["decoder"]["positions"]

        def predicted(places, row, model=model, params=params, images=images, mask=mask):
            moved = {**params, "decoder": params["decoder"] | {"positions": places}}
            return (model.apply({"params": moved}, images, mask).prediction[0, row] ** 2).sum()

        gradient = np.abs(jax.jit(jax.grad(predicted))(places, 2)).max(-1)[1:]
        masked, at = np.asarray(mask.masked[0]), int(mask.masked[0, 2])
        assert gradient[at] > 1e-5
        others = gradient[[place for place in masked if place != at]]
        assert (others == 0).all() if decoder == "cross" else (others > 1e-7).all()


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_partial_decoding(decoder):
    """A cross decoder predicts part of the tokens as it predicts all; a self decoder does not."""
    model, params, images, mask = built(decoder=decoder)
    full = run(model, params, images, mask)
    noise = jax.random.uniform(jax.random.key(1), mask.masked.shape)
    part = masking.partial(mask, noise, 3)
    out = run(model, params, images, part)
    assert out.prediction.shape == (4, 3, full.prediction.shape[-1])
    rows = np.argsort(noise, axis=1)[:, :3]
    same = np.take_along_axis(np.asarray(full.prediction), rows[..., None], 1)
    assert np.allclose(out.prediction, same, atol=1e-5) == (decoder == "cross")


def test_partial_decoding_is_unbiased():
    """The loss is the full one on average: exactly over parts that hold each masked patch once, and
    nearly over random parts."""
    model, params, images, mask = built(decoder="cross")
    full = run(model, params, images, mask).loss
    m = mask.masked.shape[1]
    apply = lambda part: model.apply({"params": params}, images, part).loss
    loss = jax.jit(jax.vmap(lambda noise: apply(masking.partial(mask, noise, 3))))
    turns = jnp.stack([(jnp.arange(m) - 3 * i) % m for i in range(m // 3)])
    parts = loss(jnp.tile(turns[:, None], (1, 4, 1)).astype(jnp.float32))
    np.testing.assert_allclose(parts.mean(), full, rtol=1e-5)
    draws = loss(jax.random.uniform(jax.random.key(0), (400, 4, m)))
    assert abs(draws.mean() - full) < 4 * draws.std() / 20


def test_the_cross_decoder_sees_all_feature_maps_in_learned_shares():
    model, params, images, mask = built(decoder="cross", depth=2, decoder_depth=2)
    weights = params["decoder"]["maps"]
    assert weights.shape == (3, 2)  # the embedding, two blocks; for each of two decoder blocks
    out = run(model, params, images, mask)
    maps = [out.intermediates[f"encoder/{name}"] for name in ("embedding", "block_0", "norm")]
    apply = jax.jit(
        lambda maps, params: model.decoder.apply({"params": params}, maps, mask, (3, 4), 48)
    )
    ours = apply(maps, params["decoder"])
    np.testing.assert_allclose(ours, out.prediction, atol=1e-5)
    # a map without weight is not seen
    none = params["decoder"] | {"maps": weights.at[1].set(0)}
    changed = [maps[0], maps[1] + 100, maps[2]]
    np.testing.assert_allclose(apply(maps, none), apply(changed, none), atol=1e-5)
    assert "embedding" not in params["decoder"]


# --- channel groups


def test_a_group_sees_and_predicts_its_own_channels_alone():
    groups = ((0, 2), (1,))
    model, params, images, mask = built(channel_groups=groups, norm_pix=False)
    assert model.grid((12, 16)) == (2, 3, 4) and mask.n == 24
    out = run(model, params, images, mask)
    x = np.asarray(patches.patchify(images, (4, 4))).reshape(4, 12, 16, 3)
    errors = []
    for sample in range(4):
        for row, token in enumerate(np.asarray(mask.masked[sample])):
            group, place = divmod(int(token), 12)
            chosen = list(groups[group])
            guess = np.asarray(out.prediction[sample, row]).reshape(16, 3)[:, chosen]
            errors.append(np.mean((guess - x[sample, place][:, chosen]) ** 2))
    np.testing.assert_allclose(out.loss, np.mean(errors), rtol=1e-5)
    # the masked values of a picture do not reach the latent
    masked = model.target.masked_values(images, mask).astype(jnp.float32)
    noise = 9.0 * masked
    again = run(model, params, images + noise, mask)
    np.testing.assert_allclose(again.prediction, out.prediction, atol=1e-5)
    assert 0 < float(masked.mean()) < 1
    # channels of one group are masked together, those of two are not
    np.testing.assert_array_equal(masked[..., 0], masked[..., 2])
    assert (masked[..., 0] != masked[..., 1]).any()


@pytest.mark.parametrize("groups", [((0, 1),), ((0, 1), (1, 2)), ((0, 1, 2), (3,)), ((0, 1, -1),)])
def test_groups_that_do_not_hold_each_channel_once_are_refused(groups):
    with pytest.raises(ValueError, match="must hold each of the 3 channels 0 to 2 once"):
        channel_groups.group_members(groups, (4, 4), 3)


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("groups", [(), ((0, 2), (1,))])
def test_a_perfect_prediction_is_reconstructed(groups, norm_pix):
    model, _, images, mask = built(channel_groups=groups, norm_pix=norm_pix)
    full = model.target.to_inputs(model.target(images, mask.masked), images, mask)
    np.testing.assert_allclose(full, images, atol=1e-5)


# --- strided targets


def test_every_second_frame_is_predicted():
    model, params, images, mask = built(
        (8, 8, 8), 2, patch=(2, 4, 4), target_stride=(2, 1, 1), norm_pix=False
    )
    out = run(model, params, images, mask)
    assert out.prediction.shape[-1] == 4 * 4 * 2
    frames = patches.patchify(images[:, ::2], (1, 4, 4))
    target = patches.take(frames, mask.masked)
    np.testing.assert_allclose(out.loss, jnp.square(out.prediction - target).mean(), rtol=1e-5)
    full = model.target.to_inputs(target, images, mask)
    np.testing.assert_array_equal(full, images[:, ::2])
    with pytest.raises(ValueError, match=r"target_stride = \(3, 1, 1\) does not divide patch"):
        built((8, 8, 8), 2, patch=(2, 4, 4), target_stride=(3, 1, 1))


# --- bytes


def test_bytes_are_embedded_by_a_table_and_their_loss_is_the_cross_entropy():
    model, params, images, mask = built((24,), 1, patch=(2,), **KINDS["bytes"])
    out = run(model, params, images, mask)
    assert out.prediction.shape == (4, 9, 2 * 5)
    logits = np.asarray(out.prediction, np.float64).reshape(4, 9, 2, 5)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    values = np.asarray(patches.take(images.reshape(4, 12, 2), mask.masked))
    chosen = np.take_along_axis(log, values[..., None], -1)
    np.testing.assert_allclose(out.loss, -chosen.mean(), rtol=1e-5)
    # the embedding is one table of numbers for each place in a patch
    kernel = np.asarray(params["encoder"]["embedding"]["kernel"]).reshape(2, 5, 24)
    places = positions.sincos((12,), 24)
    first = np.asarray(images).reshape(4, 12, 2)[0, int(mask.visible[0, 0])]
    expected = kernel[0, first[0]] + kernel[1, first[1]]
    expected = expected + params["encoder"]["embedding"]["bias"] + places[int(mask.visible[0, 0])]
    np.testing.assert_allclose(out.intermediates["encoder/embedding"][0, 1], expected, atol=1e-5)
    best = model.target.to_inputs(out.prediction, images, mask)
    assert best.dtype == images.dtype and best.shape == images.shape
    perfect = jax.nn.one_hot(values, 5).reshape(4, 9, -1)
    again = model.target.to_inputs(perfect, images, mask)
    np.testing.assert_array_equal(again, images)
    strided = dataclasses.replace(model.target, stride=(2,))
    every_second = jax.nn.one_hot(strided(images, mask.masked), 5).reshape(4, 9, -1)
    again = strided.to_inputs(every_second, images, mask)
    np.testing.assert_array_equal(again, images[:, ::2])


# --- decoders without blocks


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_a_decoder_without_blocks_predicts_by_position_alone(decoder):
    """It is a head on the mask tokens, as the reference's is at `decoder_depth=0`."""
    model, params, images, mask = built(decoder=decoder, decoder_depth=0)
    out = run(model, params, images, mask)
    at = np.asarray(mask.masked)
    table, p = positions.sincos((3, 4), 16), jax.device_get(params["decoder"])
    x = p["mask_token"] + table
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * p["norm"]["scale"] + p["norm"]["bias"]
    expected = (x @ p["head"]["kernel"] + p["head"]["bias"])[at]
    np.testing.assert_allclose(out.prediction, expected, atol=1e-5)


# --- separable positions


@pytest.mark.parametrize("grid, width", [((4, 3, 5), 24), ((4, 3, 5), 32), ((6, 7), 16)])
def test_separable_positions_start_as_the_fixed_ones(grid, width):
    fixed = positions.Fixed(width).start(grid)["positions"]
    tables = positions.Separable(width).start(grid)
    time, space = tables["positions_time"], tables["positions_space"]
    assert time.shape == (grid[0], width) and space.shape == (1 + math.prod(grid[1:]), width)
    np.testing.assert_array_equal(space[0], fixed[0])
    whole = (time[:, None] + space[None, 1:]).reshape(-1, width)
    np.testing.assert_array_equal(whole, fixed[1:])


def test_separable_positions_are_parameters_that_the_model_adds():
    fields = dict(patch=(2, 4, 4), learned_positions=True)
    model, params, images, mask = built((8, 8, 8), 2, separable_positions=True, **fields)
    assert params["encoder"]["positions_time"].shape == (4, 24)
    assert params["decoder"]["positions_space"].shape == (1 + 4, 16)
    whole, *_ = built((8, 8, 8), 2, **fields)
    joined = {}
    for part, width in (("encoder", 24), ("decoder", 16)):
        rest = dict(params[part])
        time, space = rest.pop("positions_time"), rest.pop("positions_space")
        table = (time[:, None] + space[None, 1:]).reshape(-1, width)
        joined[part] = rest | {"positions": jnp.concatenate([space[:1], table])}
    np.testing.assert_allclose(
        run(whole, joined, images, mask).loss, run(model, params, images, mask).loss, rtol=1e-5
    )


def test_a_classifier_takes_groups_and_clips_too(key):
    fields = dict(patch=(2, 4, 4), width=24, depth=1, heads=3, channel_groups=((0,), (1, 2)))
    model = build.classifier(fields, 3)
    clips = jax.random.normal(key, (2, 4, 8, 8, 3))
    logits, variables = jax.jit(model.init_with_output)(key, clips)
    assert logits.shape == (2, 3) and jnp.isfinite(logits).all()
    encode = functools.partial(model.apply, method="encode")
    tokens, _ = jax.eval_shape(encode, variables, clips)
    assert tokens.shape == (2, 1 + 2 * 2 * 2 * 2, 24)
