"""Prefixes of names are removed where that makes the names known, and the user is told."""

import json
import logging
from pathlib import Path

import families
import pytest
import tiny_models

import mae_jax
from mae_jax.weights import families as recognition
from mae_jax.weights import load, prefixes

HEADS = dict(heads=3, decoder_heads=2)
NAMES = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")


@pytest.fixture
def lines(caplog):
    """The function that returns level and text of each line that was logged."""
    caplog.set_level(logging.INFO, "mae_jax")
    return lambda: [(record.levelname, record.message) for record in caplog.records]


def recognise(names) -> None:
    """Know two families: of the second, `encoder.` and `decoder.` are parts of its names."""
    names = list(names)
    if not any(name.startswith(("blocks.", "encoder.layer.")) for name in names):
        raise ValueError(f"unknown names: {names[0]}")


def remove(names, prefix="") -> list[str]:
    tensors = {name: number for number, name in enumerate(names)}
    left = prefixes.remove(Path("x.pth"), tensors, recognise, prefix)
    assert all(names[number].endswith(name.split(".")[-1]) for name, number in left.items())
    return list(left)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "backbone."]
    + ["_fsdp_wrapped_module.", "encoder.", "net.", "teacher.", "student.backbone.", "model.net."],
)
def test_a_prefix_of_all_names_is_removed(prefix, lines):
    assert remove([prefix + name for name in NAMES]) == [*NAMES]
    ((level, line),) = lines()
    assert level == "INFO" and "removed from the names of 2 tensors" in line
    assert all(f"{part}." in line for part in prefix[:-1].split("."))


def test_wrapping_modules_are_removed_inside_of_names(lines):
    names = [
        "_fsdp_wrapped_module.patch_embed.proj.weight",
        "_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.attn.qkv.weight",
    ]
    assert remove(names) == [*NAMES]
    ((_, line),) = lines()
    assert "_checkpoint_wrapped_module., _fsdp_wrapped_module. removed from the names of 2" in line
    with pytest.raises(ValueError, match="x.pth has 2 names, but 1 without _orig_mod"):
        remove(["blocks.0.weight", "_orig_mod.blocks.0.weight"])


@pytest.mark.parametrize("rest", [["decoder.norm.weight"], ["head.weight", "encoder.x.bias"]])
def test_what_belongs_to_the_names_of_a_family_stays(rest, lines):
    names = ["encoder.layer.0.weight", "encoder.norm.weight", *rest]
    assert remove(names) == names and not lines()
    assert remove([f"model.{name}" for name in names]) == names  # not `model.encoder.`


def test_the_shortest_prefix_that_helps_is_removed(lines):
    """What is under another known prefix in it, half of the network, is no alternative."""

    def recognise(names):
        if not any(name.startswith(("blocks.", "encoder.blocks.")) for name in names):
            raise ValueError("unknown names")

    names = ["encoder.blocks.0.weight", "decoder.blocks.0.weight"]
    tensors = {f"model.{name}": 0 for name in names}
    assert [*prefixes.remove(Path("x.pth"), tensors, recognise)] == names
    ((_, line),) = lines()
    assert line == "x.pth: model. removed from the names of 2 tensors"


def test_tensors_beside_a_network_are_named(lines):
    others = ["criterion.weight", "head.weight", "head.bias", "temperature"]
    assert remove([*others, *(f"model.{name}" for name in NAMES)]) == [*NAMES]
    ((level, line),) = lines()
    assert level == "WARNING" and line == (
        "x.pth: model. removed from the names of 2 tensors; 4 others left aside: head. (2), "
        "criterion. (1), temperature (1)"
    )


def test_one_of_several_networks_is_chosen(lines):
    names = [f"{part}.backbone.{name}" for part in ("teacher", "student") for name in NAMES]
    names += ["teacher.head.weight"]
    assert remove(names) == [*NAMES]
    ((level, line),) = lines()
    assert level == "WARNING" and "student.backbone. removed from the names of 2 tensors" in line
    assert line.endswith("; prefix= would choose teacher.backbone.")
    for prefix in ("teacher.backbone.", "teacher.backbone"):  # as the line says
        assert remove(names, prefix) == [*NAMES]
        assert (
            lines()[-1][0] == "INFO"
            and "3 others left aside: student. (2), teacher. (1)" in lines()[-1][1]
        )
    with pytest.raises(
        ValueError, match=r"no names under the prefix 'ema', but teacher. \(3\), stud"
    ):
        remove(names, "ema")


def test_an_unusual_prefix_is_not_removed_but_advised():
    names = [*(f"mae.{name}" for name in NAMES), "mae.decoder.blocks.0.weight", "loss.weight"]
    with pytest.raises(ValueError, match="unknown names: mae.*give prefix=mae. to read what is un"):
        remove(names)
    assert remove(names, "mae.") == [*NAMES, "decoder.blocks.0.weight"]
    with pytest.raises(ValueError, match=r"unknown names: a.w; it has a. \(1\)$"):
        remove(["a.w"])
    decoder = [f"x.decoder.blocks.{i}.weight" for i in range(3)]
    with pytest.raises(ValueError, match=r"it has x. \(3\)$"):  # half a network is none
        remove(decoder)


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "backbone."])
def test_a_file_with_a_prefix_is_loaded(prefix, whole, tmp_path, lines):
    state = tiny_models.reference_state("autoencoder", whole[0])
    state = {
        f"{prefix}{name}".replace("blocks.0.", "blocks.0._orig_mod."): x
        for name, x in state.items()
    }
    path = tiny_models.save(tmp_path / "x.safetensors", state)
    _, params = mae_jax.load(path, norm_pix=False, **HEADS)
    tiny_models.equal(params, whole[0])
    assert [level for level, _ in lines()] == ["INFO"]
    assert load.find(path, prefix=prefix).shapes == load.find(whole[1]).shapes
    with pytest.raises(ValueError, match="no names under the prefix 'teacher.', but"):
        load.find(path, prefix="teacher.")


@pytest.mark.parametrize("name", families.NAMES)
def test_the_names_of_every_family_are_found_under_a_prefix(name):
    """Also `encoder.`, with which some families' own names begin."""
    names = list(families.Case(name).state)
    key = recognition.recognise(names)
    for prefix in ("", "module.", "backbone.", "model.net.", "encoder.", "model.encoder."):
        if (key, prefix[-8:]) == ("videomae", "encoder."):
            continue  # the files of its own encoder alone
        tensors = {prefix + name: 0 for name in names}
        assert list(prefixes.remove(Path("x.pth"), tensors, recognition.recognise)) == names, prefix


def test_the_parts_of_a_folder_have_prefixes_too(whole, tmp_path):
    state = tiny_models.reference_state("autoencoder", whole[0])
    state = {f"model.{name}": x for name, x in state.items()}
    half = len(state) // 2
    for number, names in enumerate(([*state][:half], [*state][half:])):
        tiny_models.save(tmp_path / f"{number}.safetensors", {name: state[name] for name in names})
    weight_map = {name: f"{int(i >= half)}.safetensors" for i, name in enumerate(state)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae"}))
    assert load.find(tmp_path).shapes == load.find(whole[1]).shapes
