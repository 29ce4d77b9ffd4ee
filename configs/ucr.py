"""A small masked autoencoder on a data set of the UCR or UEA archive, such as GunPoint.

    python -m mae_jax.train --config=configs/ucr.py --workdir=runs/gunpoint \\
        --config.data.train.source=ts:PATH/GunPoint

PATH/GunPoint has the files GunPoint_TRAIN.ts and GunPoint_TEST.ts, as aeon and
timeseriesclassification.com give them. The defaults are those of GunPoint: other sets need
`data.size` (the length of a series, or the multiple of the patch below or above it: series are then
cut or padded), `model.patch` and `data.channels`. docs/signals.md lists them and the results.
"""

from ml_collections import ConfigDict

from configs import recipe_parts, signal_small


def get_config(arg: str = "") -> ConfigDict:
    return recipe_parts.with_argument(recipe(), arg)


def recipe() -> ConfigDict:
    config = signal_small.recipe(
        patch=(10,), width=64, depth=3, heads=4, decoder_width=48, decoder_depth=1, decoder_heads=3
    )
    config.update(epochs=400, batch_size=32, log_every=50, save_every=1000)
    config.optimizer.update(base_learning_rate=8e-3, warmup_epochs=20)
    config.data.update(
        train=dict(source="ts:GunPoint", split="train"),
        size=(150,),
        channels=1,
        zoom=(0.9, 1.1),
        repeats=4,  # windows of a series in a batch
    )
    config.evaluators = recipe_parts.evaluators(
        every=0, split="test", examples=2000, features=2000, batch_size=256, pictures=4, linear=True
    )
    config.evaluators.knn.k = 1
    return config
