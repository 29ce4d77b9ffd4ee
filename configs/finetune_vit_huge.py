"""Fine-tuning of ViT-H/14 on ImageNet-1K: the recipe of `finetune_vit_base.py` in this size.

    python -m mae_jax.train --config=configs/finetune_vit_huge.py --workdir=runs/finetuned \\
        --config.init.checkpoint=runs/vit_huge

The published ViT-H reaches 86.9 %. The learning rate, the layer decay and the drop path are those
of FINETUNE.md in the reference repository; table 9 of the paper has a drop path of .2.
"""

from ml_collections import ConfigDict

from configs import finetune_vit_base, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    config = finetune_vit_base.recipe(
        epochs=50,
        base_learning_rate=1e-3,
        layer_decay=0.75,
        drop_path=0.3,
        width=1280,
        depth=32,
        heads=16,
        patch=(14, 14),
    )
    return recipe_parts.with_argument(config, arg)
