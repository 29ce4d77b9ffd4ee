"""Masks: a strategy scores the patches, and one argsort selects a fixed number of them.

A strategy only returns scores, and `from_scores` sorts them, so that all strategies have the same
shapes and share one compiled step.
"""

# ruff: noqa: F401
from mae_jax.models.masking.mask import (
    Mask,
    from_map,
    from_scores,
    keys,
    masked_map,
    partial,
    whole,
)
from mae_jax.models.masking.sampler import BOXES, NAMES, MaskSampler, keep_count, make_mask_sampler
from mae_jax.models.masking.strategies import (
    block,
    importance,
    joint,
    lattice,
    partition,
    pixels,
    random,
    stroke,
)
