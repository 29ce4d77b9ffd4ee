"""SatMAE (sustainlab-group/SatMAE) with groups of channels."""

import re

import numpy as np

from mae_jax.weights import tensor_files
from mae_jax.weights.families import reference
from mae_jax.weights.parameter_names import Family, Fields, Known, Tensors


def adapt(params: Tensors, known: Known) -> tuple[Tensors, Fields]:
    """Join the matrices of the groups, and the positions of patches, groups and class token.

    Its loss compares the output number c of all groups, one after another, with band c. A group
    whose channels are not in order therefore predicts other bands than it sees.
    """
    groups = known.fields.get("channel_groups") or known.args.get("grouped_bands")
    inputs = [params.pop(f"encoder/embedding_{i}/kernel") for i in range(_count(params))]
    sizes = [x.shape[0] // int(np.prod(known.patch)) for x in inputs]
    if not groups or [len(group) for group in groups] != sizes:
        raise ValueError(
            f"{known.path} has groups of {sizes} channels, and does not say which channels these "
            "are: give channel_groups=, such as ((0, 1), (2, 3))"
        )
    fields: Fields = dict(channel_groups=groups, learned_positions=True)
    channels, depth = sum(sizes), np.prod(known.patch)

    def kernel(*parts):
        whole = np.zeros((depth, channels, parts[0].shape[-1]), np.float32)
        for group, part in zip(groups, parts, strict=True):
            whole[:, list(group)] = part.reshape(depth, len(group), -1)
        return whole.reshape(depth * channels, -1)

    biases = [params.pop(f"encoder/embedding_{i}/bias") for i in range(len(sizes))]
    params["encoder/embedding/kernel"] = tensor_files.compute(kernel, *inputs)
    params["encoder/embedding/bias"] = tensor_files.compute(np.zeros_like, biases[0])
    params["encoder/positions"] = _positions(params, "encoder", biases)
    if "decoder/mask_token" in params:
        params["decoder/positions"] = _positions(params, "decoder", [])
        starts = np.cumsum([0, *sizes])
        fields["target_groups"] = tuple(
            tuple(range(start, start + n)) for start, n in zip(starts[:-1], sizes, strict=True)
        )
        for leaf in ("kernel", "bias"):
            heads = [params.pop(f"decoder/head_{i}/{leaf}") for i in range(len(sizes))]
            join = lambda *parts: _channels_last(parts, depth)
            params[f"decoder/head/{leaf}"] = tensor_files.compute(join, *heads)
        normalised = known.fields.get("norm_pix", True)
        fields["norm_pix"] = "patch" if normalised is True else normalised
    return params, fields


def _count(params: Tensors) -> int:
    return sum(bool(re.fullmatch(r"encoder/embedding_\d+/kernel", name)) for name in params)


def _channels_last(parts, depth):
    """Join heads whose outputs are (c p q) to one whose outputs are (p q c)."""
    parts = [np.moveaxis(x.reshape(*x.shape[:-1], -1, depth), -1, -2) for x in parts]
    whole = np.concatenate(parts, axis=-1)
    return whole.reshape(*whole.shape[:-2], -1)


def _positions(params: Tensors, part: str, biases) -> tensor_files.Tensor:
    """Return the rows of the class token and then of each group's patches, `[1 + g n, width]`."""
    places, groups = params.pop(f"{part}/places"), params.pop(f"{part}/channels")
    cls = params.pop(f"{part}/cls_channel", None)

    def table(places, groups, *rest):
        places, groups = np.asarray(places, np.float32), np.asarray(groups, np.float32)
        if cls:  # fine-tuned
            first, rest = np.concatenate([places[:1], np.asarray(rest[0], np.float32)], 1), rest[1:]
        elif part == "decoder":
            first, groups = np.concatenate([places[:1], groups[-1:]], 1), groups[:-1]
        else:
            first = np.zeros((1, places.shape[1] + groups.shape[1]), np.float32)
        rows = [first]
        for i, group in enumerate(groups):
            row = np.broadcast_to(group, (len(places) - 1, len(group)))
            bias = np.asarray(rest[i], np.float32) if rest else np.zeros(1, np.float32)
            rows.append(np.concatenate([places[1:], row], 1) + bias)
        return np.concatenate(rows)

    return tensor_files.compute(table, places, groups, *([cls] if cls else []), *biases)


FAMILY = Family(
    "SatMAE with groups",
    reference.FAMILY.names
    | {
        "encoder/embedding_#": "patch_embed.#.proj",
        "encoder/places": "pos_embed",
        "encoder/channels": "channel_embed",
        "encoder/cls_channel": "channel_cls_embed",
        "decoder/head_#": "decoder_pred.#",
        "decoder/places": "decoder_pos_embed",
        "decoder/channels": "decoder_channel_embed",
    },
    marks=(r"^patch_embed\.\d+\.proj\.",),
    adapt=adapt,
)
