"""How well a masked autoencoder reconstructs held-out examples."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mae_jax.distributed import partitioning
from mae_jax.evaluators import held_out, visualize
from mae_jax.evaluators.evaluator import Context, Evaluator, Result
from mae_jax.models import mae, mask_sampler, masking, patches


class Reconstruction(Evaluator):
    """The loss on masked patches, beside that of guesses without training, and pictures.

    The mask of an example depends on the key of the context and on its number in the source alone,
    so every network is asked for the same patches. All masked patches are decoded.
    """

    def __init__(self, section: Mapping[str, Any], context: Context):
        self.source = context.open(section)
        self.transform = context.transform
        self.examples, self.batch_size = section["examples"], section["batch_size"]
        self.pictures = section.get("pictures", 0)
        self.model, self.mesh, self.key = context.model, context.mesh, context.key
        self.ratio = (context.mask or {})["ratio"]
        self.sampler = mask_sampler.of(
            context.mask or {}, self.transform.size, self.model.patch, self.model.groups
        )
        everywhere = partitioning.replicated(self.mesh)
        self._sums = jax.jit(self._sums_of_batch, out_shardings=everywhere)
        self._reconstructions = jax.jit(self._reconstruct_batch, out_shardings=everywhere)

    def evaluate(self, variables: dict) -> Result:
        return Result({"test_loss": self.losses(variables)[0]}, picture=self.draw(variables))

    def report(self, variables: dict, untrained: dict | None = None) -> Result:
        trained, baseline, count = self.losses(variables)
        losses = {"visible_mean": baseline}
        names = {"visible_mean": trivial_name(self.model)}
        if untrained is not None:
            losses["untrained"], names["untrained"] = self.losses(untrained)[0], "untrained network"
        losses["trained"], names["trained"] = trained, "trained network"
        title = f"held-out loss on the {self.ratio:.0%} masked patches ({loss_name(self.model)})"
        return Result(
            {f"loss_{name}": loss for name, loss in losses.items()},
            rows=[[title, ""], *([f"  {names[name]}", f"{x:.4f}"] for name, x in losses.items())],
            notes=(f"({count:,} examples)",),
            picture=self.draw(variables),
        )

    def losses(self, variables: dict) -> tuple[float, float, int]:
        """The mean loss of the network and of the guess, and of how many examples that is."""
        batches = held_out.batches(
            self.source, self.transform, self.examples, self.batch_size, self.mesh
        )
        sums = [np.asarray(self._sums(variables, batch)) for batch in batches]
        loss, baseline, count = np.sum(sums, axis=0, dtype=np.float64)
        return float(loss / count), float(baseline / count), int(count)

    def draw(self, variables: dict) -> Image.Image | None:
        """The first examples, what the network sees of them, and its reconstructions."""
        if not self.pictures:
            return None
        count = min(self.pictures, len(self.source))
        batch = next(held_out.batches(self.source, self.transform, count, count, self.mesh))
        parts = [np.asarray(x)[:count] for x in self._reconstructions(variables, batch)]
        modality, mean, std = self.transform.data["modality"], *self.transform[1:3]
        return visualize.reconstruction(*parts, modality, mean, std)

    def _forward(self, variables, batch) -> tuple[jax.Array, Any]:
        inputs = self.transform.normalize(batch["image"])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.key, batch["index"])
        scores_of_one = lambda key, x: self.sampler.scores(key, x[None])[0]
        scores = jax.vmap(scores_of_one)(keys, inputs)
        mask = masking.from_scores(scores, self.sampler.keep)
        return inputs, self.model.apply(variables, inputs, mask)

    def _sums_of_batch(self, variables, batch) -> jax.Array:
        inputs, out = self._forward(variables, batch)
        losses, baselines = out.losses, trivial(self.model, inputs, out.mask)
        valid = batch["valid"]
        return jnp.stack([*((x * valid).sum() for x in (losses, baselines)), valid.sum()])

    def _reconstruct_batch(self, variables, batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = self.model
        images, out = self._forward(variables, batch)
        options = dict(groups=model.groups, target_stride=model.target_stride)
        shape = (*out.mask.hidden.shape, out.prediction.shape[-1] // (model.categories or 1))
        place = functools.partial(mae.reconstruct, mask=out.mask, patch=model.patch, **options)
        hidden = place(jnp.zeros(images.shape), jnp.ones(shape), norm_pix=False) > 0
        full = place(images, out.prediction, norm_pix=model.norm_pix, categories=model.categories)
        return mae.strided(images, model.target_stride), hidden, full


def build(section: Mapping[str, Any], context: Context) -> Reconstruction | None:
    """The evaluator of a section; None without a source."""
    return Reconstruction(section, context) if section["source"] else None


def loss_name(model: mae.MaskedAutoencoder) -> str:
    """What the loss of a model is of."""
    if model.categories:
        return "cross-entropy in nats"
    return "normalised patches" if model.norm_pix else "pixels"


def trivial_name(model: mae.MaskedAutoencoder) -> str:
    """What `trivial` guesses."""
    return "shares among the visible bytes" if model.categories else "mean of the visible patches"


def trivial(model: mae.MaskedAutoencoder, images: jax.Array, mask: masking.Mask) -> jax.Array:
    """Loss of each sample `[b]` of a guess without a network: the mean of the visible patches.

    Of categories, the shares that they have among the visible values, each counted once more.
    """
    seen, seen_weights = model.target(images, mask.keep)
    target, weights = model.target(images, mask.hidden)
    if model.categories:
        seen = jax.nn.one_hot(seen.astype(jnp.int32), model.categories)  # [b k d categories]
        guess = jnp.log((seen.sum((1, 2)) + 1) / (seen.sum((1, 2, 3))[:, None] + model.categories))
        guess = jnp.broadcast_to(guess[:, None, None], (*target.shape, model.categories)).reshape(
            *target.shape[:2], -1
        )
    else:
        seen_weights, seen = jnp.broadcast_arrays(seen_weights, seen)
        total = (seen * seen_weights).sum(1, keepdims=True)
        guess = total / jnp.maximum(seen_weights.sum(1, keepdims=True), 1)
    return patches.mean(model.errors(guess, target), weights).mean(1)
