"""Round trips between the formats are exact."""

import json

import pytest
import tiny_models
from tiny_models import MODELS, equal, export, random_params

import mae_jax
from mae_jax.data.target_scale import TargetScale
from mae_jax.weights import export as exports
from mae_jax.weights import load

TARGETS = {"reference": "x.pth", "huggingface": "x", "mae_jax": "x.safetensors"}


@pytest.mark.parametrize(
    "target_format", [pytest.param("reference", marks=pytest.mark.parity), "huggingface", "mae_jax"]
)
@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_exact(name, target_format, tmp_path):
    model, target = tiny_models.model(name), tmp_path / TARGETS[target_format]
    params = random_params(model)
    ours = export(
        tmp_path / "ours.safetensors", *MODELS[name], params, mean=[0.1] * 3, std=[0.2] * 3
    )
    if (name, target_format) == ("classifier", "huggingface"):
        with pytest.raises(
            ValueError,
            match="ViTMAE does not have: write a .safetensors file or --format=reference",
        ):
            exports.export(str(ours), target)
        assert not target.exists()
        return
    exports.export(str(ours), target)
    there, again = mae_jax.load(target)
    equal(again, params)
    assert there == model
    info = load.find(target)
    assert info.size == (16, 16) and info.channels == 3
    if target_format != "reference":
        assert (info.mean, info.std) == ([0.1] * 3, [0.2] * 3)
    (tmp_path / "any").touch()
    files = target.iterdir() if target.is_dir() else [target]
    assert {file.stat().st_mode for file in files} == {(tmp_path / "any").stat().st_mode}
    back = tmp_path / "back.safetensors"
    exports.export(str(target), back)
    equal(mae_jax.load(back)[1], params)


def test_the_targets_of_a_regressor_stay(tmp_path):
    scale = TargetScale(("age", "weight"), (50.0, 70.0), (10.0, 15.0))
    fields = tiny_models.TINY | dict(classes=2, learned_positions=True, pooling="cls")
    ours = export(tmp_path / "ours.safetensors", "Classifier", fields, targets=scale)
    assert load.find(ours).targets == scale
    assert load.find(ours, without="head/.*").targets is None
    for name in ("vit", "timm"):
        exports.export(str(ours), tmp_path / name, target_format=name)
        info = load.find(tmp_path / name)
        assert info.targets == scale and info.classes is None
    settings = json.loads((tmp_path / "vit" / "config.json").read_text())
    assert settings["problem_type"] == "regression" and settings["id2label"]["1"] == "weight"
    del settings["target_scale"]  # as other code writes it
    (tmp_path / "vit" / "config.json").write_text(json.dumps(settings))
    assert load.find(tmp_path / "vit").targets == TargetScale(("age", "weight"))
    del settings["id2label"], settings["label2id"]
    (tmp_path / "vit" / "config.json").write_text(json.dumps(settings))
    assert load.find(tmp_path / "vit").targets == TargetScale(("target_0", "target_1"))


@pytest.mark.parity
def test_a_pth_file_does_not_say_its_targets(tmp_path):
    scale = TargetScale(("age", "weight"), (50.0, 70.0), (10.0, 15.0))
    fields = tiny_models.TINY | dict(classes=2, pooling="cls")
    ours = export(tmp_path / "ours.safetensors", "Classifier", fields, targets=scale)
    text = exports.export(str(ours), tmp_path / "x.pth")
    assert "does not say that it predicts age, weight" in text
