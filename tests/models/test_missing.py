"""Missing values: what is absent is neither shown nor learned, and with everything there is no
difference, bit for bit."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models import attention, build, masking, patches, targets
from mae_jax.models.attention import per_sample
from mae_jax.models.heads.classification import mean_of_patches

TINY = dict(patch=(4, 4), width=16, depth=1, heads=2)
DECODER = dict(decoder_width=12, decoder_depth=1, decoder_heads=3)
B, SIZE, CHANNELS = 4, (12, 16), 3
COUNTS = (0, 1, 2, 7)  # patches with data of each sample
KINDS: dict[str, dict] = {
    "self": {},
    "cross, pixels": dict(decoder="cross", final_norm=False, norm_pix=False),
    "own cls, groups": dict(decoder="own_cls", channel_groups=((0, 2), (1,)), norm_pix="patch"),
    "no cls, stride": dict(cls_tokens=0, register_tokens=2, target_stride=(2, 1)),
    "channel": dict(norm_pix="channel"),
}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def present_patches(counts, n=12, seed=3) -> np.ndarray:
    """So many patches of each sample, at random places."""
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (len(counts), 1)), axis=1)
    return order < np.array(counts)[:, None]


def spread(tokens) -> jax.Array:
    """A value for each patch of the grid, as values of inputs."""
    x = jnp.repeat(jnp.asarray(tokens)[..., None], 16 * CHANNELS, -1)
    return patches.unpatchify(x, (4, 4), SIZE)


def some_missing() -> jax.Array:
    """Weights with absent patches, and with values missing in patches that are there."""
    single = np.random.default_rng(5).random((B, *SIZE, CHANNELS)) < 0.7
    return (spread(present_patches(COUNTS)) & single).astype(jnp.float32)


def drawn(shapes):
    """Random parameters, the same for blocks beside each other and for those of one array."""
    return jax.tree.map(lambda x: 0.3 * normal(*x.shape, seed=math.prod(x.shape)), shapes)


@functools.cache
def built(kind):
    model = build.autoencoder(TINY | DECODER | KINDS[kind])
    images, n = normal(B, *SIZE, CHANNELS), math.prod(model.grid(SIZE))
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), images, masking.from_scores(jnp.zeros((B, n)), n // 4)
    )["params"]
    return model, drawn(shapes), images, jax.random.uniform(jax.random.key(1), (B, n))


@functools.cache
def function(kind, weighted):
    """The output and the gradients of a model, of inputs and weights, not compiled."""
    model, _, _, scores = built(kind)

    def loss(params, inputs, weight):
        tokens = model.present(weight) if weighted else None
        mask = masking.from_scores(scores, scores.shape[1] // 4, tokens)
        out = model.apply({"params": params}, inputs, mask, weight)
        shares = model.target.shares(inputs, mask, weight)
        return out.loss, (out.losses, out.prediction * shares[..., None])

    return jax.value_and_grad(loss, has_aux=True)


@functools.cache
def compiled(kind, weighted):
    return jax.jit(function(kind, weighted))


def run(kind, inputs, weight=None):
    return jax.device_get(compiled(kind, weight is not None)(built(kind)[1], inputs, weight))


def same(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_with_everything_there_no_bit_differs():
    """Operation by operation; a compiler that fuses them may round the last bit otherwise.

    A whole model, and the losses of targets that it does not have.
    """
    kind = "own cls, groups"
    _, params, images, scores = built(kind)
    ones = jnp.ones_like(images)
    same(function(kind, True)(params, images, ones), function(kind, False)(params, images, None))
    prediction, mask = normal(B, 9, 48), masking.from_scores(scores[:, :12], 3)
    for norm in (targets.by_token, targets.by_channel):
        target = targets.PixelTarget((4, 4), norm=norm)
        losses = lambda weight, t=target: t.sample_losses(prediction, images, mask, weight)
        same(losses(ones), losses(None))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_1_change_nothing(kind):
    images = built(kind)[2]
    results = run(kind, images, jnp.ones_like(images)), run(kind, images)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *results)


@pytest.mark.parametrize("kind", KINDS)
def test_no_result_depends_on_what_is_missing(kind):
    """Neither the losses nor the gradients, which are finite for samples without any data."""
    images, weight = built(kind)[2], some_missing()
    results = run(kind, images, weight)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))
    (loss, (losses, _)), _ = results
    predicts = np.asarray(built(kind)[0].present(weight)).sum(1) > 1  # one token is shown
    np.testing.assert_array_equal(losses > 0, predicts)
    np.testing.assert_allclose(loss, losses[predicts].mean(), rtol=1e-6)
    for other in (jnp.nan, jnp.inf, 1e30):
        same(run(kind, jnp.where(weight > 0, images, other), weight), results)
    changed = run(kind, jnp.where(weight > 0, images + 0.1, images), weight)
    assert changed[0][0] != loss


def test_the_loss_by_hand():
    """Values at or above 0, and half a weight for some, against loops in numpy."""
    for kind in ("self", "cross, pixels"):
        model, params, images, scores = built(kind)
        weight = some_missing() * jnp.where(normal(*images.shape, seed=8) > 0, 1, 0.5)
        mask = masking.from_scores(scores, 3, model.present(weight))
        out = jax.device_get(jax.jit(model.apply)({"params": params}, images, mask, weight))
        x, w = (np.asarray(patches.patchify(y, (4, 4)), np.float64) for y in (images, weight))
        for sample in range(B):
            errors, total = 0.0, 0.0
            for row, place in enumerate(np.asarray(mask.masked[sample])):
                if not mask.predicted[sample, row]:
                    continue
                there = w[sample, place] > 0
                target = x[sample, place]
                if kind == "self":
                    known = target[there]
                    target = (target - known.mean()) / np.sqrt(known.var(ddof=1) + 1e-6)
                error = (out.prediction[sample, row] - target) ** 2
                errors, total = (
                    errors + (w[sample, place] * error).sum(),
                    total + w[sample, place].sum(),
                )
            np.testing.assert_allclose(
                out.losses[sample], errors / total if total else 0, rtol=1e-4
            )


@pytest.mark.parametrize("norm", [targets.by_token, targets.by_patch, targets.by_channel])
def test_norm_pix_is_of_what_exists(norm):
    x, exists = normal(2, 5, 12), np.random.default_rng(1).random((2, 5, 12)) < 0.6
    exists[0, 0] = False
    exists[0, 1] = [True, *[False] * 11]
    known = jnp.asarray(exists, jnp.float32)
    center, scale = norm(x, known, known, 3)
    assert np.isfinite(center).all() and np.isfinite(scale).all() and (np.asarray(scale) > 0).all()
    values = np.where(exists, x, np.nan).astype(np.float64)
    per_channel = norm is targets.by_channel
    groups = [slice(c, None, 3) for c in range(3)] if per_channel else [slice(None)]
    for token in np.ndindex(2, 5):
        for group in groups:
            known = values[token][group]
            if np.isfinite(known).sum() < 2:
                continue
            deviation = np.nanstd(known, ddof=1)
            expected = deviation + 1e-6 / 0.226 if per_channel else np.sqrt(deviation**2 + 1e-6)
            ours = np.broadcast_to(scale[token], 12)[group]
            np.testing.assert_allclose(ours, expected, rtol=1e-4)
            np.testing.assert_allclose(
                np.broadcast_to(center[token], 12)[group], np.nanmean(known), atol=1e-5
            )


STRATEGIES = {
    "random": {}, "block": {}, "grid": {}, "stroke": {}, "joint": {}, "importance": {},
    "tube": dict(grid=(2, 4, 4)), "frame": dict(grid=(4, 2, 4)),
    "time": {}, "frequency": {},
}  # fmt: skip


@pytest.mark.parametrize("name", masking.NAMES)
def test_absent_patches_are_neither_shown_nor_predicted(name):
    """For every strategy and number of patches with data, from none to all."""
    grid = STRATEGIES[name].get("grid", (4, 8))
    sampler = masking.make_mask_sampler(name, 0.75, grid, contrast=lambda inputs, n: inputs)
    present = jnp.asarray(present_patches(range(33), 32))
    noise = normal(33, 32, seed=4)

    @jax.jit
    def masks(present):
        scores = sampler.scores(jax.random.key(2), normal(33, 32))
        mask = masking.from_scores(scores, sampler.keep, present)
        part = masking.partial(mask, noise[:, : mask.masked.shape[1]], 5)
        whole = masking.from_scores(scores, sampler.keep)
        return mask, part, masking.masked_map(mask), whole

    mask, part, masked_map, whole = jax.device_get(masks(present))
    for i in range(33):
        shown = set(np.asarray(mask.visible[i])[mask.shown[i]].tolist())
        predicted = set(np.asarray(mask.masked[i])[mask.predicted[i]].tolist())
        there = set(np.flatnonzero(present[i]).tolist())
        assert shown | predicted == there and not shown & predicted
        assert len(shown) == (min(max(1, i * sampler.keep // 32), i))
        assert len(set(np.asarray(mask.masked[i]).tolist())) == mask.masked.shape[1]
        some = set(np.asarray(part.masked[i])[part.predicted[i]].tolist())
        assert some <= predicted and len(some) == min(5, len(predicted))
        hidden = np.flatnonzero(masked_map[i] == 0)
        assert set(hidden.tolist()) == shown
    np.testing.assert_array_equal(mask.visible[-1], whole.visible[-1])
    np.testing.assert_array_equal(mask.masked[-1], whole.masked[-1])


def test_absent_patches_might_as_well_be_cut_away():
    """The encoder sees the same tokens as without them, at the same positions."""
    for name in ("self", "no cls, stride"):
        model, params, images, _ = built(name)
        tokens = present_patches((5,) * B)
        index = np.stack([np.flatnonzero(row) for row in tokens])
        encode = jax.jit(functools.partial(model.apply, method="encode"))
        few = masking.Mask(jnp.asarray(index), jnp.asarray(index[:, :0]), 12)
        cut = encode({"params": params}, images, few)
        whole = encode({"params": params}, images, masking.whole(jnp.asarray(tokens)))
        for ours, expected in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
            before = model.cls_tokens
            np.testing.assert_allclose(ours[:, :before], expected[:, :before], atol=1e-5)
            ours = patches.take(ours[:, before:], index)
            np.testing.assert_allclose(ours, expected[:, before:], atol=1e-5)


def test_absent_patches_have_no_gradient():
    model, params, images, scores = built("self")
    weight = spread(present_patches((2, 5, 7, 12))).astype(jnp.float32)
    mask = masking.from_scores(scores, 3, model.present(weight))
    loss = lambda x: model.apply({"params": params}, x, mask, weight).loss
    gradient = np.asarray(jax.jit(jax.grad(loss))(images))
    assert (gradient[weight == 0] == 0).all()
    assert (np.abs(gradient).reshape(B, -1).max(1) > 1e-6).all()


@pytest.mark.parametrize("name", [x for x in attention.IMPLEMENTATIONS if x != "cudnn"])
def test_attention_with_a_mask_is_the_references(name, monkeypatch):
    """Its gradient too; and no query sees a key that is masked."""
    monkeypatch.setattr(per_sample, "LEAST", 0)
    query, dy = normal(3, 6, 2, 4), normal(3, 6, 2, 4, seed=1)
    key, value = normal(3, 5, 2, 4, seed=2), normal(3, 5, 2, 4, seed=3)
    mask = jnp.asarray(present_patches((1, 3, 5), 5))

    @functools.partial(jax.jit, static_argnums=0)
    def results(attend, *inputs):
        y, backward = jax.vjp(lambda *x: attend(*x, mask), *inputs)
        return y, *backward(dy)

    ours = results(attention.IMPLEMENTATIONS[name], query, key, value)
    few = jnp.argmax(mask[0])
    np.testing.assert_allclose(ours[0][0], jnp.broadcast_to(value[0, few], (6, 2, 4)), atol=1e-6)
    expected = results(attention.IMPLEMENTATIONS["reference"], query, key, value)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    hidden = ~mask[:, :, None, None]
    for x in ours[2:]:
        assert (np.asarray(jnp.where(hidden, x, 0)) == 0).all()
    moved = jnp.where(hidden, 50.0, key), jnp.where(hidden, 50.0, value)
    same(results(attention.IMPLEMENTATIONS[name], query, *moved)[0], ours[0])


@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_options_of_speed_and_memory_keep_the_mask(decoder):
    images, weight = normal(B, *SIZE, CHANNELS), some_missing()

    def results(custom=False, **options):
        fields = TINY | DECODER | dict(decoder=decoder) | options
        model = build.autoencoder(fields, custom_gradients=custom)
        mask = masking.from_scores(normal(B, 12), 3, model.present(weight))
        params = drawn(jax.eval_shape(model.init, jax.random.key(0), images, mask)["params"])
        loss = lambda params: model.apply({"params": params}, images, mask, weight).loss
        return jax.jit(jax.value_and_grad(loss))(params)

    fast = results(custom=True, scan=True, remat="products", attention="recompute")
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), fast, results())


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_classifier_pools_what_is_there(pooling):
    model = build.classifier(TINY | dict(pooling=pooling, head_std=1.0), 5)
    images = normal(B, *SIZE, CHANNELS)
    params = drawn(jax.eval_shape(model.init, jax.random.key(0), images))
    apply = jax.jit(lambda x, present: model.apply(params, x, present=present))
    plain = jax.jit(model.apply)(params, images)
    same(apply(images, jnp.ones(images.shape, bool)), plain)
    present = some_missing() > 0
    ours = apply(images, present)
    assert np.isfinite(ours).all() and (np.abs(ours - plain).max(1) > 1e-4).all()
    same(apply(jnp.where(present, images, jnp.nan), present), ours)
    tokens = np.asarray(normal(B, 12, 16))
    mask = masking.whole(model.present(present))
    pooled = mean_of_patches(tokens, mask)
    for row, there in enumerate(np.asarray(mask.shown)):
        expected = tokens[row][there].mean(0) if there.any() else tokens[row].mean(0)
        np.testing.assert_allclose(pooled[row], expected, atol=1e-6)


def test_what_a_picture_shows():
    """Visible values as they are, predictions, and 0 for absent patches."""
    model, params, images, scores = built("channel")
    weight = some_missing()
    images, target = jnp.where(weight > 0, images, 0), model.target
    mask = masking.from_scores(scores, 3, model.present(weight))
    perfect = target(images, mask.masked, weight)
    full = target.to_inputs(perfect, images, mask, weight)
    np.testing.assert_allclose(full, images, atol=1e-5)
    ones = target.masked_values(images, mask)
    tokens = np.asarray(patches.patchify(ones, (4, 4)).any(-1))
    predicted = np.zeros((B, 12), bool)
    for i in range(B):
        predicted[i, np.asarray(mask.masked[i])[mask.predicted[i]]] = True
    np.testing.assert_array_equal(tokens, predicted)


def test_the_contrast_and_the_guess_are_of_what_exists():
    model, _, images, scores = built("self")
    weight = some_missing()
    images = jnp.where(weight > 0, images, 0)
    contrast = np.asarray(model.target.contrast(images, 12, weight))
    there = np.asarray(model.present(weight))
    assert np.isfinite(contrast).all()
    x, w = (np.asarray(patches.patchify(y, (4, 4))) for y in (images, weight))
    deviation = np.array([x[3, i][w[3, i] > 0].std(ddof=1) for i in np.flatnonzero(there[3])])
    expected = (deviation - deviation.mean()) / deviation.std()
    np.testing.assert_allclose(contrast[3][there[3]], expected, rtol=1e-3, atol=1e-4)
    pixels = build.autoencoder(TINY | DECODER | dict(norm_pix=False)).target
    mask = masking.from_scores(scores, 3, model.present(weight))
    ours = pixels.baseline_losses(images, mask, weight)
    seen = np.asarray(mask.visible[3])[mask.shown[3]]
    guess = (x[3, seen] * w[3, seen]).sum(0) / np.maximum(w[3, seen].sum(0), 1)
    tokens = np.asarray(mask.masked[3])[mask.predicted[3]]
    error = (w[3, tokens] * (x[3, tokens] - guess) ** 2).sum() / w[3, tokens].sum()
    np.testing.assert_allclose(ours[3], error, rtol=1e-4)
    assert ours[0] == ours[1] == 0


def test_whole_numbers_have_no_weights():
    target = build.autoencoder(TINY | DECODER | dict(vocab_size=5, norm_pix=False)).target
    inputs = jnp.zeros((1, *SIZE, 1), jnp.int32)
    with pytest.raises(ValueError, match="whole numbers have no weights"):
        target.losses(jnp.zeros((1, 2, 80)), inputs, jnp.zeros((1, 2), jnp.int32), inputs)
