"""A small masked autoencoder on volumes: synthetic phantoms of 24 x 24 x 24 voxels.

    python -m mae_jax.train --config=configs/volume_small.py --workdir=runs/volume_small

It takes some minutes on two CPU cores and needs no network. For volumes of your own, `.npy` or
`.npz` files (d, h, w) or (d, h, w, c) of any range: `--config.data.train.source=arrays:PATH`. Crops
have the size `data.size`. Smaller volumes are padded with the values at their edges.
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
    config.model.update(**dict(patch=(6, 6, 6)) | model)
    config.data = dict(
        modality="volume",
        train=dict(source="phantoms", split="train"),
        size=(24, 24, 24),  # depth, height, width
        channels=1,
        zoom=(0.75, 1.0),  # a crop takes `size` times this factor; above 1 it shows more
        flip=True,  # along the last axis
        mean="auto",
        std="auto",
        threads=2,
    )
    config.evaluators = recipe_parts.evaluators(
        every=0,
        split="test",
        examples=100,
        features=400,
        batch_size=100,
        pictures=4,
        linear=True,
    )
    return config
