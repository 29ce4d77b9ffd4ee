"""Files of features: a row for each example, and maps in the frame of the input."""

import json
import sys

import nibabel
import numpy as np
import pytest
import rasterio
import tiny_models
import zarr
from PIL import Image
from pyarrow import parquet

import mae_jax
from mae_jax import embed
from mae_jax.data import array_io, arrays, sources
from mae_jax.data.array_io import geotiff, nifti
from mae_jax.evaluators import embeddings
from mae_jax.models import build
from mae_jax.weights import load

STATISTICS = dict(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
RNG = np.random.default_rng(0)
MAP = arrays.Frame(np.array([[0, 30.0, 3e5], [-30.0, 0, 9e6], [0, 0, 1]]), "EPSG:32725")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "m.safetensors"
    model = tiny_models.model("encoder")
    return tiny_models.export(
        file, *tiny_models.MODELS["encoder"], tiny_models.random_params(model), **STATISTICS
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of three pictures, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        file = folder / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        values = RNG.integers(0, 256, (20 + i, 22, 3), dtype=np.uint8)
        Image.fromarray(values).save(file)
    (folder / "a" / "3a.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A map of three bands, in metres, whose last rows and columns fill no patch."""
    file = str(tmp_path_factory.mktemp("scene") / "s.tif")
    geotiff.write(file, RNG.random((27, 42, 3)).astype(np.float32), MAP)
    return file


def run(*arguments) -> str:
    return embeddings.write(embed.parser().parse_args([str(a) for a in arguments]))


def test_rows_of_each_format(encoder, pictures, tmp_path):
    common = [f"--checkpoint={encoder}", f"--data=folder:{pictures}", "--batch-size=3"]
    common += ["--center-crop=1"]
    text = run(*common, f"--to={tmp_path / 'f.parquet'}", "--block=0", "--pooling=both")
    assert "7 examples, 48 numbers each; 1 without features, whose notes say why" in text
    table = parquet.read_table(tmp_path / "f.parquet")
    about = json.loads(table.schema.metadata[b"mae_jax"])
    assert about["feature"] == "block 0, both, after the norm" and about["size"] == [16, 16]
    rows = table.to_pylist()
    names = ["a/0.png", "a/2.png", "a/3a.png", "a/4.png", "b/1.png", "b/3.png", "b/5.png"]
    assert [row["name"] for row in rows] == names
    assert [row["label"] for row in rows] == ["a", "a", None, "a", "b", "b", "b"]
    assert rows[2]["feature"] is None and "3a.png" in rows[2]["note"] and rows[0]["note"] is None

    run(*common, f"--to={tmp_path / 'f.npz'}", "--block=0", "--pooling=both")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as found:
        assert found["names"].tolist() == names and found["labels"].tolist() == [
            0,
            0,
            -1,
            0,
            1,
            1,
            1,
        ]
        assert np.isnan(found["features"][2]).all() and "3a.png" in found["notes"][2]
        features = found["features"]
        assert json.loads(found["metadata"].item())["checkpoint"] == str(encoder)
    run(*common, f"--to={tmp_path / 'f.zarr'}", "--block=0", "--pooling=both")
    store = zarr.open(tmp_path / "f.zarr", mode="r")
    np.testing.assert_array_equal(store["features"][:], features)
    assert store.attrs["names"] == names
    read = sources.open_source(f"zarr:{tmp_path / 'f.zarr'}::features", "all", "signal")
    assert [example["label"] for example in read] == [0, 0, -1, 0, 1, 1, 1]

    model, params = load.load(encoder)
    kept = [i for i in range(7) if i != 2]
    files = [str(pictures / names[i]) for i in kept]
    chosen = embed.checkpoint.features.Feature(0, "both")
    known = dict(STATISTICS, size=(16, 16), center_crop=1.0)
    expected = mae_jax.embed(files, model, params, feature=chosen, **known)
    np.testing.assert_allclose(features[kept], expected, atol=1e-4)
    for i in kept:
        np.testing.assert_array_equal(rows[i]["feature"], features[i])


def test_a_map_lies_over_the_input(encoder, scene, tmp_path, caplog):
    caplog.set_level("INFO", "mae_jax")
    common = [
        f"--checkpoint={encoder}",
        f"--data=geotiff:{scene}",
        "--dense",
        "--data-field=range=dtype",
    ]
    text = run(*common, f"--to={tmp_path / 'f.tif'}")
    assert "6x10 cells, 24 numbers each" in text and "without a place" not in text
    assert "size (27, 42) are cut at their ends to (24, 40)" in caplog.text
    with rasterio.open(scene) as before, rasterio.open(tmp_path / "f.tif") as after:
        left, _, _, top = before.bounds
        assert after.bounds == (left, top - 24 * 30, left + 40 * 30, top)
        assert after.crs == before.crs and after.res == (120, 120) and after.count == 24
        assert np.isnan(after.nodata)
        assert after.tags()["feature"] == "block 1, patches, after the norm"
        bands = np.moveaxis(after.read(), 0, -1)
    expected = mae_jax.embed(scene, encoder, dense=True, range="dtype")
    np.testing.assert_allclose(bands, expected.values, atol=1e-5)
    assert expected.spacing == (120, 120)

    run(*common, f"--to={tmp_path / 'f.npz'}")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["features"], bands)
        np.testing.assert_array_equal(found["affine"], [[0, 120, 3e5], [-120, 0, 9e6], [0, 0, 1]])
        assert (
            "32725" in str(found["crs"]) and json.loads(str(found["metadata"]))["index"] == "corner"
        )
    for _ in range(2):
        run(*common, f"--to={tmp_path / 'f.zarr'}", "--overwrite")
    store = zarr.open(tmp_path / "f.zarr", mode="r")
    np.testing.assert_array_equal(store[:], bands)
    assert store.attrs["affine"] == expected.frame.affine.tolist() and store.attrs["patch"] == [
        4,
        4,
    ]

    text = run(*common, f"--to={tmp_path / 'c.tif'}", "--components=2")
    with rasterio.open(tmp_path / "c.tif") as found:
        components = np.moveaxis(found.read(), 0, -1).reshape(-1, 2)
    centered = bands.reshape(-1, 24) - bands.reshape(-1, 24).mean(0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(np.abs(components), np.abs(u * s)[:, :2], atol=1e-3)
    assert f"which hold {(s[:2] ** 2).sum() / (s**2).sum():.0%} of the variance" in text


def test_tokens_of_a_classifier_that_pools_first_are_before_its_norm(tmp_path):
    kind, fields = tiny_models.MODELS["classifier"]
    model = build.model(kind, fields)
    params = tiny_models.random_params(model)
    file = tiny_models.export(tmp_path / "m.safetensors", kind, fields, params, **STATISTICS)
    x = RNG.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(x[0]).save(tmp_path / "pictures" / "x.png")
    common = [f"--checkpoint={file}", f"--data=folder:{tmp_path / 'pictures'}", "--split=all"]
    text = run(*common, "--dense", f"--to={tmp_path / 'f.npz'}")
    assert "block 1, patches, before the norm" in text
    with np.load(tmp_path / "f.npz", allow_pickle=False) as found:
        assert "before the norm" in str(found["metadata"])
        dense = found["features"]
    normal = (x / np.float32(255) - np.float32(STATISTICS["mean"])) / np.float32(STATISTICS["std"])
    _, maps = model.apply({"params": params}, normal, method="encode")
    np.testing.assert_allclose(dense.reshape(16, -1), maps[-1][0, 1:], atol=1e-3)
    text = run(*common, f"--to={tmp_path / 'g.npz'}")
    assert "block 1, mean, after the norm" in text


def test_what_is_missing_in_a_map_has_no_features(encoder, tmp_path):
    values = RNG.random((24, 40, 3)).astype(np.float32)
    values[:, 30:] = -9999
    geotiff.write(str(tmp_path / "s.tif"), values, MAP, nodata=-9999)
    common = [f"--checkpoint={encoder}", f"--data=geotiff:{tmp_path / 's.tif'}", "--dense"]
    common += [f"--to={tmp_path / 'f.tif'}", "--data-field=range=dtype"]
    with pytest.raises(ValueError, match="has missing values"):
        run(*common)
    text = run(*common, "--data-field=nodata=file", "--components=2")
    assert "; 12 cells without data, which are NaN" in text
    with rasterio.open(tmp_path / "f.tif") as found:
        exists = found.read_masks(1) > 0
    assert exists[:, :8].all() and not exists[:, 8:].any()  # cell 7 has two columns of data


def test_voxels_have_their_places(tmp_path):
    fields, size = dict(patch=(4, 4, 4), width=24, depth=1, heads=3, classes=0), (8, 8, 8)
    params = tiny_models.random_params(build.model("Classifier", fields), size, 1)
    info = tiny_models.info("Classifier", fields, size, mean=[0.5], std=[0.5])
    info = info._replace(channels=1, config=dict(data=dict(modality="volume", channels=1)))
    model = tmp_path / "m.safetensors"
    tiny_models.exports.write_mae_jax(model, info, tiny_models.flatten(params))
    affine = np.array([[-2, 0.1, 0, 90], [0, 1.5, 0, -126], [0.2, 0, 3, -72], [0, 0, 0, 1]])
    volume = RNG.random((9, 12, 8, 1)).astype(np.float32)
    (tmp_path / "in").mkdir()
    nifti.write(str(tmp_path / "in" / "v.nii.gz"), volume, arrays.Frame(affine, corner=False))
    common = [f"--checkpoint={model}", f"--data=nifti:{tmp_path / 'in'}", "--dense"]
    run(*common, f"--to={tmp_path}/out/{{name}}.nii.gz")
    found = nibabel.load(tmp_path / "out" / "v.nii.gz")
    assert found.shape == (2, 3, 2, 24)
    for cell in np.ndindex(2, 3, 2):
        centre = affine[:3, :3] @ (4 * np.array(cell) + 1.5) + affine[:3, 3]
        np.testing.assert_allclose(
            nibabel.affines.apply_affine(found.affine, cell), centre, atol=1e-4
        )
    back = array_io.open_array(str(tmp_path / "out" / "v.nii.gz"))
    expected = mae_jax.embed(volume, model, dense=True).values
    np.testing.assert_allclose(back.read(back.whole), expected, atol=1e-5)


def test_a_map_of_each_example(encoder, pictures, tmp_path, caplog):
    common = [f"--checkpoint={encoder}", f"--data=folder:{pictures}", "--dense"]
    text = run(*common, f"--to={tmp_path}/{{name}}.npz")
    assert "7 examples, 24 numbers each; 1 without features, see the warnings" in text
    assert "cannot read 'a/3a.png'" in caplog.text
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*"))
    assert written == ["a/0.npz", "a/2.npz", "a/4.npz", "b/1.npz", "b/3.npz", "b/5.npz"]
    with np.load(tmp_path / "b" / "5.npz") as found:
        expected = mae_jax.embed(str(pictures / "b" / "5.png"), encoder, dense=True)
        np.testing.assert_allclose(found["features"], expected.values, atol=1e-5)
        assert found["features"].shape == (6, 5, 24)
    text = run(*common, f"--to={tmp_path}/t/{{index}}.tif", "--components=3", "--examples=2")
    assert "; 2 without a place in the world" in text


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (["--to={folder}/f.txt"], "f.txt': pooled features are written to .parquet, .npz or .zarr"),
        (["--to={folder}/f.tif"], "f.tif': pooled features are written to .parquet, .npz or .zarr"),
        (["--to={folder}/f.nii.gz", "--dense"], "are written to .tif, .tiff, .npz or .zarr"),
        (["--to={folder}/old.npz"], "old.npz exists already: give another --to, or --overwrite"),
        (["--to={folder}/old.npz", "--dense", "--examples=1"], "old.npz exists already"),
        (["--to={folder}", "--dense"], "dense features of 2 side(s) are written to"),
        (["--to={folder}/f.npz", "--dense"], "7 examples would be written to"),
        (["--overlap=0.2"], "--overlap is for dense features: give --dense, or leave it out"),
        (["--components=3"], "--components is for dense features"),
        (["--dense", "--pooling=cls"], "dense features are not pooled: leave --pooling out"),
        (["--dense", "--overlap=1", "--to={folder}/{{name}}.npz"], "overlap = 1.0 must be from 0"),
        (["--dense", "--components=0"], "--components=0 must be at least 1"),
        (["--block=5"], "--block=5 is none of 2 blocks"),
        (
            ["--data=geotiff:{gray}", "--dense"],
            "no example has features; of the first: cannot read",
        ),
        (["--data=geotiff:{gray}", "--dense", "--components=2"], "no example has features; of the"),
        (["--data=phot"], "unknown data 'phot'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_mistakes_end_in_one_sentence(
    encoder, pictures, tmp_path, changes, sentence, capsys, monkeypatch
):
    (tmp_path / "old.npz").write_bytes(b"")
    geotiff.write(str(tmp_path / "gray.tif"), np.zeros((20, 20, 2), np.float32), None)
    places = dict(folder=tmp_path, gray=tmp_path / "gray.tif")
    arguments = [f"--checkpoint={encoder}", f"--data=folder:{pictures}", f"--to={tmp_path}/f.npz"]
    arguments += [change.format(**places) for change in changes]
    monkeypatch.setattr(sys, "argv", ["embed", *arguments])
    with pytest.raises(SystemExit) as stopped:
        embed.main()
    error = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert sentence in error[-1] and error[-1].startswith("error: "), error
    assert not (tmp_path / "f.npz").exists()


def test_names_that_several_examples_share(encoder, tmp_path):
    for name in ("x.png", "x.bmp"):
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    common = [f"--checkpoint={encoder}", f"--data=folder:{tmp_path}", "--dense"]
    with pytest.raises(ValueError, match="write {index} for {name}"):
        run(*common, f"--to={tmp_path}/{{name}}.npz")
    run(*common, f"--to={tmp_path}/{{index}}.npz")
    assert (tmp_path / "0.npz").exists() and (tmp_path / "1.npz").exists()


def test_formats_need_their_packages(encoder, pictures, tmp_path, monkeypatch):
    common = [f"--checkpoint={encoder}", f"--data=folder:{pictures}"]
    for package, end, extra in (("pyarrow", "parquet", ()), ("rasterio", "tif", ("--dense",))):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            ImportError, match=rf"needs {package}: pip install 'mae_jax\[.*or write"
        ):
            run(*common, f"--to={tmp_path}/{{index}}.{end}", *extra)


def test_the_module_of_the_command_is_the_function():
    assert mae_jax.embed is embed
    with pytest.raises(ValueError, match="there is no 'no/such'"):
        mae_jax.embed(np.zeros((16, 16, 3), np.uint8), "no/such")
