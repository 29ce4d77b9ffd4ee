"""A small masked autoencoder on bytes: the source of Python's own standard library.

    python -m mae_jax.train --config=configs/text_small.py --workdir=runs/text_small

A sequence is a grid of one axis and a byte a patch; the decoder predicts 256 logits for each hidden
one. Some minutes on two CPU cores, no network. On texts of your own:
`--config.data.train.source=text:PATH`.
"""

from configs import quickstart, vit_base


def get_config(arg: str = "") -> dict:
    config = quickstart.get_config()
    config |= dict(epochs=25, batch_size=64, log_every=50, save_every=500)
    config["model"] |= dict(patch=(1,), categories=256, norm_pix=False)
    config["optimizer"] |= dict(base_learning_rate=4e-3)
    config["mask"] |= dict(ratio=0.2)  # text says more with a token than a picture with a patch
    config["data"] |= dict(repeats=4)  # windows of each piece of a file
    texts = dict(
        train=dict(source="stdlib", split="train"),
        size=(64,),
        channels=1,
        mean=(0.0,),  # bytes are categories: these two are not used
        std=(1.0,),
    )
    vit_base.with_data(config, "text", **texts)
    config["evaluate"] |= dict(batch_size=200, examples=1000, pictures=4)
    config["probe"] |= dict(
        train=dict(source="", split="train"), test=dict(source="", split="test")
    )
    return vit_base.with_argument(config, arg)
