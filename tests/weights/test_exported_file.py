"""Files of this project, also those of its older versions, say what model they hold."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from tiny_models import MODELS, equal, export, flatten

import mae_jax
from mae_jax.models import masking
from mae_jax.weights import export as exports
from mae_jax.weights import load

# Written by version 0.1.0 (commit 74d691f), with random parameters; and the loss there or, of a
# classifier, the mean of the absolute outputs, on the inputs of `value_of`.
OLD_FILES = {
    "autoencoder": 0.847064733505249,
    "learned": 1.807424783706665,
    "separable": 1.8637007474899292,
    "groups": 2.7572319507598877,
    "text": 2.244077205657959,
    "cross": 2.0727720260620117,
    "classifier": 0.782676100730896,
    "encoder": 0.41699308156967163,
}
FOLDER = Path(__file__).parents[1] / "golden" / "exported"


def value_of(info: load.CheckpointInfo, model, params, name: str) -> float:
    x = np.random.default_rng(1).integers(0, 7, (2, *info.size, info.channels))
    x = x if name == "text" else (x / 7).astype(np.float32)
    apply = jax.jit(model.apply)
    if info.kind == "Classifier":
        return float(jnp.abs(apply({"params": params}, x)).mean())
    n = int(np.prod(model.grid(info.size)))
    mask = masking.from_scores(jnp.asarray(np.random.default_rng(2).random((2, n))), n // 2)
    return float(apply({"params": params}, x, mask).loss)


@pytest.mark.parametrize("name", OLD_FILES)
def test_a_file_of_an_older_version_is_the_same_model(name, tmp_path):
    """The same bits, the same function; and so it is when it is exported again."""
    path = FOLDER / f"{name}.safetensors"
    model, params = mae_jax.load(path)
    equal(flatten(params), dict(sorted(safetensors.numpy.load_file(path).items())))
    assert value_of(load.find(path), model, params, name) == pytest.approx(OLD_FILES[name], 1e-5)
    exports.export(str(path), tmp_path / "new.safetensors")
    again, read_again = mae_jax.load(tmp_path / "new.safetensors")
    assert again == model
    equal(read_again, params)


def test_what_is_known_beside_the_model_is_kept(tmp_path):
    path = FOLDER / "classifier.safetensors"
    exports.export(str(path), tmp_path / "new.safetensors")
    for info in (load.find(path), load.find(tmp_path / "new.safetensors")):
        assert info.classes == list("abc") and info.size == (8, 8)
        assert (info.mean, info.std) == ([0.1] * 3, [0.2] * 3)
        assert info.config["data"]["crop_scale"] == [0.2, 1.0] and info.config["loss"] == "softmax"
        assert "train" not in info.config["data"]


def test_a_file_without_its_description_says_so(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"encoder/cls": np.zeros((1, 4), np.float32)}, path)
    with pytest.raises(ValueError, match="does not say what model it holds"):
        mae_jax.load(path)
    good = export(path, *MODELS["encoder"]).read_bytes()
    for old, new in ((b"Classifier", b"Classifie_"), (b"width", b"wodth"), (b"heads", b"haeds")):
        assert old in good
        path.write_bytes(good.replace(old, new))
        with pytest.raises(ValueError, match="does not say what model it holds"):
            mae_jax.load(path)


def test_a_missing_table_is_named(tmp_path):
    path = FOLDER / "separable.safetensors"
    state = safetensors.numpy.load_file(path)
    del state["encoder/positions_space"]
    with safetensors.safe_open(path, "np") as file:
        safetensors.numpy.save_file(state, tmp_path / "x.safetensors", file.metadata())
    with pytest.raises(ValueError, match="encoder/positions_space missing in"):
        mae_jax.load(tmp_path / "x.safetensors")
    load.find(tmp_path / "x.safetensors", without=".*positions.*")


def test_each_device_reads_its_share(tmp_path, monkeypatch):
    """Of a file of this project; the largest part that is read at once is a share."""
    from mae_jax.distributed import device_mesh, partitioning
    from mae_jax.weights import tensor_files

    read, whole = [], tensor_files.Tensor.__getitem__
    monkeypatch.setattr(partitioning, "SMALL", 100)
    monkeypatch.setattr(
        tensor_files.Tensor,
        "__getitem__",
        lambda self, index: read.append(x := whole(self, index)) or x,
    )
    mesh = device_mesh.make_mesh(data=1, fsdp=4)
    _, params = mae_jax.load(FOLDER / "autoencoder.safetensors", mesh=mesh)
    kernels = [x for x in jax.tree.leaves(params) if not x.is_fully_replicated]
    assert kernels and max(x.size for x in read) < max(x.size for x in kernels)
