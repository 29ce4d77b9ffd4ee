"""A small masked autoencoder on bytes: the source of Python's own standard library.

    python -m mae_jax.train --config=configs/text_small.py --workdir=runs/text_small

A sequence is a grid with one axis, and a patch is a byte. The decoder predicts 256 logits for each
masked byte. It takes some minutes on two CPU cores and needs no network. For texts of your own:
`--config.data.train.source=text:PATH`.
"""

from ml_collections import ConfigDict

from configs import quickstart, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    config = quickstart.get_config()
    config.update(epochs=25, batch_size=64, log_every=50, save_every=500)
    config.model.update(patch=(1,), vocab_size=256, norm_pix=False)
    config.optimizer.update(base_learning_rate=4e-3, warmup_epochs=2)
    config.mask.ratio = 0.2  # a byte is harder to guess from the others than a patch
    config.data = dict(
        modality="text",
        train=dict(source="stdlib", split="train"),
        size=(64,),
        channels=1,
        repeats=4,  # windows of each piece of a file
        mean=(0.0,),  # bytes are categories: these two are not used
        std=(1.0,),
        threads=2,
    )
    config.evaluators = recipe_parts.evaluators(
        every=0, split="test", examples=1000, batch_size=200, pictures=4
    )
    return recipe_parts.with_argument(config, arg)
