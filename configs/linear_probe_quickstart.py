"""Linear probe that tells the photographs of the quick start apart, of a run of `quickstart.py`.

    python -m mae_jax.train --config=configs/linear_probe_quickstart.py --workdir=runs/probed \\
        --config.init.checkpoint=runs/quickstart
"""

from ml_collections import ConfigDict

from configs import finetune_fashion_mnist, linear_probe_vit_base, quickstart, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    config = finetune_fashion_mnist.small(linear_probe_vit_base.recipe(), quickstart.get_config())
    config.update(epochs=20, batch_size=256, log_every=10, save_every=100)
    # The peak is the recipe's 6.4, which is .1 * 16,384 / 256, whatever the batch.
    config.optimizer.update(base_learning_rate=6.4, layer_decay=1.0)
    return recipe_parts.with_argument(config, arg)
