"""A small masked autoencoder on one Landsat scene of six bands, whose infrared ones are a group.

    python -m scripts.experiments.landsat --data=L7_ETMs.tif --workdir=runs/landsat

cuts the scene into halves, trains on one of them, and predicts the infrared bands of the other from
the visible ones. For scenes of your own, GeoTIFF files in PATH/train and PATH/test:

    python -m mae_jax.train --config=configs/landsat.py --workdir=runs/scenes \\
        --config.data.train.source=geotiff:PATH
"""

from ml_collections import ConfigDict

from configs import recipe_parts, volume_small


def get_config(arg: str = "") -> ConfigDict:
    config = volume_small.recipe(patch=(2, 2), channel_groups=((0, 1, 2), (3, 4, 5)))
    config.update(epochs=600, batch_size=128, log_every=50, save_every=1000)
    config.optimizer.update(base_learning_rate=6e-3, warmup_epochs=30)
    config.model.update(width=64, depth=3, heads=4, decoder_width=48, decoder_depth=1)
    config.model.decoder_heads = 4
    # The box of a mask is as large as the grid, so that one of the two groups is masked whole.
    config.mask.update(name="joint", side=4, ratio=0.5)
    config.data.update(
        train=dict(source="geotiff:landsat", split="train"),
        size=(8, 8),
        bands=(0, 1, 2, 3, 4, 5),  # blue, green, red, and three of the infrared
        channels=6,
        channel_axis="last",
        range="data",  # measured over the whole scene
        repeats=128,  # crops that a batch has of a scene
        zoom=(1, 1),
    )
    config.evaluators = recipe_parts.evaluators(
        every=0, split="test", examples=100, batch_size=32, pictures=1
    )
    return recipe_parts.with_argument(config, arg)
