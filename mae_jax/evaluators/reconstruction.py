"""How well a masked autoencoder reconstructs held-out examples."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mae_jax.distributed import partitioning
from mae_jax.evaluators import visualize
from mae_jax.evaluators.evaluator import Context, HeldOutEvaluator, Result, Unsuitable
from mae_jax.models import build as networks
from mae_jax.models import masking


class Reconstruction(HeldOutEvaluator):
    """The loss on masked patches, beside the losses of untrained baselines, and pictures.

    The mask of an example depends only on the key of the context and on the index of the example
    in its source, so every network predicts the same patches. All masked patches are decoded. The
    losses are means over the examples that have two patches with data or more.
    """

    def __init__(self, section: Mapping[str, Any], context: Context):
        super().__init__(section, context)
        mask = context.mask
        if mask is None:
            raise Unsuitable("the model is no masked autoencoder")
        self.key = context.key
        self.sampler = networks.mask_sampler(mask, self.model, self.transform.size)
        # Losses and pictures share one function, which is compiled once.
        replicated = partitioning.replicated(self.mesh)
        self._measure = jax.jit(self._measure_batch, out_shardings=replicated)

    def evaluate(self, variables: dict) -> Result:
        return Result({"test_loss": self.losses(variables)[0]}, pictures=self.draw(variables))

    def report(self, variables: dict, untrained: dict | None = None) -> Result:
        target = self.model.target
        trained, baseline, count = self.losses(variables)
        losses = {"visible_mean": baseline}
        names = {"visible_mean": target.baseline_name}
        if untrained is not None:
            losses["untrained"], names["untrained"] = self.losses(untrained)[0], "untrained network"
        losses["trained"], names["trained"] = trained, "trained network"
        share = 1 - self.sampler.keep / self.sampler.n
        title = f"held-out loss on the {share:.0%} masked patches ({target.loss_name})"
        return Result(
            {"test_loss": trained} | {f"loss_{name}": loss for name, loss in losses.items()},
            rows=[[title, ""], *([f"  {names[name]}", f"{x:.4f}"] for name, x in losses.items())],
            notes=(f"({count:,} examples)",),
            pictures=self.draw(variables),
        )

    def losses(self, variables: dict) -> tuple[float, float, int]:
        """Return the mean losses of the network and of the baseline, and the number of examples."""
        sums = [np.asarray(self._measure(variables, batch)[0]) for batch in self.batches()]
        loss, baseline, count = np.asarray(sums, np.float64).sum(0)
        if not count:
            raise ValueError("no example has two patches with data, one to see and one to predict")
        return float(loss / count), float(baseline / count), int(count)

    def draw(self, variables: dict) -> dict[str, Image.Image]:
        """Return a picture of examples, their visible parts and their reconstructions."""
        count = min(self.section["pictures"], self.section["batch_size"], len(self.source))
        arrays = self._measure(variables, next(self.batches(count)))[1]
        inputs, masked, outputs = (np.asarray(x)[:count] for x in arrays)
        transform = self.transform
        picture = visualize.reconstruction(
            inputs, masked, outputs, transform.data["modality"], transform.mean, transform.std
        )
        return {"reconstruction": picture}

    def _measure_batch(self, variables, batch) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return sums over the valid examples, and the arrays that a picture shows of the first."""
        inputs, present, weight = self.transform.split(batch["image"])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.key, batch["index"])
        one = lambda *of_sample: jax.tree.map(lambda x: x[None], of_sample)
        scores = jax.vmap(lambda key, *x: self.sampler.scores(key, *one(*x))[0])(
            keys, inputs, weight
        )
        tokens = None if present is None else self.model.present(present)
        mask = masking.from_scores(scores, self.sampler.keep, tokens)
        places = self.transform.coordinates(batch, self.model)
        out: Any = self.model.apply(variables, inputs, mask, weight, places)
        target, valid = self.model.target, batch["valid"]
        if present is not None:
            valid = valid & target.predicts(inputs, mask, weight)
        baseline = target.baseline_losses(inputs, mask, weight)
        columns = (out.losses, baseline, jnp.ones(len(inputs)))
        sums = jnp.stack([(x * valid).sum() for x in columns])

        shown = inputs, out.prediction, mask, weight, present
        first = jax.tree.map(lambda x: x[: self.section["pictures"]], shown)
        inputs, prediction, mask, weight, present = first
        arrays = target.strided(inputs), target.to_inputs(prediction, inputs, mask, weight)
        if present is not None:
            arrays = [jnp.where(target.strided(present), x, jnp.nan) for x in arrays]
        return sums, (arrays[0], target.masked_values(inputs, mask), arrays[1])
