"""Configs that cannot run: each is refused in one sentence, before anything is compiled."""

import re

import jax
import pytest
import runs

from mae_jax.config import command_line
from mae_jax.config.errors import UserError
from mae_jax.train import train

pytestmark = [pytest.mark.faults("bad config"), pytest.mark.usefixtures("soon")]
PRETRAIN = "--config=configs/vit_base.py:debug"
FINETUNE = "--config=configs/finetune_vit_base.py:debug"
# changes of a config, and patterns of what must be said of them, keys, values and ways out, with
# ` / ` between them; on four devices, with 16 patches, 64 examples, width 48 and batch 8
CHANGES = {
    "a mask ratio above 1": ("mask.ratio=1.5", "mask.ratio / 1.5 / between 0 and 1"),
    "a mask ratio of zero": ("mask.ratio=0.0", "mask.ratio / 0.0 / between 0 and 1"),
    "a single patch, to be hidden and seen": (
        "data.size=(16,16)",
        "data.size|mask / 1 patch / smaller patch",
    ),
    "a size that patches do not divide": (
        "data.size=(60,64)",
        r"data.size / 60 / \(48, 64\)|\(64, 64\)|48|64",
    ),
    "heads that do not divide the width": ("model.heads=5", "model.heads / 5 / 48"),
    "an empty batch": ("batch_size=0", "batch_size / 0 / at least 1"),
    "a batch that devices cannot share": ("batch_size=6", "batch_size / 6 / 4 or 8"),
    "an accumulation that does not divide": ("accumulation=3", "accumulation / 3 / 8"),
    "a warm-up as long as the run": (
        "optimizer.warmup_epochs=3.0",
        "warmup_epochs / 3 / epochs = 1",
    ),
    "a split that is not there": ("data.train.split=all", "split / all / train"),
    "a folder that is not there": ("data.train.source=folder:/no/such", "/no/such / no folder"),
    "an unknown kind of data": ("data.train.source=foldr:x", "foldr / folder:PATH"),
    "held-out data that are not there": (
        "evaluators.reconstruction.source=folder:/no/such",
        "/no/such / no folder",
    ),
    "a negative learning rate": (
        "optimizer.base_learning_rate=-1",
        "base_learning_rate / -1 / above 0",
    ),
    "a learning rate of NaN": (
        "optimizer.base_learning_rate=nan",
        "base_learning_rate / nan / above 0",
    ),
    "a typo in a key": ("mask.rato=0.5", "mask.rato / mask.ratio"),
    "a key of another section": ("model.ratio=0.5", "model.ratio / did you mean"),
    "no epochs": ("epochs=0", "epochs / 0 / above 0"),
    "epochs in words": ("epochs=many", "epochs / many / number"),
    "a mesh that devices do not fill": ("mesh.data=3", "mesh.data / 3 / 4 device / -1"),
    "heads that tensor does not divide": ("mesh.tensor=2", "mesh.tensor / 2 / 3"),
    "a mean for two channels": ("data.mean=(0.5,0.5)", "data.mean / 0.5 / channels"),
    "a deviation of zero": ("data.std=(0.2,0.0,0.2)", "data.std / 0.0 / above 0"),
    "attention of another machine": (
        "model.attention=cudnn model.dtype=bfloat16 model.width=48",
        "model.attention / cudnn / auto|multiple of 8",
    ),
    "a checkpoint that is not there": ("init.checkpoint=/no/such", "/no/such"),
    "no checkpoints to keep": ("keep=0", "keep / 0 / at least 1"),
    "two channels of pictures": (
        "data.channels=2 data.mean=(0.5,0.5) data.std=(0.2,0.2)",
        "2 / 1, 3 or 4",
    ),
    "a heartbeat of one second": (
        "recovery.heartbeat_timeout=1",
        "recovery.heartbeat_timeout / 1 / at least 5",
    ),
    "a crop scale the wrong way round": (
        "data.crop_scale=(0.9,0.1)",
        "crop_scale / 0.9 / smallest",
    ),
    "more examples than there are": ("data.examples=1000", "data.examples / 1000 / 64"),
    "a negative seed": ("seed=-1", "seed / -1 / from 0"),
    "a patch for one axis": ("model.patch=(16,)", "model.patch / 16 / data.size|axes"),
    "a share of bad files above 1": ("data.max_bad_fraction=2.0", "max_bad_fraction / 2 / 0 to 1"),
    "a loss ratio below 1": (
        "recovery.max_loss_ratio=0.5",
        "recovery.max_loss_ratio / 0.5 / above 1",
    ),
    "no such mask": ("mask.name=rnadom", "mask.name / rnadom / random"),
    "three mistakes at once": (
        "mask.ratio=2.0 keep=0 optimizer.clip=-1.0",
        "mask.ratio / 2.0 / keep / optimizer.clip / -1.0",
    ),
    "three contradictions at once": (
        "model.heads=5 accumulation=3 optimizer.warmup_epochs=3.0",
        "model.heads / accumulation / warmup_epochs",
    ),
    "a range and a contradiction at once": ("keep=0 model.heads=5", "keep / model.heads"),
}
# whole command lines
COMMANDS = {
    "a stray argument": ([PRETRAIN, "mask.ratio=0.5"], "mask.ratio=0.5 / --config.key=value"),
    "an argument without --config": ([PRETRAIN, "--batch_size=16"], "batch_size"),
    "a config that is not there": (["--config=configs/vit_bas.py"], "vit_bas.py / vit_base.py"),
    "an unknown config argument": (["--config=configs/vit_base.py:debgu"], "debgu / debug"),
    "no work directory": ([PRETRAIN, "--workdir="], "--workdir"),
    "a broken expression": ([FINETUNE, "--config.trainable=head/("], r"trainable / head/\( / expr"),
    "nothing to train": ([FINETUNE, "--config.trainable=haed/.*"], "trainable / haed / head"),
}
CASES = COMMANDS | {
    name: ([PRETRAIN, *(f"--config.{change}" for change in changes.split())], says)
    for name, (changes, says) in CHANGES.items()
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


@runs.cases("arguments, says", CASES)
def test_wrong_config(arguments, says, workdir, compiled, happened):
    with pytest.raises(UserError) as raised:
        config, place = command_line.parse([f"--workdir={workdir}", *arguments])
        train(config, place)
    text = str(raised.value)
    assert "\n" not in text.strip(), f"not one sentence: {text!r}"
    for pattern in says.split(" / "):
        assert re.search(pattern, text), f"does not say {pattern!r}: {text}"
    large = [name for name in compiled if re.search("init_state|on_mesh|step|evaluate", name)]
    assert not large, f"compiled first: {large}; then: {text}"
    assert not (workdir / "config.json").exists()
    happened(text)
