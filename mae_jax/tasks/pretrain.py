"""Masked pre-training: what the loop needs to know of it, and what its result is worth."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mae_jax.data import sources
from mae_jax.data.augment import batch as augment
from mae_jax.data.modalities import transforms
from mae_jax.evaluators import features, heldout
from mae_jax.models import mae, mask_sampler, masking
from mae_jax.output import tables
from mae_jax.tasks.task import Task, module_fields
from mae_jax.training import optimizer


def model_of(config) -> mae.MaskedAutoencoder:
    """The network that a config describes."""
    return mae.MaskedAutoencoder(**module_fields(config))


def hiding_of(config) -> mask_sampler.Hiding:
    """How the config hides patches, and how many."""
    model = config["model"]
    return mask_sampler.of(config["mask"], config["data"]["size"], model["patch"], model["groups"])


def training(config, mean, std) -> tuple[Callable, Callable, Callable]:
    """`Task.init`, `Task.augment` and `Task.loss`: all that a training step needs."""
    model, hide = model_of(config), hiding_of(config)
    shape = (1, *config["data"]["size"], config["data"]["channels"])
    hidden = hide.n - hide.keep

    def init(key):
        mask = masking.from_scores(jnp.zeros((1, hide.n)), hide.keep)
        return model.init(key, jnp.zeros(shape), mask)

    def augmented(key, batch):
        flip_key, mask_key = jax.random.split(key)
        images = batch["image"]
        images = augment.flip(flip_key, images) if config["data"].get("flip") else images
        scores = hide.scores(mask_key, augment.normalize(images, mean, std))
        drawn = {"image": images, "scores": scores}
        if hide.decode < hidden:
            shape = (len(images), hidden)
            drawn["decode"] = jax.random.uniform(jax.random.fold_in(key, 2), shape)
        return drawn

    def loss(params, stats, batch):
        images = augment.normalize(batch["image"], mean, std)
        mask = masking.from_scores(batch["scores"], hide.keep)
        if "decode" in batch:
            mask = masking.partial(mask, batch["decode"], hide.decode)
        out: Any = model.apply({"params": params}, images, mask)
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
            config.mask,
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
                "visible_mean": heldout.trivial_name(model),
                "untrained": "untrained network",
                "trained": "trained network",
            }
            figures |= {f"loss_{name}": rows[name] for name in names}
            kind = heldout.kind_of(model)
            lines.append(
                tables.table(
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
            lines.append(tables.table([["accuracy of frozen features", *titles], *cells]))
        return "\n\n".join(lines), figures

    init, augmented, loss = training(config, mean, std)
    names = ("b1", "b2", "weight_decay", "clip", "mu_dtype")
    options = {name: config.optimizer[name] for name in names}
    return Task(
        init=init,
        transform=transforms.train_transform(config.data),
        augment=augmented,
        loss=loss,
        optimizer=functools.partial(optimizer.adamw, **options),
        evaluate=evaluate,
        draw=draw,
        report=report,
        rate=config.mask.decode,  # CrossMAE's rule: fewer predictions, smaller steps
    )
