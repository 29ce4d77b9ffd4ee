"""Masked pre-training: what the loop needs to know of it, and what its result is worth."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from mae_jax import mae, masking, metrics, patches, pictures, probes, sharding
from mae_jax.data import augment, pipeline, sources


class Task(NamedTuple):
    """A task is these functions; the loop in `train.py` owns everything else."""

    init: Callable[[jax.Array], Any]  # key -> parameters
    augment: Callable[[jax.Array, dict], dict]  # key, global batch -> all that is random, drawn
    loss: Callable[[Any, dict], jax.Array]  # parameters, (part of) an augmented batch -> loss
    evaluate: Callable[[Any], dict[str, float]]  # parameters -> figures
    draw: Callable[[Any], Image.Image | None]  # parameters -> picture
    report: Callable[
        [Any, Any], tuple[str, dict[str, float]]
    ]  # trained, untrained -> text, figures


def model_of(config) -> mae.MaskedAutoencoder:
    """The network that a config describes."""
    fields: dict[str, Any] = dict(config["model"])
    if fields["dtype"] == "auto":
        fields["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    fields["patch"] = tuple(fields["patch"])
    return mae.MaskedAutoencoder(**fields)


def counts(config) -> tuple[int, int]:
    """Number of patches, and how many of them the mask keeps."""
    n = math.prod(patches.grid_of(config["data"]["size"], config["model"]["patch"]))
    return n, masking.keep_count(n, config["mask"]["ratio"])


def training(config, mean, std) -> tuple[Callable, Callable, Callable]:
    """`Task.init`, `Task.augment` and `Task.loss`: all that a training step needs."""
    model = model_of(config)
    n, keep = counts(config)
    shape = (1, *config["data"]["size"], config["data"]["channels"])

    def init(key):
        mask = masking.from_scores(jnp.zeros((1, n)), keep)
        return model.init(key, jnp.zeros(shape), mask)["params"]

    def augmented(key, batch):
        flip_key, mask_key = jax.random.split(key)
        images = batch["image"]
        images = augment.flip(flip_key, images) if config["data"]["flip"] else images
        return {"image": images, "scores": masking.random(mask_key, len(images), n)}

    def loss(params, batch):
        images = augment.normalize(batch["image"], mean, std)
        out: Any = model.apply(
            {"params": params}, images, masking.from_scores(batch["scores"], keep)
        )
        return out.loss

    return init, augmented, loss


def build(config, mean, std, mesh: Mesh, key: jax.Array) -> Task:
    """The task of a config, with its held-out data opened.

    Args:
      mean, std: per channel, of pixels in [0, 1].
      key: of the masks on held-out data.

    Raises:
      ValueError: a source cannot be opened, or has no labels for the probe.
    """
    losses, draw = heldout(config, mean, std, mesh, key)
    accuracies = probe(config, mean, std, mesh)

    def evaluate(params):
        figures = {"test_loss": losses(params)["trained"]} if losses else {}
        return figures | (accuracies(params) if accuracies else {})

    def report(params, untrained):
        lines, figures = [], {}
        if losses:
            rows = losses(params) | {"untrained": losses(untrained)["trained"]}
            names = {
                "visible_mean": "mean of the visible patches",
                "untrained": "untrained network",
                "trained": "trained network",
            }
            figures |= {f"loss_{name}": rows[name] for name in names}
            kind = "normalised patches" if config.model.norm_pix else "pixels"
            lines.append(
                metrics.table(
                    [[f"held-out loss on hidden patches ({kind})", ""]]
                    + [["  " + text, f"{rows[name]:.4f}"] for name, text in names.items()]
                )
            )
        if accuracies:
            rows = {
                "raw pixels": accuracies(None),
                "untrained encoder": accuracies(untrained),
                "trained encoder": accuracies(params),
            }
            for name, row in rows.items():
                short = name.split()[0]
                figures |= {f"{probe}_{short}": x for probe, x in row.items()}
            titles = [{"knn": "kNN"}.get(name, name) for name in rows["raw pixels"]]
            cells = [
                ["  " + name, *(f"{x:.3f}" for x in row.values())] for name, row in rows.items()
            ]
            lines.append(metrics.table([["accuracy of frozen features", *titles], *cells]))
        return "\n\n".join(lines), figures

    return Task(*training(config, mean, std), evaluate, draw, report)


def _open(config, part):
    """A source of the config; `same` is the training source with this part's split."""
    same, source = part.source == "same", config.data.train.source
    if same and source.startswith("array_record:") and "{split}" not in source:
        raise ValueError(
            f"{source!r} names the same records for every split: write {{split}} where the file "
            'names differ, or give data.test.source and both probe sources ("" = none)'
        )
    return sources.open(source if same else part.source, part.split)


def _batches(config, source, limit: int, mesh: Mesh, batch_size: int | None = None):
    """Each of (at most `limit`) examples once, un-augmented, padded, on the mesh."""
    data = config.data
    share = -(-(batch_size or config.evaluate.batch_size) // mesh.size)  # of each device
    batches = pipeline.evaluation_batches(
        source,
        pipeline.test_transform(tuple(data.size), data.channels, data.center_crop),
        batch_size=share * mesh.size,
        limit=limit,
        threads=data.threads,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    return (sharding.place(batch, mesh) for batch in batches)


def heldout(config, mean, std, mesh: Mesh, key: jax.Array):
    """Two functions of the parameters: the held-out losses, and a picture of reconstructions.

    The mask of an example depends on `key` and its number in the source alone, so every evaluation
    of a run and every baseline is asked for the same hidden patches.
    """
    if not config.data.test.source:
        return None, lambda params: None
    model = model_of(config)
    n, keep = counts(config)
    source = _open(config, config.data.test)

    def forward(params, batch):
        images = augment.normalize(batch["image"], mean, std)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        scores = jax.vmap(lambda k: jax.random.uniform(k, (n,)))(keys)
        mask = masking.from_scores(scores, keep)
        out: Any = model.apply({"params": params}, images, mask)
        return images, out

    def sums(params, batch):
        images, out = forward(params, batch)
        target = patches.patchify(images, model.patch)
        target = patches.normalize(target) if model.norm_pix else target
        guess = patches.take(target, out.mask.keep).mean(1, keepdims=True)
        errors = jnp.square(patches.take(target, out.mask.hidden) - guess).mean((1, 2))
        return jnp.stack([(x * batch["valid"]).sum() for x in (out.losses, errors)])

    def reconstructions(params, batch):
        images, out = forward(params, batch)
        full = mae.reconstruct(images, out.prediction, out.mask, model.patch, model.norm_pix)
        images, full = (augment.to_uint8(x, mean, std) for x in (images, full))
        hidden = jnp.broadcast_to(
            masking.hidden_map(out.mask)[..., None], patches.patchify(images, model.patch).shape
        )
        hidden = patches.unpatchify(hidden, model.patch, config.data.size)
        masked = jnp.where(hidden > 0, jnp.asarray(128, jnp.uint8), images)
        return images, masked, full

    everywhere = sharding.replicated(mesh)
    sums = jax.jit(sums, out_shardings=everywhere)
    reconstructions = jax.jit(reconstructions, out_shardings=everywhere)

    def losses(params) -> dict[str, float]:
        count = min(len(source), config.evaluate.examples)
        parts = [np.asarray(sums(params, b)) for b in _batches(config, source, count, mesh)]
        total = np.sum(parts, axis=0)
        return {"trained": float(total[0] / count), "visible_mean": float(total[1] / count)}

    def draw(params) -> Image.Image:
        count = min(config.evaluate.pictures, len(source))
        batch = next(_batches(config, source, count, mesh, batch_size=count))
        columns = (np.asarray(x)[:count] for x in reconstructions(params, batch))
        return pictures.columns(
            dict(zip(("original", "masked", "reconstruction"), columns, strict=True))
        )

    return losses, draw


def probe(config, mean, std, mesh: Mesh):
    """A function of the parameters: kNN and linear accuracy of the encoder's features.

    A feature is the mean over the patch tokens after the last norm, on the whole image,
    standardised on the training examples. Without parameters it is the pixels themselves,
    scaled down to at most 32 a side. Examples without a label are left out.

    Returns:
      The function; None when the config names no labelled source.
    """
    parts = [config.probe.train, config.probe.test]
    if not any(part.source for part in parts):
        return None
    opened = [_open(config, part) for part in parts if part.source]
    classes = [source.classes for source in opened]
    if len(opened) < 2 or min(map(len, classes)) < 2:
        if all(part.source == "same" for part in parts):
            return None  # a folder of pictures without labels
        raise ValueError(
            f"probe.train.source = {parts[0].source!r} and probe.test.source = {parts[1].source!r} "
            'must both have two classes or more: name such sources, or "" for both to go without a '
            "probe"
        )
    if classes[0] != classes[1]:
        raise ValueError(
            f"probe.train.source = {parts[0].source!r} and probe.test.source = {parts[1].source!r} "
            f"have different classes: {', '.join(sorted(set(classes[0]) ^ set(classes[1]))[:5])}"
        )
    model = model_of(config)
    small = tuple(min(side, 32) for side in config.data.size)

    def features(params, batch):
        images = augment.normalize(batch["image"], mean, std)
        if params is None:
            shape = (len(images), *small, images.shape[-1])
            x = jax.image.resize(images, shape, "linear").reshape(len(images), -1)
        else:
            tokens, _ = model.apply({"params": params}, images, method="encode")
            x = tokens[:, 1:].mean(1).astype(jnp.float32)
        return x, batch["label"], batch["valid"]

    features = jax.jit(features, out_shardings=sharding.replicated(mesh))

    def table(params, source):
        rows = [
            jax.tree.map(np.asarray, features(params, batch))
            for batch in _batches(config, source, config.probe.examples, mesh)
        ]
        x, labels, valid = (np.concatenate(column) for column in zip(*rows, strict=True))
        labelled = valid & (labels >= 0)
        return x[labelled], labels[labelled]

    def accuracies(params) -> dict[str, float]:
        (train, train_labels), (test, test_labels) = (table(params, s) for s in opened)
        train, test = probes.standardize(train, test)
        data = (train, train_labels, test, test_labels)
        figures = {"knn": probes.knn(*data)}
        return figures | ({"linear": probes.linear(*data)} if config.probe.linear else {})

    return accuracies
