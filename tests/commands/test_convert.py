"""The command says what it did, and mistakes end in one sentence."""

import hashlib
import re
import subprocess
import sys
import zipfile

import pytest
import safetensors.numpy
import tiny_models
from tiny_models import MODELS, export

import mae_jax
from mae_jax import convert
from mae_jax.weights import tensor_files


@pytest.fixture
def ours(tmp_path):
    return export(tmp_path / "ours.safetensors", *MODELS["learned"])


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
        (["--from=OURS", "--to=OURS"], "exists already: give another --to, or --overwrite"),
        (["--from=OURS:7", "--to=DIR/x"], "is no work directory, so it has no step 7"),
        (["--from=OURS", "--to=DIR/x", "--size=16,24"], "knows square inputs alone"),
        (["--from=OURS", "--to=DIR/x", "--size=15,15"], "not a multiple of patch"),
        (["--from=OURS", "--to=DIR/x", "--size=big"], "argument --size"),
        (["--from=OURS", "--to=DIR/x", "--heads=5"], "not 5: leave heads out"),
        (["--from=OURS", "--to=DIR/x", "--without=decoder/norm/.*"], "decoder/norm"),
        (["--from=OURS", "--to=DIR/x", "--key=model"], "which has no keys: leave key= out"),
        (["--from=OURS", "--to=DIR/x", "--prefix=model."], "no names under the prefix 'model.'"),
        (["--from=TORN", "--to=DIR/x"], "TORN is damaged: its header cannot be used"),
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
    metadata = tensor_files.open_tensors(ours)[1]
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
    run(monkeypatch, f"--from={ours}", f"--to={target}", "--size=24,24")
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
    assert model == tiny_models.model("learned")
    assert params["encoder"]["positions"].shape == (17, 24)


def test_the_package_imports_without_jax():
    code = (
        "import sys, mae_jax\n"
        "assert 'jax' not in sys.modules\n"
        "assert callable(mae_jax.load) and 'torch' not in sys.modules\n"
        "from mae_jax.models import mae, masking, patches, positions, vit\n"
        "assert not {'orbax', 'grain', 'matplotlib'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
