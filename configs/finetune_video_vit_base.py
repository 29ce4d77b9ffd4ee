"""Fine-tuning of a video ViT-B to action classes: VideoMAE (arXiv 2203.12602), Kinetics-400.

    python -m mae_jax.train --config=configs/finetune_video_vit_base.py --workdir=runs/actions \\
        --config.data.train.source=video:PATH --config.init.checkpoint=runs/video_vit_base

Evaluations average the predictions for five clips with three crops each.
"""

from ml_collections import ConfigDict

from configs import finetune_vit_base, recipe_parts, video_vit_base


def get_config(arg: str = "") -> ConfigDict:
    return recipe_parts.with_argument(recipe(), arg)


def recipe() -> ConfigDict:
    model = video_vit_base.NETWORK | dict(patch=(2, 16, 16), learned_positions=False)
    config = finetune_vit_base.recipe(epochs=75, layer_decay=0.75, **model)
    config.batch_size = 512
    config.data = video_vit_base.recipe().data
    config.regularize.randaugment = 0.0  # implemented for pictures only
    config.evaluators = finetune_vit_base.evaluators(
        every=6255, split="test", examples=50_000, batch_size=64, clips=5, crops=3
    )
    return config
