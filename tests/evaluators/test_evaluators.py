"""The list: names of metrics, all problems at once, one text."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mae_jax import evaluators
from mae_jax.config import command_line, schema
from mae_jax.evaluators import checkpoint
from mae_jax.evaluators.evaluator import Result

SECTION = dict(
    type="reconstruction", source="same", split="test", examples=8, batch_size=8, pictures=2
)


def test_an_entry_with_another_name_says_so(autoencoder, context):
    model, variables = autoencoder
    sections = dict(reconstruction=dict(SECTION, every=4), second=SECTION)
    made = evaluators.build(sections, context(model))
    assert [(entry.name, entry.every) for entry in made] == [("reconstruction", 4), ("second", 0)]
    assert [list(entry.evaluate(variables).metrics) for entry in made] == [
        ["test_loss"],
        ["second_test_loss"],
    ]
    report = evaluators.report(made, variables)
    assert list(report.pictures) == ["reconstruction", "second_reconstruction"]
    text = report.text
    assert text.count("held-out loss") == 2 and "second\n\nheld-out" in text


def test_all_problems_are_told(autoencoder, context):
    sections = dict(
        a=dict(type="custom", evaluator="json:Brightness"),
        b=dict(SECTION, source="phot"),
        c=dict(SECTION, source="phot"),
        d=dict(SECTION, pictures=-1, colour=3, loss="binary"),
    )
    with pytest.raises(ValueError) as error:
        evaluators.build(sections, context(autoencoder[0]))
    text = str(error.value)
    assert "evaluators.a: evaluator = 'json:Brightness' must be MODULE:CLASS" in text
    assert "module 'json' has no attribute 'Brightness'" in text
    assert "evaluators.b and evaluators.c: unknown data 'phot'" in text
    assert "evaluators.d: " in text and "unknown config key colour" in text
    assert "unknown config key loss" in text  # which is a key of a whole config
    assert "pictures = -1 must be a whole number of at least 1" in text


def test_tables_of_the_same_rows_are_one():
    table = lambda title, x: [["accuracy", title], ["  trained", x]]
    results = [
        Result({"a": 1.0}, rows=[["loss", ""], ["  trained", "1"]]),
        Result({"b": 2.0}, rows=table("kNN", "2"), notes=("(2 examples)",)),
        Result({"c": 3.0}, rows=table("linear", "3"), notes=("(2 examples)", "(slow)")),
    ]
    found = evaluators.join(results)
    assert found.metrics == {"a": 1.0, "b": 2.0, "c": 3.0}
    lines = found.text.splitlines()
    assert lines[3].split() == ["accuracy", "kNN", "linear"]
    assert lines[4].split() == ["trained", "2", "3"]
    assert lines[5:] == ["(2 examples)", "(slow)"]


def test_an_evaluator_of_your_own_as_documented(autoencoder, context, tmp_path, monkeypatch):
    """The blocks of docs/evaluation.md, and its metric by hand, one example at a time."""
    text = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    _, code, entry = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_evaluators.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    config = command_line.load("configs/quickstart.py:debug")
    exec(entry, {"config": config})
    section = schema.updated(config, {"evaluators.mirror.examples": 5}).evaluators["mirror"]
    model, variables = autoencoder
    given = context(model)
    (made,) = evaluators.build({"mirror": section}, given)
    assert made.every == 1000
    (batch,) = made.evaluator.batches()
    cosines = []
    for image in np.asarray(batch["image"])[np.asarray(batch["valid"])]:
        x = given.transform.normalize(image[None])
        views = [
            model.apply(variables, v, method="encode")[0].mean(1)[0] for v in (x, x[:, :, ::-1])
        ]
        a, b = (np.asarray(v) for v in views)
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    metrics = evaluators.report([made], variables).metrics
    assert len(cosines) == 5 and metrics == {
        "mirror_cosine": pytest.approx(np.mean(cosines), abs=1e-5)
    }


def test_the_splits_of_a_run_are_those_that_its_evaluators_had():
    knn = dict(type="knn", train=dict(source="same", split="not_fold:2"))
    entries = dict(knn=knn | dict(test=dict(source="same", split="fold:2")))
    config = dict(data=dict(train=dict(source="csv:a", split="not_fold:2")), evaluators=entries)
    assert checkpoint.splits_of(config, "csv:a") == ("not_fold:2", "fold:2")
    assert checkpoint.splits_of(config, "csv:b") == ("train", "test")
    entries["other"] = dict(type="reconstruction", split="fold:3")
    assert checkpoint.splits_of(config, "csv:a") == ("not_fold:2", "test")
    assert checkpoint.splits_of({}, "csv:a") == ("train", "test")


def test_examples_that_are_trained_on_are_no_test(caplog):
    names = lambda *wanted: SimpleNamespace(names=wanted)
    part = dict(source="same", split="fold:1")
    held_out = {"fold:1": names("b", "c"), "fold:2": names("d")}
    context = SimpleNamespace(
        data=dict(train=dict(source="csv:a")), open=lambda part: held_out[part["split"]]
    )
    warn = lambda test: evaluators.warn_of_overlap(
        names("a", "b"), dict(knn=dict(test=test)), context
    )
    warn(part)
    assert "evaluators.knn: 1 of its 2 test examples are among the training examples" in caplog.text
    caplog.clear()
    for other in (dict(part, split="fold:2"), dict(part, source="csv:b")):
        warn(other)
    assert not caplog.text
