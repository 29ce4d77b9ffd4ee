"""Masked autoencoder on sounds, ViT-B/16: AudioMAE, Huang et al. 2022 (arXiv 2207.06405).

    python -m mae_jax.train --config=configs/audio_vit_base.py --workdir=runs/audio_vit_base \\
        --config.data.train.source=audio:PATH

PATH holds WAV, FLAC, OGG or MP3 files, with classes from subfolders or a `labels.csv`. Ten seconds
become log-mel spectrograms of 1024 frames and 128 bands. .8 of the 512 patches are masked. The
decoder attends to all patches. The paper's local windows are half a point of mAP better (47.3 on
AudioSet).
Other masks: `--config.mask.name=time`, or frequency.
"""

from ml_collections import ConfigDict

from configs import recipe_parts, vit_base


def get_config(arg: str = "") -> ConfigDict:
    return recipe_parts.with_argument(recipe(), arg)


def recipe(**model) -> ConfigDict:
    """The recipe, with some of `model` replaced."""
    config = vit_base.recipe(**dict(decoder_depth=16) | model)
    config.update(epochs=32, batch_size=512)
    config.mask.ratio = 0.8
    config.optimizer.update(base_learning_rate=2e-4, warmup_epochs=3, weight_decay=1e-4)
    config.data = dict(
        modality="audio",
        train=dict(source="audio:PATH", split="train"),
        size=(1024, 128),  # frames of 10 ms, mel bands
        channels=1,
        rate=16_000,  # samples a second; other sounds are resampled
        roll=True,  # rotate in time by a random amount
        magnitude=False,  # louder or softer by a random factor
        mean=(-4.2677393,),  # of AudioSet's log-mels; "auto" measures those of your sounds
        std=(2 * 4.5689974,),  # the recipe divides by two standard deviations
        threads=16,
    )
    config.evaluators = recipe_parts.evaluators(
        every=4000, split="test", examples=4000, features=20_000, batch_size=512, pictures=4
    )
    return config
