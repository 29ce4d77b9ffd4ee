"""`mae_jax.load`: whatever holds parameters, and whatever is wrong with it."""

import collections
import contextlib
import json
import os
import pickle
import shutil
import zipfile
from argparse import Namespace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import traverse_util
from tiny_models import MODELS, equal, export, random_params

import mae_jax
from mae_jax import convert
from mae_jax.config import command_line, schema
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.models import attention, mae, positions, vit
from mae_jax.train import train
from mae_jax.training import checkpoints as checkpoint
from mae_jax.training.step import TrainState
from mae_jax.weights import checkpoint_info as stored
from mae_jax.weights import load, parameter_names, torch_pickle

ROOT = Path(__file__).parents[2]


def flat_of(params) -> dict[str, np.ndarray]:
    return {n: np.asarray(x) for n, x in traverse_util.flatten_dict(params, sep="/").items()}


def reference(params, size=(16, 16), model=MODELS["autoencoder"]) -> dict[str, np.ndarray]:
    """Its state dict, with tables of positions."""
    tables = stored.fixed_tables(model, size)
    return parameter_names.write(tables | flat_of(params), "reference", model.patch)


def as_file(path, state) -> Path:
    """A state dict as a .safetensors file, which needs no torch."""
    safetensors.numpy.save_file({n: np.ascontiguousarray(x) for n, x in state.items()}, path)
    return path


HEADS = dict(heads=3, decoder_heads=2)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_reads_what_torch_saves(legacy, tmp_path):
    """Every type, strides, shared storages, and what training keeps beside the parameters."""
    import torch

    base = torch.arange(24.0).reshape(4, 6)
    kinds = "float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool".split()
    state = {kind: base.to(getattr(torch, kind)) for kind in kinds}
    state |= {"transposed": base.t(), "part": base[1:, ::2], "same": torch.ones(1, 3).expand(5, 3)}
    state |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 3)}
    state |= {"parameter": torch.nn.Parameter(base + 1)}
    args = Namespace(lr=1e-3, gpu=0, output_dir="x")
    beside = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(7)}}}, "epoch": 3, "args": args}
    for file in (
        {"model": state} | beside,
        {"state_dict": collections.OrderedDict(state)},
        collections.OrderedDict(state),
    ):
        torch.save(file, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
        theirs = torch.load(tmp_path / "x.pth", weights_only=False)
        theirs = theirs.get("model", theirs.get("state_dict", theirs))
        ours = torch_pickle.read(tmp_path / "x.pth")
        assert ours.keys() == theirs.keys()
        for name, x in theirs.items():
            x = x.detach()
            exact = x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy()
            assert ours[name].dtype == (ml_dtypes.bfloat16 if name == "bfloat16" else exact.dtype)
            np.testing.assert_array_equal(ours[name].astype(exact.dtype), exact)
            assert x.numel() == 0 or not ours[name].flags.writeable


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def write_pickle(path, content) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_not_run(legacy, tmp_path):
    path, marker = tmp_path / "x.pth", tmp_path / "it_ran"
    content = pickle.dumps({"model": {"x": 1}, "args": Evil(marker)}, protocol=2)
    if legacy:
        path.write_bytes(torch_pickle.LEGACY + content)
    else:
        write_pickle(path, content)
    with pytest.raises(ValueError, match=r"asks for (posix|nt)\.mkdir, .*nothing of it was run"):
        mae_jax.load(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.",
        b"\x80\x04\x8c\x13torch.serialization\x8c\x04load\x93.",
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
        b"ccollections\nOrderedDict.fromkeys\n.",
    ],
)
def test_no_other_name_is_found(content, tmp_path):
    with pytest.raises(ValueError, match="asks for .* refused"):
        torch_pickle.read(write_pickle(tmp_path / "x.pth", content))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An autoencoder's random parameters, and the file of the reference."""
    folder, params = tmp_path_factory.mktemp("whole"), random_params(MODELS["autoencoder"])
    return params, as_file(folder / "reference.safetensors", reference(params))


def test_damaged_files_are_refused(whole, tmp_path):
    data, path = whole[1].read_bytes(), tmp_path / "x"
    for content, says in {
        b"": "is empty",
        b"PK\x03\x04" + bytes(100): "damaged: its zip directory",
        b"Hello, these are no weights": "neither a .pth file of PyTorch nor a .safetensors",
        data[:100]: "damaged: its header is cut off",
        data[: len(data) // 2]: "damaged: .* lies beyond its end",
        data[:-1]: "damaged: .* lies beyond its end",
        data[:8] + b"{" + bytes(len(data)): "damaged: its header is not JSON",
    }.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=says):
            mae_jax.load(path)
    for content in (b"\x80\x02}", b"not a pickle", pickle.dumps([1, 2])):
        with pytest.raises(ValueError, match="damaged|no state dict"):
            mae_jax.load(write_pickle(path, content))


@pytest.mark.parity
def test_a_torn_torch_file_is_refused_wherever_it_is_torn(tmp_path):
    import torch

    for legacy in (False, True):
        state = {f"x{i}": torch.ones(50) for i in range(3)}
        torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
        data = (tmp_path / "x.pth").read_bytes()
        for end in range(1, len(data), 97):
            (tmp_path / "x.pth").write_bytes(data[:end])
            with pytest.raises(ValueError, match="damaged|neither"):
                torch_pickle.read(tmp_path / "x.pth")


@pytest.mark.parity
def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    import torch

    torch.save({"x": torch.ones(50)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    for old, new in ((b"K2\x85", b"K3\x85"), (b"K\x01\x85", b"K\x02\x85")):  # its size, its stride
        with zipfile.ZipFile(tmp_path / "y.pth", "w") as archive:
            for name, data in content.items():
                assert not name.endswith("data.pkl") or old in data
                archive.writestr(name, data.replace(old, new) if ".pkl" in name else data)
        with pytest.raises(ValueError, match="the values of x are not all in it"):
            torch_pickle.read(tmp_path / "y.pth")


def test_what_is_nothing_known(tmp_path):
    for path in (tmp_path / "nothing", tmp_path / "nothing:7"):
        with pytest.raises(
            ValueError, match="there is no .*: what can be read is a work directory"
        ):
            mae_jax.load(path)
    with pytest.raises(ValueError, match="has no config.json of a known kind: what can be read is"):
        mae_jax.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds a model of type 'bert': what can be read is"):
        mae_jax.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit_mae"}')
    with pytest.raises(ValueError, match="neither model.safetensors nor pytorch_model.bin"):
        mae_jax.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is damaged"):
        mae_jax.load(tmp_path)
    other = as_file(tmp_path / "x.safetensors", {"bert.weight": np.zeros(3)})
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="the names are neither .* bert.weight"):
        mae_jax.load(other)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_parameters_are_float32_whatever_the_file_has(whole, kind, tmp_path):
    """The table of positions is recognised in less precision too."""
    state = {name: x.astype(kind) for name, x in reference(whole[0]).items()}
    model, params = mae_jax.load(as_file(tmp_path / "x.safetensors", state), **HEADS)
    equal(params, jax.tree.map(lambda x: np.float32(np.asarray(x).astype(kind)), whole[0]))
    assert not model.learned_positions


def test_a_folder_in_parts(whole, tmp_path):
    """Large models of Hugging Face's are several files and an index."""
    params, _ = whole
    model, size = MODELS["autoencoder"], (16, 16)
    state = parameter_names.write(
        stored.fixed_tables(model, size) | flat_of(params), "huggingface", model.patch
    )
    settings = {"model_type": "vit_mae", "num_attention_heads": 3, "decoder_num_attention_heads": 2}
    settings |= {"layer_norm_eps": 1e-6, "image_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    parts = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(state)}
    for part in set(parts.values()):
        as_file(tmp_path / part, {n: x for n, x in state.items() if parts[n] == part})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    there, again = mae_jax.load(tmp_path)
    assert there == model.clone(attention=attention.suited())
    equal(again, params)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match="names model-1.safetensors, which .* has not"):
        mae_jax.load(tmp_path)


# --- what fits ------------------------------------------------------------------------------------


def test_missing_and_left_over_are_named(whole, tmp_path):
    state = reference(whole[0])
    lacking = {n: x for n, x in state.items() if n not in ("norm.bias", "blocks.1.attn.qkv.bias")}
    path = as_file(tmp_path / "x.safetensors", lacking | {"teacher.weight": np.zeros((2, 2))})
    with pytest.raises(ValueError) as caught:
        mae_jax.load(path, **HEADS)
    text = str(caught.value)
    for part in ("query", "key", "value"):
        assert f"encoder/block_1/attention/{part}/bias" in text
    assert "encoder/norm/bias missing there" in text and "teacher.weight left over" in text
    without = "teacher.*|encoder/norm/.*|.*/attention/.*/bias"
    _, params = mae_jax.load(path, without=without, **HEADS)
    assert "norm" not in params["encoder"]
    np.testing.assert_array_equal(params["encoder"]["cls"], whole[0]["encoder"]["cls"])
    with pytest.raises(ValueError, match="patch_embed.proj.weight is missing in"):
        del lacking["patch_embed.proj.weight"]
        mae_jax.load(as_file(path, lacking), **HEADS)


def test_a_decoder_in_part_is_an_error(whole, tmp_path):
    state = reference(whole[0])
    del state["decoder_blocks.1.mlp.fc1.weight"], state["mask_token"]
    path = as_file(tmp_path / "x.safetensors", state)
    missing = "decoder/block_1/mlp/fc1/kernel, decoder/mask_token missing there"
    with pytest.raises(ValueError, match=missing):
        mae_jax.load(path, **HEADS)
    model, _ = mae_jax.load(path, without="decoder/.*", heads=3)
    assert isinstance(model, vit.Classifier)


def test_another_model_size_is_said_with_both_shapes(whole):
    found = load.find(whole[1], **HEADS)
    wider = mae.MaskedAutoencoder(
        patch=(4, 4), width=48, depth=2, heads=3, decoder_width=16, decoder_depth=2,
        decoder_heads=2, mlp_ratio=3.0,
    )  # fmt: skip
    wanted = load.abstract(wider, (16, 16), 3)
    message = r"encoder/block_0/attention/key/bias is \[24\] there, not \[48\].*another model size"
    with pytest.raises(ValueError, match=message):
        load.fit(found, wanted)


def test_mistaken_fields(whole):
    with pytest.raises(ValueError, match="hedas is no field of the MaskedAutoencoder"):
        mae_jax.load(whole[1], hedas=3)
    with pytest.raises(ValueError, match="heads = 5 does not divide width = 24"):
        mae_jax.load(whole[1], heads=5, decoder_heads=2)
    with pytest.raises(ValueError, match=r"without=\(\( is no regular expression"):
        mae_jax.load(whole[1], without="((")


def test_without_a_decoder_the_encoder_is_the_same_function(whole):
    params, path = whole
    model, encoder = mae_jax.load(path, without="decoder/.*", heads=3)
    assert model.clone(attention="plain") == vit.Classifier(
        patch=(4, 4), width=24, depth=2, heads=3, mlp_ratio=3.0, pooling="cls"
    )
    equal(encoder, {"encoder": params["encoder"]})
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 3)), jnp.float32)
    encode = lambda m, p: m.apply({"params": p}, images, method="encode")[0]
    whole_model = MODELS["autoencoder"].clone(attention=model.attention)
    np.testing.assert_array_equal(encode(model, encoder), encode(whole_model, params))
    np.testing.assert_array_equal(
        model.apply({"params": encoder}, images), encode(model, encoder)[:, 0]
    )


def test_a_pretrained_encoder_in_a_classifier(whole):
    """As fine-tuning starts: what is new or dropped is named, anything else is an error."""
    params, path = whole
    classifier = MODELS["classifier"].clone(mlp_ratio=3.0)
    wanted = load.abstract(classifier, (24, 32), 3)
    found = load.find(path)
    given = load.fit(found, wanted, without="decoder/.*|encoder/norm/.*|norm/.*|head/.*")
    expected = dict(params["encoder"])
    del expected["norm"]
    equal(given, {"encoder": expected})  # and no positions: they start fixed
    with pytest.raises(ValueError, match="head/bias, head/kernel missing there.*decoder/.*left"):
        load.fit(found, wanted, without="norm/.*")


def test_a_linear_probe_of_the_reference_is_folded(tmp_path):
    """Its BatchNorm without parameters disappears into the head."""
    params = random_params(MODELS["encoder"])
    generator = np.random.default_rng(1)
    draw = lambda *shape: generator.uniform(0.5, 2, shape).astype(np.float32)
    state = reference(params, model=MODELS["encoder"]) | {
        "head.0.running_mean": draw(24),
        "head.0.running_var": draw(24),
        "head.0.num_batches_tracked": np.array(7),
        "head.1.weight": draw(5, 24),
        "head.1.bias": draw(5),
    }
    model, loaded = mae_jax.load(as_file(tmp_path / "x.safetensors", state), heads=3)
    assert model.classes == 5 and model.pooling == "cls" and not model.batch_norm
    feature = draw(3, 24)
    normed = (feature - state["head.0.running_mean"]) / np.sqrt(state["head.0.running_var"] + 1e-6)
    expected = normed @ state["head.1.weight"].T + state["head.1.bias"]
    ours = feature @ loaded["head"]["kernel"] + loaded["head"]["bias"][None]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [(16, 16), (16, 24)])
def test_fixed_positions_suit_any_size(whole, stored, tmp_path):
    path = as_file(tmp_path / "x.safetensors", reference(whole[0], stored))
    if stored != (16, 16):  # nothing in a reference file says so
        with pytest.raises(ValueError, match="24 positions, which are no square grid: give size="):
            mae_jax.load(path, **HEADS)
    model, params = mae_jax.load(path, size=stored, **HEADS)
    equal(params, whole[0])
    assert not model.learned_positions and load.find(path, size=stored).size == stored
    images = jnp.zeros((1, 12, 20, 3))
    tokens, _ = jax.eval_shape(lambda: model.apply({"params": params}, images, method="encode"))
    assert tokens.shape == (1, 1 + 15, 24)


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (24, 12), (8, 32)])  # the last: as many
def test_learned_positions_are_resized(size, tmp_path):
    stored = random_params(MODELS["learned"])
    state = parameter_names.write(flat_of(stored), "reference", (4, 4))
    model, params = mae_jax.load(as_file(tmp_path / "x.safetensors", state), size=size, **HEADS)
    assert model.learned_positions
    grid = (size[0] // 4, size[1] // 4)
    for part in ("encoder", "decoder"):
        table = params[part].pop("positions")
        assert table.shape[0] == 1 + grid[0] * grid[1]
        resized = positions.resize(stored[part]["positions"], (4, 4), grid)
        np.testing.assert_array_equal(table, resized)
        stored[part].pop("positions")
    equal(params, stored)


def test_a_table_that_is_fixed_beside_one_that_is_learned(whole, tmp_path):
    """As after fine-tuning the encoder's alone."""
    state = reference(whole[0])
    state["pos_embed"] = state["pos_embed"] + np.float32(1e-4)
    model, params = mae_jax.load(as_file(tmp_path / "x.safetensors", state), **HEADS)
    assert model.learned_positions
    np.testing.assert_array_equal(params["encoder"]["positions"], state["pos_embed"][0])
    np.testing.assert_array_equal(params["decoder"]["positions"], state["decoder_pos_embed"][0])


def test_positions_learned_from_now_on(whole):
    """A model with learned positions from a file with fixed ones starts as these."""
    model, params = mae_jax.load(whole[1], learned_positions=True, size=(8, 16), **HEADS)
    np.testing.assert_array_equal(
        params["encoder"]["positions"], stored.fixed_tables(model, (8, 16))["encoder/positions"]
    )


# --- places ---------------------------------------------------------------------------------------


def places(params, mesh):
    leaves = (jax.tree.leaves(tree) for tree in (params, partitioning.placed(params, mesh)))
    return zip(*leaves, strict=True)


def test_parameters_lie_on_the_mesh_in_their_shares(whole, monkeypatch):
    monkeypatch.setattr(partitioning, "SMALL", 100)
    mesh = device_mesh.make_mesh(data=2, fsdp=2)
    _, params = mae_jax.load(whole[1], mesh=mesh, **HEADS)
    equal(params, whole[0])
    for x, wanted in places(params, mesh):
        assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)
    kernel = params["encoder"]["block_0"]["mlp"]["fc1"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(12, 72)}


# --- work directories -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A debug run, and its last state."""
    config = command_line.load(f"{ROOT}/configs/vit_base.py:debug") | {"evaluators": {}}
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(config, workdir)


def test_a_work_directory_is_its_last_state(run):
    workdir, state = run
    model, params = mae_jax.load(workdir)
    equal(params, state.params)
    found = load.find(workdir)
    assert found.step == int(state.step) and found.config["seed"] == 0
    assert found.size == tuple(found.config["data"]["size"]) and len(found.mean) == found.channels
    wanted = load.abstract(model, found.size, found.channels)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, wanted)


def test_a_relative_path(run, monkeypatch):
    """As the README's commands give it."""
    workdir, state = run
    monkeypatch.chdir(workdir.parent)
    equal(mae_jax.load(workdir.name)[1], state.params)
    equal(mae_jax.load(f"{workdir.name}:{int(state.step)}")[1], state.params)


def test_a_step_of_a_work_directory(run):
    workdir, state = run
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert len(steps) > 1
    equal(mae_jax.load(f"{workdir}:{steps[-1]}")[1], state.params)
    _, early = mae_jax.load(f"{workdir}:{steps[0]}")
    assert not np.array_equal(early["encoder"]["cls"], state.params["encoder"]["cls"])
    with pytest.raises(ValueError, match=f"has no step 7777: it has {steps[0]}, "):
        mae_jax.load(f"{workdir}:7777")


def test_an_encoder_of_a_work_directory_on_a_mesh(run, monkeypatch):
    workdir, state = run
    monkeypatch.setattr(partitioning, "SMALL", 100)
    mesh = device_mesh.make_mesh(data=1, fsdp=4)
    model, params = mae_jax.load(workdir, without="decoder/.*", mesh=mesh)
    assert isinstance(model, vit.Classifier)
    equal(params, {"encoder": state.params["encoder"]})
    for x, wanted in places(params, mesh):
        assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)


def test_damaged_work_directories(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run[0], workdir)
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    for file in (workdir / "checkpoints" / str(step) / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match=f"checkpoints/{step} cannot be read: use another step"):
        mae_jax.load(workdir)
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(ValueError, match="holds no checkpoint yet"):
        mae_jax.load(workdir)


def test_a_linear_probe_is_one_function_with_its_batch_norm_folded(tmp_path, monkeypatch):
    """Trained in part: only the head has a moving average."""
    name = "linear_probe_quickstart"
    config = command_line.load(f"{ROOT}/configs/{name}.py:debug")
    from mae_jax.tasks import classify

    model = classify.model_of(config, 5)
    size, channels = tuple(config["data"]["size"]), config["data"]["channels"]
    params = random_params(model, size, channels)
    generator = np.random.default_rng(2)
    stats = {
        "feature_norm": {
            "mean": jnp.asarray(generator.normal(size=model.width), jnp.float32),
            "var": jnp.asarray(generator.uniform(0.5, 2, model.width), jnp.float32),
        }
    }
    average = {"head": jax.tree.map(lambda x: x + 1, params["head"])}
    tx = optax.sgd(0.1)
    state = TrainState(jnp.int32(3), params, tx.init(params["head"]), average, stats)
    (tmp_path / "config.json").write_text(schema.to_json(config))
    (tmp_path / "statistics.json").write_text(json.dumps({"classes": list("abcde")}))
    with contextlib.closing(checkpoint.Checkpoints(tmp_path / "checkpoints", 1)) as checkpoints:
        checkpoints.save(state, {})

    monkeypatch.setattr(partitioning, "SMALL", 100)
    images = generator.normal(size=(2, *size, channels)).astype(np.float32)
    expected = jax.jit(model.apply)({"params": params | average, "batch_stats": stats}, images)
    for mesh in (None, device_mesh.make_mesh(data=2, fsdp=2)):
        there, loaded = mae_jax.load(tmp_path, mesh=mesh)
        assert there == model.clone(batch_norm=False, attention=attention.suited())
        ours = jax.jit(there.apply)({"params": loaded}, images)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    assert load.find(tmp_path).classes == list("abcde")
    there, loaded = mae_jax.load(tmp_path, without="head/.*")
    assert there.classes == 0 and loaded.keys() == {"encoder"}

    facts = tmp_path / "checkpoints" / "3" / "facts" / "metadata"
    kept = json.loads(facts.read_text())
    kept["fingerprints"]["ema/head/bias"][0] ^= 1
    facts.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="ema/head/bias is not what was saved"):
        mae_jax.load(tmp_path)
    mae_jax.load(tmp_path, without="head/.*")  # which does not read it


def test_the_file_of_another_model_kind_says_so(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"encoder/cls": np.zeros((1, 4), np.float32)}, path)
    with pytest.raises(ValueError, match="does not say what model it holds"):
        mae_jax.load(path)
    export(path, MODELS["encoder"], random_params(MODELS["encoder"]))
    data = path.read_bytes().replace(b"Classifier", b"Classifie_")
    path.write_bytes(data)
    with pytest.raises(ValueError, match="does not say what model it holds"):
        mae_jax.load(path)


def test_a_missing_table_is_named(whole, tmp_path):
    """A family that stores its tables has lost one: nobody knows whether it was learned."""
    state = reference(whole[0])
    for name in ("pos_embed", "decoder_pos_embed"):
        part = {n: x for n, x in state.items() if n != name}
        ours = "decoder/positions" if name.startswith("decoder") else "encoder/positions"
        with pytest.raises(ValueError, match=f"{ours} missing in"):
            mae_jax.load(as_file(tmp_path / "x.safetensors", part), **HEADS)
        mae_jax.load(tmp_path / "x.safetensors", without=".*/positions", **HEADS)


def test_a_folder_that_lost_its_last_block(whole, tmp_path):
    convert.convert(str(whole[1]), tmp_path / "hf", size=(16, 16), **HEADS)
    weights = tmp_path / "hf" / "model.safetensors"
    state = safetensors.numpy.load_file(weights)
    last = max(int(n.split(".")[3]) for n in state if n.startswith("vit.encoder.layer."))
    as_file(weights, {n: x for n, x in state.items() if f"encoder.layer.{last}." not in n})
    with pytest.raises(ValueError, match=f"num_hidden_layers = {last + 1}: some are missing"):
        mae_jax.load(tmp_path / "hf")
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    settings["num_attention_heads"] = "3"
    (tmp_path / "hf" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="num_attention_heads = '3' cannot be"):
        mae_jax.load(tmp_path / "hf")
