"""The models in files of other code, which are of one of the `families`."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_jax.data.target_scale import TargetScale
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
    shapes = [x.shape for name, x in tensors.items() if family.is_embedding(name)]
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
    _check_depths(path, inferred, settings)
    pooling = settings.fields.get("pooling"), inferred.get("pooling")
    if pooling == ("mean", "cls"):
        inferred["pooling"] = "norm_mean"  # the norm is before the pooling
    if pooling == ("cls", "mean") and inferred["classes"]:
        raise ValueError(f"{path} has a norm behind the pooling of its class token: not possible")
    said = {**settings.fields, **given, **adapted}
    fields = {**inferred, **{n: x for n, x in settings.fields.items() if n != "pooling"}}
    fields |= {**given, **adapted}
    if assumed := _assumptions(kind, fields, said):
        _log.warning("%s does not say, so it is assumed: %s", path, ", ".join(assumed))
    names = build.FIELDS[kind] - ({"learned_positions"} - adapted.keys())
    fields = {name: x for name, x in fields.items() if name in names}
    tables = ["encoder/positions", "decoder/positions"][: 2 if kind == "MaskedAutoencoder" else 1]
    tables = [name for name in tables if not left_out(name)]
    place = stored_positions.place
    try:
        params, fields, grid = place(known, params, tables, fields, settings.size, size)
    except ValueError as error:
        parts = ("encoder/", "decoder/", "norm/", "head/")
        if others := [name for name in params if not name.startswith(parts)]:
            raise ValueError(
                f"{path} has {', '.join(others[:3])}, which models of this project do not have"
            ) from error
        raise
    inputs = settings.size
    if grid:
        inputs = tuple(side * p for side, p in zip(grid, patch, strict=True))
    ratio = settings.mask_ratio if kind == "MaskedAutoencoder" else None
    put, targets, outputs = checkpoint_info.place, settings.targets, fields.get("classes")
    if targets and len(targets.names) != outputs:  # transformers leaves the names of two out
        targets = TargetScale(tuple(f"target_{k}" for k in range(outputs))) if outputs else None
    return CheckpointInfo(
        str(path),
        kind,
        fields,
        {name: tensor.shape for name, tensor in params.items()},
        lambda wanted: {n: put(params[n].read(), leaf) for n, leaf in wanted.items()},
        channels,
        inputs,
        classes=settings.classes if len(settings.classes or ()) == fields.get("classes") else None,
        targets=targets,
        mean=settings.mean,
        std=settings.std,
        config=None if ratio is None else {"mask": {"ratio": ratio}},
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
    # DINOv2, iBOT and BEiT have a mask token in the encoder, and no decoder.
    if any(n.startswith("decoder/") and n != "decoder/mask_token" for n in params):
        names = ("decoder/mask_token", "decoder/norm/scale", "decoder/norm/bias")
        width = params[next((n for n in names if n in params), names[0])].shape[-1]
        decoder = trunk("decoder", width) | dict(heads=family.decoder_heads.get(width))
        fields |= {f"decoder_{n}": x for n, x in decoder.items()}
        return "MaskedAutoencoder", fields | dict(norm_pix=family.norm_pix)
    pooling = "mean"
    if "encoder/norm/scale" in params:
        pooling = "cls" if fields["cls_tokens"] else "norm_mean"
    classes = params["head/kernel"].shape[-1] if "head/kernel" in params else 0
    return "Classifier", fields | dict(classes=classes, pooling=pooling)


def _check_depths(path: Path, inferred: Fields, settings: model_settings.Settings) -> None:
    """Raise ValueError if the file has other blocks than its config.json or arguments say."""
    for part, depth in settings.depths.items():
        blocks = inferred.get(f"{part}depth", depth)
        if blocks != depth:
            raise ValueError(
                f"{path} has {blocks} blocks where its config.json or its arguments say "
                f"{part}depth = {depth}: some are missing"
            )


def _assumptions(kind: str, fields: Fields, said: Mapping[str, Any]) -> list[str]:
    """Return what is assumed of a model because nothing says it."""
    heads = [f"{part}heads" for part in ("", "decoder_") if fields.get(f"{part}heads")]
    found = [f"{n} = {fields[n]} (as published for this width)" for n in heads if n not in said]
    if kind == "MaskedAutoencoder" and "norm_pix" not in said:
        target = "normalised patches" if fields["norm_pix"] else "plain pixels"
        found.append(f"norm_pix = {fields['norm_pix']} (its decoder predicts {target})")
    if kind == "Classifier" and fields["classes"] and "pooling" not in said:
        if fields["pooling"] == "cls":  # with the parameters of "norm_mean"
            found.append("pooling = 'cls' (and not 'norm_mean', the mean of the patch tokens)")
    return found
