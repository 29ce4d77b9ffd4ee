"""What files of the reference and of Hugging Face do not say is found out, or asked for."""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_models
from tiny_models import equal, flatten, reference_state, save

import mae_jax
from mae_jax.models import build
from mae_jax.weights import checkpoint_info, export, families, load, parameter_names

HEADS = dict(heads=3, decoder_heads=2)


@pytest.mark.parametrize("stored", [(16, 16), (16, 24)])
def test_fixed_positions_suit_any_size(whole, stored, tmp_path):
    path = save(tmp_path / "x.safetensors", reference_state("autoencoder", whole[0], stored))
    if stored != (16, 16):  # nothing in a reference file says so
        with pytest.raises(ValueError, match="24 positions, which are no square grid: give size="):
            mae_jax.load(path, **HEADS)
    info = load.find(path, size=stored)
    assert not info.fields["learned_positions"] and info.size == stored
    model, params = mae_jax.load(path, size=stored, **HEADS)
    equal(params, whole[0])
    images = jnp.zeros((1, 12, 20, 3))
    tokens, _ = jax.eval_shape(lambda: model.apply({"params": params}, images, method="encode"))
    assert tokens.shape == (1, 1 + 15, 24)


def test_a_table_that_is_fixed_beside_one_that_is_learned(whole, tmp_path):
    """As after fine-tuning the encoder's alone."""
    state = reference_state("autoencoder", whole[0])
    state["pos_embed"] = state["pos_embed"] + np.float32(1e-4)
    _, params = mae_jax.load(save(tmp_path / "x.safetensors", state), **HEADS)
    np.testing.assert_array_equal(params["encoder"]["positions"], state["pos_embed"][0])
    np.testing.assert_array_equal(params["decoder"]["positions"], state["decoder_pos_embed"][0])


def test_a_missing_table_is_named(whole, tmp_path):
    """A format that stores its tables has lost one: nobody knows whether it was learned."""
    state = reference_state("autoencoder", whole[0])
    for name in ("pos_embed", "decoder_pos_embed"):
        path = save(tmp_path / "x.safetensors", {n: x for n, x in state.items() if n != name})
        ours = "decoder/positions" if name.startswith("decoder") else "encoder/positions"
        with pytest.raises(ValueError, match=f"{ours} missing in"):
            load.find(path)
        assert not load.find(path, without=".*/positions").fields.get("learned_positions")


def test_a_family_is_an_entry_of_the_table(whole, tmp_path, monkeypatch):
    """Its own names and spellings, and what its files do not say."""
    reference = families.FAMILIES["reference"]
    names = {ours: f"net.{theirs}" for ours, theirs in reference.names.items()}
    aliases = ((r"^module\.", "net."),)
    marks = (r"^net\.blocks\.",)
    family = parameter_names.Family("new", names, marks, aliases=aliases, eps=1e-5)
    monkeypatch.setitem(families.FAMILIES, "new", family)
    state = parameter_names.to_format(flatten(whole[0]), families.FAMILIES["new"], (4, 4))
    tables = {
        name: x for name, x in reference_state("autoencoder", whole[0]).items() if "pos" in name
    }
    state = {name.replace("net.", "module."): x for name, x in state.items()}
    state |= {f"module.{name}": x for name, x in tables.items()}
    model, params = mae_jax.load(save(tmp_path / "x.safetensors", state), **HEADS)
    equal(params, whole[0])
    assert model.encoder.trunk.eps == 1e-5


def test_a_decoder_in_part_is_an_error(whole, tmp_path):
    state = reference_state("autoencoder", whole[0])
    del state["decoder_blocks.1.mlp.fc1.weight"], state["mask_token"]
    path = save(tmp_path / "x.safetensors", state)
    missing = "decoder/block_1/mlp/fc1/kernel, decoder/mask_token missing:"
    with pytest.raises(ValueError, match=missing):
        mae_jax.load(path, **HEADS)
    assert load.find(path, without="decoder/.*").kind == "Classifier"


def test_a_linear_probe_of_the_reference_is_folded(tmp_path):
    """Its BatchNorm without parameters disappears into the head."""
    params = tiny_models.random_params(tiny_models.model("encoder"))
    generator = np.random.default_rng(1)
    draw = lambda *shape: generator.uniform(0.5, 2, shape).astype(np.float32)
    state = reference_state("encoder", params) | {
        "head.0.running_mean": draw(24),
        "head.0.running_var": draw(24),
        "head.0.num_batches_tracked": np.array(7),
        "head.1.weight": draw(5, 24),
        "head.1.bias": draw(5),
    }
    model, loaded = mae_jax.load(save(tmp_path / "x.safetensors", state), heads=3)
    assert model.classes == 5 and model.pooling == "cls" and not model.batch_norm
    feature = draw(3, 24)
    normed = (feature - state["head.0.running_mean"]) / np.sqrt(state["head.0.running_var"] + 1e-6)
    expected = normed @ state["head.1.weight"].T + state["head.1.bias"]
    ours = feature @ loaded["head"]["kernel"] + loaded["head"]["bias"][None]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_what_is_assumed_of_the_target(whole, tmp_path, caplog):
    """Published ViTMAEs predict pixels, of which a file without its config.json says nothing."""
    folder = tmp_path / "folder"
    export.export(str(whole[1]), folder, size=(16, 16), norm_pix=True, **HEADS)
    assert load.find(folder).fields["norm_pix"] is True and "assumed" not in caplog.text
    (folder / "config.json").unlink()
    for path, normalised in ((folder / "model.safetensors", False), (whole[1], True)):
        caplog.clear()
        assert load.find(path, **HEADS).fields["norm_pix"] is normalised
        assert f"it is assumed: norm_pix = {normalised} (its decoder" in caplog.text
        assert load.find(path, norm_pix=True, **HEADS).fields["norm_pix"] is True


def test_a_folder_that_contradicts_its_config(whole, tmp_path):
    folder = tmp_path / "folder"
    export.export(str(whole[1]), folder, size=(16, 16), **HEADS)
    state = safetensors.numpy.load_file(folder / "model.safetensors")
    last = max(int(n.split(".")[3]) for n in state if n.startswith("vit.encoder.layer."))
    there = {n: x for n, x in state.items() if f"encoder.layer.{last}." not in n}
    save(folder / "model.safetensors", there)
    with pytest.raises(ValueError, match=f"depth = {last + 1}: some are missing"):
        load.find(folder)
    settings = json.loads((folder / "config.json").read_text())
    for name, value, says in (
        ("num_attention_heads", "3", "num_attention_heads = '3' is not possible"),
        ("hidden_act", "relu", "has the activation relu: only gelu can be read"),
    ):
        (folder / "config.json").write_text(json.dumps(settings | {name: value}))
        with pytest.raises(ValueError, match=says):
            load.find(folder)


@pytest.mark.parametrize("size", [(32, 8), None])
def test_a_table_with_a_square_number_of_rows_may_not_be_square(size, tmp_path, caplog):
    """Fixed tables show their grid; of learned ones the size that is given is taken, and told."""
    params = tiny_models.random_params(tiny_models.model("autoencoder"))
    state = reference_state("autoencoder", params, (32, 8))
    path = save(tmp_path / "x.safetensors", state)
    if size:
        info = load.find(path, size=size)
        assert info.size == size and not info.fields["learned_positions"]
    state["pos_embed"] = state["pos_embed"] + np.float32(0.1)
    info = load.find(save(path, state), size=size)
    assert info.size == (size or (16, 16)) and info.fields["learned_positions"]
    lines = [line for line in caplog.messages if "for a grid of" in line]
    assert bool(lines) == bool(size)


def test_other_convolutions_are_no_embeddings(whole, tmp_path):
    """Such as the head of SimMIM, which `without` leaves out."""
    state = reference_state("autoencoder", whole[0])
    state["other.0.weight"] = np.zeros((16, 24, 1, 1), np.float32)
    path = save(tmp_path / "x.safetensors", state)
    info = load.find(path, without="other.*")
    assert (info.channels, info.fields["patch"]) == (3, (4, 4))


@pytest.mark.parity
def test_the_arguments_of_a_training_are_used(tmp_path):
    """The published sizes by the name of the model, and what the reference's script was given."""
    torch = pytest.importorskip("torch")
    fields = dict(patch=(16, 16), width=768, depth=1, heads=12) | tiny_models.DECODER
    params = tiny_models.random_params(build.autoencoder(fields), (32, 48))
    kind, fields = "MaskedAutoencoder", build.completed("MaskedAutoencoder", fields)
    known = tiny_models.info(kind, fields, (32, 48))
    arrays = checkpoint_info.fixed_positions(known, (32, 48)) | tiny_models.flatten(params)
    family = families.FAMILIES["reference"]
    state = parameter_names.to_format(arrays, family, (16, 16))
    args = dict(norm_pix_loss=False, mask_ratio=0.6, input_size=32, decoder_num_heads=2)
    file = {"model": {n: torch.from_numpy(x) for n, x in state.items()}}
    torch.save(file | {"args": argparse.Namespace(**args)}, tmp_path / "x.pth")
    info = load.find(tmp_path / "x.pth", size=(32, 48))
    assert [info.fields[name] for name in ("heads", "decoder_heads", "norm_pix")] == [12, 2, False]
    assert info.size == (32, 48) and info.config["mask"]["ratio"] == 0.6
    args["model"] = "mae_vit_base_patch16"  # which has twelve blocks
    torch.save(file | {"args": argparse.Namespace(**args)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="has 1 blocks where .* depth = 12: some are missing"):
        load.find(tmp_path / "x.pth", size=(32, 48))
