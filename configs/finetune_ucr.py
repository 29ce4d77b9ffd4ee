"""Fine-tuning on a data set of the UCR or UEA archive, from a work directory of ucr.

    python -m mae_jax.train --config=configs/finetune_ucr.py --workdir=runs/gunpoint_finetuned \\
        --config.init.checkpoint=runs/gunpoint --config.data.train.source=ts:PATH/GunPoint

Other sets need the `data.size`, `model.patch` and `data.channels` of the run of ucr.
"""

from ml_collections import ConfigDict

from configs import finetune_fashion_mnist, finetune_vit_base, recipe_parts, ucr


def get_config(arg: str = "") -> ConfigDict:
    config = finetune_fashion_mnist.small(finetune_vit_base.recipe(), ucr.recipe())
    config.update(epochs=100, batch_size=16, log_every=50, save_every=1000)
    config.optimizer.update(base_learning_rate=4e-3, warmup_epochs=10)
    config.evaluators.classification.update(examples=2000, batch_size=256)
    return recipe_parts.with_argument(config, arg)
