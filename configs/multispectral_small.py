"""A small masked autoencoder on pictures with ten bands, whose groups are tokens of their own.

    python -m mae_jax.train --config=configs/multispectral_small.py --workdir=runs/multispectral

The grouping of SatMAE (arXiv 2207.08051); `--config.model.groups='()'` has all bands in one token.
Generated scenes of mixed materials; some minutes on two CPU cores, no network. On pictures of your
own, `.npy` or `.npz` files (h, w, c) of any range: `--config.data.train.source=arrays:PATH`.
"""

from configs import vit_base, volume_small


def get_config(arg: str = "") -> dict:
    config = volume_small.recipe(patch=(8, 8), groups=((0, 1, 2), (3, 4, 5, 6), (7, 8, 9)))
    config["data"] |= dict(
        train=dict(source="spectra", split="train"), size=(48, 48), channels=10, zoom=(0.5, 1.0)
    )
    config |= dict(epochs=40)
    config["evaluate"] |= dict(batch_size=150, examples=150)
    config["probe"] |= dict(examples=600)
    return vit_base.with_argument(config, arg)
