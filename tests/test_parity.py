"""Hugging Face's ViTMAE and ours are one function: forward, mask, hidden states, gradients.

The golden files hold what it computed (scripts/make_golden.py); the tests marked `parity` run it.
"""

import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from mae_jax import mae, masking

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
TOLERANCE = 1e-5  # of the largest value of an array, in float32

TINY = dict(
    patch=(4, 4), width=24, depth=2, heads=3, decoder_width=16, decoder_depth=2, decoder_heads=2
)
LARGER = dict(
    patch=(16, 16), width=192, depth=4, heads=3, decoder_width=128, decoder_depth=2, decoder_heads=4
)


def error(ours, theirs) -> float:
    """The largest difference, relative to the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def grid_and_params(model, images, state):
    grid = tuple(s // p for s, p in zip(images.shape[1:3], model.patch, strict=True))
    params = parity.params_from_huggingface(state, grid)
    return grid, jax.tree.map(jnp.asarray, params)


def check_forward(model, params, images, noise, theirs) -> None:
    """Ours on the same images and noise, against what Hugging Face says."""
    keep = int((1 - theirs["mask"][0]).sum())
    mask = masking.from_scores(jnp.asarray(noise), keep)
    order = np.argsort(theirs["ids_restore"], axis=1)
    np.testing.assert_array_equal(mask.keep, order[:, :keep])
    np.testing.assert_array_equal(masking.hidden_map(mask), theirs["mask"])

    out = jax.jit(model.apply)({"params": params}, images, mask)
    logits = np.take_along_axis(theirs["logits"], np.asarray(mask.hidden)[..., None], axis=1)
    names = ["embedding", *(f"block_{i}" for i in range(model.depth))]
    errors = {name: error(out.intermediates["encoder/" + name], hidden)
              for name, hidden in zip(names, theirs["hidden_states"], strict=True)}  # fmt: skip
    # The cls token starts small, so it alone shows whether the norms have the right eps.
    errors["cls"] = error(
        out.intermediates["encoder/block_0"][:, 0], theirs["hidden_states"][1][:, 0]
    )
    errors["norm"] = error(out.intermediates["encoder/norm"], theirs["last_hidden_state"])
    errors["prediction"] = error(out.prediction, logits)
    errors["loss"] = error(out.loss, theirs["loss"])
    print(errors)
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path):
    stored = dict(np.load(path))
    fields = json.loads(str(stored.pop("fields")))
    model = mae.MaskedAutoencoder(**fields | {"patch": tuple(fields["patch"])})
    state = {k.removeprefix("state/"): x for k, x in stored.items() if k.startswith("state/")}
    _, params = grid_and_params(model, stored["images"], state)
    check_forward(model, params, stored["images"], stored["noise"], stored)


def test_golden_files_cover_the_model():
    fields = [json.loads(str(np.load(path)["fields"])) for path in GOLDEN]
    assert {(f["patch"][0], f["norm_pix"]) for f in fields} == {
        (patch, norm_pix) for patch in (4, 8) for norm_pix in (False, True)
    }
    sizes = [np.load(path)["images"].shape[1:] for path in GOLDEN]
    assert {channels for *_, channels in sizes} == {1, 3}
    assert any(height != width for height, width, _ in sizes)


@pytest.fixture(scope="module")
def small():
    """A golden model's state dict, its grid and the abstract parameters of ours."""
    stored = np.load(GOLDEN[0])
    fields = json.loads(str(stored["fields"]))
    model = mae.MaskedAutoencoder(**fields | {"patch": tuple(fields["patch"])})
    state = {k.removeprefix("state/"): stored[k] for k in stored if k.startswith("state/")}
    images = stored["images"]
    grid, params = grid_and_params(model, images, state)
    mask = masking.from_scores(jnp.asarray(stored["noise"]), 4)
    abstract = jax.eval_shape(model.init, jax.random.key(0), images, mask)["params"]
    return state, grid, params, abstract


def test_parameters_have_our_names_and_shapes(small):
    _, _, params, abstract = small
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(params) == shapes(abstract)


def older(name: str, saved: bool) -> str:
    """A name of transformers 5 as the Hub has it, or as transformers 5 itself saves it."""
    name = name.replace("vit.layers.", "vit.encoder.layer.")
    if saved:
        name = name.replace("decoder_layers.", "decoder_encoder.layer.")
    for short, long in {"q_proj": "query", "k_proj": "key", "v_proj": "value"}.items():
        name = name.replace(short, "attention." + long)
    name = name.replace("o_proj", "output.dense")
    return name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")


@pytest.mark.parametrize("saved", [False, True], ids=["hub", "saved_by_5"])
def test_older_names_give_the_same_parameters(small, saved):
    state, grid, params, _ = small
    renamed = {older(name, saved): x for name, x in state.items()}
    assert "vit.encoder.layer.0.attention.attention.query.weight" in renamed
    assert "vit.encoder.layer.1.attention.output.dense.bias" in renamed
    again = parity.params_from_huggingface(renamed, grid)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_refuses_what_is_not_this_model(small):
    state, grid, _, _ = small
    without = {k: x for k, x in state.items() if k != "decoder.mask_token"}
    with pytest.raises(ValueError, match="mask_token is missing"):
        parity.params_from_huggingface(without, grid)
    with pytest.raises(ValueError, match="classifier.weight: no such"):
        parity.params_from_huggingface(state | {"classifier.weight": np.zeros((2, 2))}, grid)
    with pytest.raises(ValueError, match="not the sin-cos table of the encoder"):
        learned = state["vit.embeddings.position_embeddings"] + 0.01
        parity.params_from_huggingface(
            state | {"vit.embeddings.position_embeddings": learned}, grid
        )


@pytest.fixture(scope="module")
def torch():
    """torch, with transformers beside it; skips without them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what these packages say of each other is not ours
        torch, _ = (
            pytest.importorskip(
                name, reason="needs torch and transformers: pip install -e '.[parity]'"
            )
            for name in ("torch", "transformers.models.vit_mae.modeling_vit_mae")
        )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


@pytest.mark.parity
@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize(
    "fields, size, channels, ratio",
    [(TINY, (16, 16), 3, 0.75), (TINY, (16, 24), 1, 0.5), (LARGER, (96, 96), 3, 0.75)],
    ids=["tiny", "wide", "larger"],
)
def test_live(torch, fields, size, channels, ratio, norm_pix):
    """Forward and the gradient of every parameter, on weights drawn now."""
    seed = int(np.random.default_rng().integers(2**31))
    print("seed", seed)  # shown when the test fails
    torch.manual_seed(seed)
    model = mae.MaskedAutoencoder(**fields, norm_pix=norm_pix)
    oracle = parity.huggingface(model, size, channels, ratio)
    images, noise = parity.draw(seed, model, 2, size, channels)
    theirs, gradients = parity.run_huggingface(oracle, images, noise)
    state = parity.state_of(oracle)
    grid, params = grid_and_params(model, images, state)
    check_forward(model, params, images, noise, theirs)

    mask = masking.from_scores(jnp.asarray(noise), masking.keep_count(noise.shape[1], ratio))
    ours = jax.jit(jax.grad(lambda p: model.apply({"params": p}, images, mask).loss))(params)
    theirs = parity.params_from_huggingface(state | gradients, grid)
    ours, theirs = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
         for path, x in jax.tree.leaves_with_path(tree)}
        for tree in (ours, theirs)
    )  # fmt: skip
    assert ours.keys() == theirs.keys()
    errors = {}
    for name in ours:
        # Softmax does not see a shift of its keys: that gradient is zero, and what both have is
        # rounding. It is measured by the gradient of the queries' bias.
        scale = np.abs(theirs[name.replace("key/bias", "query/bias")]).max()
        assert scale > 0, name
        errors[name] = float(np.abs(ours[name] - theirs[name]).max() / scale)
    worst = max(errors, key=errors.get)
    print("gradients", worst, errors[worst])
    assert errors[worst] < TOLERANCE, (worst, errors[worst])
