"""Linear probe on Fashion-MNIST, of a run of `fashion_mnist.py`.

    python -m mae_jax.train --config=configs/linear_probe_fashion_mnist.py --workdir=runs/probed \\
        --config.init.checkpoint=runs/fashion_mnist
"""

from ml_collections import ConfigDict

from configs import fashion_mnist, finetune_fashion_mnist, linear_probe_vit_base, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    config = finetune_fashion_mnist.small(
        linear_probe_vit_base.recipe(), fashion_mnist.get_config()
    )
    config.update(epochs=10, batch_size=512)
    # The peak is the recipe's 6.4, which is .1 * 16,384 / 256, whatever the batch.
    config.optimizer.update(base_learning_rate=3.2, layer_decay=1.0)
    return recipe_parts.with_argument(config, arg)
