"""Masked autoencoder, ViT-H/14, ImageNet-1K: the recipe of `vit_base.py` with the huge encoder.

    python -m mae_jax.train --config=configs/vit_huge.py:1600 --workdir=runs/vit_huge

The published ViT-H (1600 epochs) fine-tunes to 86.9 % and linearly probes to 77.2 %; 800 epochs
took 34.5 hours on 128 TPU-v3 cores.
"""

from ml_collections import ConfigDict

from configs import recipe_parts, vit_base


def get_config(arg: str = "") -> ConfigDict:
    config = vit_base.recipe(width=1280, depth=32, heads=16, patch=(14, 14))
    return recipe_parts.with_argument(config, arg)
