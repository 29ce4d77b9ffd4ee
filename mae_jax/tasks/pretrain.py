"""Masked pre-training."""

from typing import Any

import jax
import jax.numpy as jnp

from mae_jax.data.augment import batch as augment
from mae_jax.data.augment import coordinates, missing
from mae_jax.data.modalities import transforms
from mae_jax.models import build as networks
from mae_jax.models import masking
from mae_jax.tasks import losses
from mae_jax.tasks.task import Task

# Weight decay applies to matrices and, as in the reference, to tokens; not to norms and biases.
DECAYED = frozenset({"kernel", "cls", "registers", "mask_token", "maps"})
DECAYED |= {"positions", "positions_time", "positions_space"}  # learned position tables


def build(config, source, mean, std) -> Task:
    """Build the task of pre-training; see `tasks.build`."""
    del source  # pre-training uses no labels
    model, data = networks.autoencoder(config.model, custom_gradients=True), config.data
    sampler = networks.mask_sampler(config.mask, model, data.size)
    masked = sampler.n - sampler.keep

    def init(key):
        mask = masking.from_scores(jnp.zeros((1, sampler.n)), sampler.keep)
        return model.init(key, jnp.zeros((1, *data.size, data.channels)), mask)

    def augmented(key, batch):
        flip_key, mask_key, decode_key = jax.random.split(key, 3)
        inputs = batch["image"]
        inputs = augment.flip(flip_key, inputs) if data.get("flip") else inputs
        if data.get("noise"):
            inputs = augment.add_noise(jax.random.fold_in(flip_key, 1), inputs, data.noise)
        values, present, weight = missing.split(inputs, mean, std, data)
        places = coordinates.of_batch(batch, data, model.patch)
        batch = {"image": inputs, "scores": sampler.scores(mask_key, values, weight)}
        batch |= {} if places is None else {"coordinates": places}
        if sampler.decode < masked:
            batch["decode"] = jax.random.uniform(decode_key, (len(inputs), masked))
        if present is not None:  # the parts of a batch may have different numbers of such samples
            counted = model.target.predicts(values, mask_of(batch, present), weight)
            batch["sample_weight"] = losses.averaging(counted.astype(jnp.float32))
        return batch

    def mask_of(batch, present):
        tokens = None if present is None else model.present(present)
        mask = masking.from_scores(batch["scores"], sampler.keep, tokens)
        if "decode" in batch:
            mask = masking.partial(mask, batch["decode"], sampler.decode)
        return mask

    def loss(params, stats, batch):
        values, present, weight = missing.split(batch["image"], mean, std, data)
        mask, places = mask_of(batch, present), batch.get("coordinates")
        out: Any = model.apply({"params": params}, values, mask, weight, places)
        if "sample_weight" in batch:
            return (out.losses * batch["sample_weight"]).mean(), ({}, stats)
        return out.loss, ({}, stats)

    return Task(
        model,
        init,
        transforms.train_transform(data),
        augmented,
        loss,
        rate=config.mask.decode,  # CrossMAE's rule: fewer predictions, smaller steps
        decayed=DECAYED,
    )
