"""A small masked autoencoder on pictures with ten bands, whose groups are tokens of their own.

    python -m mae_jax.train --config=configs/multispectral_small.py --workdir=runs/multispectral

The grouping is that of SatMAE (arXiv 2207.08051). `--config.model.channel_groups='()'` puts all
bands into one token. The data are synthetic scenes of mixed materials. It takes some minutes on two
CPU cores and needs no network. For pictures of your own, `.npy` or `.npz` files (h, w, c) of any
range:
`--config.data.train.source=arrays:PATH`.
"""

from ml_collections import ConfigDict

from configs import recipe_parts, volume_small


def get_config(arg: str = "") -> ConfigDict:
    groups = ((0, 1, 2), (3, 4, 5, 6), (7, 8, 9))
    config = volume_small.recipe(patch=(8, 8), channel_groups=groups)
    config.epochs = 40
    config.data.update(
        train=dict(source="spectra", split="train"), size=(48, 48), channels=10, zoom=(0.5, 1.0)
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
    return recipe_parts.with_argument(config, arg)
