"""Exported files compute what the model computes, say what they are, and are written whole."""

import json
import sys

import jax
import numpy as np
import pytest
import tiny_models
from jax import export as jax_export
from tiny_models import DECODER, MODELS, TINY

from mae_jax import export
from mae_jax.evaluators import features
from mae_jax.exchange import artefacts, check, computation, raw_inputs
from mae_jax.models import build, masking
from mae_jax.weights import checkpoint_info, load

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
MORE = {  # every tokenizer, decoder and target that has operations of its own
    "cross": TINY | DECODER | dict(decoder="cross"),
    "groups": TINY | DECODER | dict(channel_groups=((0, 1), (2,))),
    "bytes": TINY | DECODER | dict(vocab_size=7, norm_pix=False),
    "strided": TINY | DECODER | dict(target_stride=(2, 1), norm_pix=False),
}
ALL = MODELS | {name: ("MaskedAutoencoder", fields) for name, fields in MORE.items()}
SHALLOW = dict(depth=1, decoder_depth=1)  # quick to compile
ALL = {
    name: (kind, fields | {key: n for key, n in SHALLOW.items() if key in fields})
    for name, (kind, fields) in ALL.items()
}


def write(folder, name: str, **known):
    """A file of the model of that name, by default one that knows mean and std."""
    known = dict(mean=MEAN, std=STD) | known
    return tiny_models.export(folder / f"{name}.safetensors", *ALL[name], **known)


def run(path, inputs) -> dict[str, np.ndarray]:
    """The outputs of an exported file."""
    if path.suffix == ".stablehlo":
        results = jax_export.deserialize(bytearray(path.read_bytes())).call(*inputs.values())
        return {name: np.asarray(x) for name, x in results.items()}
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    names = [x.name for x in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def expected(source, what: str, images, noise) -> dict[str, np.ndarray]:
    """What the model at `source` computes, by its own methods; images that are bytes are pixels."""
    model, params = load.load(source)
    apply = lambda *inputs, **options: model.apply({"params": params}, *inputs, **options)
    row = lambda values: np.array(values, np.float32)
    x = (images / np.float32(255) - row(MEAN)) / row(STD) if images.dtype == np.uint8 else images
    if what == "predict":
        logits = jax.jit(apply)(x)
        return dict(logits=logits, probabilities=jax.nn.softmax(logits))
    if what == "encode":
        tokens, _ = jax.jit(lambda x: apply(x, method="encode"))(x)
        return dict(tokens=tokens, feature=tokens[:, model.cls_tokens :].mean(1))
    mask = masking.from_scores(noise, max(1, noise.shape[1] // 4))
    filled = jax.jit(lambda x: model.target.to_inputs(apply(x, mask).prediction, x, mask))(x)
    filled = np.asarray(filled)
    filled = 255 * (filled * row(STD) + row(MEAN)) if images.dtype == np.uint8 else filled
    return dict(reconstruction=filled, mask=masking.masked_map(mask))


CASES = [
    ("learned", "encode", ".stablehlo"),
    ("autoencoder", "reconstruct", ".stablehlo"),
    ("classifier", "predict", ".stablehlo"),
]
CASES += [
    pytest.param(name, what, ".onnx", marks=pytest.mark.onnx)
    for name, what in (
        ("learned", "encode"),
        ("classifier", "predict"),
        *((x, "reconstruct") for x in MORE),
    )
]


@pytest.mark.parametrize("name, what, suffix", CASES)
def test_a_file_computes_what_the_model_computes(name, what, suffix, tmp_path):
    source, target = write(tmp_path, name), tmp_path / f"model{suffix}"
    artefacts.export(str(source), target, what=what)
    model = build.model(*ALL[name])
    n, generator = int(np.prod(model.grid((16, 16)))), np.random.default_rng(1)
    for batch in (1, 3) if what != "reconstruct" else (3,):
        images = generator.integers(0, 256, (batch, 16, 16, 3)).astype(np.uint8)
        images = images.astype(np.int32) % 7 if name == "bytes" else images
        noise = generator.uniform(size=(batch, n)).astype(np.float32)
        inputs = {"inputs": images} | ({"noise": noise} if what == "reconstruct" else {})
        found, wanted = run(target, inputs), expected(source, what, images, noise)
        assert found.keys() == wanted.keys()
        for output, x in wanted.items():
            limit = 1e-5 * np.abs(x).max()
            np.testing.assert_allclose(found[output], x, rtol=0, atol=limit, err_msg=output)


@pytest.mark.parametrize("suffix", [".stablehlo", pytest.param(".onnx", marks=pytest.mark.onnx)])
def test_a_file_says_what_it_is(suffix, tmp_path):
    source, target = write(tmp_path, "classifier", classes=[*"abcde"]), tmp_path / f"model{suffix}"
    text = artefacts.export(str(source), target)
    assert "input inputs: uint8 [batch 16 16 3], raw values x; the file computes (x / 255" in text
    if suffix == ".onnx":
        onnx = pytest.importorskip("onnx")
        model = onnx.load(target)
        onnx.checker.check_model(model, full_check=True)
        about = {x.key: json.loads(x.value) for x in model.metadata_props}
        assert "head/kernel" in {x.name for x in model.graph.initializer}
    else:
        about = json.loads((tmp_path / "model.stablehlo.json").read_text())
        exported = jax_export.deserialize(bytearray(target.read_bytes()))
        assert exported.platforms == ("cpu", "cuda", "tpu")
    assert about["classes"] == [*"abcde"] and about["checkpoint"] == "classifier.safetensors"
    assert (about["mean"], about["std"], about["size"]) == (MEAN, STD, [16, 16])
    assert about["inputs"]["inputs"]["shape"] == ["batch", 16, 16, 3]
    assert about["outputs"].keys() == {"logits", "probabilities"}


@pytest.mark.parametrize("suffix", [".stablehlo", pytest.param(".onnx", marks=pytest.mark.onnx)])
def test_the_check_runs_without_this_package_and_finds_another_model(suffix, tmp_path, monkeypatch):
    source, target = write(tmp_path, "encoder"), tmp_path / f"model{suffix}"
    monkeypatch.setattr(check, "ROUNDS", 1)
    text = artefacts.export(str(source), target, run_check=True)
    assert "tokens: largest difference" in text and ("onnxruntime" in text) == (suffix == ".onnx")
    before = target.read_bytes()

    def scaled(made):  # a wrong writer
        return made._replace(params=jax.tree.map(lambda x: 1.01 * x, made.params))

    write_right = artefacts.WRITERS[suffix]
    write_wrong = lambda path, made: write_right(path, scaled(made))
    monkeypatch.setitem(artefacts.WRITERS, suffix, write_wrong)
    with pytest.raises(ValueError, match="computes another .*nothing was written"):
        artefacts.export(str(source), target, run_check=True, overwrite=True)
    assert target.read_bytes() == before and not [*tmp_path.glob(".*")]


@pytest.mark.onnx
def test_large_parameters_are_beside_the_onnx_file(tmp_path, monkeypatch):
    source, target = write(tmp_path, "encoder"), tmp_path / "model.onnx"
    monkeypatch.setattr(artefacts, "MAX_BYTES", 1000)
    artefacts.export(str(source), target)
    large, small = (tmp_path / "model.onnx.data").stat(), target.stat()
    assert large.st_size > small.st_size / 2 and large.st_mode == small.st_mode
    images = np.zeros((2, 16, 16, 3), np.uint8)
    wanted = expected(source, "encode", images, None)["tokens"]
    found = run(target, {"inputs": images})["tokens"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    with pytest.raises(ValueError, match="holds 2: write an .onnx file"):
        artefacts.export(str(source), tmp_path / "model.stablehlo")
    monkeypatch.undo()
    artefacts.export(str(source), target, overwrite=True)
    assert not (tmp_path / "model.onnx.data").exists()  # of the model before


def test_values_whose_statistics_are_unknown_are_normalised_by_the_caller(tmp_path):
    source = write(tmp_path, "learned", mean=None, std=None)
    made = computation.make(str(source))
    assert made.inputs["inputs"].dtype == np.float32
    assert "(give --mean and --std)" in made.texts["inputs"]
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    wanted = expected(source, "encode", images, None)
    found = made.function(made.params, images)
    np.testing.assert_allclose(found["tokens"], wanted["tokens"], rtol=1e-5, atol=1e-5)
    given = computation.make(str(source), mean=MEAN, std=STD)
    assert given.inputs["inputs"].dtype == np.uint8 and given.metadata["mean"] == tuple(MEAN)


@pytest.mark.parametrize(
    "name, pooling", [("learned", "both"), ("classifier", ""), ("encoder", "")]
)
def test_the_feature_is_that_of_evaluations(name, pooling, tmp_path):
    made = computation.make(str(write(tmp_path, name)), "encode", pooling=pooling)
    model, params = load.load(tmp_path / f"{name}.safetensors")
    own = {"classifier": "mean", "encoder": "cls"}.get(name, pooling)
    images = check.random_inputs(made, 2)["inputs"]
    normalised = (images / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    _, maps = model.apply({"params": params}, normalised, method="encode")
    wanted = features.pool(model, params, maps, features.Feature(pooling=own))
    found = made.function(made.params, images)["feature"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_probabilities_of_classes_that_do_not_exclude_each_other(tmp_path):
    config = {"data": {"modality": "image"}, "loss": "binary"}
    made = computation.make(str(write(tmp_path, "classifier", config=config)))
    found = made.function(made.params, check.random_inputs(made, 2)["inputs"])
    np.testing.assert_allclose(found["probabilities"], jax.nn.sigmoid(found["logits"]), rtol=1e-6)


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("learned", ["--to=DIR/x.pt"], "x.pt ends with none of .onnx, .stablehlo: give another"),
        ("learned", ["--to=DIR/learned.onnx"], "learned.onnx exists already: give another --to"),
        ("classifier", ["--to=DIR/x.onnx", "--what=reconstruct"], "no decoder to reconstruct with"),
        ("learned", ["--to=DIR/x.onnx", "--what=predict"], "no classes to predict: use --what=enc"),
        ("nowhere", ["--to=DIR/x.onnx"], "does not say of which size its inputs are: give --size"),
        ("learned", ["--to=DIR/x.onnx", "--size=15,16"], "not a multiple of patch"),
        ("learned", ["--to=DIR/x.onnx", "--mean=.5"], "has 1 values, and the model has 3 channel"),
        ("learned", ["--to=DIR/x.onnx", "--std=0,1,1"], "must be above 0: give another --std"),
        ("classifier", ["--to=DIR/x.onnx", "--pooling=cls"], "is for --what=encode: leave it out"),
        ("missing", ["--to=DIR/x.onnx"], "there is no"),
        ("learned", ["--to=DIR/x.onnx"], "the package onnx: pip install 'mae_jax[export]'"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(name, options, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)  # not installed
    (tmp_path / "learned.onnx").touch()
    if name == "nowhere":
        tiny_models.export(tmp_path / "nowhere.safetensors", *MODELS["encoder"], size=None)
    elif name != "missing":
        write(tmp_path, name)
    before = sorted(tmp_path.iterdir())
    options = [option.replace("DIR", str(tmp_path)) for option in options]
    checkpoint = f"--checkpoint={tmp_path / name}.safetensors"
    monkeypatch.setattr(sys, "argv", ["export", checkpoint, *options])
    with pytest.raises(SystemExit) as stopped:
        export.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and says in error and len(error.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "data, words",
    [
        (dict(range=[10, 30]), "raw values x; the file computes (x - mean) / std itself"),
        (
            dict(range=[10, 30], clip=True),
            "x = (number - 10) / 20, cut to 0 to 1; the file computes",
        ),
        (dict(range="dtype"), "x = whole numbers taken to 0 to 1 by the limits of their type; the"),
        (dict(range="auto"), "raw values x; the file computes (x - mean) / std itself"),
    ],
)
def test_raw_inputs_are_those_of_the_range(data, words):
    config = dict(data=dict(modality="volume") | data)
    info = checkpoint_info.CheckpointInfo(
        "run",
        "MaskedAutoencoder",
        dict(patch=(4, 4)),
        {},
        dict,
        1,
        mean=[0.5],
        std=[0.25],
        config=config,
    )
    raw = raw_inputs.of(info, None, None)
    assert str(raw).startswith(words)
    numbers = np.float32([[[[20.0]]]])
    as_network = (
        (numbers - 10) / 20 if data["range"] == [10, 30] and "clip" not in data else numbers
    )
    np.testing.assert_allclose(raw.normalize(numbers), (as_network - 0.5) / 0.25, rtol=1e-6)
