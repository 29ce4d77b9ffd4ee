"""The shipped configs are possible, and have the numbers of the papers."""

from pathlib import Path

import pytest

from mae_jax.config import command_line, nested, schema
from mae_jax.models import build, rules

ROOT = Path(__file__).parents[2]
NAMES = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - {"recipe_parts"})


def load(name: str, argument: str = "") -> schema.Config:
    values = command_line.load(f"{ROOT}/configs/{name}.py:{argument}")
    return schema.validate(values, rules.RULES)


def encoder(config) -> dict:
    return {name: config.model[name] for name in ("width", "depth", "heads")}


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_possible_and_has_the_same_keys_in_debug_size(name):
    keys = [
        {key for key in nested.flatten(load(name, arg)) if not key.startswith("evaluators.")}
        for arg in ("", "debug")
    ]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("size, patch", [("small", 16), ("base", 16), ("large", 16), ("huge", 14)])
def test_the_papers_recipe(size, patch):
    """He et al. 2021, table 8, one number at a time."""
    config = load(f"vit_{size}")
    assert encoder(config) == build.VARIANTS[size]
    model, options, data = config.model, config.optimizer, config.data
    assert model.patch == (patch, patch) and model.norm_pix
    assert (model.decoder_width, model.decoder_depth, model.decoder_heads) == (512, 8, 16)
    assert (config.mask.ratio, config.mask.name, config.mask.decode) == (0.75, "random", 1)
    assert (config.epochs, config.batch_size) == (800, 4096)
    assert (options.base_learning_rate, options.warmup_epochs) == (1.5e-4, 40)
    assert (options.b1, options.b2, options.weight_decay) == (0.9, 0.95, 0.05)
    assert (options.clip, options.ema) == (0, 0)
    assert {**data.train} == dict(source="tfds:imagenet2012", split="train")
    assert (data.size, data.channels, data.crop_scale) == ((224, 224), 3, (0.2, 1.0))
    assert data.flip and data.crop_ratio == (3 / 4, 4 / 3)
    assert data.mean == (0.485, 0.456, 0.406) and data.std == (0.229, 0.224, 0.225)


def test_a_number_of_epochs_keeps_the_share_of_the_warm_up():
    base = load("vit_base")
    assert load("vit_base", "1600") == schema.updated(base, {"epochs": 1600})
    for epochs in (1, 20, 100):
        short = load("vit_base", str(epochs))
        assert short == schema.updated(
            base, {"epochs": epochs, "optimizer.warmup_epochs": epochs / 20}
        )


@pytest.mark.parametrize(
    "size, rate, decay, drop, epochs",
    [
        ("base", 5e-4, 0.65, 0.1, 100),
        ("large", 1e-3, 0.75, 0.2, 50),
        ("huge", 1e-3, 0.75, 0.3, 50),
    ],
)
def test_the_papers_fine_tuning(size, rate, decay, drop, epochs):
    """He et al. 2021, table 9."""
    config = load(f"finetune_vit_{size}")
    assert encoder(config) == build.VARIANTS[size]
    model, options = config.model, config.optimizer
    assert model.patch == ((14, 14) if size == "huge" else (16, 16))
    assert model.pooling == "mean" and model.learned_positions
    assert model.head_std == 2e-5 and not model.batch_norm
    assert (config.epochs, config.batch_size, config.trainable) == (epochs, 1024, ".*")
    assert (options.name, options.base_learning_rate, options.layer_decay) == ("adamw", rate, decay)
    assert (options.warmup_epochs, options.final_learning_rate) == (5, 1e-6)
    assert (options.b1, options.b2, options.weight_decay) == (0.9, 0.999, 0.05)
    assert {**config.regularize} == dict(
        drop_path=drop, mixup=0.8, cutmix=1.0, label_smoothing=0.1, erase=0.25, randaugment=9.0
    )
    assert config.data.crop_scale == (0.08, 1.0) and config.data.center_crop == 0.875


@pytest.mark.parametrize("size, epochs", [("base", 90), ("large", 50), ("huge", 50)])
def test_the_papers_linear_probe(size, epochs):
    """He et al. 2021, table 10."""
    config = load(f"linear_probe_vit_{size}")
    assert encoder(config) == build.VARIANTS[size]
    model, options = config.model, config.optimizer
    assert model.pooling == "cls" and model.batch_norm
    assert model.head_std == 0.01 and not model.learned_positions
    assert (config.epochs, config.batch_size, config.trainable) == (epochs, 16_384, "head/.*")
    assert (options.name, options.base_learning_rate, options.momentum) == ("lars", 0.1, 0.9)
    assert (options.weight_decay, options.warmup_epochs) == (0, 10)
    assert not any(config.regularize.values())
    assert config.data.crop_scale == (0.08, 1.0) and config.data.flip
