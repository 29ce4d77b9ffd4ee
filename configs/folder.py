"""A masked autoencoder on your own pictures.

    python -m mae_jax.train --config=configs/folder.py --workdir=runs/mine \\
        --config.data.train.source=folder:PATH

Subfolders are classes. If there are any, kNN and linear accuracy are reported too. A tenth of the
pictures is held out, unless PATH has folders `train` and `test` (or `val`). The recipe is the
paper's, with a ViT-S and a batch that fits on one GPU. On a CPU make it smaller:
`--config.data.size='(64,64)' --config.model.patch='(8,8)' --config.batch_size=64`.
"""

from ml_collections import ConfigDict

from configs import recipe_parts, vit_base


def get_config(arg: str = "") -> ConfigDict:
    config = vit_base.recipe(width=384, depth=12, heads=6)
    config.update(epochs=200, batch_size=256, log_every=20, save_every=500)
    config.optimizer.warmup_epochs = 10
    config.data.update(
        train=dict(source="folder:.", split="train"),
        mean="auto",  # measured on the pictures once
        std="auto",
    )
    config.evaluators = recipe_parts.evaluators(
        every=1000, split="test", examples=2000, features=5000, batch_size=256, linear=True
    )
    return recipe_parts.with_argument(config, arg)
