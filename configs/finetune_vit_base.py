"""Fine-tuning of ViT-B/16 on ImageNet-1K: He et al. 2021 (arXiv 2111.06377), table 9.

The learning rate, the layer decay and the drop path are those of FINETUNE.md in the reference
repository (5e-4, .65 and .1); table 9 has 1e-3, .75 and .1.

    python -m mae_jax.train --config=configs/finetune_vit_base.py --workdir=runs/finetuned \\
        --config.init.checkpoint=runs/vit_base

The published ViT-B reaches 83.6 %. The checkpoint may be any that `mae_jax.load` reads: a work
directory, a PyTorch file or a Hugging Face file. `trainable` chooses the parameters of partial
fine-tuning: `'encoder/block_11/.*|norm/.*|head/.*'` trains the last block, and
`'encoder/block_11/mlp/.*|norm/.*|head/.*'` its MLP.
"""

from ml_collections import ConfigDict

from configs import recipe_parts, vit_base


def get_config(arg: str = "") -> ConfigDict:
    return recipe_parts.with_argument(recipe(), arg)


def recipe(
    epochs=100, base_learning_rate=5e-4, layer_decay=0.65, drop_path=0.1, **model
) -> ConfigDict:
    """The recipe. Other sizes of the network change only these arguments."""
    config = vit_base.recipe()
    del config.mask  # nothing is masked
    config.task = "classify"
    config.epochs = epochs
    config.batch_size = 1024
    config.save_every = 1251  # steps: 1 epoch
    config.init = dict(checkpoint="", without="decoder/.*|encoder/norm/.*|norm/.*|head/.*")
    config.loss = "softmax"  # or "binary", where several classes may be true of an example
    # An expression over parameter names; the other parameters are frozen and cost little.
    config.trainable = ".*"
    config.model = {name: config.model[name] for name in ("patch", "width", "depth", "heads")}
    config.model.update(
        pooling="mean",  # over the patch tokens, then a LayerNorm; or "cls"
        batch_norm=False,  # before the head, without parameters: for linear probes
        head_std=2e-5,  # of the initial head
        learned_positions=True,  # start as the fixed ones, or as those of the checkpoint
        dtype="auto",
    )
    config.model.update(model)
    config.regularize = dict(
        drop_path=drop_path,  # of the last block; less in those before
        mixup=0.8,  # the parameter of Beta; 0 = none
        cutmix=1.0,  # as mixup; with both, either one half of the time
        label_smoothing=0.1,
        erase=0.25,  # share of pictures with a box of noise
        randaugment=9.0,  # magnitude of two random operations, spread .5; 0 = none
    )
    config.optimizer = dict(
        name="adamw",  # or "lars"
        base_learning_rate=base_learning_rate,  # times batch_size / 256
        final_learning_rate=1e-6,  # at the end of the cosine
        warmup_epochs=5,
        layer_decay=layer_decay,  # the learning rate falls by this from layer to layer downwards
        b1=0.9,
        b2=0.999,
        weight_decay=0.05,  # on matrices only
    )
    config.data.crop_scale = (0.08, 1.0)
    config.evaluators = evaluators(every=6255, split="validation", examples=50_000, batch_size=1024)
    return config


def evaluators(**options) -> ConfigDict:
    """Accuracy on held-out examples, or mean average precision where the loss is binary."""
    config = recipe_parts.new()
    config.classification = dict(type="classification", source="same", clips=1, crops=1)
    config.classification.update(options)
    return config
