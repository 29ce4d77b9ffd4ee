"""Masked autoencoder, ViT-L/16, ImageNet-1K: the recipe of `vit_base.py` with the larger encoder.

    python -m mae_jax.train --config=configs/vit_large.py:1600 --workdir=runs/vit_large

The published ViT-L (1600 epochs) fine-tunes to 85.9 % and linearly probes to 76.0 %; 800 epochs
took 15.4 hours on 128 TPU-v3 cores.
"""

from ml_collections import ConfigDict

from configs import recipe_parts, vit_base


def get_config(arg: str = "") -> ConfigDict:
    return recipe_parts.with_argument(vit_base.recipe(width=1024, depth=24, heads=16), arg)
