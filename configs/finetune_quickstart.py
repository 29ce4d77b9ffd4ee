"""Fine-tuning to tell the photographs of the quick start apart, from a run of `quickstart.py`.

    python -m mae_jax.train --config=configs/finetune_quickstart.py --workdir=runs/finetuned \\
        --config.init.checkpoint=runs/quickstart
"""

from ml_collections import ConfigDict

from configs import finetune_fashion_mnist, finetune_vit_base, quickstart, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    config = finetune_fashion_mnist.small(finetune_vit_base.recipe(), quickstart.get_config())
    config.update(epochs=5, log_every=10, save_every=100)
    return recipe_parts.with_argument(config, arg)
