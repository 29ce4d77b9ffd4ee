"""A small masked autoencoder on clips: a camera that moves over the photographs of `photos`.

    python -m mae_jax.train --config=configs/video_small.py --workdir=runs/video_small

Some minutes on two CPU cores, no network. The label of a clip is the motion of the camera.
"""

from configs import quickstart, video_vit_base, vit_base


def get_config(arg: str = "") -> dict:
    return vit_base.with_argument(recipe(), arg)


def recipe() -> dict:
    small = quickstart.get_config()
    config = video_vit_base.recipe()
    for name in ("model", "optimizer", "evaluate", "probe"):
        config[name] = small[name]
    config |= dict(epochs=40, batch_size=32, log_every=20, save_every=250)
    config["model"] |= dict(patch=(2, 8, 8), decoder_width=96, decoder_depth=2, decoder_heads=3)
    config["mask"] |= dict(ratio=0.75, name="random")  # or tube, which is much harder here
    config["data"] |= dict(
        train=dict(source="pans", split="train"),
        size=(8, 48, 48),
        stride=2,
        flip=False,  # it would turn left into right
        center_crop=1.0,
        threads=2,
    )
    config["evaluate"] |= dict(batch_size=80, examples=160, pictures=4)
    config["probe"] |= dict(examples=800)
    return config
