"""CrossMAE, ViT-B/16, ImageNet-1K: Fu et al. 2024 (arXiv 2401.14391).

    python -m mae_jax.train --config=configs/cross_vit_base.py --workdir=runs/cross_vit_base

Mask tokens look at the visible patches and not at each other, and a third of the hidden patches (49
of 147, a quarter of all) is predicted: cheaper steps for about the same features. Published after
fine-tuning: 83.7 % with all of them predicted (`--config.mask.decode=1.0`). The learning rate is
scaled by `mask.decode` too.
"""

from configs import vit_base


def get_config(arg: str = "") -> dict:
    config = vit_base.recipe(decoder_cross=True, decoder_depth=12)
    config["mask"] |= dict(decode=1 / 3)
    return vit_base.with_argument(config, arg)
