"""A small masked autoencoder on pictures without defects, for a detector of anomalies.

    python -m mae_jax.train --config=configs/anomaly_small.py --workdir=runs/good \\
        --config.data.train.source=folder:PATH
    python -m mae_jax.applications.anomaly fit --checkpoint=runs/good --data=folder:PATH \\
        --to=detector

It sees crops of 32 x 32 pixels at their own resolution, in patches of 4 x 4, so that small defects
have patches of their own; a detector cuts larger pictures into such tiles. `data.crop_scale` is
the share of the area that a crop has: 32 x 32 pixels of 96 x 96 are a ninth.
"""

from ml_collections import ConfigDict

from configs import quickstart, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    config = quickstart.get_config()
    config.update(epochs=34, batch_size=64, log_every=50, save_every=1000)
    config.model.update(patch=(4, 4), width=96, depth=3, heads=4)
    config.model.update(decoder_width=64, decoder_depth=1, decoder_heads=4)
    config.optimizer.update(base_learning_rate=4e-3, warmup_epochs=2)
    config.data.update(
        train=dict(source="folder:.", split="train"),
        size=(32, 32),
        crop_scale=(0.09, 0.14),
        crop_ratio=(0.9, 1.1),
        repeats=4,  # crops that a batch has of a picture
        mean="auto",
        std="auto",
    )
    config.evaluators = recipe_parts.evaluators(every=0, split="test", examples=200, batch_size=200)
    return recipe_parts.with_argument(config, arg)
