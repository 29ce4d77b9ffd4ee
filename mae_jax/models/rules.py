"""Rules of a network's geometry, which a config must keep: see `mae_jax/config/checks.py`."""

import math
from collections.abc import Iterator

from mae_jax.models import build, channel_groups, masking, patches, positions


def fields(config) -> Iterator[str]:
    for sentence in build.contradictions(config.model):
        yield f"model.{sentence}"


def mask_modality(config) -> Iterator[str]:
    modality = config.data.modality
    for name in _masks(config):
        boxes = masking.BOXES.get(name)
        if boxes and boxes.modality != modality:
            yield (
                f"mask.name = {name!r} is for {boxes.modality}, and data.modality = {modality!r}: "
                "use 'random'"
            )


def _masks(config) -> tuple[str, ...]:
    name = config.get("mask", {}).get("name", ())
    return (name,) if isinstance(name, str) else tuple(name)


def sizes(config) -> Iterator[str]:
    groups, mask = config.model.channel_groups, config.get("mask")
    try:
        grid = patches.grid_of(config.data.size, config.model.patch)
    except ValueError as error:
        yield f"data.size and model.patch: {error}"
        return
    if mask is None or [*mask_modality(config)]:
        return
    grid = (len(groups), *grid) if groups else grid
    options: dict = dict(side=mask.side, decode=mask.decode, group_axis=bool(groups))
    options["contrast"] = lambda inputs, n: inputs
    try:
        masking.make_mask_sampler(mask.name, mask.ratio, grid, **options)
    except ValueError as error:
        yield f"mask: {error}"


def channels(config) -> Iterator[str]:
    model, channels = config.model, config.data.channels
    try:
        if model.channel_groups:
            channel_groups.group_members(model.channel_groups, model.patch, channels)
        if config.task == "pretrain":
            build.target(model).size(channels)
    except ValueError as error:
        yield f"model.{error}"
    smallest = min(map(len, model.channel_groups or [range(channels)]))
    if config.task == "pretrain" and "importance" in _masks(config):
        if model.vocab_size or math.prod(model.patch) * smallest < 2:
            yield "mask.name = 'importance' needs patches of two values of pixels: use 'random'"


def axes(config) -> Iterator[str]:
    model = config.model
    grid = (1,) * (len(config.data.size) + bool(model.channel_groups))
    if model.separable_positions and len(config.data.size) < 2:
        yield "model.separable_positions needs two axes or more: use separable_positions=False"
    for part in _parts(config):
        try:
            positions.sincos(grid, model[f"{part}width"])
        except ValueError as error:
            yield f"model.{part}{error}"


def heads(config) -> Iterator[str]:
    for part in _parts(config):
        width, heads = config.model[f"{part}width"], config.model[f"{part}heads"]
        if heads % config.mesh.tensor:
            yield f"mesh.tensor = {config.mesh.tensor} does not divide model.{part}heads = {heads}"
        if config.model.attention == "cudnn" and width // heads % 8:
            yield f"model.attention = 'cudnn' needs heads of a multiple of 8, not {width // heads}"


def _parts(config) -> tuple[str, ...]:
    return ("", "decoder_") if config.task == "pretrain" else ("",)


def coordinates(config) -> Iterator[str]:
    model = config.model
    if config.data.get("reference_spacing"):
        if model.learned_positions or model.position_formula != "sincos":
            yield (
                "data.reference_spacing needs positions that are sines and cosines of coordinates: "
                "use model.learned_positions=False and model.position_formula='sincos'"
            )


RULES = (fields, mask_modality, sizes, channels, axes, heads, coordinates)
