"""Fine-tuning to the rhythms of `beats`, from a work directory of signal_small.

    python -m mae_jax.train --config=configs/finetune_signal_small.py --workdir=runs/rhythms \\
        --config.init.checkpoint=runs/signal_small
"""

from ml_collections import ConfigDict

from configs import finetune_fashion_mnist, finetune_vit_base, recipe_parts, signal_small


def get_config(arg: str = "") -> ConfigDict:
    config = finetune_fashion_mnist.small(finetune_vit_base.recipe(), signal_small.recipe())
    config.update(epochs=20, batch_size=32, log_every=20, save_every=250)
    config.optimizer.update(base_learning_rate=4e-3, warmup_epochs=2)
    config.evaluators.classification.update(examples=150, batch_size=50)
    return recipe_parts.with_argument(config, arg)
