"""Round trips between the families are exact, and mistakes end in one sentence."""

import hashlib
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from tiny_models import MODELS, equal, export, random_params

import mae_jax
from mae_jax import convert
from mae_jax.models import attention
from mae_jax.weights import load, parameter_names, torch_pickle

FORMATS = {"reference": "x.pth", "huggingface": "x", "mae_jax": "x.safetensors"}


@pytest.mark.parametrize(
    "kind", [pytest.param("reference", marks=pytest.mark.parity), "huggingface", "mae_jax"]
)
@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_exact(name, kind, tmp_path):
    model, target = MODELS[name], tmp_path / FORMATS[kind]
    params = random_params(model)
    ours = export(tmp_path / "ours.safetensors", model, params, mean=[0.1] * 3, std=[0.2] * 3)
    if (name, kind) == ("classifier", "huggingface"):
        with pytest.raises(ValueError, match="has no classifier: write a .pth"):
            convert.convert(str(ours), target)
        assert not target.exists()
        return
    convert.convert(str(ours), target)
    if kind == "reference":  # it says neither
        fields = dict(heads=3, norm_pix=model.norm_pix) if "decoder" in params else dict(heads=3)
        fields |= dict(decoder_heads=2) if "decoder" in params else {}
        with pytest.raises(ValueError, match="how many heads its 24 channels have: give heads, "):
            mae_jax.load(target)
    else:
        fields = {}
    there, again = mae_jax.load(target, **fields)
    equal(again, params)
    assert there == model.clone(attention=attention.suited())
    found = load.find(target)
    assert found.size == (16, 16) and found.channels == 3
    if kind != "reference":
        assert (found.mean, found.std) == ([0.1] * 3, [0.2] * 3)
    (tmp_path / "any").touch()
    files = target.iterdir() if target.is_dir() else [target]
    assert {file.stat().st_mode for file in files} == {(tmp_path / "any").stat().st_mode}
    back = tmp_path / "back.safetensors"
    convert.convert(str(target), back, **fields)
    equal(mae_jax.load(back)[1], params)


def test_names_of_classes_are_kept(tmp_path):
    model = MODELS["classifier"]
    path = export(tmp_path / "a.safetensors", model, random_params(model), classes=list("abcde"))
    convert.convert(str(path), tmp_path / "b.safetensors")
    assert load.find(tmp_path / "b.safetensors").classes == list("abcde")


def as_huggingface(name: str, kind: str) -> str:
    """A name of the Hub's as transformers 5 has it in memory, or in the files it saves."""
    if kind == "saved_by_5":
        return name.replace("decoder_layers.", "decoder_encoder.layer.")
    name = name.replace("vit.encoder.layer.", "vit.layers.")
    for long, short in {"query": "q_proj", "key": "k_proj", "value": "v_proj"}.items():
        name = name.replace(f"attention.attention.{long}", f"attention.{short}")
    name = name.replace("attention.output.dense", "attention.o_proj")
    name = name.replace("intermediate.dense", "mlp.fc1")
    return name.replace(".output.dense", ".mlp.fc2")


@pytest.mark.parametrize("kind", ["hub", "in_memory", "saved_by_5", "encoder"])
def test_every_naming_of_hugging_face_is_read_alike(kind):
    flat = traverse_util.flatten_dict(random_params(MODELS["learned"]), sep="/")
    flat = {name: np.asarray(x) for name, x in flat.items()}
    if kind == "encoder":  # the files of a ViTMAEModel, which has no `vit.`
        flat = {name: x for name, x in flat.items() if name.startswith("encoder/")}
        state = parameter_names.write(flat, "huggingface", (4, 4))
        state = {name.removeprefix("vit."): x for name, x in state.items()}
        in_memory = {as_huggingface("vit." + n, "in_memory")[4:]: x for n, x in state.items()}
        equal(parameter_names.read(in_memory, parameter_names.family(in_memory)), flat)
        assert "layers.1.attention.q_proj.weight" in in_memory
    else:
        state = parameter_names.write(flat, "huggingface", (4, 4))
    if kind in ("in_memory", "saved_by_5"):
        state = {as_huggingface(name, kind): x for name, x in state.items()}
    expected = {
        "hub": "decoder.decoder_layers.1.attention.output.dense.bias",
        "in_memory": "vit.layers.0.attention.o_proj.bias",
        "saved_by_5": "decoder.decoder_encoder.layer.1.output.dense.bias",
        "encoder": "encoder.layer.1.attention.attention.key.bias",
    }
    assert expected[kind] in state
    assert parameter_names.patch_of(state, "huggingface") == (4, 4)
    equal(parameter_names.read(state, parameter_names.family(state)), flat)


def test_the_reference_has_one_matrix_for_query_key_and_value():
    flat = {n: np.asarray(x) for n, x in traverse_util.flatten_dict(
        random_params(MODELS["autoencoder"]), sep="/").items()}  # fmt: skip
    state = parameter_names.write(flat, "reference", (4, 4))
    block = "encoder/block_1/attention"
    packed = state["blocks.1.attn.qkv.weight"]
    assert packed.shape == (72, 24)
    np.testing.assert_array_equal(packed[24:48].T, flat[f"{block}/key/kernel"])
    np.testing.assert_array_equal(state["blocks.1.attn.qkv.bias"][48:], flat[f"{block}/value/bias"])
    # the convolution [d c p q] sees channel c of row p and column q
    kernel = flat["encoder/embedding/kernel"].reshape(4, 4, 3, 24)
    assert state["patch_embed.proj.weight"][7, 2, 1, 3] == kernel[1, 3, 2, 7]
    with pytest.raises(ValueError, match="not query, key and value"):
        parameter_names.read({"blocks.0.attn.qkv.bias": np.zeros(7)}, "reference")


@pytest.fixture
def ours(tmp_path):
    model = MODELS["learned"]
    return export(tmp_path / "ours.safetensors", model, random_params(model))


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    convert.main()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--from=nothing.pth", "--to=x"], "there is no 'nothing.pth': what can be read is"),
        (["--from=nothing.pth"], "required: --to"),
        (["--from=OURS", "--to=DIR/x.onnx"], "say which --format"),
        (["--from=OURS", "--to=DIR/x", "--format=onnx"], "invalid choice: 'onnx'"),
        (["--from=OURS", "--to=OURS"], "is there already: give another --to, or --overwrite"),
        (["--from=OURS:7", "--to=DIR/x"], "is no work directory, so it has no step 7"),
        (["--from=OURS", "--to=DIR/x", "--size=16,24"], "square patches and inputs alone"),
        (["--from=OURS", "--to=DIR/x", "--size=15,15"], "not a multiple of patch"),
        (["--from=OURS", "--to=DIR/x", "--size=big"], "argument --size"),
        (["--from=OURS", "--to=DIR/x", "--heads=5"], "heads = 5 does not divide width = 24"),
        (["--from=OURS", "--to=DIR/x", "--without=decoder/norm/.*"], "decoder/norm"),
        (["--from=TORN", "--to=DIR/x"], "TORN is damaged: encoder/"),
        (["--from=EVIL", "--to=DIR/x"], "EVIL asks for builtins.eval, which a file of weights"),
        (["--from=LACKS", "--to=DIR/x"], "LACKS does not fit the model: encoder/norm/bias missing"),
        (["--from=OURS", "--to=DIR/x", "--without=(("], "without=(( is no regular expression"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(arguments, says, ours, monkeypatch, capsys):
    before = ours.read_bytes()
    (ours.parent / "TORN").write_bytes(before[:-5000])
    with zipfile.ZipFile(ours.parent / "EVIL", "w") as archive:
        archive.writestr("archive/data.pkl", b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.")
    lacks = dict(safetensors.numpy.load_file(ours))
    del lacks["encoder/norm/bias"]
    metadata = torch_pickle.metadata(ours)
    safetensors.numpy.save_file(lacks, ours.parent / "LACKS", metadata)
    files = sorted(ours.parent.iterdir())

    def put(text: str) -> str:
        for name in ("TORN", "EVIL", "LACKS"):
            text = text.replace(f"={name}", f"={ours.parent}/{name}")
        return text.replace("OURS", str(ours)).replace("DIR", str(ours.parent))

    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *map(put, arguments))
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and not out
    assert re.fullmatch(r"error: .*\n", err) and says in err
    assert ours.read_bytes() == before and sorted(ours.parent.iterdir()) == files


def test_the_command_says_what_it_did_and_overwrites_only_when_told(ours, monkeypatch, capsys):
    target = ours.parent / "there"
    run(monkeypatch, f"--from={ours}", f"--to={target}", "--size=24,24", "--eps=1e-5")
    out = capsys.readouterr().out.splitlines()
    digest = hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    assert out[2] == f"SHA-256 {digest} of model.safetensors"
    assert len(out) == 3 and "MaskedAutoencoder" in out[0] and "size (24, 24)" in out[0]
    assert f"wrote {target} (huggingface): 0.0 M parameters in 78 arrays" in out[1]
    assert {path.name for path in target.iterdir()} == {"model.safetensors", "config.json"}
    (target / "README.md").write_text("mine")
    run(monkeypatch, f"--from={ours}", f"--to={target}", "--overwrite")
    assert (target / "README.md").read_text() == "mine"
    model, params = mae_jax.load(target)
    learned = MODELS["learned"].clone(attention=attention.suited())
    assert model == learned and params["encoder"]["positions"].shape == (17, 24)


def test_weights_are_those_that_were_meant(ours):
    digest = hashlib.sha256(ours.read_bytes()).hexdigest()
    equal(mae_jax.load(ours, sha256=digest.upper())[1], mae_jax.load(ours)[1])
    with ours.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=f"has the SHA-256 .*, not {digest}: it is another file"):
        mae_jax.load(ours, sha256=digest)
    with pytest.raises(ValueError, match="is a folder: sha256= is of a single file"):
        mae_jax.load(ours.parent, sha256=digest)


def test_the_package_imports_without_jax():
    code = (
        "import sys, mae_jax\n"
        "assert 'jax' not in sys.modules\n"
        "assert callable(mae_jax.load) and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
