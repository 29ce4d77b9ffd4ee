"""What is wrong with the values of a config that are each possible, but not together."""

import math
import re
from collections.abc import Iterator
from typing import Any

from mae_jax.config import schema
from mae_jax.models import mask_sampler, patches

Flat = dict[str, Any]


def of(flat: Flat) -> Iterator[str]:
    """Each with its values and a way out; what needs a field that `flat` lacks is left out."""
    for check in CHECKS:
        try:
            yield from check(flat)
        except KeyError as error:
            if error.args[0] not in schema.ALL:
                raise


def grid_of(flat: Flat) -> tuple[int, ...]:
    """How many patches lie along each axis, () if they do not fit."""
    try:
        return patches.grid_of(flat["data.size"], flat["model.patch"], flat["model.groups"])
    except ValueError:
        return ()


def sizes(flat: Flat) -> Iterator[str]:
    size, patch, modality = flat["data.size"], flat["model.patch"], flat["data.modality"]
    if len(size) != schema.AXES.get(modality, len(size)):
        what = {"video": "(frames, height, width)", "audio": "(frames, mels)", "text": "(bytes,)"}
        yield f"data.size = {size} must be {what.get(modality, '(height, width)')}"
    groups = flat["model.groups"]
    try:
        patches.grid_of(size, patch, groups)
        if flat["task"] == "pretrain":
            names = [name for name in schema.FIELDS["pretrain"] if name.startswith("mask.")]
            section = {name.removeprefix("mask."): flat[name] for name in names}
            mask_sampler.of(section, size, patch, groups)
    except ValueError as error:
        yield f"data.size and model.patch: {error}"


def channels(flat: Flat) -> Iterator[str]:
    groups, patch, modality = flat["model.groups"], flat["model.patch"], flat["data.modality"]
    try:
        patches.weights_of(groups, patch, flat["data.channels"])
    except ValueError as error:
        yield f"model.groups: {error}"
    if modality in ("audio", "text") and flat["data.channels"] != 1:
        yield f"data.channels = {flat['data.channels']}: {modality} has 1"


def categories(flat: Flat) -> Iterator[str]:
    if flat["model.categories"] and flat["model.groups"]:
        yield "model.groups is of pixels: use model.categories=0"
    if flat["model.categories"] != (256 if flat["data.modality"] == "text" else 0):
        yield (
            f"model.categories = {flat['model.categories']}: use 256 for data.modality = 'text', "
            "and 0 for the others"
        )


def positions(flat: Flat) -> Iterator[str]:
    axes = schema.AXES.get(flat["data.modality"], len(flat["data.size"]))
    if flat["model.separable_positions"] and (not flat["model.learned_positions"] or axes < 2):
        yield "model.separable_positions needs learned_positions and two axes or more"


def stack(flat: Flat, part: str = "") -> Iterator[str]:
    """Of the encoder, or of the "decoder_"."""
    width, heads = flat[f"model.{part}width"], flat[f"model.{part}heads"]
    if width % heads:
        yield f"model.{part}heads = {heads} does not divide model.{part}width = {width}"
    if heads % flat["mesh.tensor"]:
        yield f"mesh.tensor = {flat['mesh.tensor']} does not divide model.{part}heads = {heads}"
    if flat["model.attention"] == "cudnn" and width // heads % 8:
        yield f"model.attention = 'cudnn' needs heads of a multiple of 8, not {width // heads}"
    if width < 2 * len(grid_of(flat)):
        yield f"model.{part}width = {width} is too small for positions on each axis"


def decoder(flat: Flat) -> Iterator[str]:
    if flat["task"] == "pretrain":
        yield from stack(flat, "decoder_")


def attention(flat: Flat) -> Iterator[str]:
    if flat["model.attention"] == "cudnn" and flat["model.dtype"] == "float32":
        yield "model.attention = 'cudnn' needs model.dtype = 'bfloat16'"


def targets(flat: Flat) -> Iterator[str]:
    if flat["task"] != "pretrain":
        return
    patch = flat["model.patch"]
    stride = flat["model.target_stride"] or (1,) * len(patch)
    if len(stride) != len(patch) or any(p % s for p, s in zip(patch, stride, strict=True)):
        yield f"model.target_stride = {stride} does not divide model.patch = {patch}"
    least = min(map(len, flat["model.groups"] or [range(flat["data.channels"])]))
    if flat["mask.name"] == "importance" and (
        flat["model.categories"] or math.prod(patch) * least < 2
    ):
        yield "mask.name = 'importance' needs patches of two values of pixels: use 'random'"
    if flat["model.norm_pix"] and math.prod(patch) // math.prod(stride) * least < 2:
        yield "model.norm_pix needs patches of two values: use --noconfig.model.norm_pix"
    if flat["model.norm_pix"] and flat["model.categories"]:
        yield "model.norm_pix is of pixels: use --noconfig.model.norm_pix with categories"


def regularization(flat: Flat) -> Iterator[str]:
    if flat["task"] != "classify":
        return
    modality = flat["data.modality"]
    if flat["regularize.randaugment"] and (
        modality != "image" or flat["data.channels"] not in (1, 3)
    ):
        yield "regularize.randaugment is of pictures with 1 or 3 channels: use 0"
    if flat["loss"] == "binary" and flat["regularize.label_smoothing"]:
        yield "regularize.label_smoothing is of one class for an example: use 0 with binary"
    if flat["model.categories"] or schema.AXES.get(modality, len(flat["data.size"])) < 2:
        for name in ("mixup", "cutmix", "erase"):
            if flat[f"regularize.{name}"]:
                yield f"regularize.{name} needs values on two axes: use 0"


def classification(flat: Flat) -> Iterator[str]:
    if flat["task"] != "classify":
        return
    for name, kinds in (("clips", ("video", "audio")), ("crops", ("video",))):
        if flat[f"evaluate.{name}"] > 1 and flat["data.modality"] not in kinds:
            yield f"evaluate.{name} is of {' and '.join(kinds)}: use 1"
    if flat["optimizer.name"] == "lars":
        for name, neutral in (("clip", 0), ("layer_decay", 1), ("mu_dtype", "float32")):
            if flat[f"optimizer.{name}"] != neutral:
                yield f"optimizer.{name} is of adamw: use {neutral} with lars"
    dropped = re.fullmatch(flat["init.without"], "encoder/norm/scale")
    if flat["init.checkpoint"] and flat["model.pooling"] == "cls" and dropped:
        yield (
            "init.without drops encoder/norm, which model.pooling = 'cls' needs: use "
            "--config.init.without='decoder/.*|head/.*'"
        )
    if flat["model.batch_norm"] and flat["accumulation"] > 1:
        yield "model.batch_norm is of a whole batch: use accumulation=1"


def batches(flat: Flat) -> Iterator[str]:
    for name in ("data.repeats", "accumulation"):
        if flat["batch_size"] % flat[name]:
            yield f"{name} = {flat[name]} does not divide batch_size = {flat['batch_size']}"


def schedule(flat: Flat) -> Iterator[str]:
    warmup, epochs = flat["optimizer.warmup_epochs"], flat["epochs"]
    if warmup >= epochs:
        yield f"optimizer.warmup_epochs = {warmup} is not shorter than epochs = {epochs}"


def statistics(flat: Flat) -> Iterator[str]:
    for name in ("data.mean", "data.std"):
        if flat[name] != "auto" and len(flat[name]) != flat["data.channels"]:
            yield f"{name} = {flat[name]} must have as many values as data.channels"
    if flat["data.std"] != "auto" and min(flat["data.std"]) <= 0:
        yield f"data.std = {flat['data.std']} must be above 0"


CHECKS = (
    sizes,
    channels,
    categories,
    positions,
    stack,
    decoder,
    attention,
    targets,
    regularization,
    classification,
    batches,
    schedule,
    statistics,
)
