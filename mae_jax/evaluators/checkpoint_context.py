"""What the evaluators of a checkpoint are built from."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from mae_jax.evaluators.evaluator import Context
from mae_jax.weights import checkpoint_info

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def make(
    found: checkpoint_info.CheckpointInfo,
    mesh: Mesh,
    *,
    size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    center_crop: float | None = None,
    threads: int = 16,
) -> Context:
    """Return the model of a checkpoint, and how examples are shown to it.

    What is None is as in the run that trained the checkpoint, or else as on ImageNet.

    Args:
      size: the sides of the inputs.
      mean, std: per channel, of values in [0, 1].
      center_crop: share of the side of a picture that is shown.

    Raises:
      ValueError: what does not fit the model.
    """
    config, model = found.config or {}, found.model
    data = dict(config.get("data", {"modality": "image", "repeats": 1}))
    data |= {"size": size or found.size or data.get("size", (224, 224))}
    data |= {"channels": found.channels, "threads": threads}
    if data["modality"] in ("image", "video"):
        data["center_crop"] = center_crop or data.get("center_crop", 0.875)
    if size and len(size) != len(model.patch):
        raise ValueError(f"size = {tuple(size)} is not one of {len(model.patch)} axes")
    unknown = found.fields.get("vocab_size") and not found.config
    if len(data["size"]) != len(model.patch) or unknown:
        raise ValueError(
            f"{found.path} is no model of pictures, and only a work directory says how its "
            "examples are read: evaluate that"
        )
    model.grid(data["size"])  # raises ValueError if the patch does not fit
    mean = tuple(mean or found.mean or IMAGENET["mean"])
    std = tuple(std or found.std or IMAGENET["std"])
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != found.channels:
            raise ValueError(
                f"{name} has {len(values)} values for {found.channels} channel(s): give --{name}"
            )
    return Context(
        model,
        data,
        mean,
        std,
        mesh,
        jax.random.key(0),
        mask={"ratio": 0.75} | config.get("mask", {}),
        loss=config.get("loss"),
        classes=found.classes,
    )
