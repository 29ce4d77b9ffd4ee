"""Masked autoencoder on video, ViT-L: MAE-ST, Feichtenhofer et al. 2022 (arXiv 2205.09113).

    python -m mae_jax.train --config=configs/video_vit_large.py --workdir=runs/video_vit_large \\
        --config.data.train.source=video:PATH

Masks are agnostic: .9 of all patches in space and time. A batch has four clips of each decoded
file, so that 100 epochs show each video 400 times. Half of the frames are predicted, and learned
positions of time and space are added. The published ViT-L, which saw each video 1600 times
(`:400`), fine-tunes to 84.8 % on Kinetics-400.
"""

from ml_collections import ConfigDict

from configs import recipe_parts, video_vit_base


def get_config(arg: str = "") -> ConfigDict:
    config = video_vit_base.recipe(
        width=1024,
        depth=24,
        heads=16,
        decoder_width=512,
        decoder_depth=4,
        decoder_heads=16,
        decoder="own_cls",
        cls_tokens=1,
        learned_positions=True,
        separable_positions=True,
        position_formula="sincos",  # the start; the paper starts from small random numbers
        norm_pix=True,
        target_stride=(2, 1, 1),  # half of the frames
        target_spread=True,  # 0, 2, ..., 12, 15
    )
    config.update(epochs=100, batch_size=2048)  # clips, of 512 files
    config.mask.name = "random"
    config.data.repeats = 4
    config.optimizer.update(
        base_learning_rate=4e-4,  # for a clip; the paper's 1.6e-3 is for a file of four clips
        warmup_epochs=5,
        clip=0.02,
    )
    return recipe_parts.with_argument(config, arg)
