"""Masked autoencoder, ViT-B/16, ImageNet-1K: He et al. 2021 (arXiv 2111.06377), table 8.

    python -m mae_jax.train --config=configs/vit_base.py --workdir=runs/vit_base
    python -m mae_jax.train --config=configs/vit_base.py:1600 ...     # the long schedule
    python -m mae_jax.train --config=configs/vit_base.py:20 ...       # a short one, 1 to warm up
    python -m mae_jax.train --config=configs/vit_base.py:debug ...    # seconds, synthetic pictures

The published ViT-B (1600 epochs) fine-tunes to 83.6 % and linearly probes to 67.8 %.
The data set is read without TensorFlow; prepare it once with
`tfds build imagenet2012 --file_format=array_record` (TFDS_DATA_DIR says where it lies).

All keys, with their defaults and consequences, are listed in docs/config.md. A key that is not here
has its default.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    return with_argument(recipe(), arg)


def recipe(**model) -> ConfigDict:
    """The recipe, with some of `model` replaced: the other sizes are this and nothing else."""
    config = new()
    config.task = "pretrain"
    config.seed = 0
    config.epochs = 800
    config.batch_size = 4096  # over all devices; the learning rate scales with it
    config.model = dict(
        patch=(16, 16),
        width=768,
        depth=12,
        heads=12,
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
        norm_pix=True,  # predict normalised patches: better features, less pretty pictures
        dtype="auto",  # bfloat16 on accelerators, float32 on CPUs
    )
    config.model.update(model)
    config.mask = dict(ratio=0.75, name="random")
    config.optimizer = dict(
        base_learning_rate=1.5e-4,  # times batch_size / 256
        warmup_epochs=40,
        b1=0.9,
        b2=0.95,
        weight_decay=0.05,  # on matrices and tokens, not on norms and biases
    )
    config.data = dict(
        train=dict(source="tfds:imagenet2012", split="train"),
        size=(224, 224),  # height, width; each a multiple of the patch
        channels=3,
        crop_scale=(0.2, 1.0),  # share of a picture's area that a training crop takes
        crop_ratio=(3 / 4, 4 / 3),
        flip=True,
        center_crop=0.875,  # share of the shorter side that is evaluated: 224 of 256
        mean=(0.485, 0.456, 0.406),  # per channel, of pixels in [0, 1]; or "auto"
        std=(0.229, 0.224, 0.225),
        threads=16,  # of each host, which decode and crop
    )
    config.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1 = all devices that the others leave
    config.evaluators = evaluators(
        every=6240,  # steps: 20 epochs
        split="validation",
        examples=10_000,  # for the held-out loss
        features=20_000,  # for kNN; a linear probe of 1,000 classes takes minutes each time
        batch_size=1024,
    )
    config.log_every = 50  # steps
    config.save_every = 1560  # steps: 5 epochs
    config.keep = 3  # checkpoints
    return config


def evaluators(
    *,
    every: int,
    split: str,
    examples: int,
    features: int = 0,
    batch_size: int,
    pictures: int = 8,
    linear: bool = False,
) -> ConfigDict:
    """Reconstruction of held-out examples, and kNN and linear accuracy of frozen features.

    Args:
      every: steps from one evaluation to the next; 0 = at the end only.
      split: the held-out part of the training source.
      examples: number of examples for the loss on masked patches.
      features: number of examples of each split for the accuracies; 0 = no accuracies.
      linear: also train a linear classifier on the features.
    """
    shared = dict(every=every, batch_size=batch_size)
    config = new()
    config.reconstruction = dict(
        type="reconstruction",
        source="same",  # as data.train
        split=split,
        examples=examples,
        pictures=pictures,
        **shared,
    )
    probe = dict(
        train=dict(source="same", split="train"),
        test=dict(source="same", split=split),
        examples=features,
        **shared,
    )
    if features:
        config.knn = dict(type="knn", k=20, **probe)
    if features and linear:
        config.linear = dict(type="linear_probe", **probe)
    return config


def new() -> ConfigDict:
    """An empty config, whose values may be replaced by those of other types (mean="auto")."""
    return ConfigDict(type_safe=False, sort_keys=False)  # evaluations run and report in this order


def with_argument(config: ConfigDict, arg: str) -> ConfigDict:
    """The config for what stands behind the colon of `--config=FILE:ARG`.

    That is "debug", or a number of epochs, of which the warm-up keeps its share but takes no more
    epochs than in the recipe.
    """
    if arg == "debug":
        return debug(config)
    if not arg:
        return config
    if not arg.isdigit():
        raise ValueError(f"config argument {arg!r} is unknown: use a number of epochs, or debug")
    epochs = int(arg)
    # A longer schedule warms up as the recipe does: table 8 has 40 epochs for 800 and for 1600. A
    # shorter one warms up for the same share of its epochs, so that 20 epochs have 1.
    shorter = min(1, epochs / config.epochs)
    config.optimizer.warmup_epochs = config.optimizer.warmup_epochs * shorter
    config.epochs = epochs
    return config


SYNTHETIC = dict(image="synthetic", video="pans", audio="tones", volume="phantoms", text="stdlib")


def debug(config: ConfigDict) -> ConfigDict:
    """The same run in seconds on a CPU: a tiny network, 64 synthetic examples, 8 steps."""
    config.update(epochs=1, batch_size=8, log_every=2, save_every=4, keep=2)
    tiny = dict(width=48, depth=2, heads=3, decoder_width=32, decoder_depth=1, decoder_heads=2)
    config.model.update({name: x for name, x in tiny.items() if name in config.model})
    config.optimizer.warmup_epochs = 0.25
    data = config.data
    modality = data.get("modality", "image")
    pictures_of_many_channels = modality == "volume" and len(data.size) == 2
    data.update(
        train=dict(
            source="spectra" if pictures_of_many_channels else SYNTHETIC[modality], split="train"
        ),
        size=tuple(4 * side for side in config.model.patch),
        threads=2,
        examples=0 if modality == "image" else 64,
    )
    tiny = dict(every=4, split="test", examples=32, batch_size=8)
    if config.task == "pretrain":
        config.evaluators = evaluators(**tiny, features=32, pictures=2, linear=True)
    else:
        config.evaluators.classification.update(tiny)
    return config
