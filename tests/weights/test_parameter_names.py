"""Parameters keep their values under the names of every format."""

import numpy as np
import pytest
from tiny_models import equal, flatten, model, random_params

from mae_jax.weights import families, parameter_names


def as_transformers_5(name: str, where: str) -> str:
    """A name of the Hub's as transformers 5 has it in memory, or in the files that it saves."""
    if where == "saved_by_5":
        return name.replace("decoder_layers.", "decoder_encoder.layer.")
    name = name.replace("vit.encoder.layer.", "vit.layers.")
    for long, short in {"query": "q_proj", "key": "k_proj", "value": "v_proj"}.items():
        name = name.replace(f"attention.attention.{long}", f"attention.{short}")
    name = name.replace("attention.output.dense", "attention.o_proj")
    name = name.replace("intermediate.dense", "mlp.fc1")
    return name.replace(".output.dense", ".mlp.fc2")


def from_any_format(state):
    return parameter_names.from_format(state, families.FAMILIES[families.recognise(state)])


@pytest.mark.parametrize("where", ["hub", "in_memory", "saved_by_5", "encoder"])
def test_every_naming_of_hugging_face_is_read_alike(where):
    flat = flatten(random_params(model("learned")))
    if where == "encoder":  # the files of a ViTMAEModel, which have no `vit.`
        flat = {name: x for name, x in flat.items() if name.startswith("encoder/")}
        state = parameter_names.to_format(flat, families.FAMILIES["huggingface"], (4, 4))
        state = {name.removeprefix("vit."): x for name, x in state.items()}
        in_memory = {as_transformers_5("vit." + n, "in_memory")[4:]: x for n, x in state.items()}
        assert "layers.1.attention.q_proj.weight" in in_memory
        equal(from_any_format(in_memory), flat)
    else:
        state = parameter_names.to_format(flat, families.FAMILIES["huggingface"], (4, 4))
    if where in ("in_memory", "saved_by_5"):
        state = {as_transformers_5(name, where): x for name, x in state.items()}
    expected = {
        "hub": "decoder.decoder_layers.1.attention.output.dense.bias",
        "in_memory": "vit.layers.0.attention.o_proj.bias",
        "saved_by_5": "decoder.decoder_encoder.layer.1.output.dense.bias",
        "encoder": "encoder.layer.1.attention.attention.key.bias",
    }
    assert expected[where] in state
    equal(from_any_format(state), flat)


def test_the_reference_has_one_matrix_for_query_key_and_value():
    flat = flatten(random_params(model("autoencoder")))
    state = parameter_names.to_format(flat, families.FAMILIES["reference"], (4, 4))
    block = "encoder/block_1/attention"
    packed = state["blocks.1.attn.qkv.weight"]
    assert packed.shape == (72, 24)
    np.testing.assert_array_equal(packed[24:48].T, flat[f"{block}/key/kernel"])
    np.testing.assert_array_equal(state["blocks.1.attn.qkv.bias"][48:], flat[f"{block}/value/bias"])
    # the convolution [d c p q] sees channel c of row p and column q
    kernel = flat["encoder/embedding/kernel"].reshape(4, 4, 3, 24)
    assert state["patch_embed.proj.weight"][7, 2, 1, 3] == kernel[1, 3, 2, 7]
    with pytest.raises(ValueError, match="not query, key and value"):
        parameter_names.from_format(
            {"blocks.0.attn.qkv.bias": np.zeros(7)}, families.FAMILIES["reference"]
        )
