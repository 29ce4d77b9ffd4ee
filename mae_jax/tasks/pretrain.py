"""Masked pre-training: what the loop needs to know of it, and what its result is worth."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mae_jax import mae, masking, metrics, optimizer, patches
from mae_jax.data import augment, pipeline, sources
from mae_jax.tasks import features, heldout
from mae_jax.tasks.task import Task, module_fields


def model_of(config) -> mae.MaskedAutoencoder:
    """The network that a config describes."""
    return mae.MaskedAutoencoder(**module_fields(config))


def counts(config) -> tuple[int, int]:
    """Number of patches, and how many of them the mask keeps."""
    n = math.prod(patches.grid_of(config["data"]["size"], config["model"]["patch"]))
    return n, masking.keep_count(n, config["mask"]["ratio"])


def training(config, mean, std) -> tuple[Callable, Callable, Callable]:
    """`Task.init`, `Task.augment` and `Task.loss`: all that a training step needs."""
    model = model_of(config)
    n, keep = counts(config)
    shape = (1, *config["data"]["size"], config["data"]["channels"])

    def init(key):
        return model.init(key, jnp.zeros(shape), masking.from_scores(jnp.zeros((1, n)), keep))

    def augmented(key, batch):
        flip_key, mask_key = jax.random.split(key)
        images = batch["image"]
        images = augment.flip(flip_key, images) if config["data"]["flip"] else images
        return {"image": images, "scores": masking.random(mask_key, len(images), n)}

    def loss(params, stats, batch):
        images = augment.normalize(batch["image"], mean, std)
        out: Any = model.apply(
            {"params": params}, images, masking.from_scores(batch["scores"], keep)
        )
        return out.loss, ({}, stats)

    return init, augmented, loss


def build(config, source: sources.Source, mean, std, mesh: Mesh, key: jax.Array) -> Task:
    """The task of a config, with its held-out data opened.

    Args:
      source: of the training examples.
      mean, std: per channel, of pixels in [0, 1].
      key: of the masks on held-out data.

    Raises:
      ValueError: a source cannot be opened, or has no labels for the probe.
    """
    model = model_of(config)
    losses, draw = None, lambda variables: None
    if config.data.test.source:
        losses, draw = heldout.reconstruction(
            model,
            heldout.view_of(config, mean, std),
            config.mask.ratio,
            heldout.opened(config, config.data.test),
            examples=config.evaluate.examples,
            batch_size=config.evaluate.batch_size,
            shown=config.evaluate.pictures,
            mesh=mesh,
            key=key,
        )
    accuracies = features.probe(config, mean, std, model, mesh)

    def evaluate(variables):
        figures = {"test_loss": losses(variables)["trained"]} if losses else {}
        return figures | (accuracies(variables) if accuracies else {})

    def report(variables, make_untrained):
        lines, figures, untrained = [], {}, make_untrained()
        if losses:
            rows = losses(variables) | {"untrained": losses(untrained)["trained"]}
            names = {
                "visible_mean": "mean of the visible patches",
                "untrained": "untrained network",
                "trained": "trained network",
            }
            figures |= {f"loss_{name}": rows[name] for name in names}
            kind = "normalised patches" if config.model.norm_pix else "pixels"
            lines.append(
                metrics.table(
                    [[f"held-out loss on hidden patches ({kind})", ""]]
                    + [["  " + text, f"{rows[name]:.4f}"] for name, text in names.items()]
                )
            )
        if accuracies:
            rows = {
                "raw pixels": accuracies(None),
                "untrained encoder": accuracies(untrained),
                "trained encoder": accuracies(variables),
            }
            for name, row in rows.items():
                short = name.split()[0]
                figures |= {f"{probe}_{short}": x for probe, x in row.items()}
            titles = [{"knn": "kNN"}.get(name, name) for name in rows["raw pixels"]]
            cells = [
                ["  " + name, *(f"{x:.3f}" for x in row.values())] for name, row in rows.items()
            ]
            lines.append(metrics.table([["accuracy of frozen features", *titles], *cells]))
        return "\n\n".join(lines), figures

    init, augmented, loss = training(config, mean, std)
    options = {name: config.optimizer[name] for name in ("b1", "b2", "weight_decay", "clip")}
    return Task(
        init=init,
        transform=pipeline.train_transform(
            tuple(config.data.size),
            config.data.channels,
            tuple(config.data.crop_scale),
            tuple(config.data.crop_ratio),
        ),
        augment=augmented,
        loss=loss,
        optimizer=functools.partial(optimizer.adamw, **options),
        evaluate=evaluate,
        draw=draw,
        report=report,
    )
