"""Masked autoencoder, ViT-B/16, ImageNet-1K: He et al. 2021 (arXiv 2111.06377), table 8.

    python -m mae_jax.train --config=configs/vit_base.py --workdir=runs/vit_base
    python -m mae_jax.train --config=configs/vit_base.py:1600 ...     # the long schedule
    python -m mae_jax.train --config=configs/vit_base.py:20 ...       # a short one, 1 to warm up
    python -m mae_jax.train --config=configs/vit_base.py:debug ...    # seconds, synthetic pictures

The published ViT-B (1600 epochs) fine-tunes to 83.6 % and linearly probes to 67.8 %.
The data set is read without TensorFlow; prepare it once with
`tfds build imagenet2012 --file_format=array_record` (TFDS_DATA_DIR names its folder).

docs/config.md lists all keys with their defaults and consequences. A config may leave out every key
that has a default.
"""

from ml_collections import ConfigDict

# A config of your own may import all of these from here.
from configs.recipe_parts import debug, evaluators, new, with_argument  # noqa: F401


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
        norm_pix=True,  # predict normalised patches, for better features
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
