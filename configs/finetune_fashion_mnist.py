"""Fine-tuning on Fashion-MNIST, from a run of `fashion_mnist.py`.

    python -m mae_jax.train --config=configs/finetune_fashion_mnist.py --workdir=runs/finetuned \\
        --config.init.checkpoint=runs/fashion_mnist

With few labels: `--config.data.examples=600`. From scratch: without `init.checkpoint`. One block
alone: `--config.trainable='encoder/block_5/.*|norm/.*|head/.*'`.
"""

from configs import fashion_mnist, finetune_vit_base, vit_base


def get_config(arg: str = "") -> dict:
    return vit_base.with_argument(
        small(finetune_vit_base.recipe(), fashion_mnist.get_config()), arg
    )


def small(config: dict, pretraining: dict) -> dict:
    """A recipe of fine-tuning or probing, for the network and the data of a small pre-training."""
    names = ("patch", "width", "depth", "heads", "dtype")
    config["model"] |= {name: pretraining["model"][name] for name in names}
    config["data"] = pretraining["data"]
    config |= dict(epochs=10, batch_size=128, log_every=50, save_every=1000)
    config["optimizer"] |= dict(base_learning_rate=8e-3, layer_decay=0.75, warmup_epochs=1)
    config["regularize"] |= dict(drop_path=0.0, mixup=0.0, cutmix=0.0, erase=0.0, randaugment=0.0)
    config["evaluate"] |= dict(every=0, batch_size=500, examples=10_000)
    return config
