"""Masked autoencoder on sounds, ViT-B/16: AudioMAE, Huang et al. 2022 (arXiv 2207.06405).

    python -m mae_jax.train --config=configs/audio_vit_base.py --workdir=runs/audio_vit_base \\
        --config.data.train.source=audio:PATH

PATH holds WAV, FLAC, OGG or MP3 files; their classes are folders or a `labels.csv`. Ten seconds
become log-mel spectrograms of 1024 frames and 128 bands; .8 of 512 patches are hidden. The decoder
attends to all patches: the paper's local windows are half a point of mAP better (47.3 on AudioSet).
Other masks: `--config.mask.name=time`, or frequency.
"""

from configs import vit_base


def get_config(arg: str = "") -> dict:
    return vit_base.with_argument(recipe(), arg)


def recipe(**model) -> dict:
    """The recipe, with some of `model` replaced."""
    config = vit_base.recipe(**dict(decoder_depth=16) | model)
    config |= dict(epochs=32, batch_size=512)
    config["mask"] |= dict(ratio=0.8)
    config["optimizer"] |= dict(base_learning_rate=2e-4, warmup_epochs=3, weight_decay=1e-4)
    sounds = dict(
        train=dict(source="audio:PATH", split="train"),
        test=dict(source="same", split="test"),
        size=(1024, 128),  # frames of 10 ms, mel bands
        channels=1,
        rate=16_000,  # samples per second; other sounds are resampled
        roll=True,  # around in time, by a random amount
        magnitude=False,  # louder or softer, by a random factor
        mean=(-4.2677393,),  # of AudioSet's log-mels; "auto" measures those of your sounds
        std=(2 * 4.5689974,),  # the recipe divides by two standard deviations
    )
    vit_base.with_data(config, "audio", **sounds)
    config["evaluate"] |= dict(every=4000, batch_size=512, examples=4000, pictures=4)
    config["probe"] |= dict(test=dict(source="same", split="test"))
    return config
