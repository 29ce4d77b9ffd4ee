"""Held-out examples: each counts exactly once, whatever the batch size and the devices."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from mae_jax.data import pipeline, sources
from mae_jax.data.augment import batch as augment
from mae_jax.data.augment import coordinates, missing
from mae_jax.data.modalities import transforms
from mae_jax.distributed import device_mesh, partitioning


class EvalTransform(NamedTuple):
    """The transform of examples for an evaluation, on the host and on the device."""

    data: Mapping[str, Any]  # the section of a config
    mean: tuple[float, ...]  # per channel, of values in [0, 1]
    std: tuple[float, ...]
    clips: int = 1  # views of an example along time, see `transforms.eval_transform`
    crops: int = 1

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.data["size"])

    @property
    def on_host(self) -> Callable[[dict], dict]:
        """The function of one example that decodes and crops it."""
        return transforms.eval_transform(self.data, self.clips, self.crops)

    def normalize(self, inputs: jax.Array) -> jax.Array:
        """Return a batch on the device, normalised."""
        return augment.normalize(inputs, self.mean, self.std)

    def split(self, inputs: jax.Array) -> missing.Inputs:
        """Return a batch on the device, normalised, apart from what is missing of it."""
        return missing.split(inputs, self.mean, self.std, self.data)

    def coordinates(self, batch: Mapping[str, jax.Array], model: Any) -> Any:
        """Return the coordinates of the patches of a batch: see `augment.coordinates`."""
        if not self.data.get("reference_spacing"):
            return None
        return coordinates.of_batch(batch, self.data, model.patch)


def open_part(
    part: Mapping[str, str],
    data: Mapping[str, Any],
    given: Mapping[str, sources.Source] | None = None,
) -> sources.Source:
    """Open a `source` and its `split`; the source "same" is that of `data.train`.

    `given` are sources by split, see `sources.open_source`.
    """
    spec = part["source"]
    if spec == "same":
        spec = data["train"]["source"]
        if spec.startswith("array_record:") and "{split}" not in spec:
            raise ValueError(
                f"{spec!r} names the same records for every split: write {{split}} where the file "
                'names differ, or name the other sources too ("" = none)'
            )
    return sources.open_source(spec, part["split"], data["modality"], given)


def batches(
    source: sources.Source,
    transform: EvalTransform,
    examples: int,
    batch_size: int,
    mesh: Mesh,
) -> Iterator[dict[str, jax.Array]]:
    """Yield each example once, without augmentation, in padded batches on the mesh.

    An example that cannot be read is not valid, see `pipeline.evaluation_batches`.

    Args:
      examples: the largest number of examples, which are a fixed random choice; 0 means all.
      batch_size: over all devices together, rounded up to a multiple of their number.
    """
    shares = device_mesh.batch_shares(mesh)
    batch_size = -(-batch_size // shares) * shares
    on_host = pipeline.evaluation_batches(
        source,
        transform.on_host,
        batch_size=batch_size,
        limit=examples or None,
        threads=transform.data["threads"],
        rows=partitioning.local_rows(mesh, batch_size),
    )
    return (partitioning.place(batch, mesh) for batch in on_host)
