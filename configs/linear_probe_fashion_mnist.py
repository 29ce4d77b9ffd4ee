"""Linear probe on Fashion-MNIST, of a run of `fashion_mnist.py`.

    python -m mae_jax.train --config=configs/linear_probe_fashion_mnist.py --workdir=runs/probed \\
        --config.init.checkpoint=runs/fashion_mnist
"""

from configs import fashion_mnist, finetune_fashion_mnist, linear_probe_vit_base, vit_base


def get_config(arg: str = "") -> dict:
    config = finetune_fashion_mnist.small(
        linear_probe_vit_base.recipe(), fashion_mnist.get_config()
    )
    config |= dict(epochs=10, batch_size=512)
    config["optimizer"] |= dict(base_learning_rate=3.2, layer_decay=1.0)  # the recipe's 6.4
    return vit_base.with_argument(config, arg)
