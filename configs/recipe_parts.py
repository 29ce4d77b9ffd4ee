"""What the recipes share: an empty config, evaluators, and the argument of `--config=FILE:ARG`.

This file is not a config. The configs import it, and yours may import it too.
"""

from ml_collections import ConfigDict


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
    """The config for the ARG of `--config=FILE:ARG`: "debug", or a number of epochs.

    The warm-up keeps its share of the epochs, but is never longer than in the recipe.
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


SYNTHETIC = dict(image="synthetic", video="pans", audio="tones", volume="phantoms")
SYNTHETIC |= dict(signal="beats", text="stdlib")


def debug(config: ConfigDict) -> ConfigDict:
    """The same run in seconds on a CPU: a tiny network, 64 synthetic examples, 8 steps."""
    config.update(epochs=1, batch_size=8, log_every=2, save_every=4, keep=2)
    tiny = dict(width=48, depth=2, heads=3, decoder_width=32, decoder_depth=1, decoder_heads=2)
    config.model.update({name: x for name, x in tiny.items() if name in config.model})
    config.optimizer.warmup_epochs = 0.25
    data = config.data
    modality = data.get("modality", "image")
    many_bands = "spectra" if modality == "volume" and len(data.size) == 2 else ""
    many_bands = "mixtures" if config.task == "regress" else many_bands
    data.update(
        train=dict(source=many_bands or SYNTHETIC[modality], split="train"),
        size=tuple(4 * side for side in config.model.patch),
        channels=2 if modality == "signal" else data.channels,
        threads=2,
        examples=0 if modality == "image" else 64,
    )
    if config.batch_size % data.get("repeats", 1):
        data.repeats = 1
    tiny = dict(every=4, split="test", examples=32, batch_size=8)
    if config.task == "pretrain":
        config.evaluators = evaluators(**tiny, features=32, pictures=2, linear=True)
    else:
        for evaluator in config.evaluators.values():
            evaluator.update(tiny)
    return config
