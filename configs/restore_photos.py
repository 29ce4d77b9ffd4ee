"""A small masked autoencoder on photographs, for inpainting and denoising.

    python -m scripts.experiments.photographs --packages=unpacked --to=photographs
    python -m mae_jax.train --config=configs/restore_photos.py --workdir=runs/restore_photos \\
        --config.data.train.source=folder:photographs

It takes 34 minutes on one CPU core. Holes of 4x4 pixels at .75 in held-out photographs are filled
with a PSNR of 20.3 dB, and the center half of 64x64 pixels with 20.3 dB; the biharmonic equation
has 19.9 dB in both (docs/restore.md).
"""

from ml_collections import ConfigDict

from configs import recipe_parts, vit_base


def get_config(arg: str = "") -> ConfigDict:
    config = vit_base.recipe(patch=(4, 4), width=96, depth=4, heads=3)
    config.update(epochs=800, batch_size=32, log_every=20, save_every=100)
    config.model.update(
        decoder="cross",  # whose mask tokens do not see each other: few of them may be decoded
        decoder_width=96,
        decoder_depth=2,
        decoder_heads=3,
        norm_pix=False,  # predict plain pixels, which fill holes as they are
    )
    # A user's mask may have any form: the samples of a batch take turns in these.
    config.mask.update(name=("random", "block", "grid", "stroke"), ratio=0.6)
    config.mask.decode = 0.3  # of the masked patches: half of the time of a step
    config.optimizer.update(base_learning_rate=5e-2, warmup_epochs=40, ema=0.99)
    config.data.update(
        train=dict(source="folder:photographs", split="train"),
        size=(64, 64),
        crop_scale=(0.03, 0.25),  # sides of 70 to 200 pixels in a photograph of 480x360
        crop_ratio=(0.9, 1.1),
        repeats=2,  # crops that a batch has of a photograph
        threads=1,
    )
    config.evaluators = recipe_parts.evaluators(
        every=0, split="test", examples=21, batch_size=21, pictures=8
    )
    return recipe_parts.with_argument(config, arg)
