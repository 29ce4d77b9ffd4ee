"""Masked autoencoder, ViT-S/16: the recipe of `vit_base.py` with the smaller encoder.

    python -m mae_jax.train --config=configs/vit_small.py --workdir=runs/vit_small

The paper has no ViT-S; the decoder (512 wide, 8 blocks) is the paper's for every encoder.
"""

from ml_collections import ConfigDict

from configs import recipe_parts, vit_base


def get_config(arg: str = "") -> ConfigDict:
    return recipe_parts.with_argument(vit_base.recipe(width=384, depth=12, heads=6), arg)
