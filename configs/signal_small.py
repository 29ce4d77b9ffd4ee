"""A small masked autoencoder on signals: synthetic heart beats in two leads, 4 s at 128 Hz.

    python -m mae_jax.train --config=configs/signal_small.py --workdir=runs/signal_small

A patch is 16 steps of both leads; `--config.model.channel_groups='((0,),(1,))'` makes a token of
each lead. It takes some minutes on two CPU cores and needs no network. For signals of your own,
arrays (time,) or (time, channels) of any length: `--config.data.train.source=arrays:PATH`. Windows
have the length `data.size`. Shorter signals are padded with the values at their ends.
"""

from ml_collections import ConfigDict

from configs import quickstart, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    return recipe_parts.with_argument(recipe(), arg)


def recipe(**model) -> ConfigDict:
    """The recipe, with some of `model` replaced."""
    config = quickstart.get_config()
    config.update(epochs=60, batch_size=32, log_every=20, save_every=250)
    config.optimizer.update(base_learning_rate=2e-3, warmup_epochs=2)
    config.model.update(**dict(patch=(16,)) | model)
    config.data = dict(
        modality="signal",
        train=dict(source="beats", split="train"),
        size=(512,),  # steps of time
        channels=2,
        zoom=(0.8, 1.25),  # a window takes `size` times this factor: a slower or faster heart
        mean="auto",
        std="auto",
        threads=2,
    )
    config.evaluators = recipe_parts.evaluators(
        every=0, split="test", examples=150, features=600, batch_size=150, pictures=4, linear=True
    )
    return config
