"""Fine-tuning to the instruments of `tones`, from a work directory of audio_small.

    python -m mae_jax.train --config=configs/finetune_audio_small.py --workdir=runs/instruments \\
        --config.init.checkpoint=runs/audio_small
"""

from ml_collections import ConfigDict

from configs import audio_small, finetune_audio_vit_base, finetune_vit_base, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    config, small = finetune_audio_vit_base.recipe(), audio_small.recipe()
    config.update(epochs=20, batch_size=32, log_every=20, save_every=250)
    config.model.update({name: small.model[name] for name in ("patch", "width", "depth", "heads")})
    config.data = small.data
    config.data.magnitude = True
    config.optimizer.update(base_learning_rate=4e-3, warmup_epochs=2)
    config.regularize.update(drop_path=0.0, mixup=0.0)
    config.evaluators = finetune_vit_base.evaluators(
        every=0, split="test", examples=150, batch_size=50
    )
    return recipe_parts.with_argument(config, arg)
