"""Fine-tuning of a video ViT-B to action classes: VideoMAE (arXiv 2203.12602), Kinetics-400.

    python -m mae_jax.train --config=configs/finetune_video_vit_base.py --workdir=runs/actions \\
        --config.data.train.source=video:PATH --config.init.checkpoint=runs/video_vit_base

Evaluations average the predictions for five clips with three crops each.
"""

from configs import finetune_vit_base, video_vit_base, vit_base


def get_config(arg: str = "") -> dict:
    return vit_base.with_argument(recipe(), arg)


def recipe() -> dict:
    config = finetune_vit_base.recipe(epochs=75, layer_decay=0.75, patch=(2, 16, 16))
    config |= dict(data=video_vit_base.recipe()["data"], batch_size=512)
    config["regularize"] |= dict(randaugment=0.0)  # RandAugment is for pictures here
    config["evaluate"] |= dict(batch_size=64, clips=5, crops=3)
    return config
