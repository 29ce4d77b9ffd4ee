"""Masked pre-training."""

from typing import Any

import jax
import jax.numpy as jnp

from mae_jax.data.augment import batch as augment
from mae_jax.data.modalities import transforms
from mae_jax.models import build as networks
from mae_jax.models import mae, masking
from mae_jax.tasks.task import Task

# Weight decay is on matrices and, as in the reference, on tokens; never on norms and biases.
DECAYED = frozenset({"kernel", "cls", "mask_token", "maps"})
DECAYED |= {"positions", "positions_time", "positions_space"}  # where they are learned


def model_of(config) -> mae.MaskedAutoencoder:
    """The network that a config describes."""
    return networks.autoencoder(config["model"], custom_gradients=True)


def hiding_of(config) -> masking.MaskSampler:
    """The mask sampler that a config describes."""
    return networks.mask_sampler(config["mask"], model_of(config), config["data"]["size"])


def build(config, source, mean, std) -> Task:
    """The task of pre-training; see `tasks.build`."""
    del source  # labels and classes play no part
    model, masks, data = model_of(config), hiding_of(config), config["data"]
    masked = masks.n - masks.keep

    def init(key):
        mask = masking.from_scores(jnp.zeros((1, masks.n)), masks.keep)
        return model.init(key, jnp.zeros((1, *data["size"], data["channels"])), mask)

    def augmented(key, batch):
        flip_key, mask_key, decode_key = jax.random.split(key, 3)
        x = batch["image"]
        x = augment.flip(flip_key, x) if data.get("flip") else x
        drawn = {"image": x, "scores": masks.scores(mask_key, augment.normalize(x, mean, std))}
        if masks.decode < masked:
            drawn["decode"] = jax.random.uniform(decode_key, (len(x), masked))
        return drawn

    def loss(params, stats, batch):
        x = augment.normalize(batch["image"], mean, std)
        mask = masking.from_scores(batch["scores"], masks.keep)
        if "decode" in batch:
            mask = masking.partial(mask, batch["decode"], masks.decode)
        out: Any = model.apply({"params": params}, x, mask)
        return out.loss, ({}, stats)

    return Task(
        model,
        init,
        transforms.train_transform(data),
        augmented,
        loss,
        rate=config["mask"]["decode"],  # CrossMAE's rule: fewer predictions, smaller steps
        decayed=DECAYED,
    )
