"""A small masked autoencoder on brain scans: crops of 24 x 24 x 24 voxels.

    python -m scripts.experiments.brains --brains=PATH --mni=FILE --workdir=runs/brains

pre-trains on two brains and probes the features. For scans of your own, NIfTI files in PATH/train
and PATH/test:

    python -m mae_jax.train --config=configs/brain_small.py --workdir=runs/scans \\
        --config.data.train.source=nifti:PATH
"""

from ml_collections import ConfigDict

from configs import recipe_parts, volume_small


def get_config(arg: str = "") -> ConfigDict:
    config = volume_small.recipe(patch=(6, 6, 6), width=96, depth=3, heads=4)
    config.update(epochs=250, batch_size=64, log_every=50, save_every=1000)
    config.optimizer.update(base_learning_rate=4e-3, warmup_epochs=15)
    config.model.update(decoder_width=64, decoder_depth=1, decoder_heads=4)
    config.data.update(
        train=dict(source="nifti:brains", split="train"),
        range="data",  # measured over all voxels
        repeats=32,  # crops that a batch has of a scan
        zoom=(1, 1),
        flip=False,  # the last axis is from the feet to the head
    )
    config.evaluators = recipe_parts.evaluators(
        every=0, split="test", examples=100, batch_size=32, pictures=1
    )
    return recipe_parts.with_argument(config, arg)
