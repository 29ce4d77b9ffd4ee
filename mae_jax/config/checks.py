"""Rules across the keys of a config, for values that are each possible alone.

A rule is a function of a config that yields a sentence for each contradiction, with the values and
a way out. Rules do not judge values that are wrong by themselves. The rules of the network's
geometry are in `mae_jax/models/rules.py`.
"""

import re
from collections.abc import Iterator

AXES = {  # number and meaning of the axes of `data.size`; a volume may have any number
    "image": (2, "(height, width)"),
    "video": (3, "(frames, height, width)"),
    "audio": (2, "(frames, mels)"),
    "signal": (1, "(length,)"),
    "text": (1, "(bytes,)"),
}
TIMED = ("video", "audio", "signal")  # examples have views along time


def size(config) -> Iterator[str]:
    size = config.data.size
    number, axes = AXES.get(config.data.modality, (len(size), ""))
    if len(size) != number:
        yield f"data.size = {size} must be {axes}"


def vocabulary(config) -> Iterator[str]:
    vocab_size, text = config.model.vocab_size, config.data.modality == "text"
    if vocab_size != (256 if text else 0):
        yield (
            f"model.vocab_size = {vocab_size}: use 256 for data.modality = 'text', "
            "and 0 for the others"
        )


def attention(config) -> Iterator[str]:
    if config.model.attention == "cudnn" and config.model.dtype == "float32":
        yield "model.attention = 'cudnn' needs model.dtype = 'bfloat16'"


def foreground(config) -> Iterator[str]:
    if config.data.get("foreground"):
        yield "data.foreground is a weight in the loss of task 'pretrain': use None"


def noise(config) -> Iterator[str]:
    if config.data.get("noise"):
        yield "data.noise is added in task 'pretrain' alone: use 0"


def clean_targets(config) -> Iterator[str]:
    if config.data.get("noise") and config.model.norm_pix:
        yield "data.noise needs model.norm_pix = False, as norms of noisy patches hold their noise"
    if config.data.get("noise") and config.data.get("foreground"):
        yield "data.noise has no data.foreground, whose threshold would see the noise: use None"


def regularization(config) -> Iterator[str]:
    regularize, modality = config.regularize, config.data.modality
    if regularize.randaugment and (modality != "image" or config.data.channels not in (1, 3)):
        yield "regularize.randaugment needs pictures with 1 or 3 channels: use 0"
    if regularize.randaugment and config.data.get("nodata") is not None:
        yield "regularize.randaugment needs pictures without missing values: use 0 with data.nodata"
    if modality == "text" or len(config.data.size) < 2:
        for name in ("mixup", "cutmix", "erase"):
            if regularize.get(name):
                yield f"regularize.{name} needs values on two axes: use 0"


def smoothing(config) -> Iterator[str]:
    if config.loss == "binary" and config.regularize.label_smoothing:
        yield "regularize.label_smoothing needs one class for each example: use 0 with binary"


def evaluators(config) -> Iterator[str]:
    for name, entry in config.evaluators.items():
        if entry.type == "custom":  # a custom evaluator defines its own options
            continue
        for key, kinds in (("clips", TIMED), ("crops", ("video",))):
            if entry.get(key, 1) > 1 and config.data.modality not in kinds:
                yield f"evaluators.{name}.{key} needs {' or '.join(kinds)}: use 1"


def optimizer(config) -> Iterator[str]:
    for name, neutral in (("clip", 0), ("layer_decay", 1), ("mu_dtype", "float32")):
        if config.optimizer.name == "lars" and config.optimizer[name] != neutral:
            yield f"optimizer.{name} is an option of adamw: use {neutral} with lars"


def head(config) -> Iterator[str]:
    drops_norm = re.fullmatch(config.init.without, "encoder/norm/scale")
    if config.init.checkpoint and config.model.pooling == "cls" and drops_norm:
        yield (
            "init.without drops encoder/norm, which model.pooling = 'cls' needs: use "
            "--config.init.without='decoder/.*|head/.*'"
        )
    if config.model.batch_norm and config.accumulation > 1:
        yield "model.batch_norm needs the whole batch at once: use accumulation=1"


def new_head(config) -> Iterator[str]:
    """A head of another run predicts in the units of its own targets, or classes."""
    if config.init.checkpoint and not re.fullmatch(config.init.without, "head/kernel"):
        yield (
            f"init.without = {config.init.without!r} keeps the head of init.checkpoint, and task "
            "'regress' needs a new one for its targets: use "
            "--config.init.without='decoder/.*|encoder/norm/.*|norm/.*|head/.*'"
        )


def batches(config) -> Iterator[str]:
    divisors = {"data.repeats": config.data.repeats, "accumulation": config.accumulation}
    for name, divisor in divisors.items():
        if config.batch_size % divisor:
            below = config.batch_size // divisor * divisor
            sizes = f"{below} or {below + divisor}" if below else f"{divisor}"
            yield (
                f"{name} = {divisor} does not divide batch_size = {config.batch_size}: use "
                f"batch_size={sizes}"
            )


def schedule(config) -> Iterator[str]:
    warmup, epochs = config.optimizer.warmup_epochs, config.epochs
    if warmup >= epochs:
        yield f"optimizer.warmup_epochs = {warmup} is not shorter than epochs = {epochs}: use fewer"


def statistics(config) -> Iterator[str]:
    data = config.data
    for name in ("mean", "std"):
        if data[name] != "auto" and len(data[name]) != data.channels:
            yield (
                f"data.{name} = {data[name]} must have as many values as data.channels = "
                f'{data.channels}, or be "auto"'
            )
    if data.std != "auto" and min(data.std) <= 0:
        yield f"data.std = {data.std} must be above 0"


def values(config) -> Iterator[str]:
    data = config.data
    bands, channels = data.get("bands", ()), data.channels
    if bands and len(bands) != channels:
        yield f"data.channels = {channels} must be the number of data.bands = {bands}: {len(bands)}"
    if data.get("clip") and isinstance(data.range, str):
        yield f"data.clip needs numbers, not data.range = {data.range!r}: use (low, high)"
    if data.get("time_band") is not None and not data.reference_spacing:
        yield "data.time_band needs data.reference_spacing, the time from one position to the next"
    for name in ("reference_spacing", "spacing"):
        if data.get(name) and len(data[name]) != len(data.size):
            yield f"data.{name} = {data[name]} must have a number for each axis of {data.size}"


RULES = (size, vocabulary, values, attention, evaluators, batches, schedule, statistics)
FINE_TUNING = (foreground, noise, regularization, optimizer, head)
TASK_RULES = dict(
    pretrain=(clean_targets,), classify=(*FINE_TUNING, smoothing), regress=(*FINE_TUNING, new_head)
)
