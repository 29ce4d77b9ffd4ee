"""Linear probe of ViT-B/16 on ImageNet-1K: He et al. 2021 (arXiv 2111.06377), table 10.

    python -m mae_jax.train --config=configs/linear_probe_vit_base.py --workdir=runs/probed \\
        --config.init.checkpoint=runs/vit_base

The published ViT-B reaches 67.8 %. Only the head is trained, behind a BatchNorm without parameters.
"""

from configs import finetune_vit_base, vit_base


def get_config(arg: str = "") -> dict:
    return vit_base.with_argument(recipe(), arg)


def recipe(epochs=90, **model) -> dict:
    """The recipe; sizes differ in these numbers, and in `model`, alone."""
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
    config |= dict(batch_size=16_384, trainable="head/.*")
    config["init"] |= dict(without="decoder/.*|head/.*")
    config["optimizer"] |= dict(
        name="lars", final_learning_rate=0.0, warmup_epochs=10, weight_decay=0.0
    )
    config["regularize"] |= dict(mixup=0.0, cutmix=0.0, label_smoothing=0.0, erase=0.0)
    config["regularize"] |= dict(randaugment=0.0)
    config["evaluate"] |= dict(every=780)  # steps: 10 epochs
    config |= dict(save_every=390)
    return config
