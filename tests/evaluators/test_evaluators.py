"""The list: names of metrics, all problems at once, one text."""

import pytest

from mae_jax import evaluators
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
    )
    with pytest.raises(ValueError) as error:
        evaluators.build(sections, context(autoencoder[0]))
    text = str(error.value)
    assert "evaluators.a: evaluator = 'json:Brightness' must be MODULE:CLASS" in text
    assert "module 'json' has no attribute 'Brightness'" in text
    assert "evaluators.b and evaluators.c: unknown data 'phot'" in text


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
