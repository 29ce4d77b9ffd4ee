"""Models and parameters from whatever holds them: see `load`."""

import hashlib
import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mae_jax.distributed import partitioning
from mae_jax.models import mae, masking, positions
from mae_jax.weights import checkpoint_info, resize_positions, run_checkpoint
from mae_jax.weights.checkpoint_info import Found

ACCEPTED = (
    "a work directory (DIR or DIR:STEP), a .pth file of the reference, a folder or a file of "
    "Hugging Face's ViTMAE, or a .safetensors file of mae_jax"
)


def load(
    path: epath.PathLike,
    *,
    without: str = "",
    size: Sequence[int] | None = None,
    mesh: Mesh | None = None,
    sha256: str = "",
    **fields: Any,
) -> tuple[Any, dict]:
    """The model that lies at `path`, and its parameters: `model.apply({"params": params}, ...)`.

    Args:
      path: a work directory (the newest checkpoint, or that of `DIR:STEP`; the moving average
        where the run kept one); a `.pth` of the reference (encoder, full or fine-tuned); a folder
        or a `.safetensors` of Hugging Face's ViTMAE; or a `.safetensors` of `mae_jax.convert`.
      without: expression over whole names, such as "decoder/.*": what it matches may be missing,
        and is left out. An autoencoder without its decoder is a `vit.Classifier` without a head.
      size: of the inputs. Fixed positions suit any; learned ones are resized to it (bicubic).
      mesh: each parameter is placed on it, in its shares, as training does; without a mesh on the
        default device.
      sha256: of the file, as `mae_jax.convert` says it: another file is refused unread.
      fields: of the module, where the file does not say them or you want others. A reference file
        says neither `norm_pix` (taken to be True) nor, but for the published sizes, `heads` and
        `decoder_heads`; a Hugging Face file without a config.json beside it says no more.

    Raises:
      ValueError: in one sentence: nothing of that kind is there, it is damaged or not to be
        trusted, or parameters are missing, left over or of other shapes, with their names.
    """
    found = find(path, without=without, size=size, sha256=sha256, **fields)
    return found.model, parameters(found, without=without, size=size, mesh=mesh)


def parameters(
    found: Found,
    *,
    without: str = "",
    size: Sequence[int] | None = None,
    mesh: Mesh | None = None,
) -> dict:
    """All parameters of `found.model`, as `load` returns them."""
    size, model = tuple(size or found.size or ()) or None, found.model
    wanted = abstract(model, size, found.channels, mesh)
    params = fit(found, wanted, without=without, size=size)
    if (
        not isinstance(model.encoder.position_table, positions.SinCos) and size
    ):  # where the file has fixed ones
        for name, table in checkpoint_info.fixed_tables(model, size).items():
            part, leaf = name.split("/")
            if part in params:
                params[part].setdefault(leaf, checkpoint_info.place(table, wanted[part][leaf]))
    return params


def abstract(
    model: Any, size: Sequence[int] | None, channels: int, mesh: Mesh | None = None
) -> dict:
    """Shapes, dtypes and places on `mesh` of a model's parameters, nested."""
    size = size or tuple(2 * side for side in model.patch)  # any will do without learned positions
    n = math.prod(model.grid(size))

    def init(key):
        mask = masking.from_scores(jnp.zeros((1, n)), max(1, n // 4))
        masks = [mask] if isinstance(model, mae.MaskedAutoencoder) else []
        return model.init(key, jnp.zeros((1, *size, channels)), *masks)["params"]

    shapes = jax.eval_shape(init, jax.random.key(0))
    return partitioning.placed(shapes, mesh) if mesh else shapes


def fit(
    found: Found, wanted: dict, *, without: str = "", size: Sequence[int] | None = None
) -> dict:
    """The parameters that both have, read and placed as the nested `wanted` says.

    Positions that are wanted, where the file has only fixed ones, are left out: they start as
    these. Learned ones of another grid are resized to that of `size` (by default the file's).

    Raises:
      ValueError: naming what either side lacks, unless `without` matches it, and what has another
        shape.
    """
    flat: Any = traverse_util.flatten_dict(wanted, sep="/")
    named = checkpoint_info.matcher(without)
    table = lambda name: "/positions" in name
    missing = [n for n in flat.keys() - found.params.keys() if not named(n) and not table(n)]
    extra = [n for n in found.params.keys() - flat.keys() if not named(n)]
    common = {n: (found.params[n].shape, flat[n].shape) for n in flat.keys() & found.params.keys()}
    common = {n: shapes for n, shapes in common.items() if not named(n)}
    moved = tuple(size) != found.size if size and found.size else None  # None: not known
    resized = [
        n
        for n, (old, new) in common.items()
        if table(n) and old[1:] == new[1:] and (old != new if moved is None else moved)
    ]
    differ = [
        f"{n} is {list(old)} there, not {list(new)}"
        for n, (old, new) in common.items()
        if old != new and n not in resized
    ]
    problems = [f"{_listed(missing)} missing there"] if missing else []
    problems += [f"{_listed(extra)} left over"] if extra else []
    problems += [f"{_listed(differ, 3)} (another model size?)"] if differ else []
    if resized and moved is None:
        problems += [f"{_listed(resized)} of another grid: say of which size= the inputs are"]
    if problems:
        way = ". What may be missing or left over is named by without=" * bool(missing or extra)
        raise ValueError(f"{found.path} does not fit the model: {'; '.join(problems)}{way}")
    arrays = found.read({n: flat[n] for n in common if n not in resized})
    for n in resized:
        place = flat[n].sharding
        if isinstance(place, NamedSharding):  # as a whole, wherever its shares will be
            place = NamedSharding(place.mesh, P())
        whole = jax.ShapeDtypeStruct(found.params[n].shape, flat[n].dtype, sharding=place)
        old, new = (found.model.grid(side or ()) for side in (found.size, size))
        new = resize_positions.resize_named(n, np.asarray(found.read({n: whole})[n]), old, new)
        arrays[n] = checkpoint_info.place(new, flat[n])
    return traverse_util.unflatten_dict(arrays, sep="/")


def _listed(items: Iterable[str], most: int = 20) -> str:
    items = sorted(items)
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if items[most:] else "")


def find(
    path: epath.PathLike,
    *,
    without: str = "",
    size: Sequence[int] | None = None,
    sha256: str = "",
    **fields: Any,
) -> Found:
    """What lies at `path`, as `load` takes it.

    Raises:
      ValueError: in one sentence, as `load`.
    """
    text = str(path)
    place, step = epath.Path(text), None
    if not place.exists() and (parts := re.fullmatch(r"(.+):(\d+)", text)):
        place, step = epath.Path(parts[1]), int(parts[2])
    if not place.exists():
        raise ValueError(f"there is no {text!r}: what can be read is {ACCEPTED}")
    if "://" not in text and not (os.path.isdir(place) or os.path.isfile(place)):  # a pipe, say
        raise ValueError(f"{text!r} is neither a file nor a folder: what can be read is {ACCEPTED}")
    if sha256 and (found := sha256_of(place)) != sha256.lower():
        raise ValueError(f"{place} has the SHA-256 {found}, not {sha256}: it is another file")
    settings = checkpoint_info.read_json(place / "config.json") if place.is_dir() else {}
    if place.is_dir() and ("task" in settings or (place / "checkpoints").exists()):
        found = run_checkpoint.in_work_directory(place, step, without)
    elif step is not None:
        raise ValueError(f"{place} is no work directory, so it has no step {step}")
    elif place.is_dir() and settings.get("model_type") != "vit_mae":
        kind = settings.get("model_type")
        what = f"holds a model of type {kind!r}" if kind else "has no config.json of a known kind"
        raise ValueError(f"{place} {what}: what can be read is {ACCEPTED}")
    else:
        found = checkpoint_info.in_file(place, without, size)
    fields = {name: x for name, x in fields.items() if x is not None}
    if unknown := fields.keys() - checkpoint_info.KINDS[found.kind]:
        raise ValueError(f"{_listed(unknown)} is no field of the {found.kind} in {place}")
    return found._replace(fields=found.fields | fields)


def sha256_of(path: epath.Path) -> str:
    """Of a file, in hexadecimal."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: sha256= is of a single file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
