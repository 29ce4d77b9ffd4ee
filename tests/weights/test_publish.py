"""Uploads and cards: what they hold, what they replace, and what they keep to themselves."""

import json
import logging
import sys

import pytest
import tiny_models
from tiny_models import MODELS, TINY, equal

import mae_jax
from mae_jax import convert as command
from mae_jax.weights import model_card, publish


@pytest.fixture
def ours(tmp_path):
    return tiny_models.export(
        tmp_path / "ours.safetensors", *MODELS["learned"], mean=[0.5] * 3, std=[0.25] * 3
    )


def test_an_uploaded_model_is_loaded_again(server, ours, monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger("mae_jax"), "propagate", True)  # a command changes it
    arguments = ["--to=hf:org/new", "--private", "--license=cc-by-nc-4.0"]
    monkeypatch.setattr(sys, "argv", ["convert", f"--from={ours}", *arguments])
    command.main()
    lines = capsys.readouterr().out
    assert server.private["org/new"]
    files = server.repositories["org/new"][-1]
    assert files.keys() == {
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
    }
    assert lines.splitlines()[1].startswith("wrote hf:org/new (huggingface): 0.0 M parameters")
    assert lines.splitlines()[-1] == f"uploaded hf:org/new@{1:040x}"
    equal(mae_jax.load("hf:org/new")[1], mae_jax.load(ours)[1])
    card = files["README.md"].decode()
    assert card.startswith('---\nlibrary_name: "transformers"\nlicense: "cc-by-nc-4.0"\n')
    assert 'ViTMAEForPreTraining.from_pretrained("org/new")' in card
    assert 'mae_jax.load("hf:org/new")' in card and "| size | 16 × 16 |" in card
    assert "`ours.safetensors`" in card and str(ours.parent) not in card
    assert "## Training" not in card  # it is not of a run


def test_the_card_names_the_library_that_reads_the_format(tmp_path):
    fields = TINY | dict(classes=5, pooling="cls")
    classifier = tiny_models.export(tmp_path / "x.safetensors", "Classifier", fields)
    for name, says in [
        ("vit", 'ViTForImageClassification.from_pretrained("vit")'),
        ("timm", 'timm.create_model("local-dir:timm", pretrained=True)'),
    ]:
        publish.convert(str(classifier), str(tmp_path / name), target_format=name, card=True)
        card = (tmp_path / name / "README.md").read_text()
        assert says in card and "logits = model.apply" in card and "classifier of 5 classes" in card


def test_an_upload_replaces_only_the_model(server, ours):
    publish.convert(str(ours), "hf:org/new")
    server.repositories["org/new"].append(server.repositories["org/new"][-1] | {"mine": b"1"})
    server.repositories["org/new"][-1]["README.md"] = b"by hand"
    with pytest.raises(ValueError, match="hf:org/new has a model already: give another --to, or"):
        publish.convert(str(ours), "hf:org/new")
    with pytest.raises(ValueError, match="hf:org/new exists and is public: leave --private out"):
        publish.convert(str(ours), "hf:org/new", private=True, overwrite=True)
    again = dict(target_format="mae_jax", overwrite=True)
    with pytest.raises(ValueError, match="has a card, to which --license=mit belongs: add --card"):
        publish.convert(str(ours), "hf:org/new", license="mit", **again)
    publish.convert(str(ours), "hf:org/new", **again)
    files = server.repositories["org/new"][-1]
    assert files.keys() == {"README.md", "model.safetensors", "mine"}  # no config of another model
    assert files["README.md"] == b"by hand"
    equal(mae_jax.load("hf:org/new")[1], mae_jax.load(ours)[1])
    publish.convert(str(ours), "hf:org/new", card=True, **again)
    assert b"mae_jax.load" in server.repositories["org/new"][-1]["README.md"]


def test_what_cannot_be_uploaded_is_said_before_anything_is_made(server, ours, tmp_path):
    for target, options, says in [
        ("hf:org/new/x.safetensors", {}, "must be hf:ORG/NAME, with --format=mae_jax or hug"),
        ("hf:org/new", dict(target_format="reference"), "must be hf:ORG/NAME"),
        ("hf:org/gated", {}, "hf:org/gated is gated"),
        (str(tmp_path / "x"), dict(private=True), "--private is for repositories"),
        (str(tmp_path / "x"), dict(license="mit"), "--license=mit is for a card: add --card"),
        (str(tmp_path / "x.pth"), dict(card=True), "--card is for folders"),
        ("hf:org/new", dict(size=(16, 24)), "square inputs alone"),
    ]:
        with pytest.raises(ValueError, match=says):
            publish.convert(str(ours), target, **options)
    server.may_write = False
    with pytest.raises(ValueError, match="refuses this for org/new: log in with `hf auth login`"):
        publish.convert(str(ours), "hf:org/new")
    assert not server.repositories and not (tmp_path / "x").exists()


def test_the_card_of_a_run_has_its_recipe_curve_and_figures(tmp_path, monkeypatch):
    """A work directory as training writes it, of which only the weights are missing."""
    run = tmp_path / "secret" / "runs" / "small"
    (run / "pictures").mkdir(parents=True)
    (run / "pictures" / "loss.png").write_bytes(b"png")
    (run / "report.txt").write_text("accuracy of frozen features     kNN\n")
    records = [dict(step=s, loss=2 - s / 100, learning_rate=1e-3) for s in range(1, 41)]
    records += [dict(step=20, test_loss=1.5, knn=0.5), dict(step=20, event="rewound", text="x")]
    lines = [json.dumps(record) for record in records]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 40, "lo']))
    start = f"{tmp_path}/secret/start.pth"
    config = dict(
        task="pretrain",
        seed=3,
        init=dict(checkpoint=start),
        epochs=2.5,
        batch_size=64,
        data=dict(train=dict(source=f"folder:{tmp_path}/secret"), modality="image"),
        model=dict(norm_pix=True, dtype="bfloat16"),
        mask=dict(name="random", ratio=0.75),
        optimizer=dict(base_learning_rate=1.5e-4, warmup_epochs=0.5, weight_decay=0.05),
    )
    known = dict(mean=[0.5] * 3, std=[0.2, 0.25, 0.3], classes=["cat", "dog"], config=config)
    info = tiny_models.info(*MODELS["autoencoder"], **known)
    folder = tmp_path / "card"
    folder.mkdir()
    write = lambda step: model_card.write(folder, info._replace(path=f"{run}:{step}"), "card")
    write(40)
    text = (folder / "README.md").read_text()
    for row in [
        "| data | folder (image) |",
        "| steps | 40 |",
        "| base learning rate | 0.00015 for a batch of 256 |",
        "| mask | random, 75% of the patches |",
        "| started from | start.pth, whose license applies |",
        "| std, of values from 0 to 1 | 0.2, 0.25, 0.3 |",
        "| classes of the data | cat, dog |",
        "| 40 | 1.6 |  |",
        "| 20 | 1.8 | 1.5 |",
        "![loss](loss.png)",
        "```text\naccuracy of frozen features     kNN\n```",
    ]:
        assert row in text, row
    assert text.count("\n| ") < 40 and "secret" not in text
    assert "license:" not in text and "CC BY-NC 4.0" in text
    assert (folder / "loss.png").read_bytes() == b"png"
    write(20)  # before the end: neither the report nor the picture is of this step
    text = (folder / "README.md").read_text()
    assert "| knn | 0.5 |" in text and "kNN" not in text and "loss.png" not in text
    assert "| 20 | 1.8 | 1.5 |" in text and "| 40 |" not in text
    assert "| steps | 20, before the end of the run |" in text
