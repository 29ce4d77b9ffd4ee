"""Linear probe of ViT-B/16 on ImageNet-1K: He et al. 2021 (arXiv 2111.06377), table 10.

    python -m mae_jax.train --config=configs/linear_probe_vit_base.py --workdir=runs/probed \\
        --config.init.checkpoint=runs/vit_base

The published ViT-B reaches 67.8 %. Only the head is trained, behind a BatchNorm without parameters.
"""

from ml_collections import ConfigDict

from configs import finetune_vit_base, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    return recipe_parts.with_argument(recipe(), arg)


def recipe(epochs=90, **model) -> ConfigDict:
    """The recipe. Other sizes of the network change only these arguments."""
    config = finetune_vit_base.recipe(
        epochs=epochs,
        base_learning_rate=0.1,
        layer_decay=1.0,
        drop_path=0.0,
        pooling="cls",
        batch_norm=True,
        head_std=0.01,
        learned_positions=False,
        **model,
    )
    config.update(batch_size=16_384, trainable="head/.*", save_every=390)
    config.init.without = "decoder/.*|head/.*"
    config.optimizer.update(
        name="lars", momentum=0.9, final_learning_rate=0.0, warmup_epochs=10, weight_decay=0.0
    )
    config.regularize.update(mixup=0.0, cutmix=0.0, label_smoothing=0.0, erase=0.0)
    config.regularize.randaugment = 0.0
    config.evaluators.classification.every = 780  # steps: 10 epochs
    return config
