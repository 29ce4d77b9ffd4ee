"""The adaptation of a masked autoencoder to one input, by its own loss on crops of that input."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import tqdm

from mae_jax.data.values import Values
from mae_jax.distributed import device_mesh
from mae_jax.evaluators.tiled_inputs import TiledInputs
from mae_jax.models import masking


class Adapter:
    """Steps of AdamW on the loss of random crops of one input, each under its own random mask.

    Args:
      keep: how many patches a mask shows.
      learning_rate: of all steps.
      decay: of the exponential mean of the parameters over the last steps.
    """

    def __init__(
        self, inputs: TiledInputs, keep: int, learning_rate: float = 1e-3, decay: float = 0.98
    ):
        self.inputs, self.keep, self.decay = inputs, keep, decay
        self.optimizer = optax.adamw(learning_rate)
        self._step = jax.jit(self._step_batch, donate_argnums=0)

    def __call__(self, params: dict, opened: Values, steps: int, seed: int = 0) -> dict:
        """Return the mean of the parameters over the last of some steps.

        A step takes `inputs.batch_size` crops, rounded up to a multiple of the devices. The result
        depends on the seed, and not on the devices unless their number changes that.

        Raises:
          ValueError: the loss is not finite any more.
        """
        size, key = self.inputs.transform.size, jax.random.key(seed)
        free = [max(0, n - side) for n, side in zip(opened.sides, size, strict=True)]
        shares = device_mesh.batch_shares(self.inputs.mesh)
        count = steps * -(-self.inputs.batch_size // shares) * shares
        corners = np.random.default_rng(seed).integers(0, free, (count, len(free)), endpoint=True)
        read = functools.partial(self.inputs.tile, opened)
        loss = jnp.zeros(())
        state = jax.tree.map(jnp.array, (params, self.optimizer.init(params), params))
        batches = self.inputs.batches(corners.tolist(), read)
        with tqdm(total=steps, unit="step", desc="adapting", disable=None) as bar:
            for i, (batch, _) in enumerate(batches):
                state, loss = self._step(state, batch, jax.random.fold_in(key, i), i)
                bar.update()
        if not np.isfinite(loss):
            raise ValueError(f"the adaptation diverged (loss {loss}): use fewer steps, or none")
        return state[-1]

    def _step_batch(
        self, state: tuple, batch: Mapping[str, Any], key: jax.Array, i: int
    ) -> tuple[tuple, Float[Array, ""]]:
        """Return the parameters, the moments and the mean after a step, and the loss before it."""
        (params, moments, mean), model = state, self.inputs.model
        values, present, weight = self.inputs.transform.split(batch["image"])
        places = self.inputs.transform.coordinates(batch, model)
        grid = model.grid(self.inputs.transform.size)
        scores = masking.random(key, len(values), (math.prod(grid),))
        tokens = None if present is None else model.present(present)
        mask = masking.from_scores(scores, self.keep, tokens)
        loss = lambda params: model.apply({"params": params}, values, mask, weight, places).loss
        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = self.optimizer.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(self.decay, (1 + i) / (10 + i))  # the first steps count less
        mean = optax.incremental_update(params, mean, 1 - decay)
        return (params, moments, mean), value
