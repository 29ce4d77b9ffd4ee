"""A small masked autoencoder on generated sounds: up to three of eight instruments at a time.

    python -m mae_jax.train --config=configs/audio_small.py --workdir=runs/audio_small

Some minutes on two CPU cores, no network. On sounds of your own:
`--config.data.train.source=audio:PATH`.
"""

from configs import audio_vit_base, quickstart, vit_base


def get_config(arg: str = "") -> dict:
    return vit_base.with_argument(recipe(), arg)


def recipe() -> dict:
    small = quickstart.get_config()
    config = audio_vit_base.recipe()
    for name in ("model", "optimizer", "evaluate", "probe"):
        config[name] = small[name]
    config |= dict(epochs=60, batch_size=32, log_every=20, save_every=250)
    config["model"] |= dict(patch=(16, 16))
    config["data"] |= dict(
        train=dict(source="tones", split="train"),
        size=(128, 128),
        mean="auto",
        std="auto",
        threads=2,
    )
    config["evaluate"] |= dict(batch_size=150, examples=150, pictures=4)
    config["probe"] |= dict(examples=600)
    return config
