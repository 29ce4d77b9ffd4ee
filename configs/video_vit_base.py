"""Masked autoencoder on video, ViT-B: VideoMAE, Tong et al. 2022 (arXiv 2203.12602).

    python -m mae_jax.train --config=configs/video_vit_base.py --workdir=runs/video_vit_base \\
        --config.data.train.source=video:PATH

PATH holds video files, in a folder for each class if they have any; `frames:PATH` are folders of
frames. Tubes of .9 of the places are hidden: 160 of 1568 tubelets stay. The published ViT-B (1600
epochs on Kinetics-400) fine-tunes to 81.5 %.
"""

from configs import vit_base


def get_config(arg: str = "") -> dict:
    return vit_base.with_argument(recipe(), arg)


def recipe(**model) -> dict:
    """The recipe, with some of `model` replaced."""
    config = vit_base.recipe(
        **dict(patch=(2, 16, 16), decoder_width=384, decoder_depth=4, decoder_heads=6) | model
    )
    config |= dict(epochs=800, batch_size=1024)
    config["mask"] |= dict(ratio=0.9, name="tube")
    clips = dict(
        train=dict(source="video:PATH", split="train"),
        test=dict(source="same", split="test"),
        size=(16, 224, 224),  # frames, height, width
        stride=4,  # frames from one frame of a clip to the next; fewer frames repeat the last
        crop_scale=(0.5, 1.0),  # one crop and one flip for all frames
        crop_ratio=(3 / 4, 4 / 3),
        flip=True,
        center_crop=0.875,
    )
    vit_base.with_data(config, "video", **clips)
    config["evaluate"] |= dict(every=4680, batch_size=128, examples=2000, pictures=4)
    config["probe"] |= dict(test=dict(source="same", split="test"), examples=4000)
    return config
