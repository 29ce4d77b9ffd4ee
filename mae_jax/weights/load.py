"""Loading of models and their parameters: see `load`."""

import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh

from mae_jax.distributed import partitioning
from mae_jax.models import build, mae, masking
from mae_jax.output import files
from mae_jax.weights import (
    adapt_inputs,
    checkpoint_info,
    exported_file,
    families,
    foreign_checkpoint,
    hub,
    prefixes,
    resize_positions,
    tensor_files,
)
from mae_jax.weights.checkpoint_info import CheckpointInfo

_log = logging.getLogger(__name__)
POSITIONS = ("interpolate", "compute")
ACCEPTED = (
    "a work directory (DIR or DIR:STEP), a .pth file or a .safetensors file, a folder of Hugging "
    "Face's transformers or of timm, or hf:ORG/NAME on the Hugging Face Hub"
)


def load(
    path: epath.PathLike,
    *,
    without: str = "",
    size: Sequence[int] | None = None,
    mesh: Mesh | None = None,
    sha256: str = "",
    key: str = "",
    prefix: str = "",
    adapt: str | Sequence[str] = (),
    positions: str = "interpolate",
    **fields: Any,
) -> tuple[Any, dict]:
    """Return the model at `path` and its parameters, for `model.apply({"params": params}, ...)`.

    Args:
      path: a work directory (the newest checkpoint, or that of `DIR:STEP`; the moving average if
        the run kept one); a `.safetensors` of `mae_jax.convert`; a file or a folder of other code,
        pre-trained or fine-tuned: of one of the `families`; or such a folder or file on the Hugging
        Face Hub, `hf:ORG/NAME[/FILE][@REVISION]`, see `hub`.
      without: a regular expression over whole names, such as "decoder/.*": parameters that match
        are left out, and may be missing. An autoencoder without its decoder is a `Classifier`
        without a head.
      size: the size of the inputs. If it is not that of the checkpoint, positions are interpolated
        (bicubic) and the model has them as parameters.
      mesh: the devices on which each parameter is placed in shares, as in training; by default
        the default device.
      sha256: the digest of the file, as `mae_jax.convert` prints it; other files are refused.
      key: which of several networks in a `.pth` file is read, such as "model_ema"; with dots for
        one in another dict. By default it is the trained one, not its moving average.
      prefix: which of several networks in a state dict is read, such as "teacher.". By default a
        usual prefix is removed if the names are unknown with it and known without it.
      adapt: what changes the weights for the arguments `channels` or `patch`, if these are not the
        checkpoint's: "mean" or "repeat" (channels), "resize" (patch, which keeps the number of
        patches unless `size` is given), or one of each. See `adapt_inputs`.
      positions: "interpolate" or "compute": what becomes of fixed positions at another `size`. The
        reference, timm and transformers interpolate; computed ones suit inputs of any size.
      fields: fields of the model (see `models.build`) that the file does not say. A work directory
        and a file of mae_jax say all of them, of which only `dtype` may differ. A file of other
        code without its config.json or arguments says neither `norm_pix` (assumed with a warning:
        False of a ViTMAE, else True) nor, except for the published sizes, `heads` and
        `decoder_heads`.

    Raises:
      ValueError: nothing of that kind is at `path`, the file is damaged or not to be trusted, or
        parameters, which the message names, are missing, left over or of other shapes.
    """
    choice = dict(key=key, prefix=prefix, adapt=adapt, positions=positions)
    info = find(path, without=without, size=size, sha256=sha256, **choice, **fields)
    return info.model, parameters(info, size=size, mesh=mesh)


def find(
    path: epath.PathLike,
    *,
    without: str = "",
    size: Sequence[int] | None = None,
    sha256: str = "",
    key: str = "",
    prefix: str = "",
    adapt: str | Sequence[str] = (),
    positions: str = "interpolate",
    **fields: Any,
) -> CheckpointInfo:
    """Return the checkpoint at `path` before its parameters are read, see `load`.

    Raises:
      ValueError: as `load`.
    """
    left_out = _matcher(without)
    if positions not in POSITIONS:
        raise ValueError(f"positions = {positions!r} must be {' or '.join(map(repr, POSITIONS))}")
    fields = {name: value for name, value in fields.items() if value is not None}
    build.check_values({n: x for n, x in fields.items() if n != "channels"})
    inputs: dict[str, Any] = {name: fields.pop(name, None) for name in ("channels", "patch")}
    size = size if size is None else _sides(size)
    if inputs["channels"] is not None:
        _sides([inputs["channels"]], "channels")
    place, step, name = _locate(str(path))
    if sha256 and (digest := tensor_files.sha256_of(place)) != sha256.lower():
        raise ValueError(f"{place} has the SHA-256 {digest}, not {sha256}: it is another file")
    if _is_work_directory(place):
        if key or prefix:
            raise ValueError(f"{place} is a work directory: leave key= and prefix= out")
        from mae_jax.weights import run_checkpoint  # imports orbax, which other files do not need

        info = run_checkpoint.find(place, step)
        _check_fields(info, fields)
    elif step is not None:
        raise ValueError(f"{place} is no work directory, so it has no step {step}")
    else:
        own_size = None if inputs["patch"] else size  # `size` is a multiple of `patch`
        info = _find_in_file(place, (key, prefix), left_out, own_size, fields)
    # What the file was read with is known; whether positions are trained from now on is not.
    known = info.fields.keys() - {"dtype", "learned_positions"}
    fields = {field: value for field, value in fields.items() if field not in known}
    info = info._replace(without=without, positions=positions, path=name or info.path)
    info = _leave_out(info, left_out)
    info = _interpolated(adapt_inputs.adapt(info, adapt, **inputs), size)
    if unknown := fields.keys() - build.FIELDS[info.kind]:
        raise ValueError(f"{_listed(unknown)} is no field of the {info.kind} in {place}")
    return info._replace(fields=info.fields | fields)


def _settings(place: epath.Path) -> dict[str, Any]:
    return files.read_json(place / "config.json") if (place / "config.json").exists() else {}


def _is_work_directory(place: epath.Path) -> bool:
    return place.is_dir() and ("task" in _settings(place) or (place / "checkpoints").exists())


def _find_in_file(
    place: epath.Path,
    choice: tuple[str, str],
    left_out: Callable[[str], Any],
    size: Sequence[int] | None,
    fields: Mapping[str, Any],
) -> CheckpointInfo:
    """Return the model in a file or in a folder of other code.

    Args:
      choice: `key` and `prefix` of `load`.
    """
    settings, (key, prefix) = _settings(place) if place.is_dir() else {}, choice
    model_type = settings.get("model_type")
    known = model_type in families.MODEL_TYPES or "architecture" in settings
    if place.is_dir() and not known:
        what = "has no config.json of a known kind"
        if model_type:
            types = ", ".join(sorted(families.MODEL_TYPES))
            what = f"holds a model of type {model_type!r} (and not {types})"
        raise ValueError(f"{place} {what}: what can be read is {ACCEPTED}")
    file = tensor_files.open_tensors(Path(place), key)
    tensors = prefixes.remove(Path(place), file.tensors, families.recognise, prefix)
    source = families.recognise(tensors)
    if source == "mae_jax":
        info = exported_file.find(Path(place), tensors, file.metadata)
        _check_fields(info, fields)
        return info
    file, family = file._replace(tensors=tensors), families.FAMILIES[source]
    return foreign_checkpoint.find(Path(place), file, family, left_out, size, fields)


def _sides(values: Any, name: str = "size") -> tuple[int, ...]:
    """Return the numbers of values on each axis."""
    is_list = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str)
    if not is_list or not all(isinstance(x, int | np.integer) and x > 0 for x in values):
        raise ValueError(f"{name} = {values!r} must be whole numbers of at least 1")
    return tuple(map(int, values))


def _locate(text: str) -> tuple[epath.Path, int | None, str]:
    """Return the file or the folder at a path, the step behind a colon, and the name on the Hub.

    Raises:
      ValueError: there is none.
    """
    if hub.is_address(text):
        path, address = hub.download(text)
        return epath.Path(path), None, str(address)
    try:
        place, step = epath.Path(text), None
    except KeyError:  # a scheme that etils does not know
        way = "a model of the Hub is hf:ORG/NAME, and another file is to be fetched first"
        raise ValueError(f"{text!r} is an address that cannot be read: {way}") from None
    if not text:
        raise ValueError(f"the path is empty: what can be read is {ACCEPTED}")
    if not place.exists() and (match := re.fullmatch(r"(.+):(\d+)", text)):
        place, step = epath.Path(match[1]), int(match[2])
    if not place.exists():
        raise ValueError(f"there is no {text!r}: what can be read is {ACCEPTED}")
    if "://" not in text and not (os.path.isdir(place) or os.path.isfile(place)):  # a pipe, say
        raise ValueError(f"{text!r} is neither a file nor a folder: what can be read is {ACCEPTED}")
    return place, step, ""


def _check_fields(info: CheckpointInfo, fields: Mapping[str, Any]) -> None:
    """Raise ValueError for a field that the checkpoint itself describes in another way."""
    for name, value in fields.items():
        if name != "dtype" and info.fields.get(name, value) != value:
            raise ValueError(
                f"{info.path} has {name} = {info.fields[name]}, not {value}: leave {name} out"
            )


def _matcher(without: str) -> Callable[[str], Any]:
    """Return a function that says whether the expression `without` matches a whole name."""
    try:
        return re.compile(without).fullmatch
    except re.error as error:
        raise ValueError(f"without={without} is no regular expression: {error}") from None


def _leave_out(info: CheckpointInfo, left_out: Callable[[str], Any]) -> CheckpointInfo:
    """Return the checkpoint without some parameters; refuse one that lacks learned positions.

    An autoencoder without its decoder becomes a classifier without a head. If its encoder has no
    final norm, it gets a new one behind the pooling.
    """
    info = info._replace(shapes={n: shape for n, shape in info.shapes.items() if not left_out(n)})
    parts, fields = {name.split("/")[0] for name in info.shapes}, info.fields
    if info.kind == "MaskedAutoencoder" and "decoder" not in parts:
        pooling = "cls" if fields.get("cls_tokens", 1) else "norm_mean"
        if not fields.get("final_norm", True):
            pooling, width = "mean", fields["width"]
            norm = {"norm/scale": np.ones(width), "norm/bias": np.zeros(width)}
            info = info.with_arrays(norm)
        fields = {name: fields[name] for name in fields if name in build.FIELDS["Classifier"]}
        info = info._replace(kind="Classifier", fields=fields | dict(classes=0, pooling=pooling))
    elif info.kind == "Classifier" and "head" not in parts:
        info = info._replace(fields=fields | dict(classes=0), targets=None)
    if info.fields.get("learned_positions"):
        tables = checkpoint_info.fixed_positions(info, info.fields["patch"])
        if missing := [n for n in tables.keys() - info.shapes.keys() if not left_out(n)]:
            raise ValueError(
                f"{_listed(missing)} missing in {info.path}: if it is of a model with rotary or "
                "relative positions, it cannot be read; else without= starts with fixed ones"
            )
    return info


def _interpolated(info: CheckpointInfo, size: Sequence[int] | None) -> CheckpointInfo:
    """Return a checkpoint whose fixed tables become learned ones, if `size` is another one."""
    is_fixed = not info.fields.get("learned_positions") and info.positions == "interpolate"
    if not (is_fixed and size and info.size and tuple(size) != info.size):
        return info
    tables = checkpoint_info.fixed_positions(info, info.size)
    if any(map(_matcher(info.without), tables)):
        return info
    _log.info(
        "%s: its positions are interpolated from inputs of %s to %s", info.path, info.size, size
    )
    return info.with_arrays(tables)._replace(fields=info.fields | dict(learned_positions=True))


def parameters(
    info: CheckpointInfo, *, size: Sequence[int] | None = None, mesh: Mesh | None = None
) -> dict:
    """Return all parameters of `info.model`, nested, as `load` does."""
    size = tuple(size or info.size or ()) or None
    return fit(info, abstract(info.model, size, info.channels, mesh), size=size)


def abstract(
    model: Any, size: Sequence[int] | None, channels: int, mesh: Mesh | None = None
) -> dict:
    """Return shapes, dtypes and shardings on `mesh` of a model's parameters, nested."""
    size = size or tuple(2 * side for side in model.patch)  # any, without learned positions

    def init(key):
        n = math.prod(model.grid(size))
        mask = masking.from_scores(jnp.zeros((1, n)), max(1, n // 4))
        masks = [mask] if isinstance(model, mae.MaskedAutoencoder) else []
        return model.init(key, jnp.zeros((1, *size, channels)), *masks)["params"]

    shapes = jax.eval_shape(init, jax.random.key(0))
    return partitioning.placed(shapes, mesh) if mesh else shapes


def fit(info: CheckpointInfo, wanted: Mapping, *, size: Sequence[int] | None = None) -> dict:
    """Return the parameters that both sides have, read and placed as the nested `wanted` says.

    Learned positions of another grid are resized to that of `size` (by default the file's). If
    the file has fixed positions, learned ones start from these, resized too unless
    `info.positions` is "compute", or are left out without a `size`.

    Raises:
      ValueError: one side lacks parameters that `info.without` does not match, or parameters have
        other shapes; the message names all of them.
    """
    left_out, is_table = _matcher(info.without), lambda name: "/positions" in name
    flat: Any = traverse_util.flatten_dict(wanted, sep="/")
    shapes = {name: x.shape for name, x in flat.items() if not left_out(name)}
    # Fixed tables are no parameters, and `find` refuses a file that lacks learned tables.
    missing = [n for n in shapes.keys() - info.shapes.keys() if not is_table(n)]
    extra, both = info.shapes.keys() - shapes.keys(), info.shapes.keys() & shapes.keys()
    moved = tuple(size) != info.size if size and info.size else None  # None: unknown
    resized, differ = [], []
    for name in both:
        old, new = info.shapes[name], shapes[name]
        has_moved = old != new if moved is None else moved
        if is_table(name) and old[1:] == new[1:] and has_moved:
            resized.append(name)
        elif old != new:
            differ.append(f"{name} is {list(old)} in the checkpoint, not {list(new)}")
    problems = [f"{_listed(missing)} missing"] if missing else []
    problems += [f"{_listed(extra)} left over"] if extra else []
    problems += [f"{_listed(differ, 3)} (another model size?)"] if differ else []
    if resized and moved is None:
        problems += [f"{_listed(resized)} of another grid: say of which size= the inputs are"]
    if problems:
        way = ": without= names what may be missing or left over" if missing or extra else ""
        raise ValueError(f"{info.path} does not fit the model: {'; '.join(problems)}{way}")
    same = both.difference(resized)
    arrays = info.read({name: leaf for name, leaf in flat.items() if name in same})
    arrays |= {name: _resize_positions(info, name, flat[name], size or ()) for name in resized}
    own_size = info.size if info.positions == "interpolate" else None
    fixed = checkpoint_info.fixed_positions(info, own_size or size) if size else {}
    for name, table in fixed.items():
        if name in flat and name not in arrays:
            if own_size:
                table = _resized(info, name, table, size or ())
            arrays[name] = checkpoint_info.place(table, flat[name])
    return traverse_util.unflatten_dict(arrays, sep="/")


def _resize_positions(info: CheckpointInfo, name: str, leaf, size: Sequence[int]) -> jax.Array:
    """Return a learned table of positions for inputs of `size`, placed as `leaf`."""
    table = checkpoint_info.read_whole(info, name, leaf)
    return checkpoint_info.place(_resized(info, name, table, size), leaf)


def _resized(info: CheckpointInfo, name: str, table: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return a table of positions of the file's inputs for inputs of `size`."""
    old, new = (info.grid(sides) for sides in (info.size or (), size))
    rows = info.fields.get("cls_tokens", 1)
    if name.startswith("decoder/") and info.fields.get("decoder") == "own_cls":
        rows = 1
    return resize_positions.resize_named(name, table, old, new, rows)


def _listed(items: Iterable[str], most: int = 20) -> str:
    items = sorted(items)
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if items[most:] else "")
