"""Held-out examples: each counts exactly once, whatever the batch size and the devices."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from mae_jax import mae, masking, patches, pictures, sharding
from mae_jax.data import augment, pipeline, sources


class View(NamedTuple):
    """How a picture is shown to a network when it is evaluated."""

    size: tuple[int, ...]
    channels: int
    center_crop: float  # share of the side, see `images.center_crop`
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    threads: int = 16

    def normalize(self, images: jax.Array) -> jax.Array:
        return augment.normalize(images, self.mean, self.std)


def view_of(config, mean, std) -> View:
    data = config["data"]
    return View(
        tuple(data["size"]),
        data["channels"],
        data["center_crop"],
        tuple(mean),
        tuple(std),
        data["threads"],
    )


def opened(config, part) -> sources.Source:
    """A source of the config; `same` is the training source with this part's split."""
    same, source = part.source == "same", config.data.train.source
    if same and source.startswith("array_record:") and "{split}" not in source:
        raise ValueError(
            f"{source!r} names the same records for every split: write {{split}} where the file "
            'names differ, or name the other sources too ("" = none)'
        )
    return sources.open(source if same else part.source, part.split)


def batches(
    source: sources.Source, view: View, limit: int | None, batch_size: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """Each of (at most `limit`) examples once, un-augmented, padded, on the mesh.

    `batch_size` is rounded up to a multiple of the devices.
    """
    share = -(-batch_size // mesh.size)  # of each device
    found = pipeline.evaluation_batches(
        source,
        pipeline.test_transform((view.size[0], view.size[1]), view.channels, view.center_crop),
        batch_size=share * mesh.size,
        limit=limit,
        threads=view.threads,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    return (sharding.place(batch, mesh) for batch in found)


def reconstruction(
    model: mae.MaskedAutoencoder,
    view: View,
    ratio: float,
    source: sources.Source,
    *,
    examples: int,
    batch_size: int,
    shown: int,
    mesh: Mesh,
    key: jax.Array,
):
    """Two functions of the variables: the held-out losses, and a picture of reconstructions.

    The mask of an example depends on `key` and its number in the source alone, so every evaluation
    of a run and every baseline is asked for the same hidden patches.

    Args:
      ratio: share of the patches that is hidden.
      examples, batch_size: for the losses.
      shown: number of examples in the picture.
    """
    n = int(np.prod(patches.grid_of(view.size, model.patch)))
    keep = masking.keep_count(n, ratio)

    def forward(variables, batch):
        images = view.normalize(batch["image"])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        scores = jax.vmap(lambda k: jax.random.uniform(k, (n,)))(keys)
        out: Any = model.apply(variables, images, masking.from_scores(scores, keep))
        return images, out

    def sums(variables, batch):
        images, out = forward(variables, batch)
        target = patches.patchify(images, model.patch)
        target = patches.normalize(target) if model.norm_pix else target
        guess = patches.take(target, out.mask.keep).mean(1, keepdims=True)
        errors = jnp.square(patches.take(target, out.mask.hidden) - guess).mean((1, 2))
        return jnp.stack([(x * batch["valid"]).sum() for x in (out.losses, errors)])

    def reconstructions(variables, batch):
        images, out = forward(variables, batch)
        full = mae.reconstruct(images, out.prediction, out.mask, model.patch, model.norm_pix)
        images, full = (augment.to_uint8(x, view.mean, view.std) for x in (images, full))
        hidden = jnp.broadcast_to(
            masking.hidden_map(out.mask)[..., None], patches.patchify(images, model.patch).shape
        )
        hidden = patches.unpatchify(hidden, model.patch, view.size)
        masked = jnp.where(hidden > 0, jnp.asarray(128, jnp.uint8), images)
        return images, masked, full

    everywhere = sharding.replicated(mesh)
    sums = jax.jit(sums, out_shardings=everywhere)
    reconstructions = jax.jit(reconstructions, out_shardings=everywhere)

    def losses(variables) -> dict[str, float]:
        count = min(len(source), examples)
        parts = [
            np.asarray(sums(variables, b)) for b in batches(source, view, count, batch_size, mesh)
        ]
        total = np.sum(parts, axis=0)
        return {"trained": float(total[0] / count), "visible_mean": float(total[1] / count)}

    def draw(variables) -> Image.Image:
        count = min(shown, len(source))
        batch = next(batches(source, view, count, count, mesh))
        columns = (np.asarray(x)[:count] for x in reconstructions(variables, batch))
        return pictures.columns(
            dict(zip(("original", "masked", "reconstruction"), columns, strict=True))
        )

    return losses, draw
