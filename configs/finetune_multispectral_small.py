"""Fine-tuning to the shares of the materials in pictures of ten bands, from multispectral_small.

    python -m mae_jax.train --config=configs/finetune_multispectral_small.py \\
        --workdir=runs/mixtures --config.init.checkpoint=runs/multispectral

A regression to four numbers for each picture. For numbers of your own: a table with a column
`target`, or with several columns `target:NAME`, see docs/data.md:
`--config.data.train.source=csv:FILE`.
"""

from ml_collections import ConfigDict

from configs import finetune_vit_base, multispectral_small, recipe_parts


def get_config(arg: str = "") -> ConfigDict:
    config, small = finetune_vit_base.recipe(), multispectral_small.get_config()
    config.update(task="regress", epochs=20, batch_size=32, log_every=20, save_every=250)
    config.loss = "l2"  # of standardised targets; or "l1", or "huber" with huber_delta
    names = ("patch", "width", "depth", "heads", "channel_groups")
    config.model.update({name: small.model[name] for name in names})
    config.data = small.data
    config.data.train.source = "mixtures"
    config.data.zoom = (1.0, 1.0)  # the shares are those of the whole picture
    config.optimizer.update(base_learning_rate=4e-3, warmup_epochs=2)
    config.regularize = dict(drop_path=0.0, mixup=0.0, erase=0.0, randaugment=0.0)
    config.evaluators = dict(
        regression=dict(
            type="regression",
            every=0,
            source="same",
            split="test",
            examples=150,
            batch_size=150,
        )
    )
    return recipe_parts.with_argument(config, arg)
