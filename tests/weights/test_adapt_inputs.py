"""Weights for other channels and another patch: what the changed model computes, and what is no."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import DECODER, MODELS, TINY, equal, export, flatten, random_params

import mae_jax
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.models import build, masking, patches
from mae_jax.weights import adapt_inputs

HEADS = dict(heads=3, decoder_heads=2)
KERNEL, HEAD = "encoder/embedding/kernel", "decoder/head/kernel"


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A file of a model with learned positions, which predicts pixels of RGB pictures."""
    fields = TINY | DECODER | dict(learned_positions=True, depth=1, decoder_depth=1)
    path = export(tmp_path_factory.mktemp("adapted") / "x.safetensors", "MaskedAutoencoder", fields)
    return path, *mae_jax.load(path)


def outputs(model, params, images):
    """The tokens of the encoder, and the predictions under a fixed mask."""
    mask = masking.from_scores(jnp.arange(16.0)[None], 4)
    tokens, _ = model.apply({"params": params}, images, method="encode")
    prediction = model.apply({"params": params}, images, mask).prediction
    return np.asarray(tokens), np.asarray(prediction)


def pictures(channels=3):
    values = np.random.default_rng(1).normal(size=(1, 16, 16, channels))
    return jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize("kinds, channels", [("mean", 1), ("mean", 4), ("repeat", 6)])
def test_equal_channels_have_the_tokens_and_predictions_that_they_had(learned, kinds, channels):
    path, model, params = learned
    gray = pictures(1)
    tokens, prediction = outputs(model, params, jnp.tile(gray, 3))
    adapted = mae_jax.load(path, channels=channels, adapt=kinds)
    new_tokens, new_prediction = outputs(*adapted, jnp.tile(gray, channels))
    np.testing.assert_allclose(new_tokens, tokens, rtol=1e-4, atol=1e-4)
    colors = prediction.reshape(*prediction.shape[:2], 16, 3)
    wanted = np.tile(colors, channels // 3) if kinds == "repeat" else colors.mean(-1, keepdims=True)
    new_prediction = new_prediction.reshape(*prediction.shape[:2], 16, channels)
    wanted = np.broadcast_to(wanted, new_prediction.shape)
    np.testing.assert_allclose(new_prediction, wanted, rtol=1e-4, atol=1e-3)


def test_repeated_channels_follow_timms_rule(learned):
    """Channels 0 1 2 0 1, times 3 / 5, as `timm.models.adapt_input_conv` computes."""
    path, _, params = learned
    old = np.asarray(params["encoder"]["embedding"]["kernel"]).reshape(4, 4, 3, -1)
    new = mae_jax.load(path, channels=5, adapt="repeat")[1]["encoder"]["embedding"]["kernel"]
    wanted = old[:, :, [0, 1, 2, 0, 1]] * (3 / 5)
    np.testing.assert_allclose(np.asarray(new), wanted.reshape(80, -1), rtol=1e-6)


@pytest.mark.parametrize("old, new", [((4, 4), (8, 6)), ((8, 8), (4, 6)), ((2, 4, 3), (4, 3, 3))])
def test_resizing_is_flexivits_pseudo_inverse(old, new):
    """Equation 4 of the paper, with one matrix for whole patches, of each unit patch resized."""
    units = np.eye(np.prod(old), dtype=np.float32).reshape(-1, *old)
    resized = jax.vmap(lambda x: jax.image.resize(x, new, "linear"))(units)
    whole = np.asarray(resized, np.float64).reshape(len(units), -1).T  # [new old]
    weights = np.random.default_rng(0).normal(size=(np.prod(old) * 3, 5))
    by_channel = weights.reshape(-1, 3, 5)
    pairs = [adapt_inputs.resize(*sides) for sides in zip(old, new, strict=True)]
    for which, matrix in enumerate((np.linalg.pinv(whole, rcond=1e-5).T, whole)):
        matrices = [*(pair[which] for pair in pairs), np.eye(3)]
        ours = adapt_inputs._multiply(matrices, weights, 0)
        theirs = np.einsum("no,ocd->ncd", matrix, by_channel).reshape(-1, 5)
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_enlarged_patches_have_their_tokens_and_enlarged_predictions(learned):
    path, model, params = learned
    enlarge = adapt_inputs.resize(4, 8)[1]

    def larger(x):  # [b n (4 4 3)] -> [b n (8 8 3)], each patch by itself
        x = np.asarray(x).reshape(*x.shape[:2], 4, 4, 3)
        return np.einsum("pi,qj,bnijc->bnpqc", enlarge, enlarge, x).reshape(*x.shape[:2], -1)

    small = pictures()
    large = patches.unpatchify(larger(patches.patchify(small, (4, 4))), (8, 8), (32, 32))
    adapted = mae_jax.load(path, patch=(8, 8), adapt="resize")
    assert adapted[0].patch == (8, 8)
    equal(adapted[1]["encoder"]["positions"], params["encoder"]["positions"])  # as many patches
    tokens, prediction = outputs(model, params, small)
    new_tokens, new_prediction = outputs(*adapted, jnp.asarray(large, jnp.float32))
    np.testing.assert_allclose(new_tokens, tokens, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(new_prediction, larger(prediction), rtol=1e-4, atol=1e-3)
    # at the size of before there are other patches
    resized = mae_jax.load(path, patch=(8, 8), adapt="resize", size=(16, 16))[1]
    at_size = mae_jax.load(path, size=(8, 8))[1]
    equal(resized["encoder"]["positions"], at_size["encoder"]["positions"])


def test_only_two_layers_change_in_files_of_other_code_and_on_a_mesh(whole, monkeypatch):
    monkeypatch.setattr(partitioning, "SMALL", 100)
    options: dict = dict(channels=4, patch=(8, 2), adapt=("repeat", "resize"))
    _, params = mae_jax.load(whole[1], **options, **HEADS)
    new, old = flatten(params), flatten(whole[0])
    assert new.keys() == old.keys()
    assert new[KERNEL].shape == (64, 24) and new[HEAD].shape == (16, 64)
    for name in new.keys() - adapt_inputs.AXES:
        np.testing.assert_array_equal(new[name], old[name])
    mesh = device_mesh.make_mesh(data=2, fsdp=2)
    shared = mae_jax.load(whole[1], mesh=mesh, **options, **HEADS)[1]
    equal(shared, params)
    kernel = shared["encoder"]["embedding"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(64, 12)}


def test_the_head_of_strided_targets_and_heads_that_are_left_out(tmp_path):
    fields = TINY | DECODER | dict(patch=(2, 4, 4), target_stride=(2, 1, 1))
    model = build.model("MaskedAutoencoder", fields)
    path = tmp_path / "video.safetensors"
    params = random_params(model, (4, 8, 8))
    export(path, "MaskedAutoencoder", fields, params, size=(4, 8, 8))
    options: dict = dict(patch=(4, 4, 8), adapt="resize")
    model, new = mae_jax.load(path, **options)
    assert new["decoder"]["head"]["bias"].shape == (2 * 4 * 8 * 3,)
    assert model.target.stride == (2, 1, 1)
    model, new = mae_jax.load(path, **options, without="decoder/.*")
    assert new.keys() == {"encoder"} and model.encoder.tokenizer.patch == (4, 4, 8)
    assert new["encoder"]["embedding"]["kernel"].shape == (4 * 4 * 8 * 3, 24)


def test_the_statistics_of_other_channels_are_unknown(tmp_path):
    path = export(tmp_path / "x.safetensors", *MODELS["encoder"], mean=[0.5] * 3, std=[0.2] * 3)
    find = lambda **options: mae_jax.weights.load.find(path, **options)
    assert find(patch=(8, 8), adapt="resize").mean == [0.5] * 3
    info = find(channels=2, adapt="mean")
    assert info.channels == 2 and info.mean is None and info.std is None


def test_what_differs_is_refused_with_the_option_that_allows_it(learned, tmp_path):
    path = learned[0]
    for options, says in [
        (dict(channels=4), r"has 3 channels, not 4 \(adapt='mean' or adapt='repeat' changes"),
        (dict(patch=(8, 8)), r"has patches of \(4, 4\), not \(8, 8\) \(adapt='resize' changes"),
        (dict(channels=4, adapt="resize"), "has 3 channels, not 4"),
        (dict(channels=4, patch=(8, 8)), "not .8, 8. .adapt='resize' changes them. and 3 channels"),
        (dict(channels=4, adapt="rotate"), r"adapt = \['rotate'\] must be 'mean' or 'repeat'"),
        (dict(channels=4, adapt=("mean", "repeat")), "or one of each"),
        (dict(patch=(8, 8, 8), adapt="resize"), "has patches of 2 axes, not 3"),
        (dict(adapt="mean"), "adapt = 'mean' needs channels= or patch="),
    ]:
        with pytest.raises(ValueError, match=says):
            mae_jax.load(path, **options)
    equal(mae_jax.load(path, channels=3, patch=(4, 4))[1], learned[2])
    equal(mae_jax.load(path, channels=3, patch=(4, 4), adapt=("mean", "resize"))[1], learned[2])
    for fields, size, says in [
        (dict(patch=(4,), vocab_size=256, norm_pix=False), (16,), "a vocabulary in the place of"),
        (dict(channel_groups=((0, 1), (2,))), (16, 16), r"channel_groups = \(\(0, 1\), \(2,\)\)"),
    ]:
        fields = TINY | DECODER | fields
        params = random_params(build.model("MaskedAutoencoder", fields), size)
        export(tmp_path / "other.safetensors", "MaskedAutoencoder", fields, params, size=size)
        with pytest.raises(ValueError, match=says):
            mae_jax.load(tmp_path / "other.safetensors", channels=4, adapt="mean")
