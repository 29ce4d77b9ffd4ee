"""Models of the Hub: what is downloaded, what the cache suffices for, and what goes wrong."""

import hashlib
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from tiny_models import MODELS, equal

import mae_jax
from mae_jax.weights import export, hub, load

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The files of a folder of Hugging Face's ViTMAE, and its parameters."""
    folder = tmp_path_factory.mktemp("model")
    ours = tiny_models.export(
        folder / "x.safetensors", *MODELS["learned"], mean=[0.5] * 3, std=[0.2] * 3
    )
    export.export(str(ours), folder / "hf")
    files = {path.name: path.read_bytes() for path in (folder / "hf").iterdir()}
    return files, mae_jax.load(ours)[1]


def requests(server) -> list[str]:
    return [request for request in server.requests if "/resolve/" in request]


def test_only_weights_and_their_descriptions_are_downloaded(server, model, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mae_jax"), "propagate", True)  # as before any command
    files, params = model
    others = {"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"x", "README.md": b"#"}
    server.repositories["org/mae"] = [files | others]
    with caplog.at_level(logging.INFO, "mae_jax"):
        info = load.find("hf:org/mae")
    commit, digest = f"{0:040x}", hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert info.path == f"hf:org/mae@{commit}"
    assert f"{info.path}: SHA-256 {digest} of model.safetensors" in caplog.text
    assert info.size == (16, 16) and info.mean == [0.5] * 3  # of the two descriptions
    fetched = {
        name.partition("/main/")[2] or name.partition(f"/{commit}/")[2] for name in requests(server)
    }
    assert fetched == {"model.safetensors", "config.json", "preprocessor_config.json"}
    equal(mae_jax.load("hf:org/mae")[1], params)
    assert sum(request.startswith("GET") for request in requests(server)) == 3  # each file once
    equal(mae_jax.load("hf:org/mae", sha256=digest)[1], params)
    with pytest.raises(ValueError, match=f"has the SHA-256 {digest}, not 12: it is another file"):
        mae_jax.load("hf:org/mae", sha256="12")


def test_a_revision_and_a_file(server, model, tmp_path):
    files, params = model
    server.repositories["org/mae"] = [files, {"README.md": b"gone"}]
    with pytest.raises(
        ValueError, match="^hf:org/mae has no model.safetensors or pytorch_model.bin"
    ):
        mae_jax.load("hf:org/mae")
    equal(mae_jax.load(f"hf:org/mae@{0:040x}")[1], params)
    nested = {f"sub/{name}": content for name, content in files.items()}
    ours = tiny_models.export(tmp_path / "ours.safetensors", *MODELS["learned"])
    server.repositories["org/mae"].append(nested | {"ours.safetensors": ours.read_bytes()})
    equal(mae_jax.load("hf:org/mae/ours.safetensors")[1], mae_jax.load(ours)[1])
    info = load.find("hf:org/mae/sub/model.safetensors@main")
    assert info.path == f"hf:org/mae/sub/model.safetensors@{2:040x}"
    assert info.fields["norm_pix"] and info.mean  # from the descriptions in the same folder


def test_a_file_of_ours_needs_no_config_and_shards_are_found(server, model, tmp_path):
    files, params = model
    ours = tiny_models.export(tmp_path / "x.safetensors", *MODELS["learned"])
    server.repositories["org/ours"] = [{"model.safetensors": ours.read_bytes()}]
    equal(mae_jax.load("hf:org/ours")[1], mae_jax.load(ours)[1])
    server.repositories["org/shards"] = [files | shards(files["model.safetensors"])]
    del server.repositories["org/shards"][0]["model.safetensors"]
    equal(mae_jax.load("hf:org/shards")[1], params)
    del server.repositories["org/shards"][0]["b.safetensors"]
    server.repositories["org/shards"].append(server.repositories["org/shards"][0])
    with pytest.raises(ValueError, match=r"names b.safetensors, which .* does not have"):
        mae_jax.load("hf:org/shards")


def shards(weights: bytes) -> dict[str, bytes]:
    """Two files of weights, and their index."""
    import json

    import safetensors.numpy

    arrays = safetensors.numpy.load(weights)
    names = {name: f"{'ab'[i % 2]}.safetensors" for i, name in enumerate(arrays)}
    part = lambda file: {name: x for name, x in arrays.items() if names[name] == file}
    index = {"model.safetensors.index.json": json.dumps({"weight_map": names}).encode()}
    parts = {file: safetensors.numpy.save(part(file)) for file in set(names.values())}
    return index | parts


@pytest.mark.parametrize(
    "address, says",
    [
        ("hf:mae", "'hf:mae' is not hf:ORG/NAME, hf:ORG/NAME/FILE, or one of them @REVISION"),
        ("hf:org/mae/", "is not hf:ORG/NAME"),
        ("hf:org/mae--x..y", "hf:org/mae--x..y cannot be transferred: HFValidationError: "),
        ("hf:org/mae/../../../../x", "is not hf:ORG/NAME"),
        ("hf:org/mae//x", "is not hf:ORG/NAME"),
        ("hf:org/nothing", "has no model org/nothing for you: check the name, or log in with"),
        ("hf:org/private", "has no model org/private for you"),
        ("hf:org/gated", "hf:org/gated is gated: accept its terms at http://127.0.0.1:"),
        ("hf:org/mae@ff", "org/mae has no revision 'ff'"),
        ("hf:org/mae/other.pth", "hf:org/mae/other.pth has no other.pth"),
        ("hf:org/broken", "cannot be reached: HfHubHTTPError: Server error '500"),
    ],
)
def test_what_cannot_be_read_ends_in_one_sentence(address, says, server, model):
    server.repositories["org/mae"] = [model[0]]
    with pytest.raises(ValueError) as caught:
        mae_jax.load(address)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_changed_in_the_cache_or_on_its_way(server, model, tmp_path):
    server.repositories["org/mae"] = [model[0]]
    weights = hub.download("hf:org/mae").path / "model.safetensors"
    weights.resolve().write_bytes(b"\0" + weights.read_bytes()[1:])
    with pytest.raises(
        ValueError, match="is damaged, its SHA-256 is .*: remove it, and load it ag"
    ):
        mae_jax.load("hf:org/mae")
    server.repositories["org/short"] = [model[0]]
    server.cut = 100
    with pytest.raises(ValueError, match="^hf:org/short cannot be transferred: "):
        mae_jax.load("hf:org/short")


def test_a_hub_that_cannot_be_reached_and_the_cache(server, model, monkeypatch):
    files, params = model
    server.repositories["org/mae"] = [{n: x for n, x in files.items() if "pre" not in n}]
    mae_jax.load("hf:org/mae")
    server.shutdown()
    server.server_close()
    equal(mae_jax.load("hf:org/mae")[1], params)  # it is known that there is no preprocessor_config
    lacks = (
        "^model.safetensors of hf:org/other is not in the cache .*hf, and http://127.0.0.1:.* can"
    )
    with pytest.raises(ValueError, match=lacks):
        mae_jax.load("hf:org/other")


def test_the_offline_mode_is_that_of_the_environment(server, model, tmp_path):
    """As a user meets it: the variable is read when `huggingface_hub` is imported."""
    server.repositories["org/mae"] = [model[0]]
    hub.download("hf:org/mae")
    variables = dict(HF_ENDPOINT=server.url, HF_HUB_CACHE=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")
    before = len(server.requests)
    code = (
        "from mae_jax.weights import hub\n"
        "print(hub.download('hf:org/mae').address)\n"
        "try: hub.download('hf:org/mae@main/x')\n"
        "except ValueError as error: print(error)\n"
    )
    environment = os.environ | variables
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == f"hf:org/mae@{0:040x}", done.stderr
    assert re.fullmatch(
        "model.safetensors of hf:org/mae@main/x is not .* load it once without that", lines[1]
    )
    assert len(server.requests) == before


def test_the_client_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"need huggingface_hub: pip install 'mae_jax\[hub\]'"):
        mae_jax.load("hf:org/mae")
