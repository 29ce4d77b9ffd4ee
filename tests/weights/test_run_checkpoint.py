"""Work directories: the best parameters of a checkpoint, verified, on any mesh."""

import contextlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_models
from tiny_models import equal

import mae_jax
from mae_jax.config import command_line, schema
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.training import checkpoints
from mae_jax.training.step import TrainState
from mae_jax.weights import load

ROOT = Path(__file__).parents[2]


def save_run(workdir, config, states, **statistics) -> None:
    """A work directory as training writes it."""
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(schema.to_json(config))
    (workdir / "statistics.json").write_text(json.dumps(statistics))
    saver = checkpoints.Checkpoints(workdir / "checkpoints", len(states))
    with contextlib.closing(saver):
        for state in states:
            saver.save(state, {}, wait=True)


def model_of(config, **fields):
    """The model that such a work directory holds, with its parameters drawn at random."""
    kind = {"pretrain": "MaskedAutoencoder", "classify": "Classifier"}[config["task"]]
    model = tiny_models.build.model(kind, config["model"] | fields)
    size, channels = tuple(config["data"]["size"]), config["data"]["channels"]
    return model, tiny_models.random_params(model, size, channels)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work directory with checkpoints at steps 3 and 7, and the parameters of the last."""
    config = command_line.load(f"{ROOT}/configs/vit_base.py:debug")
    _, params = model_of(config)
    early = jax.tree.map(jnp.zeros_like, params)
    workdir = tmp_path_factory.mktemp("runs") / "run"
    states = [TrainState(jnp.int32(3), early, ()), TrainState(jnp.int32(7), params, ())]
    save_run(workdir, config, states, mean=[0.1] * 3, std=[0.2] * 3)
    return workdir, params


def test_a_work_directory_is_its_last_state(run):
    workdir, expected = run
    model, params = mae_jax.load(workdir)
    equal(params, expected)
    info = load.find(workdir)
    assert (
        info.path == f"{workdir}:7"
        and info.config["seed"] == 0
        and info.fields["patch"] == (16, 16)
    )
    assert info.size == tuple(info.config["data"]["size"]) and info.mean == [0.1] * 3
    wanted = load.abstract(model, info.size, info.channels)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, wanted)


def test_a_step_and_a_relative_path(run, monkeypatch):
    """As the README's commands give them."""
    workdir, expected = run
    monkeypatch.chdir(workdir.parent)
    equal(mae_jax.load(f"{workdir.name}:7")[1], expected)
    _, early = mae_jax.load(f"{workdir.name}:3")
    assert not early["encoder"]["cls"].any()
    with pytest.raises(ValueError, match="has no step 7777: it has 3, 7"):
        mae_jax.load(f"{workdir}:7777")


def test_an_encoder_of_a_work_directory_on_a_mesh(run, monkeypatch):
    workdir, expected = run
    monkeypatch.setattr(partitioning, "SMALL", 100)
    mesh = device_mesh.make_mesh(data=1, fsdp=4)
    model, params = mae_jax.load(workdir, without="decoder/.*", mesh=mesh)
    assert type(model).__name__ == "Classifier"
    equal(params, {"encoder": expected["encoder"]})
    jax.tree.map(
        lambda x, wanted: x.sharding.is_equivalent_to(wanted.sharding, x.ndim) or pytest.fail(),
        params,
        partitioning.placed(params, mesh),
    )
    kernel = params["encoder"]["block_0"]["mlp"]["fc1"]["kernel"]
    assert not kernel.is_fully_replicated


def test_a_directory_of_an_older_version(run, tmp_path):
    """The metadata of a checkpoint was called `facts`, and keys of the config had other names."""
    shutil.copytree(run[0], tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        if (folder / "metadata").exists():
            (folder / "metadata").rename(folder / "facts")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for old, new in {"groups": "channel_groups", "categories": "vocab_size"}.items():
        if new in config["model"]:
            config["model"][old] = config["model"].pop(new)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    equal(mae_jax.load(tmp_path / "run")[1], run[1])


def test_damaged_work_directories(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run[0], workdir)
    for file in (workdir / "checkpoints" / "7" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoints/7 cannot be read: use another step of \[3]"):
        mae_jax.load(workdir)
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(ValueError, match="holds no checkpoint yet"):
        mae_jax.load(workdir)


def test_a_linear_probe_is_one_function_with_its_batch_norm_folded(tmp_path, monkeypatch):
    """Trained in part: only the head has a moving average."""
    config = command_line.load(f"{ROOT}/configs/linear_probe_quickstart.py:debug")
    (model, params), width = model_of(config, classes=5), config["model"]["width"]
    generator = np.random.default_rng(2)
    moments = {
        "mean": jnp.asarray(generator.normal(size=width), jnp.float32),
        "var": jnp.asarray(generator.uniform(0.5, 2, width), jnp.float32),
    }
    stats, average = (
        {"feature_norm": moments},
        {"head": jax.tree.map(lambda x: x + 1, params["head"])},
    )
    state = TrainState(jnp.int32(3), params, optax.sgd(0.1).init(params["head"]), average, stats)
    save_run(tmp_path, config, [state], classes=list("abcde"))

    monkeypatch.setattr(partitioning, "SMALL", 100)
    size, channels = tuple(config["data"]["size"]), config["data"]["channels"]
    images = generator.normal(size=(2, *size, channels)).astype(np.float32)
    expected = jax.jit(model.apply)({"params": params | average, "batch_stats": stats}, images)
    for mesh in (None, device_mesh.make_mesh(data=2, fsdp=2)):
        there, loaded = mae_jax.load(tmp_path, mesh=mesh)
        assert there == model_of(config, classes=5, batch_norm=False)[0]
        ours = jax.jit(there.apply)({"params": loaded}, images)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    assert load.find(tmp_path).classes == list("abcde")
    there, loaded = mae_jax.load(tmp_path, without="head/.*")
    assert there.classes == 0 and loaded.keys() == {"encoder"}

    (metadata,) = (tmp_path / "checkpoints" / "3").glob("*/metadata")
    kept = json.loads(metadata.read_text())
    kept["fingerprints"]["ema/head/bias"][0] ^= 1
    metadata.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="ema/head/bias is not what was saved"):
        mae_jax.load(tmp_path)
    mae_jax.load(tmp_path, without="head/.*")  # which does not read it


def test_a_learned_table_that_is_missing_is_named(tmp_path):
    """It is a parameter like the others: only fixed tables can be computed anew."""
    config = command_line.load(f"{ROOT}/configs/vit_base.py:debug")
    config["model"]["learned_positions"] = True
    _, params = model_of(config)
    del params["encoder"]["positions"]
    save_run(tmp_path, config, [TrainState(jnp.int32(3), params, ())])
    with pytest.raises(ValueError, match="^encoder/positions missing in"):
        mae_jax.load(tmp_path)
    _, loaded = mae_jax.load(tmp_path, without="encoder/positions")
    equal(loaded["decoder"], params["decoder"])
