"""Rules of a network's geometry, which a config must keep: see `mae_jax/config/checks.py`."""

import math
from collections.abc import Iterator

from mae_jax.models import channel_groups, masking, patches


def sizes(config) -> Iterator[str]:
    groups, mask = config.model.channel_groups, config.get("mask")
    try:
        grid = patches.grid_of(config.data.size, config.model.patch)
        if mask is not None:
            options: dict = dict(side=mask.side, decode=mask.decode, group_axis=bool(groups))
            grid = (len(groups), *grid) if groups else grid
            masking.make_mask_sampler(
                mask.name, mask.ratio, grid, contrast=lambda inputs, n: inputs, **options
            )
    except ValueError as error:
        yield f"data.size and model.patch: {error}"


def channels(config) -> Iterator[str]:
    groups = config.model.channel_groups
    try:
        if groups:
            channel_groups.group_members(groups, config.model.patch, config.data.channels)
    except ValueError as error:
        yield f"model.channel_groups: {error}"


def positions(config) -> Iterator[str]:
    model = config.model
    if model.separable_positions and (not model.learned_positions or len(config.data.size) < 2):
        yield "model.separable_positions needs learned_positions and two axes or more"


def encoder(config) -> Iterator[str]:
    yield from _stack(config, "")


def decoder(config) -> Iterator[str]:
    if config.task == "pretrain":
        yield from _stack(config, "decoder_")


def _stack(config, part: str) -> Iterator[str]:
    width, heads = config.model[f"{part}width"], config.model[f"{part}heads"]
    if width % heads:
        yield f"model.{part}heads = {heads} does not divide model.{part}width = {width}"
    if heads % config.mesh.tensor:
        yield f"mesh.tensor = {config.mesh.tensor} does not divide model.{part}heads = {heads}"
    if config.model.attention == "cudnn" and width // heads % 8:
        yield f"model.attention = 'cudnn' needs heads of a multiple of 8, not {width // heads}"
    axes = len(config.data.size) + bool(config.model.channel_groups)
    if width < 2 * axes:
        yield f"model.{part}width = {width} is too small for positions on each axis"


def target(config) -> Iterator[str]:
    if config.task != "pretrain":
        return
    model, patch = config.model, config.model.patch
    stride = model.target_stride or (1,) * len(patch)
    if len(stride) != len(patch) or any(p % s for p, s in zip(patch, stride, strict=True)):
        yield f"model.target_stride = {stride} does not divide model.patch = {patch}"
    least = min(map(len, model.channel_groups or [range(config.data.channels)]))
    if config.mask.name == "importance" and (model.vocab_size or math.prod(patch) * least < 2):
        yield "mask.name = 'importance' needs patches of two values of pixels: use 'random'"
    if model.norm_pix and math.prod(patch) // math.prod(stride) * least < 2:
        yield "model.norm_pix needs patches of two values: use --noconfig.model.norm_pix"
    if model.norm_pix and model.vocab_size:
        yield "model.norm_pix needs pixels: use --noconfig.model.norm_pix with vocab_size"
    if model.target_stride and model.vocab_size:
        yield "model.target_stride needs pixels: use () with vocab_size"


RULES = (sizes, channels, positions, encoder, decoder, target)
