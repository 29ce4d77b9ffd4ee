"""Held-out examples: each counts exactly once, whatever the batch size and the devices."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from mae_jax.data import pipeline, sources
from mae_jax.data.augment import batch as augment
from mae_jax.data.modalities import transforms
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.evaluators import visualize
from mae_jax.models import mae, mask_sampler, masking, patches


class View(NamedTuple):
    """How an example is shown to a network when it is evaluated."""

    data: Mapping[str, Any]  # the section of a config
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    clips: int = 1  # views of an example along the time, see `transforms.eval_transform`
    crops: int = 1

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.data["size"])

    def normalize(self, images: jax.Array) -> jax.Array:
        return augment.normalize(images, self.mean, self.std)


def view_of(config, mean, std) -> View:
    return View(config["data"], tuple(mean), tuple(std))


def opened(config, part) -> sources.Source:
    """A source of the config; `same` is the training source with this part's split."""
    same, source = part.source == "same", config.data.train.source
    if same and source.startswith("array_record:") and "{split}" not in source:
        raise ValueError(
            f"{source!r} names the same records for every split: write {{split}} where the file "
            'names differ, or name the other sources too ("" = none)'
        )
    return sources.open_source(source if same else part.source, part.split, config.data.modality)


def batches(
    source: sources.Source, view: View, limit: int | None, batch_size: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """Each of (at most `limit`) examples once, un-augmented, padded, on the mesh.

    Those that cannot be read are not valid, see `pipeline.evaluation_batches`. `batch_size` is
    rounded up to a multiple of the devices.
    """
    parts = device_mesh.batch_shares(mesh)
    share = -(-batch_size // parts)  # of each device
    found = pipeline.evaluation_batches(
        source,
        transforms.eval_transform(view.data, view.clips, view.crops),
        batch_size=share * parts,
        limit=limit,
        threads=view.data["threads"],
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    return (partitioning.place(batch, mesh) for batch in found)


def reconstruction(
    model: mae.MaskedAutoencoder,
    view: View,
    mask: Mapping[str, Any],
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
    of a run and every baseline is asked for the same hidden patches. All of them are decoded.

    Args:
      mask: the section of a config, see `hiding.of`.
      examples, batch_size: for the losses.
      shown: number of examples in the picture.
    """
    hide = mask_sampler.of(mask, view.size, model.patch, model.groups)

    def forward(variables, batch):
        images = view.normalize(batch["image"])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        scores = jax.vmap(lambda key, image: hide.scores(key, image[None])[0])(keys, images)
        out: Any = model.apply(variables, images, masking.from_scores(scores, hide.keep))
        return images, out

    def sums(variables, batch):
        images, out = forward(variables, batch)
        errors = trivial(model, images, out.mask)
        valid = batch["valid"]
        return jnp.stack([*((x * valid).sum() for x in (out.losses, errors)), valid.sum()])

    def reconstructions(variables, batch):
        images, out = forward(variables, batch)
        options = dict(groups=model.groups, target_stride=model.target_stride)
        shape = (*out.mask.hidden.shape, out.prediction.shape[-1] // (model.categories or 1))
        place = functools.partial(mae.reconstruct, mask=out.mask, patch=model.patch, **options)
        hidden = place(jnp.zeros(images.shape), jnp.ones(shape), norm_pix=False) > 0
        full = place(images, out.prediction, norm_pix=model.norm_pix, categories=model.categories)
        return mae.strided(images, model.target_stride), hidden, full

    everywhere = partitioning.replicated(mesh)
    sums = jax.jit(sums, out_shardings=everywhere)
    reconstructions = jax.jit(reconstructions, out_shardings=everywhere)

    def losses(variables) -> dict[str, float]:
        count = min(len(source), examples)
        parts = [
            np.asarray(sums(variables, b)) for b in batches(source, view, count, batch_size, mesh)
        ]
        trained, visible_mean, valid = np.sum(parts, axis=0)
        means = {"trained": float(trained / valid), "visible_mean": float(visible_mean / valid)}
        return means | {"examples": int(valid)}  # that could be read

    def draw(variables) -> Image.Image:
        count = min(shown, len(source))
        batch = next(batches(source, view, count, count, mesh))
        parts = [np.asarray(x)[:count] for x in reconstructions(variables, batch)]
        original, hidden, full = parts
        modality = view.data["modality"]
        return visualize.reconstruction(original, hidden, full, modality, view.mean, view.std)

    return losses, draw


def kind_of(model: mae.MaskedAutoencoder) -> str:
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
