"""Linear probe of ViT-L/16 on ImageNet-1K: the recipe of `linear_probe_vit_base.py`, 50 epochs.

    python -m mae_jax.train --config=configs/linear_probe_vit_large.py --workdir=runs/probed \\
        --config.init.checkpoint=runs/vit_large

The published ViT-L reaches 76.0 %.
"""

from ml_collections import ConfigDict

from configs import linear_probe_vit_base, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    config = linear_probe_vit_base.recipe(epochs=50, width=1024, depth=24, heads=16)
    return recipe_parts.with_argument(config, arg)
