"""Filled pictures in files: of the type and in the place of the given ones."""

import json
import sys

import numpy as np
import pytest
import tiny_models
from PIL import Image

from mae_jax.applications import inpaint
from mae_jax.applications.restore import inpainted_files
from mae_jax.data import array_io
from mae_jax.data.arrays import Frame
from mae_jax.data.image_io import decode, encode

RNG = np.random.default_rng(0)
STATISTICS = dict(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
PLACE = Frame(np.array([[0, 30.0, 3e5], [-30.0, 0, 9e6], [0, 0, 1]]), "EPSG:32725")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "m.safetensors"
    kind, fields = tiny_models.MODELS["autoencoder"]
    return tiny_models.export(file, kind, fields | dict(depth=1, decoder_depth=1), **STATISTICS)


@pytest.fixture
def masked(tmp_path):
    masked = np.zeros((20, 24), bool)
    masked[3:9, 5:12] = True
    (tmp_path / "masks").mkdir()
    Image.fromarray(masked).save(tmp_path / "masks" / "a.png")
    return masked


def write(checkpoint, *arguments) -> str:
    given = [f"--checkpoint={checkpoint}", "--batch-size=4", *map(str, arguments)]
    return inpainted_files.write(inpaint.parser().parse_args(given))


def pixels(dtype) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, (20, 24, 3), dtype, endpoint=True)


def test_a_map_of_16_bits_keeps_its_type_and_its_place(checkpoint, masked, tmp_path):
    given = pixels(np.uint16)
    encode.write(str(tmp_path / "a.tif"), given, PLACE)
    files = [
        f"--image={tmp_path}/a.tif",
        f"--mask={tmp_path}/masks/a.png",
        f"--to={tmp_path}/b.tif",
    ]
    files += [f"--side-by-side={tmp_path}/s.png", f"--json={tmp_path}/b.json"]
    text = write(checkpoint, *files, "--data-field=range=dtype")
    assert text.endswith("b.tif: 20x24x3 uint16, 42 of 480 pixels filled (8.8%)")
    back = array_io.open_array(str(tmp_path / "b.tif"))
    found = back.read(back.whole)
    assert back.frame and (back.frame.affine == PLACE.affine).all() and "32725" in back.frame.crs
    np.testing.assert_array_equal(found[~masked], given[~masked])
    assert (found != given)[masked].any(-1).all()
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 3 * 24
    about = json.loads((tmp_path / "b.json").read_text())["pictures"][0]
    assert (about["masked"], about["pixels"], about["dtype"]) == (42, 480, "uint16")
    with pytest.raises(ValueError, match="exists already: give another --to, or --overwrite"):
        write(checkpoint, *files)


def test_a_folder_of_pictures(checkpoint, masked, tmp_path, caplog):
    given, folder = pixels(np.uint8), tmp_path / "in"
    folder.mkdir()
    Image.fromarray(given).save(folder / "a.png")
    Image.fromarray(given[:10]).save(folder / "b.jpg")
    Image.fromarray(masked).save(tmp_path / "masks" / "b.png")
    files = [f"--image={folder}", f"--mask={tmp_path}/masks", f"--to={tmp_path}/out"]
    assert "1 not filled, see the warnings" in write(checkpoint, *files)
    assert "b.png: the mask is of size (20, 24) and the picture of (10, 24)" in caplog.text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    found = decode.bands((tmp_path / "out" / "a.png").read_bytes())
    np.testing.assert_array_equal(found[~masked], given[~masked])
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(ValueError, match="has no mask 'b'"):
        write(checkpoint, *files, "--overwrite")
    Image.fromarray(given).save(folder / "a.tif")  # its file would be that of a.png
    with pytest.raises(ValueError, match="two pictures or masks are called 'a'"):
        write(checkpoint, *files, "--overwrite")


def test_a_lossy_file_is_refused_before_any_work(checkpoint, masked, tmp_path, monkeypatch, capsys):
    Image.fromarray(pixels(np.uint8)).save(tmp_path / "a.png")
    given = [
        f"--image={tmp_path}/a.png",
        f"--mask={tmp_path}/masks/a.png",
        f"--to={tmp_path}/b.jpg",
    ]
    monkeypatch.setattr(sys, "argv", ["inpaint", "--checkpoint=none", *given])
    with pytest.raises(SystemExit) as end:
        inpaint.main()
    assert end.value.code == 2
    assert "compressed with a loss" in capsys.readouterr().err
