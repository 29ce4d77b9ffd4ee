"""How well a masked autoencoder reconstructs held-out examples."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mae_jax.distributed import partitioning
from mae_jax.evaluators import held_out, visualize
from mae_jax.evaluators.evaluator import Context, Evaluator, Result
from mae_jax.models import build as networks
from mae_jax.models import masking


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
        self.sampler = networks.mask_sampler(context.mask or {}, self.model, self.transform.size)
        everywhere = partitioning.replicated(self.mesh)
        self._sums = jax.jit(self._sums_of_batch, out_shardings=everywhere)
        self._reconstructions = jax.jit(self._reconstruct_batch, out_shardings=everywhere)

    def evaluate(self, variables: dict) -> Result:
        return Result({"test_loss": self.losses(variables)[0]}, picture=self.draw(variables))

    def report(self, variables: dict, untrained: dict | None = None) -> Result:
        trained, baseline, count = self.losses(variables)
        losses = {"visible_mean": baseline}
        names = {"visible_mean": self.model.target.baseline_name}
        if untrained is not None:
            losses["untrained"], names["untrained"] = self.losses(untrained)[0], "untrained network"
        losses["trained"], names["trained"] = trained, "trained network"
        title = (
            f"held-out loss on the {self.ratio:.0%} masked patches ({self.model.target.loss_name})"
        )
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
        losses, baselines = out.losses, self.model.target.baseline_losses(inputs, out.mask)
        valid = batch["valid"]
        return jnp.stack([*((x * valid).sum() for x in (losses, baselines)), valid.sum()])

    def _reconstruct_batch(self, variables, batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        inputs, out = self._forward(variables, batch)
        target = self.model.target
        masked = target.masked_values(inputs, out.mask)
        return (
            target.visible_part(inputs),
            masked,
            target.to_inputs(out.prediction, inputs, out.mask),
        )


def build(section: Mapping[str, Any], context: Context) -> Reconstruction | None:
    """The evaluator of a section; None without a source."""
    return Reconstruction(section, context) if section["source"] else None
