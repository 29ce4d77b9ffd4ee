"""Configs that cannot run; for chaos_inputs.py."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from chaos_reading import Case, Failed, check

DEBUG = "--config=configs/vit_base.py:debug"
TUNE = "--config=configs/finetune_vit_base.py:debug"


class Wrong(NamedTuple):
    """Arguments, and what must be said of them: keys, values and ways out."""

    arguments: tuple[str, ...]
    says: tuple[str, ...]


def wrong(*arguments: str, says: tuple[str, ...], config: str = DEBUG) -> Wrong:
    return Wrong((config, "--workdir={place}/run", *arguments), says)


def configurations() -> dict[str, Wrong]:
    """On four devices; the debug config has 16 patches, 64 examples, width 48 and batch 8."""
    key = "--config."
    return {
        "a mask ratio above 1": wrong(
            key + "mask.ratio=1.5", says=("mask.ratio", "1.5", "between 0 and 1")
        ),
        "a mask ratio of zero": wrong(
            key + "mask.ratio=0.0", says=("mask.ratio", "0.0", "between 0 and 1")
        ),
        "a single patch, to be hidden and seen": wrong(
            key + "data.size=(16,16)", says=("data.size|mask", "1 patch", "smaller patch")
        ),
        "a size that patches do not divide": wrong(
            key + "data.size=(60,64)", says=("data.size", r"60", r"\(48, 64\)|\(64, 64\)|48|64")
        ),
        "heads that do not divide the width": wrong(
            key + "model.heads=5", says=("model.heads", "5", "48")
        ),
        "an empty batch": wrong(key + "batch_size=0", says=("batch_size", "0", "at least 1")),
        "a batch that devices cannot share": wrong(
            key + "batch_size=6", says=("batch_size", "6", "4 or 8")
        ),
        "an accumulation that does not divide": wrong(
            key + "accumulation=3", says=("accumulation", "3", "8")
        ),
        "a warm-up as long as the run": wrong(
            key + "optimizer.warmup_epochs=3.0", says=("warmup_epochs", "3", "epochs = 1")
        ),
        "a split that is not there": wrong(
            key + "data.train.split=all", says=("split", "all", "train")
        ),
        "a folder that is not there": wrong(
            key + "data.train.source=folder:/no/such", says=("/no/such", "no folder")
        ),
        "an unknown kind of data": wrong(
            key + "data.train.source=foldr:x", says=("foldr", "folder:PATH")
        ),
        "held-out data that are not there": wrong(
            key + "data.test.source=folder:/no/such", says=("/no/such", "no folder")
        ),
        "a negative learning rate": wrong(
            key + "optimizer.base_learning_rate=-1", says=("base_learning_rate", "-1", "above 0")
        ),
        "a learning rate of NaN": wrong(
            key + "optimizer.base_learning_rate=nan", says=("base_learning_rate", "nan", "above 0")
        ),
        "a typo in a key": wrong(key + "mask.rato=0.5", says=("mask.rato", "mask.ratio")),
        "a key of another section": wrong(
            key + "model.ratio=0.5", says=("model.ratio", "did you mean")
        ),
        "a stray argument": wrong("mask.ratio=0.5", says=("mask.ratio=0.5", "--config.key=value")),
        "an argument without --config": wrong("--batch_size=16", says=("batch_size",)),
        "a config that is not there": wrong(
            config="--config=configs/vit_bas.py", says=("vit_bas.py", "vit_base.py")
        ),
        "an unknown config argument": wrong(
            config="--config=configs/vit_base.py:debgu", says=("debgu", "debug")
        ),
        "no work directory": Wrong((DEBUG,), ("--workdir",)),
        "no epochs": wrong(key + "epochs=0", says=("epochs", "0", "above 0")),
        "epochs in words": wrong(key + "epochs=many", says=("epochs", "many", "number")),
        "a mesh that devices do not fill": wrong(
            key + "mesh.data=3", says=("mesh.data", "3", "4 device", "-1")
        ),
        "heads that tensor does not divide": wrong(
            key + "mesh.tensor=2", says=("mesh.tensor", "2", "3")
        ),
        "a mean for two channels": wrong(
            key + "data.mean=(0.5,0.5)", says=("data.mean", r"0.5", "channels")
        ),
        "a deviation of zero": wrong(
            key + "data.std=(0.2,0.0,0.2)", says=("data.std", r"0.0", "above 0")
        ),
        "attention of another machine": wrong(
            key + "model.attention=cudnn",
            key + "model.dtype=bfloat16",
            key + "model.width=48",
            says=("model.attention", "cudnn", "auto|multiple of 8"),
        ),
        "a checkpoint that is not there": wrong(
            key + "init.checkpoint=/no/such", says=("/no/such",)
        ),
        "no checkpoints to keep": wrong(key + "keep=0", says=("keep", "0", "at least 1")),
        "two channels of pictures": wrong(
            key + "data.channels=2",
            key + "data.mean=(0.5,0.5)",
            key + "data.std=(0.2,0.2)",
            says=("2", "1, 3 or 4"),
        ),
        "a heartbeat of one second": wrong(
            key + "recovery.heartbeat=1", says=("recovery.heartbeat", "1", "at least 5")
        ),
        "a crop scale the wrong way round": wrong(
            key + "data.crop_scale=(0.9,0.1)", says=("crop_scale", "0.9", "smallest")
        ),
        "more examples than there are": wrong(
            key + "data.examples=1000", says=("data.examples", "1000", "64")
        ),
        "a negative seed": wrong(key + "seed=-1", says=("seed", "-1", "from 0")),
        "a patch for one axis": wrong(
            key + "model.patch=(16,)", says=("model.patch", r"16", "data.size|axes")
        ),
        "a share of bad files above 1": wrong(
            key + "data.max_bad_fraction=2.0", says=("max_bad_fraction", "2", "0 to 1")
        ),
        "a spike factor below 1": wrong(
            key + "recovery.spike=0.5", says=("recovery.spike", "0.5", "above 1")
        ),
        "no such mask": wrong(key + "mask.name=rnadom", says=("mask.name", "rnadom", "random")),
        "a broken expression": wrong(
            key + "trainable=head/(", config=TUNE, says=("trainable", r"head/\(", "expression")
        ),
        "nothing to train": wrong(
            key + "trainable=haed/.*", config=TUNE, says=("trainable", "haed", "head")
        ),
        "three mistakes at once": wrong(
            key + "mask.ratio=2.0",
            key + "keep=0",
            key + "optimizer.clip=-1.0",
            says=("mask.ratio", "2.0", "keep", "optimizer.clip", "-1.0"),
        ),
        "three contradictions at once": wrong(
            key + "model.heads=5",
            key + "accumulation=3",
            key + "optimizer.warmup_epochs=3.0",
            says=("model.heads", "accumulation", "warmup_epochs"),
        ),
        "a range and a contradiction at once": wrong(
            key + "keep=0", key + "model.heads=5", says=("keep", "model.heads")
        ),
    }


COMPILED: list[str] = []  # names of the functions that were


def refused(case: Wrong):
    def act(place: Path) -> str:
        from mae_jax.config import command_line
        from mae_jax.config.errors import UserError
        from mae_jax.train import train

        place.mkdir(parents=True)
        COMPILED.clear()
        try:
            arguments = [argument.format(place=place) for argument in case.arguments]
            config, workdir = command_line.parse(arguments)
            train(config, workdir)
        except UserError as mistake:
            text = str(mistake)
            check("\n" not in text.strip(), f"not one sentence: {text!r}")
            for pattern in case.says:
                check(re.search(pattern, text), f"does not say {pattern!r}: {text}")
            big = [name for name in COMPILED if re.search("init_state|on_mesh|step|evaluate", name)]
            check(not big, f"compiled first: {big}; then: {text}")
            left = place / "run" / "config.json"
            check(not left.exists(), "the work directory now belongs to this config")
            return text
        raise Failed("accepted")

    return act


def wrong_configs() -> list[Case]:
    return [Case(name, refused(case)) for name, case in configurations().items()]


def watch_compilations() -> None:
    import jax

    def listen(event: str, duration_secs: float, **facts: Any) -> None:
        if event.endswith("backend_compile_duration"):
            COMPILED.append(str(facts.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(listen)
