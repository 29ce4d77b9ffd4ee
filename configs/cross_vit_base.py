"""CrossMAE, ViT-B/16, ImageNet-1K: Fu et al. 2024 (arXiv 2401.14391).

    python -m mae_jax.train --config=configs/cross_vit_base.py --workdir=runs/cross_vit_base

Mask tokens attend to the visible patches and not to each other, and a third of the masked patches
(49 of 147, a quarter of all) is predicted. Steps are cheaper, and features about as good. The
published model, with all masked patches predicted (`--config.mask.decode=1.0`), fine-tunes to
83.7 %. The learning rate is multiplied by `mask.decode`.
"""

from ml_collections import ConfigDict

from configs import recipe_parts, vit_base


def get_config(arg: str = "") -> ConfigDict:
    config = vit_base.recipe(decoder="cross", final_norm=False, decoder_depth=12)
    config.mask.decode = 1 / 3
    return recipe_parts.with_argument(config, arg)
