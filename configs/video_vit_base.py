"""Masked autoencoder on video, ViT-B: VideoMAE, Tong et al. 2022 (arXiv 2203.12602).

    python -m mae_jax.train --config=configs/video_vit_base.py --workdir=runs/video_vit_base \\
        --config.data.train.source=video:PATH

PATH holds video files, in a folder for each class if they have classes. `frames:PATH` reads folders
of frames. The masks are tubes of .9 of the patches of a frame: 160 of 1568 tubelets stay visible.
The published ViT-B (1600 epochs on Kinetics-400) fine-tunes to 81.5 %.
"""

from ml_collections import ConfigDict

from configs import recipe_parts, vit_base

NETWORK = dict(cls_tokens=0, position_formula="interleaved")


def get_config(arg: str = "") -> ConfigDict:
    return recipe_parts.with_argument(recipe(), arg)


def recipe(**model) -> ConfigDict:
    """The recipe, with some of `model` replaced."""
    clips = dict(patch=(2, 16, 16), decoder_width=384, decoder_depth=4, decoder_heads=6)
    config = vit_base.recipe(**clips | NETWORK | dict(norm_pix="channel") | model)
    config.update(epochs=800, batch_size=1024)
    config.mask.update(ratio=0.9, name="tube")
    config.data.update(
        modality="video",
        train=dict(source="video:PATH", split="train"),
        size=(16, 224, 224),  # frames, height, width
        stride=4,  # frames from one frame of a clip to the next; short files repeat the last one
        crop_scale=(0.5, 1.0),  # one crop and one flip for all frames
    )
    config.evaluators = recipe_parts.evaluators(
        every=4680, split="test", examples=2000, features=4000, batch_size=128, pictures=4
    )
    return config
