"""What a run says of its examples before it begins: how many, of which kind, and what is done."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.modalities import transforms
from mae_jax.data.sources.source import Example, Source, read

_SHOWN = 3  # examples that are described
_TRIED = 10


def describe(source: Source, data: Mapping[str, Any]) -> str:
    """Return sentences about the training examples, whose `range`, `mean` and `std` are measured.

    Args:
      data: the section of a config.
    """
    module: Any = transforms.MODALITIES[data["modality"]]
    seen: dict[str, None] = {}

    def kind(example: Example) -> str:
        if not hasattr(module, "open_values"):
            return f"{data['modality']} examples"
        opened = module.open_values(example["image"], data)
        sides = " x ".join(map(str, opened.sides))
        return f"{sides}, {len(opened.bands)} channel(s), {opened.array.dtype}"

    for i in range(min(len(source), _TRIED)):
        with contextlib.suppress(Unreadable):
            seen[read(source, i, kind)] = None
    kinds = [*seen][:_SHOWN] + ["..."] * (len(seen) > _SHOWN)
    size = " x ".join(map(str, data["size"]))
    has_bytes = data["modality"] in ("image", "video") or any("uint8" in kind for kind in kinds)
    parts = [
        _scale(data, has_bytes),
        _missing(data),
        f"crops of {size}" if data["modality"] != "text" else "",
    ]
    parts.append("" if data["modality"] == "text" else _normalization(data))
    return (
        f"{len(source):,} training examples: {'; '.join(kinds)}\n"
        f"what the network sees: {'; '.join(filter(None, parts)) or f'{size} bytes'}"
    )


def _scale(data: Mapping[str, Any], has_bytes: bool) -> str:
    scale = data.get("range")
    if isinstance(scale, Sequence) and not isinstance(scale, str):
        low, high = (f"{x:g}" for x in scale)
        beyond = ", and others are cut to these" if data.get("clip") else ""
        return f"{low} to {high} become 0 to 1{beyond}"
    if scale == "dtype":
        return "whole numbers become 0 to 1 by the limits of their type, and floats stay"
    if scale == "numbers":
        return "numbers stay as they are"
    if has_bytes:
        return "bytes become 0 to 1"
    return ""  # sounds and texts have no range


def _missing(data: Mapping[str, Any]) -> str:
    nodata = data.get("nodata")
    if nodata is None:
        return ""
    says = {"nan": "NaN", "file": "NaN and what files say of themselves", "mask": "NaN and mask"}
    return f"missing: {says[nodata] if isinstance(nodata, str) else f'NaN and {nodata:g}'}"


def _normalization(data: Mapping[str, Any]) -> str:
    mean, std = (
        ", ".join(f"{x:.4g}" for x in np.ravel(data[name])[:4]) + ", ..." * (len(data[name]) > 4)
        for name in ("mean", "std")
    )
    return f"(x - mean) / deviation with mean {mean} and deviation {std}"
