"""`mae_jax.load`: what fits a model, on any mesh and for inputs of any size, and what does not."""

import hashlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_models
from tiny_models import MODELS, equal, export, flatten, reference_state, save

import mae_jax
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.models import build
from mae_jax.weights import checkpoint_info, families, load, parameter_names, resize_positions

HEADS = dict(heads=3, decoder_heads=2)


def test_what_is_nothing_known(tmp_path):
    for path in (tmp_path / "nothing", tmp_path / "nothing:7"):
        with pytest.raises(ValueError, match="there is no .*: what can be read is a work director"):
            mae_jax.load(path)
    with pytest.raises(ValueError, match="has no config.json of a known kind: what can be read is"):
        mae_jax.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        ValueError, match="holds a model of type 'bert' .and not pixio, .*: what can be read is"
    ):
        mae_jax.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit_mae"}')
    with pytest.raises(ValueError, match="neither model.safetensors nor pytorch_model.bin"):
        mae_jax.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is damaged"):
        mae_jax.load(tmp_path)
    (tmp_path / "config.json").unlink()
    other = save(tmp_path / "x.safetensors", {"bert.weight": np.zeros(3)})
    with pytest.raises(ValueError, match="no masked autoencoder that is known here: bert.weight"):
        mae_jax.load(other)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_parameters_are_float32_whatever_the_file_has(whole, dtype, tmp_path):
    """Tables of positions of 16 bits are kept: rounding cannot be told from training."""
    state = {name: x.astype(dtype) for name, x in reference_state("autoencoder", whole[0]).items()}
    model, params = mae_jax.load(save(tmp_path / "x.safetensors", state), **HEADS)
    tables = {"pos_embed": "encoder", "decoder_pos_embed": "decoder"}
    for name, part in tables.items():
        table = params[part].pop("positions", None)
        assert (table is None) == (np.dtype(dtype).itemsize > 2)
        if table is not None:
            np.testing.assert_array_equal(table, np.float32(state[name][0]))
    equal(params, jax.tree.map(lambda x: np.float32(np.asarray(x).astype(dtype)), whole[0]))


def test_missing_and_left_over_are_named(whole, tmp_path):
    state = reference_state("autoencoder", whole[0])
    lacking = {n: x for n, x in state.items() if n not in ("norm.bias", "blocks.1.attn.qkv.bias")}
    path = save(tmp_path / "x.safetensors", lacking | {"teacher.weight": np.zeros((2, 2))})
    with pytest.raises(ValueError) as caught:
        mae_jax.load(path, **HEADS)
    text = str(caught.value)
    for part in ("query", "key", "value"):
        assert f"encoder/block_1/attention/{part}/bias" in text
    assert "encoder/norm/bias missing;" in text and "teacher.weight left over" in text
    without = "teacher.*|encoder/norm/.*|.*/attention/.*/bias"
    _, params = mae_jax.load(path, without=without, **HEADS)
    assert "norm" not in params["encoder"]
    np.testing.assert_array_equal(params["encoder"]["cls"], whole[0]["encoder"]["cls"])
    del lacking["patch_embed.proj.weight"]
    with pytest.raises(ValueError, match="patch_embed.proj.weight is missing in"):
        mae_jax.load(save(path, lacking), **HEADS)


def test_another_model_size_is_said_with_both_shapes(whole):
    kind, fields = MODELS["autoencoder"]
    wanted = load.abstract(build.model(kind, fields | dict(width=48)), (16, 16), 3)
    message = r"key/bias is \[24\] in the checkpoint, not \[48\].*another model size"
    with pytest.raises(ValueError, match=message):
        load.fit(load.find(whole[1], **HEADS), wanted)


def test_mistaken_fields(whole):
    with pytest.raises(ValueError, match="hedas is no field of a model"):
        mae_jax.load(whole[1], hedas=3)
    with pytest.raises(ValueError, match="heads = 5 does not divide width = 24"):
        mae_jax.load(whole[1], heads=5, decoder_heads=2)
    with pytest.raises(ValueError, match=r"without=\(\( is no regular expression"):
        mae_jax.load(whole[1], without="((")


def test_without_a_decoder_the_encoder_is_the_same_function(whole):
    params, path = whole
    model, encoder = mae_jax.load(path, without="decoder/.*", heads=3)
    fields = tiny_models.TINY | dict(mlp_ratio=3.0, pooling="cls", attention="auto")
    assert model == build.classifier(fields)
    equal(encoder, {"encoder": params["encoder"]})
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 3)), jnp.float32)
    encode = lambda m, p: m.apply({"params": p}, images, method="encode")[0]
    tokens = encode(model, encoder)
    np.testing.assert_array_equal(tokens, encode(tiny_models.model("autoencoder"), params))
    np.testing.assert_array_equal(model.apply({"params": encoder}, images), tokens[:, 0])


def test_a_pretrained_encoder_in_a_classifier(whole):
    """As fine-tuning starts: what is new or dropped is named, anything else is an error."""
    kind, fields = MODELS["classifier"]
    wanted = load.abstract(build.model(kind, fields | dict(mlp_ratio=3.0)), (24, 32), 3)
    info = load.find(whole[1], without="decoder/.*|encoder/norm/.*|norm/.*|head/.*")
    given = load.fit(info, wanted)
    expected = dict(whole[0]["encoder"])
    del expected["norm"]
    equal(given, {"encoder": expected})
    stored, start = (checkpoint_info.fixed_positions(info, x) for x in ((16, 16), (24, 32)))
    table = resize_positions.resize(stored["encoder/positions"], (4, 4), (6, 8))
    equal(load.fit(info, wanted, size=(24, 32)), {"encoder": expected | {"positions": table}})
    computed, table = info._replace(positions="compute"), start["encoder/positions"]
    equal(load.fit(computed, wanted, size=(24, 32)), {"encoder": expected | {"positions": table}})
    with pytest.raises(ValueError, match="head/bias, head/kernel missing.*decoder/.*left"):
        load.fit(load.find(whole[1], without="norm/.*"), wanted)


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (24, 12), (8, 32)])  # the last: as many
def test_learned_positions_are_resized(learned, size):
    params, path = learned
    _, loaded = mae_jax.load(path, size=size, **HEADS)
    grid = (size[0] // 4, size[1] // 4)
    stored = grid if size == (8, 32) else (4, 4)  # of as many, the size that is given is likelier
    expected = jax.tree.map(lambda x: x, params)
    for part in ("encoder", "decoder"):
        resized = resize_positions.resize(params[part]["positions"], stored, grid)
        assert resized.shape[0] == 1 + grid[0] * grid[1]
        expected[part]["positions"] = resized
    equal(loaded, expected)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Random parameters with learned positions, and a file of the reference with them."""
    params = tiny_models.random_params(tiny_models.model("learned"))
    state = parameter_names.to_format(flatten(params), families.FAMILIES["reference"], (4, 4))
    return params, save(tmp_path_factory.mktemp("learned") / "x.safetensors", state)


def test_positions_learned_from_now_on(whole):
    """A model with learned positions from a file with fixed ones starts as these."""
    options = dict(learned_positions=True, positions="compute", size=(8, 16)) | HEADS
    _, params = mae_jax.load(whole[1], **options)
    tables = checkpoint_info.fixed_positions(tiny_models.info(*MODELS["autoencoder"]), (8, 16))
    for part in ("encoder", "decoder"):
        np.testing.assert_array_equal(params[part]["positions"], tables[f"{part}/positions"])


def test_parameters_lie_on_the_mesh_in_their_shares(whole, monkeypatch):
    monkeypatch.setattr(partitioning, "SMALL", 100)
    mesh = device_mesh.make_mesh(data=2, fsdp=2)
    _, params = mae_jax.load(whole[1], mesh=mesh, **HEADS)
    equal(params, whole[0])
    jax.tree.map(
        lambda x, wanted: x.sharding.is_equivalent_to(wanted.sharding, x.ndim) or pytest.fail(),
        params,
        partitioning.placed(params, mesh),
    )
    kernel = params["encoder"]["block_0"]["mlp"]["fc1"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(12, 72)}


def test_weights_are_those_that_were_meant(tmp_path):
    path = export(tmp_path / "x.safetensors", *MODELS["encoder"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    equal(mae_jax.load(path, sha256=digest.upper())[1], mae_jax.load(path)[1])
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=f"has the SHA-256 .*, not {digest}: it is another file"):
        mae_jax.load(path, sha256=digest)
    with pytest.raises(ValueError, match="holds neither model.safetensors nor"):
        mae_jax.load(tmp_path, sha256=digest)


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(size=32), "size = 32 must be whole numbers of at least 1"),
        (dict(size=(32.0, 32)), "size = .32.0, 32. must be whole numbers"),
        (dict(patch=8), "patch"),
        (dict(patch=(0, 0)), "patch"),
        (dict(channels="1"), "channels = ..1.. must be whole numbers"),
        (dict(heads="x"), "heads"),
        (dict(norm_pix="false"), "norm_pix"),
        (dict(eps="x"), "eps = 'x' must be a number of at least 0"),
        (dict(colour=1), "colour is no field of a model"),
        (dict(positions="both"), "positions = 'both' must be 'interpolate' or 'compute'"),
    ],
    ids=str,
)
def test_values_that_are_not_possible(whole, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        mae_jax.load(whole[1], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "https://huggingface.co/a/b", "foo://a/b"])
def test_addresses_that_cannot_be_read(path):
    with pytest.raises(ValueError, match="path is empty|a model of the Hub is hf:ORG/NAME"):
        mae_jax.load(path)


def test_the_pooling_of_an_encoder_alone_is_chosen(whole, tmp_path):
    """An autoencoder says none."""
    kind, fields = MODELS["autoencoder"]
    ours = tiny_models.export(tmp_path / "ours.safetensors", kind, fields, whole[0])
    for path, heads in ((ours, {}), (whole[1], dict(heads=3))):
        options = dict(without="decoder/.*", pooling="norm_mean") | heads
        assert mae_jax.load(path, **options)[0].pooling == "norm_mean"
