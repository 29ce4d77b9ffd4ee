"""Examples of a user's own code: `python:MODULE:FACTORY`, and `train(..., source=...)`."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mae_jax import evaluate
from mae_jax.config import command_line, nested, schema
from mae_jax.config.errors import UserError
from mae_jax.data import sources
from mae_jax.evaluators import checkpoint
from mae_jax.train import train

ROOT = Path(__file__).parents[2]
KNN = {"knn": dict(type="knn", every=0, train=dict(source="same"), test=dict(source="same"))}


def debug(**changes) -> schema.Config:
    changes = {"model.depth": 1, "evaluators": KNN, "epochs": 1} | changes
    return schema.updated(command_line.load(f"{ROOT}/configs/vit_base.py:debug"), changes)


def load(i: int) -> dict:
    level = np.random.default_rng(i).integers(0, 100, (12, 12, 3))
    return {"image": np.uint8(level + 100 * (i % 2)), "label": i % 2}


def examples(count: int) -> sources.Examples:
    return sources.Examples(count, load, ("dark", "bright"), "own")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train(debug(), workdir, source={"train": examples(48), "val": examples(16)})
    return workdir


def test_training_and_evaluators_see_the_argument(finished):
    assert (
        json.loads((finished / "config.json").read_text())["data"]["train"]["source"] == "argument"
    )
    stored = json.loads((finished / "statistics.json").read_text())
    assert (stored["examples"], stored["classes"]) == (48, ["dark", "bright"])
    assert "16" in (finished / "report.txt").read_text()  # examples of the split "val"


def test_a_run_continues_with_the_same_examples_only(finished):
    with pytest.raises(UserError, match="data.train.source"):
        train(debug(), finished)
    both = {"train": examples(47), "test": examples(16)}
    with pytest.raises(UserError, match="'argument' has 47 examples but had 48"):
        train(debug(), finished, source=both)
    with pytest.raises(UserError, match="no source of split 'train': give train"):
        train(debug(**{"data.train.source": "argument"}), finished)
    train(debug(), finished, source={**both, "train": examples(48)})


def test_a_lone_source_has_no_other_split(tmp_path):
    with pytest.raises(
        UserError, match=r"evaluators.knn: there is no source of split 'test': give"
    ):
        train(debug(), tmp_path, source=examples(48))
    with pytest.raises(UserError, match=r"source\['train'\] is a list without name and classes"):
        train(debug(), tmp_path, source=[load(0)])


def test_evaluation_runs_no_code_that_a_checkpoint_names(finished, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    monkeypatch.syspath_prepend(tmp_path)
    options = evaluate.parser().parse_args([f"--checkpoint={finished}", "--data=synthetic"])
    info, context = checkpoint.find(options)
    config = nested.plain(info.config)
    nested.put(config, "data.train.source", "python:evil:make")
    context = checkpoint.make_context(info._replace(config=config), options, context.mesh)
    same = context.open(dict(source="same", split="test"))
    assert same.name(0) == "synthetic test[0]" and "evil" not in sys.modules


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that opens `python:own:make`, from the body of `make(split)`."""

    def opened(body: str, split: str = "train"):
        monkeypatch.delitem(sys.modules, "own", raising=False)
        text = f"import numpy as np\nfrom mae_jax.data import sources\n{body}"
        (tmp_path / "own.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return sources.open_source("python:own:make", split)

    return opened


EXAMPLES = "make = lambda split: sources.Examples(3, lambda i: {}, ('a', 'b'), split)"


def test_a_factory_of_a_module(module):
    source = module(EXAMPLES.format("{'image': np.zeros((2, 2), np.uint8), 'label': i % 2}"), "dev")
    assert len(source) == 3 and source[1]["label"] == 1 and source.name(2) == "dev[2]"


@pytest.mark.parametrize(
    "body, message",
    [
        ("make = lambda split: [1]", "is a list without name and classes"),
        ("build = 1", "must be python:MODULE:FACTORY, which Python can import: .*'make'"),
        ("import missing_package", "which Python can import: No module named 'missing_package'"),
        (EXAMPLES.format("(i, i)"), "example 0 is no mapping with the keys 'image' and 'label'"),
        (EXAMPLES.format("{'image': b''}"), "example 0 is no mapping with the keys"),
        (EXAMPLES.format("{'image': b'', 'label': 1.5}"), "label of example 0 is 1.5: give"),
        (EXAMPLES.format("{'image': b'', 'label': 'a'}"), "label of example 0 is 'a': give"),
        (EXAMPLES.format("{'image': b'', 'label': [['a']]}"), "label of example 0 is"),
    ],
)
def test_mistakes_of_a_factory(module, body, message):
    with pytest.raises(ValueError, match=message):
        module(body)
