"""A small masked autoencoder on clips: a camera that moves over the photographs of `photos`.

    python -m mae_jax.train --config=configs/video_small.py --workdir=runs/video_small

It takes some minutes on two CPU cores and needs no network. The label of a clip is the motion of
the camera.
"""

from ml_collections import ConfigDict

from configs import quickstart, recipe_parts, video_vit_base


def get_config(arg: str = "") -> ConfigDict:
    return recipe_parts.with_argument(recipe(), arg)


def recipe() -> ConfigDict:
    config = quickstart.get_config()
    config.update(epochs=40, batch_size=32, log_every=20, save_every=250)
    config.optimizer.update(base_learning_rate=2e-3, warmup_epochs=2)
    config.model.patch = (2, 8, 8)
    config.data = video_vit_base.recipe().data
    config.data.update(
        train=dict(source="pans", split="train"),
        size=(8, 48, 48),
        stride=2,
        flip=False,  # it would turn left into right
        center_crop=1.0,
        threads=2,
    )
    config.evaluators = recipe_parts.evaluators(
        every=0,
        split="test",
        examples=160,
        features=800,
        batch_size=80,
        pictures=4,
        linear=True,
    )
    return config
