"""A small masked autoencoder on synthetic sounds: up to three of eight instruments at a time.

    python -m mae_jax.train --config=configs/audio_small.py --workdir=runs/audio_small

It takes some minutes on two CPU cores and needs no network. For sounds of your own:
`--config.data.train.source=audio:PATH`.
"""

from ml_collections import ConfigDict

from configs import audio_vit_base, quickstart, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    return recipe_parts.with_argument(recipe(), arg)


def recipe() -> ConfigDict:
    config = quickstart.get_config()
    config.update(epochs=60, batch_size=32, log_every=20, save_every=250)
    config.optimizer.update(base_learning_rate=2e-3, warmup_epochs=2)
    config.model.patch = (16, 16)
    config.mask.ratio = 0.8
    config.data = audio_vit_base.recipe().data
    config.data.update(
        train=dict(source="tones", split="train"),
        size=(128, 128),
        mean="auto",
        std="auto",
        threads=2,
    )
    config.evaluators = recipe_parts.evaluators(
        every=0,
        split="test",
        examples=150,
        features=600,
        batch_size=150,
        pictures=4,
        linear=True,
    )
    return config
