"""A small masked autoencoder on photographs with noise, for denoising.

    python -m scripts.experiments.photographs --packages=unpacked --to=photographs
    python -m mae_jax.train --config=configs/denoise_photos.py --workdir=runs/denoise_photos \\
        --config.data.train.source=folder:photographs

Its patches are small, since a pixel says most of those beside it, and three of four are visible.
Noise of many strengths is added to the crops, so that the network learns not to copy that of the
visible patches. What it predicts has noise as well, which cannot be predicted.
"""

from ml_collections import ConfigDict

from configs import recipe_parts, vit_base


def get_config(arg: str = "") -> ConfigDict:
    config = vit_base.recipe(patch=(2, 2), width=64, depth=3, heads=4)
    config.update(epochs=40, batch_size=64, log_every=20, save_every=100)
    config.model.update(
        decoder="cross",  # cheaper, and mask tokens have nothing to say each other
        decoder_width=64,
        decoder_depth=2,
        decoder_heads=4,
        norm_pix=False,  # predict plain pixels
    )
    config.mask.update(name="random", ratio=0.25)
    config.optimizer.update(base_learning_rate=1.2e-2, warmup_epochs=3, ema=0.99)
    config.data.update(
        train=dict(source="folder:photographs", split="train"),
        size=(16, 16),
        crop_scale=(0.0015, 0.012),  # sides of 16 to 45 pixels in a photograph of 480x360
        crop_ratio=(0.9, 1.1),
        noise=0.25,  # up to 64 of 255
        repeats=8,  # crops that a batch has of a photograph
        threads=1,
    )
    config.evaluators = recipe_parts.evaluators(
        every=0, split="test", examples=40, batch_size=20, pictures=8
    )
    return recipe_parts.with_argument(config, arg)
