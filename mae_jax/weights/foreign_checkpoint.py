"""The models in files of other code, which are of one of the `families`."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_jax.models import build
from mae_jax.weights import (
    checkpoint_info,
    folding,
    model_settings,
    stored_positions,
    tensor_files,
)
from mae_jax.weights.checkpoint_info import CheckpointInfo
from mae_jax.weights.parameter_names import Family, Fields, Known, Tensors

HEADS = {variant["width"]: variant["heads"] for variant in build.VARIANTS.values()} | {192: 3}
_log = logging.getLogger(__name__)


def find(
    path: Path,
    file: tensor_files.TensorFile,
    family: Family,
    left_out: Callable[[str], Any],
    size: Sequence[int] | None,
    given: Mapping[str, Any],
) -> CheckpointInfo:
    """Return the model in a file with names of `family`.

    Args:
      left_out: says whether a parameter with our name is to be ignored.
      size: the size of the inputs, if the caller knows it.
      given: fields of the model that the caller knows.

    Raises:
      ValueError: parameters are missing or contradict what lies beside the file, or the model is
        one that ours cannot be.
    """
    tensors = folding.fold_linear_probe(file.tensors)
    shapes = [x.shape for n, x in tensors.items() if n.endswith(".weight") and len(x.shape) > 2]
    if not shapes:
        raise ValueError(f"{family.names['encoder/embedding']}.weight is missing in {path}")
    patch, channels = shapes[0][2:], sum(shape[1] for shape in shapes)
    settings = model_settings.read(path, family, file.args, patch, width=shapes[0][0])
    known = Known(path, patch, channels, file.args, {**settings.fields, **given})
    kept = lambda params: {name: x for name, x in params.items() if not left_out(name)}
    params, adapted = family.adapt(kept(family.ours(tensors)), known)
    params = kept(folding.fold(params))
    try:
        kind, inferred = _infer_model(params, patch, family)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing in {path}") from None
    _check(path, kind, inferred, settings, adapted, given)
    fields = {**inferred, **settings.fields, **given, **adapted}
    names = build.FIELDS[kind] - ({"learned_positions"} - adapted.keys())
    fields = {name: x for name, x in fields.items() if name in names}
    tables = ["encoder/positions", "decoder/positions"][: 2 if kind == "MaskedAutoencoder" else 1]
    tables = [name for name in tables if not left_out(name)]
    sizes = settings.size, size
    params, fields, grid = stored_positions.place(known, params, tables, fields, *sizes)
    inputs = settings.size
    if grid:
        inputs = tuple(side * p for side, p in zip(grid, patch, strict=True))
    ratio = settings.mask_ratio if kind == "MaskedAutoencoder" else None
    place = checkpoint_info.place
    return CheckpointInfo(
        str(path),
        kind,
        fields,
        {name: tensor.shape for name, tensor in params.items()},
        lambda wanted: {n: place(params[n].read(), leaf) for n, leaf in wanted.items()},
        channels,
        inputs,
        settings.classes if len(settings.classes or ()) == fields.get("classes") else None,
        settings.mean,
        settings.std,
        None if ratio is None else {"mask": {"ratio": ratio}},
    )


def _infer_model(params: Tensors, patch: tuple[int, ...], family: Family) -> tuple[str, Fields]:
    """Return the kind and the fields of a model; heads are known only for the published widths.

    Raises:
      KeyError: a parameter is missing, which the error names.
    """

    def trunk(part: str, width: int) -> Fields:
        numbers = {name.split("/")[1] for name in params if name.startswith(f"{part}/block_")}
        for i in range(len(numbers)):
            if f"block_{i}" not in numbers:
                raise KeyError(f"{part}/block_{i}")
        fields: Fields = dict(width=width, depth=len(numbers))
        if numbers or part == "encoder":
            hidden = params[f"{part}/block_0/mlp/fc1/kernel"].shape[-1]
            ratio = hidden / width
            exact = ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
            fields["mlp_ratio"] = exact
        return fields

    count = lambda name: params[name].shape[0] if name in params else 0
    width = params["encoder/embedding/kernel"].shape[-1]
    fields: Fields = dict(patch=patch, eps=family.eps) | trunk("encoder", width)
    fields |= dict(heads=HEADS.get(width), cls_tokens=count("encoder/cls"))
    fields["register_tokens"] = count("encoder/registers")
    if any(name.startswith("decoder/") for name in params):
        names = ("decoder/mask_token", "decoder/norm/scale", "decoder/norm/bias")
        width = params[next((n for n in names if n in params), names[0])].shape[-1]
        decoder = trunk("decoder", width) | dict(heads=family.decoder_heads.get(width))
        return "MaskedAutoencoder", fields | {f"decoder_{n}": x for n, x in decoder.items()}
    pooling = "mean"
    if "encoder/norm/scale" in params:
        pooling = "cls" if fields["cls_tokens"] else "norm_mean"
    classes = params["head/kernel"].shape[-1] if "head/kernel" in params else 0
    return "Classifier", fields | dict(classes=classes, pooling=pooling)


def _check(
    path: Path,
    kind: str,
    inferred: Fields,
    settings: model_settings.Settings,
    adapted: Fields,
    given: Mapping[str, Any],
) -> None:
    """Refuse blocks that are missing, and say what is assumed where nothing says it.

    The pooling of a classifier follows from its norms; where they are before the pooling, its mean
    and its class token have the same parameters.
    """
    for part, depth in settings.depths.items():
        blocks = inferred.get(f"{part}depth", depth)
        if blocks != depth:
            raise ValueError(
                f"{path} has {blocks} blocks where its config.json says {part}num_hidden_layers = "
                f"{depth}: some are missing"
            )
    pooling = settings.fields.pop("pooling", None)
    said = {**settings.fields, **adapted, **given}
    if kind == "MaskedAutoencoder" and "norm_pix" not in said:
        _log.warning(
            "%s does not say whether its decoder predicts normalised patches: norm_pix = True is "
            "assumed",
            path,
        )
    if kind == "Classifier" and inferred["classes"] and inferred["pooling"] == "cls":
        if pooling == "mean":
            settings.fields["pooling"] = "norm_mean"
        elif pooling is None and "pooling" not in given:
            _log.warning(
                "%s does not say how it pools its tokens: pooling = 'cls' is assumed; give "
                "'norm_mean' if it is the mean of the patch tokens after the norm",
                path,
            )
