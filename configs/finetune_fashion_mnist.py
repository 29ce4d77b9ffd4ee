"""Fine-tuning on Fashion-MNIST, from a run of `fashion_mnist.py`.

    python -m mae_jax.train --config=configs/finetune_fashion_mnist.py --workdir=runs/finetuned \\
        --config.init.checkpoint=runs/fashion_mnist

`--config.data.examples=600` uses few labels. Without `init.checkpoint` the network is trained from
scratch. `--config.trainable='encoder/block_5/.*|norm/.*|head/.*'` trains only the last block.
"""

from ml_collections import ConfigDict

from configs import fashion_mnist, finetune_vit_base, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    config = small(finetune_vit_base.recipe(), fashion_mnist.get_config())
    return recipe_parts.with_argument(config, arg)


def small(config: ConfigDict, pretraining: ConfigDict) -> ConfigDict:
    """A recipe of fine-tuning or probing, for the network and the data of a small pre-training."""
    names = ("patch", "width", "depth", "heads", "dtype")
    config.update(epochs=10, batch_size=128, log_every=50, save_every=1000)
    config.model.update({name: pretraining.model[name] for name in names})
    config.data = pretraining.data
    config.optimizer.update(base_learning_rate=8e-3, layer_decay=0.75, warmup_epochs=1)
    config.regularize.update(drop_path=0.0, mixup=0.0, cutmix=0.0, erase=0.0, randaugment=0.0)
    config.evaluators = finetune_vit_base.evaluators(
        every=0, split="test", examples=10_000, batch_size=500
    )
    return config
