"""A small masked autoencoder on photographs that come with scikit-image and scikit-learn.

    python -m mae_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

It takes about two minutes on two CPU cores and needs no network. The label of an example says which
photograph it is from.
"""

from ml_collections import ConfigDict

from configs import recipe_parts, vit_base


def get_config(arg: str = "") -> ConfigDict:
    config = vit_base.recipe(patch=(8, 8), width=128, depth=4, heads=4)
    config.update(epochs=11, batch_size=64, log_every=20, save_every=100)
    config.model.update(
        decoder_width=96,
        decoder_depth=2,
        decoder_heads=3,
        norm_pix=False,  # predict plain pixels, which can be shown as they are
    )
    config.optimizer.update(base_learning_rate=4e-3, warmup_epochs=1)
    config.data.update(train=dict(source="photos", split="train"), size=(64, 64), threads=2)
    config.evaluators = recipe_parts.evaluators(
        every=0, split="test", examples=400, features=2000, batch_size=200, linear=True
    )
    return recipe_parts.with_argument(config, arg)
