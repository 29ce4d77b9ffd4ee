"""A masked autoencoder on Fashion-MNIST: 28x28, one channel, on a CPU in less than an hour.

    python -m mae_jax.train --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

The four files come from the package `dataset-fashion-mnist` of Debian and Ubuntu. On other systems
use `--config.data.train.source=idx:FOLDER`, or `tfds:fashion_mnist` after preparing it.
"""

from ml_collections import ConfigDict

from configs import quickstart, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    config = quickstart.get_config()
    config.update(epochs=15, batch_size=256, log_every=50, save_every=1000)
    config.model.update(patch=(4, 4), width=128, depth=6, heads=4)
    config.optimizer.update(base_learning_rate=1e-3, warmup_epochs=1)
    config.data.update(
        train=dict(source="idx:/usr/share/datasets/fashion-mnist", split="train"),
        size=(28, 28),
        channels=1,
        crop_scale=(0.6, 1.0),
        center_crop=1.0,  # the whole picture
        mean=(0.286,),
        std=(0.353,),
    )
    config.evaluators = recipe_parts.evaluators(
        every=1000, split="test", examples=10_000, features=10_000, batch_size=1000, linear=True
    )
    return recipe_parts.with_argument(config, arg)
