"""Configs that cannot run: each is refused in one sentence, before anything is compiled."""

import re

import jax
import pytest
import runs

from mae_jax.config import command_line
from mae_jax.config.errors import UserError
from mae_jax.models import rules
from mae_jax.train import train

pytestmark = [pytest.mark.faults("bad config"), pytest.mark.usefixtures("soon")]
PRETRAIN = "--config=configs/vit_base.py:debug"
FINETUNE = "--config=configs/finetune_vit_base.py:debug"
HELD_OUT = "evaluators.reconstruction"
RATE, WARM_UP = "optimizer.base_learning_rate", "optimizer.warmup_epochs"
BFLOAT16, TWO = "model.dtype=bfloat16", "data.mean=(0.5,0.5) data.std=(0.2,0.2)"
# What is changed, and what must be said of it beside the first value: the key and a way out. There
# are four devices; the config has 16 patches, 64 examples, width 48 and batch 8.
CHANGES = {
    "a mask ratio above 1": ("mask.ratio=1.5", "mask.ratio.*between 0 and 1"),
    "a mask ratio of zero": ("mask.ratio=0.0", "mask.ratio.*between 0 and 1"),
    "a size that patches do not divide": ("data.size=(60,64)", r"data.size.*use \((48|64), 64\)"),
    "heads that do not divide the width": ("model.heads=5", "model.heads.*48"),
    "an empty batch": ("batch_size=0", "batch_size.*at least 1"),
    "a batch that devices cannot share": ("batch_size=6", "batch_size.*4 or 8"),
    "an accumulation that does not divide": ("accumulation=3", "accumulation.*8"),
    "a warm-up as long as the run": ("optimizer.warmup_epochs=3.0", "warmup_epochs.*epochs = 1"),
    "a split that is not there": ("data.train.split=all", "split.*train"),
    "a folder that is not there": ("data.train.source=folder:/no/such", "no folder"),
    "an unknown kind of data": ("data.train.source=foldr:x", "folder:PATH"),
    "held-out data that are not there": (f"{HELD_OUT}.source=folder:/no/such", "no folder"),
    "a negative learning rate": (f"{RATE}=-1", "base_learning_rate.*above 0"),
    "a learning rate of NaN": (f"{RATE}=nan", "base_learning_rate.*above 0"),
    "no epochs": ("epochs=0", "epochs.*above 0"),
    "epochs in words": ("epochs=many", "epochs.*number"),
    "a mesh that devices do not fill": ("mesh.data=3", "mesh.data.*4 device.*-1"),
    "heads that tensor does not divide": ("mesh.tensor=2", "mesh.tensor.*3"),
    "a mean for two channels": ("data.mean=(0.5,0.5)", "data.mean.*channels"),
    "a deviation of zero": ("data.std=(0.2,0.0,0.2)", "data.std.*above 0"),
    "attention of another machine": (f"model.attention=cudnn {BFLOAT16}", "model.attention.*auto"),
    "a checkpoint that is not there": ("init.checkpoint=/no/such", "no '/no/such'"),
    "no checkpoints to keep": ("keep=0", "keep.*at least 1"),
    "two channels of pictures": (f"data.channels=2 {TWO}", "1, 3 or 4"),
    "a heartbeat of one second": ("recovery.heartbeat_timeout=1", "heartbeat.*at least 5"),
    "a crop scale the wrong way round": ("data.crop_scale=(0.9,0.1)", "crop_scale.*smallest"),
    "more examples than there are": ("data.examples=1000", "data.examples.*64"),
    "a negative seed": ("seed=-1", "seed.*from 0"),
    "a patch for one axis": ("model.patch=(16,)", "model.patch.*axes"),
    "a share of bad files above 1": ("data.max_bad_fraction=2.0", "max_bad_fraction.*0 to 1"),
    "a loss ratio below 1": ("recovery.max_loss_ratio=0.5", "max_loss_ratio.*above 1"),
    "no such mask": ("mask.name=rnadom", "mask.name.*random"),
}
# whole command lines
COMMANDS = {
    "a stray argument": ([PRETRAIN, "mask.ratio=0.5"], "mask.ratio=0.5.*--config.key=value"),
    "an argument without --config": ([PRETRAIN, "--batch_size=16"], "batch_size"),
    "a config that is not there": (["--config=configs/vit_bas.py"], "vit_bas.py.*vit_base.py"),
    "an unknown config argument": (["--config=configs/vit_base.py:debgu"], "debgu.*debug"),
    "no work directory": ([PRETRAIN, "--workdir="], "--workdir"),
    "a typo in a key": ([PRETRAIN, "--config.mask.rato=0.5"], "mask.rato.*mask.ratio"),
    "a key of another section": (
        [PRETRAIN, "--config.model.ratio=0.5"],
        "model.ratio.*did you mean",
    ),
    "a single patch, to be hidden and seen": (
        [PRETRAIN, "--config.data.size=(16,16)"],
        "data.size.*1 patch.*smaller patch",
    ),
    "a broken expression": ([FINETUNE, "--config.trainable=head/("], r"trainable.*head/\(.*expr"),
    "nothing to train": ([FINETUNE, "--config.trainable=haed/.*"], "trainable.*haed.*head"),
    "three mistakes at once": (
        [PRETRAIN, "--config.mask.ratio=2.0", "--config.keep=0", "--config.optimizer.clip=-1.0"],
        "(?=.*mask.ratio = 2.0)(?=.*keep = 0)(?=.*optimizer.clip = -1.0)",
    ),
    "three contradictions at once": (
        [PRETRAIN, "--config.model.heads=5", "--config.accumulation=3", f"--config.{WARM_UP}=3.0"],
        "(?=.*model.heads = 5)(?=.*accumulation = 3)(?=.*warmup_epochs = 3.0)",
    ),
    "a range and a contradiction at once": (
        [PRETRAIN, "--config.keep=0", "--config.model.heads=5"],
        "(?=.*keep = 0)(?=.*model.heads = 5)",
    ),
}


def said(change):
    """A pattern for the value of a change."""
    value = change.split()[0].partition("=")[2]
    return re.escape(value.replace(",", ", ").replace(", )", ",)"))


CASES = COMMANDS | {
    name: (
        [PRETRAIN, *(f"--config.{change}" for change in changes.split())],
        f"(?=.*{said(changes)}).*{pattern}",
    )
    for name, (changes, pattern) in CHANGES.items()
}


@pytest.fixture
def compiled():
    """The names of the functions that are compiled."""
    names = []

    def listen(event, duration_secs, **metadata):
        if event.endswith("backend_compile_duration"):
            names.append(str(metadata.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@runs.cases("arguments, pattern", CASES)
def test_wrong_config(arguments, pattern, workdir, compiled, happened, monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    with pytest.raises(UserError) as raised:
        config, place = command_line.parse([f"--workdir={workdir}", *arguments], rules.RULES)
        train(config, place)
    text = str(raised.value)
    assert "\n" not in text.strip(), f"not one sentence: {text!r}"
    assert re.search(pattern, text), f"does not say {pattern!r}: {text}"
    large = [name for name in compiled if re.search("init_state|on_mesh|step|evaluate", name)]
    assert not large, f"compiled first: {large}; then: {text}"
    assert not (workdir / "config.json").exists()
    happened(text)
