"""Fine-tuning to the eight motions of `pans`, from a work directory of video_small.

    python -m mae_jax.train --config=configs/finetune_video_small.py --workdir=runs/motions \\
        --config.init.checkpoint=runs/video_small
"""

from ml_collections import ConfigDict

from configs import finetune_video_vit_base, finetune_vit_base, recipe_parts, video_small


def get_config(arg: str = "") -> ConfigDict:
    config, small = finetune_video_vit_base.recipe(), video_small.recipe()
    config.update(epochs=20, batch_size=32, log_every=20, save_every=250)
    config.model = finetune_vit_base.recipe().model
    config.model.update({name: small.model[name] for name in ("patch", "width", "depth", "heads")})
    config.data = small.data
    config.optimizer.update(base_learning_rate=4e-3, warmup_epochs=2)
    config.regularize.update(drop_path=0.0, mixup=0.0, cutmix=0.0, erase=0.0)
    config.evaluators = finetune_vit_base.evaluators(
        every=0, split="test", examples=160, batch_size=40, clips=2, crops=3
    )
    return recipe_parts.with_argument(config, arg)
