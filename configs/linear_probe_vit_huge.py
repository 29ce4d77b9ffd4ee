"""Linear probe of ViT-H/14 on ImageNet-1K: the recipe of `linear_probe_vit_base.py`, 50 epochs.

    python -m mae_jax.train --config=configs/linear_probe_vit_huge.py --workdir=runs/probed \\
        --config.init.checkpoint=runs/vit_huge

The published ViT-H reaches 77.2 %.
"""

from ml_collections import ConfigDict

from configs import linear_probe_vit_base, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    config = linear_probe_vit_base.recipe(epochs=50, width=1280, depth=32, heads=16, patch=(14, 14))
    return recipe_parts.with_argument(config, arg)
