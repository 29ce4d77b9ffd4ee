"""Masks: a strategy scores the patches, one argsort cuts at a static count.

A strategy only says how much it wants to keep each patch. `from_scores` sorts and cuts, so all
strategies have the same shapes and one compiled step serves them all.
"""

# ruff: noqa: F401
from mae_jax.models.masking.mask import Mask, from_scores, masked_map, partial
from mae_jax.models.masking.sampler import NAMES, MaskSampler, keep_count, make_mask_sampler
from mae_jax.models.masking.strategies import (
    block,
    importance,
    joint,
    lattice,
    partition,
    pixels,
    random,
)
