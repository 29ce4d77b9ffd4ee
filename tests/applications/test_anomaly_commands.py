"""The commands of detectors, and the files that they write."""

import csv
import json

import jax
import numpy as np
import pytest
import tiny_models
from PIL import Image

from mae_jax import export
from mae_jax.applications import anomaly
from mae_jax.applications.anomaly import __main__ as command
from mae_jax.applications.anomaly import exported, figures, heat_maps, run_fit
from mae_jax.data import arrays, values
from mae_jax.data.array_io import geotiff, nifti
from mae_jax.data.arrays import Frame
from mae_jax.exchange import artefacts
from mae_jax.models import build

FIELDS = tiny_models.TINY | tiny_models.DECODER | dict(depth=1, decoder_depth=1, norm_pix=False)


def run(*arguments: str) -> str:
    options = command.parser().parse_args(arguments)
    return command.COMMANDS[options.command].run(options)


def picture(seed: int, defect: bool = False) -> np.ndarray:
    x = np.random.default_rng(seed).integers(90, 150, (16, 22, 3)).astype(np.uint8)
    if defect:
        x[8:, 8:16] = 200
    return x


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, good pictures, and test pictures of which one is broken."""
    place = tmp_path_factory.mktemp("anomaly")
    params = tiny_models.random_params(build.model("MaskedAutoencoder", FIELDS))
    params = jax.tree.map(lambda x: 0.2 * x, params)
    known = dict(mean=(0.5,) * 3, std=(0.25,) * 3)
    tiny_models.export(place / "m.safetensors", "MaskedAutoencoder", FIELDS, params, **known)
    for name, pictures in (
        ("good", [picture(i) for i in range(12)]),
        ("test", [picture(20), picture(21, defect=True)]),
    ):
        (place / name).mkdir()
        for i, x in enumerate(pictures):
            Image.fromarray(x).save(place / name / f"{i:02}.png")
    (place / "test/broken.png").write_bytes(b"\x89PNG")
    return place


@pytest.fixture(scope="module")
def detector(place):
    data = ["--data", f"folder:{place / 'good'}", "--to", str(place / "detector")]
    options = ["--false-alarms=.2", "--memory=40", "--batch-size=4", "--size=16,16"]
    text = run("fit", "--checkpoint", str(place / "m.safetensors"), *data, *options)
    assert "12 good examples" in text and "thresholds for 0.2 false alarms" in text
    return str(place / "detector")


def test_scores_and_maps_of_a_folder(place, detector):
    files = ["--to", str(place / "s.csv"), "--json", str(place / "s.json")]
    score = ["score", "--detector", detector, "--data", f"folder:{place / 'test'}", *files]
    text = run(*score, "--maps", str(place / "maps"))
    assert "3 examples" in text and "1 without a score" in text
    with open(place / "s.csv", newline="") as file:
        good, bad, broken = csv.DictReader(file)
    assert [x["name"] for x in (good, bad, broken)] == ["00.png", "01.png", "broken.png"]
    assert bad["above_threshold"] == "True" and float(bad["combined"]) > float(good["combined"])
    assert broken["combined"] == broken["above_threshold"] == "" and "broken" in broken["note"]
    about = json.loads((place / "s.json").read_text())
    limits = anomaly.Detector.load(detector).thresholds
    assert about["thresholds"] == limits and about["examples"] == 3
    assert about["above"] == sum(x["above_threshold"] == "True" for x in (good, bad))
    assert sorted(x.name for x in (place / "maps").iterdir()) == ["00.png", "01.png"]
    shown = np.asarray(Image.open(place / "maps/01.png")).astype(int).sum(-1)
    assert shown.shape == (16, 22)
    brightest = heat_maps.colors(np.float32([1.0])).astype(int).sum()
    assert (shown[8:, 8:16] == brightest).all() and shown[0, 0] < brightest / 2
    assert np.asarray(Image.open(place / "maps/00.png")).mean() < shown.mean() / 6
    with pytest.raises(ValueError, match="--overwrite"):
        run(*score)
    with pytest.raises(ValueError, match="none of reconstruction, memory, combined"):
        run(*score, "--overwrite", "--scorer=other")


def test_a_model_that_knows_the_examples_is_told(caplog):
    config = {"data": {"train": {"source": "folder:bolts/train", "split": "train"}}}
    for data, split, is_told in (
        ("folder:bolts/train", "train", True),
        ("folder:bolts/train/good", "all", True),
        ("folder:bolts/train", "test", False),
        ("folder:bolts/train2", "all", False),
        ("folder:bolts/new", "all", False),
    ):
        caplog.clear()
        with caplog.at_level("WARNING", "mae_jax"):
            run_fit._tell_of_training(data, split, config)
        assert ("was trained on folder:bolts/train:" in caplog.text) == is_told


def test_a_detector_is_not_replaced_by_chance(place, detector):
    options = ["--checkpoint", str(place / "m.safetensors"), "--data=photos", "--to"]
    with pytest.raises(ValueError, match="--overwrite"):
        run("fit", *options, detector)
    with pytest.raises(ValueError, match="another place"):
        run("fit", *options, str(place / "good"), "--overwrite")


@pytest.mark.parametrize("suffix", [".stablehlo", pytest.param(".onnx", marks=pytest.mark.onnx)])
def test_an_exported_detector_has_the_same_scores(place, detector, suffix):
    target = place / f"d{suffix}"
    text = artefacts.export(detector, target, make=exported.make)
    assert "input inputs: uint8 [batch 16 16 3]" in text
    inputs = np.stack([picture(i, defect=i == 31)[:, :16] for i in range(30, 33)])
    if suffix == ".onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(target)
        names = [x.name for x in session.get_outputs()]
        found = dict(zip(names, session.run(names, {"inputs": inputs}), strict=True))
    else:
        found = jax.export.deserialize(bytearray(target.read_bytes())).call(inputs)
    loaded = anomaly.Detector.load(detector)
    wanted = [loaded.score(x) for x in inputs]
    for name in wanted[0].scores:
        scores, maps = ([getattr(x, k)[name] for x in wanted] for k in ("scores", "maps"))
        np.testing.assert_allclose(found[name], scores, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found[f"{name}_map"], maps, rtol=1e-3, atol=1e-3)


def test_options_of_models_are_none_of_detectors(detector, monkeypatch, capsys):
    arguments = ["export", f"--checkpoint={detector}", "--to=x.onnx", "--pooling=cls"]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(export.console, "install", lambda: None)  # it is for a whole process
    with pytest.raises(SystemExit):
        export.main()
    assert "--pooling is for models" in capsys.readouterr().err


def opened(x: np.ndarray, frame: Frame, sides: int) -> values.Values:
    spacing = (2.0,) * sides
    array = arrays.Array(x.shape, x.dtype, x.__getitem__, sides, spacing=spacing, frame=frame)
    data = dict(size=(8,) * sides, channels=1, range="auto", bands=None)
    return values.of(array, sides, data)


@pytest.mark.parametrize("sides, suffix", [(2, ".tif"), (3, ".nii.gz")])
def test_a_map_of_numbers_lies_where_the_input_does(sides, suffix, tmp_path):
    pytest.importorskip("rasterio" if sides == 2 else "nibabel")
    frame = Frame(np.diag([2.0] * sides + [1.0]), corner=sides == 2)
    found = np.random.default_rng(0).normal(size=(3, 4, 5)[:sides]).astype(np.float32)
    x = opened(np.zeros((12, 16, 20)[:sides] + (1,), np.float32), frame, sides)
    write = heat_maps.MapWriter("", "memory", heat_maps.colors, (4,) * sides).write
    path = str(tmp_path / f"map{suffix}")
    write(path, anomaly.Scores({"memory": 1.0}, {"memory": found}, x))
    again = (geotiff if sides == 2 else nifti).open_array(path)
    np.testing.assert_array_equal(again.read(again.whole).reshape(found.shape), found)
    assert again.frame is not None and again.spacing == (8.0,) * sides
    np.testing.assert_allclose(np.diag(again.frame.affine), [8.0] * sides + [1.0])


def test_missing_patches_are_gray_in_heat_maps():
    x = np.array([[0, 1], [np.nan, 0.5]], np.float32)
    shown = heat_maps.colors(figures.enlarged(x, (4, 4), (7, 8)))
    assert shown.shape == (7, 8, 3) and (shown[4:, :4] == 128).all()
    assert (shown[:4] != 128).any(-1).all() and shown[0, -1].sum() > shown[0, 0].sum()
    detector = type("", (), {"thresholds": {"combined": 2.0}, "calibration": None})
    halfway = heat_maps.colors_of(detector, "combined")(np.float32([2.0]))  # pyright: ignore
    np.testing.assert_array_equal(halfway, heat_maps.colors(np.float32([0.5])))
