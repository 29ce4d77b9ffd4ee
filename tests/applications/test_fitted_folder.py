"""Folders of a model and what was fitted with it: written, read, damaged."""

import json

import jax
import numpy as np
import pytest
import tiny_models

from mae_jax.applications import fitted_folder
from mae_jax.applications.fitted_folder import Fitted
from mae_jax.evaluators import loaded_model

ARRAYS = {"memory": np.arange(12, dtype=np.float32).reshape(3, 4)}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    tiny_models.export(path, *tiny_models.MODELS["autoencoder"])
    return loaded_model.of(str(path), size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def folder(loaded, tmp_path):
    about = dict(threshold=0.25, levels=[1, 2])
    fitted_folder.write(str(tmp_path / "x"), "detector", Fitted(loaded, ARRAYS, about))
    return tmp_path / "x"


def test_a_folder_holds_all_that_a_user_needs(loaded, folder):
    found = fitted_folder.read(str(folder), "detector")
    assert found.about == dict(threshold=0.25, levels=(1, 2))
    np.testing.assert_array_equal(found.arrays["memory"], ARRAYS["memory"])
    jax.tree.map(np.testing.assert_array_equal, found.loaded.params, loaded.params)
    assert found.loaded.model == loaded.model
    assert found.loaded.transform.size == (16, 16)
    assert found.loaded.transform.mean == (0.5,) * 3


@pytest.mark.parametrize("name", [fitted_folder.MODEL, fitted_folder.ARRAYS])
def test_damage_is_found(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"damaged: {name}"):
        fitted_folder.read(str(folder), "detector")
    (folder / name).unlink()
    with pytest.raises(ValueError, match="damaged"):
        fitted_folder.read(str(folder), "detector")


def test_a_description_without_its_parts_is_damaged(folder):
    path = folder / "detector.json"
    path.write_text(json.dumps({"about": {}}))
    with pytest.raises(ValueError, match="damaged"):
        fitted_folder.read(str(folder), "detector")


def test_only_such_a_folder_is_replaced(loaded, folder, tmp_path):
    fitted = Fitted(loaded, {}, {})
    with pytest.raises(ValueError, match="--overwrite"):
        fitted_folder.write(str(folder), "detector", fitted)
    fitted_folder.write(str(folder), "detector", fitted, overwrite=True)
    assert not fitted_folder.read(str(folder), "detector").arrays
    with pytest.raises(ValueError, match="another place"):
        fitted_folder.write(str(tmp_path), "detector", fitted, overwrite=True)
    with pytest.raises(ValueError, match="no index"):
        fitted_folder.read(str(folder), "index")


def test_an_edited_description_is_damage(folder):
    path = folder / "detector.json"
    path.write_text(path.read_text().replace('"threshold": 0.25', '"threshold": 0.5'))
    with pytest.raises(ValueError, match="damaged: detector.json"):
        fitted_folder.read(str(folder), "detector")
