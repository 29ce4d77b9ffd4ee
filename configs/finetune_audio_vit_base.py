"""Fine-tuning of an audio ViT-B to AudioSet's classes: AudioMAE (arXiv 2207.06405).

    python -m mae_jax.train --config=configs/finetune_audio_vit_base.py --workdir=runs/tags \\
        --config.data.train.source=audio:PATH --config.init.checkpoint=runs/audio_vit_base

Several classes may be true of a sound (`labels.csv` with the header `file,labels`): binary
cross-entropy, and the mean average precision over the classes. Unlike in the paper, mixup mixes
spectrograms and not waves, and no times or bands are masked.
"""

from ml_collections import ConfigDict

from configs import audio_vit_base, finetune_vit_base, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    return recipe_parts.with_argument(recipe(), arg)


def recipe() -> ConfigDict:
    config = finetune_vit_base.recipe(epochs=60, base_learning_rate=1e-3, layer_decay=0.75)
    config.update(loss="binary", batch_size=32)
    config.data = audio_vit_base.recipe().data
    config.data.magnitude = True
    config.optimizer.update(warmup_epochs=4, weight_decay=1e-4)
    config.regularize.update(
        mixup=10.0, cutmix=0.0, label_smoothing=0.0, erase=0.0, randaugment=0.0
    )
    config.evaluators = finetune_vit_base.evaluators(
        every=6255, split="test", examples=50_000, batch_size=256
    )
    return config
