"""A model where it lies, in a work directory or in a file, before any of it is read."""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from mae_jax.models import build, patches, positions
from mae_jax.output import files
from mae_jax.weights import parameter_names, torch_pickle

Abstract = dict[str, jax.ShapeDtypeStruct]  # name -> shape, dtype and, maybe, sharding
SPEED, KINDS = build.SPEED, build.FIELDS
HEADS = {size["width"]: size["heads"] for size in build.VARIANTS.values()}
DECODER_HEADS = {512: 16}
REFERENCE_EPS = 1e-6  # of its LayerNorms; its files do not say so


class Found(NamedTuple):
    """What lies at a path, before any of it is read."""

    path: str
    kind: str  # of MODELS
    fields: dict[str, Any]  # of the module
    params: Abstract  # under our names; learned positions as they are stored
    read: Callable[[Abstract], dict[str, jax.Array]]  # names with placements -> arrays
    channels: int
    size: tuple[int, ...] | None = None  # of the inputs it was trained on
    classes: list[str] | None = None  # their names
    mean: list[float] | None = None  # per channel, of pixels in [0, 1]
    std: list[float] | None = None
    config: dict | None = None  # of a work directory, or what an exported file keeps of it
    step: int | None = None

    @property
    def model(self) -> Any:
        """The module. ValueError where nothing says how many heads it has, or it cannot be so."""
        for part in ("", "decoder_"):
            heads, width = self.fields.get(f"{part}heads", 1), self.fields.get(f"{part}width", 1)
            if heads is None:
                raise ValueError(
                    f"{self.path} does not say how many heads its {width} channels have: give "
                    f"{part}heads, a number that divides {width}"
                )
            if heads < 1 or width % heads:
                raise ValueError(f"{part}heads = {heads} does not divide {part}width = {width}")
        return build.model(self.kind, self.fields | {"attention": "auto"})


def reduced(kind: str, fields: dict, present: Iterable[str]) -> tuple[str, dict]:
    """Without a decoder an autoencoder is a headless classifier; without a head, so is that."""
    parts = {name.split("/")[0] for name in present}
    if kind == "MaskedAutoencoder" and "decoder" not in parts:
        fields = {name: x for name, x in fields.items() if name in KINDS["Classifier"]}
        return "Classifier", fields | dict(classes=0, pooling="cls")
    if kind == "Classifier" and "head" not in parts:
        return kind, fields | dict(classes=0)
    return kind, fields


def matcher(without: str) -> Callable[[str], Any]:
    """Whether the expression `without` matches a whole name."""
    try:
        return re.compile(without).fullmatch
    except re.error as error:
        raise ValueError(f"without={without} is no regular expression: {error}") from None


def fixed_tables(model: Any, size: Sequence[int]) -> dict[str, np.ndarray]:
    """`encoder/positions` and, with a decoder, `decoder/positions`: what a model without learned
    ones adds to its tokens; of separable ones the two parts."""
    grid = model.grid(size)
    widths = {
        "encoder": model.width,
        "decoder": model.decoder.trunk.width if hasattr(model, "decoder") else None,
    }
    return {
        f"{part}/{name}": table
        for part, width in widths.items()
        if width
        for name, table in positions.initial_tables(
            grid, width, isinstance(model.encoder.position_table, positions.Separable)
        ).items()
    }


def _fixed(grid: Sequence[int], width: int) -> np.ndarray:
    return np.concatenate([np.zeros((1, width), np.float32), positions.sincos(grid, width)])


def place(x: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """`x`, each device reading no more than its share; never a view on a file."""
    part = lambda index: np.array(x[index], leaf.dtype, order="C")
    if leaf.sharding is None:
        return jnp.asarray(part(...))
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


def tuples(x: Any) -> Any:
    """Lists, of JSON, as the tuples that a module's fields are."""
    return tuple(map(tuples, x)) if isinstance(x, list | tuple) else x


def read_json(path: epath.Path) -> dict[str, Any]:
    return files.read_json(path) if path.exists() else {}


def fold(kernel, bias, mean, var, eps: float = 1e-6):
    """Kernel and bias of a head that does what a BatchNorm without parameters and it did."""
    scale = 1 / (var + eps) ** 0.5
    return kernel * scale[:, None], bias - (mean * scale) @ kernel


def in_file(path: epath.Path, without: str = "", size: Sequence[int] | None = None) -> Found:
    """A model in a file, or in a folder of Hugging Face's; `size` is that of its inputs, maybe."""
    state = torch_pickle.read(str(path))
    family = parameter_names.family(state)
    named = matcher(without)
    chosen = lambda params: {n: x for n, x in params.items() if not named(n)}
    about: dict[str, Any] = {}
    if family == "mae_jax":
        params = chosen(state)
        try:
            about = json.loads(torch_pickle.metadata(str(path))["mae_jax"])
            kind, fields = about["kind"], dict(about["fields"])
            fields = {name: tuples(x) for name, x in fields.items() if name not in SPEED}
            fields = {build.OLD_NAMES.get(name, name): x for name, x in fields.items()}
            build.model(kind, fields)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} does not say what model it holds: export it again") from error
        if fields.get("learned_positions"):
            parts = {name.split("/")[0] for name in params} & {"encoder", "decoder"}
            separable = fields.get("separable_positions", False)
            leaves = ["positions_time", "positions_space"] if separable else ["positions"]
            tables = {f"{part}/{leaf}" for part in parts for leaf in leaves}
            if missing := sorted(n for n in tables - params.keys() if not named(n)):
                raise ValueError(f"{', '.join(missing)} missing in {path}")
    else:
        params = chosen(parameter_names.read(_probe(state), family))
        try:
            kind, fields = _described(params, parameter_names.patch_of(state, family))
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is missing in {path}") from None
        fields["eps"] = REFERENCE_EPS
        if family == "huggingface":
            about = _of_huggingface(path, kind, fields)
        about["size"] = _positions(path, params, fields, named, about.get("size"), size)
    kind, fields = reduced(kind, fields, params)

    def read(wanted: Abstract) -> dict[str, jax.Array]:
        return {name: place(params[name], leaf) for name, leaf in wanted.items()}

    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in params.items()}
    embedding = shapes.get("encoder/embedding/kernel")
    values = math.prod(fields["patch"]) * (fields.get("vocab_size") or 1)
    channels = embedding.shape[0] // values if embedding else 3
    return Found(
        str(path),
        kind,
        fields,
        shapes,
        read,
        channels,
        tuple(about["size"]) if about.get("size") else None,
        about.get("classes"),
        about.get("mean"),
        about.get("std"),
        about.get("config"),
    )


def _probe(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A linear probe of the reference has a BatchNorm as `head.0`: fold it into the head."""
    parts = ("head.1.weight", "head.1.bias", "head.0.running_mean", "head.0.running_var")
    if any(name not in state for name in parts):
        return state
    weight, bias, mean, var = (np.float32(state[name]) for name in parts)
    kernel, bias = fold(weight.T, bias, mean, var)
    state = {name: x for name, x in state.items() if not name.startswith("head.")}
    return state | {"head.weight": kernel.T, "head.bias": bias}


def _described(params: dict[str, np.ndarray], patch: tuple[int, ...]) -> tuple[str, dict]:
    """The module of these parameters; its heads are known for the published widths alone.

    Raises:
      KeyError: with the name of a parameter that is missing.
    """
    columns = lambda name: params[name].shape[-1]

    def depth(part: str) -> int:
        numbers = {name.split("/")[1] for name in params if name.startswith(f"{part}/block_")}
        for i in range(len(numbers)):
            if f"block_{i}" not in numbers:
                raise KeyError(f"{part}/block_{i}")
        return len(numbers)

    width, hidden = columns("encoder/embedding/kernel"), columns("encoder/block_0/mlp/fc1/kernel")
    ratio = hidden / width
    fields = dict(
        patch=patch,
        width=width,
        depth=depth("encoder"),
        heads=HEADS.get(width),
        mlp_ratio=ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf),
    )
    if any(name.startswith("decoder/") for name in params):
        width = columns("decoder/embedding/kernel")
        return "MaskedAutoencoder", fields | dict(
            decoder_width=width,
            decoder_depth=depth("decoder"),
            decoder_heads=DECODER_HEADS.get(width),
        )
    return "Classifier", fields | dict(
        classes=columns("head/kernel") if "head/kernel" in params else 0,
        pooling="cls" if "encoder/norm/scale" in params else "mean",
    )


def _of_huggingface(path: epath.Path, kind: str, fields: dict) -> dict[str, Any]:
    """Put what a config.json says into `fields`; return what it says of the inputs."""
    folder = path if path.is_dir() else path.parent
    settings = read_json(folder / "config.json")
    if settings.get("model_type") != "vit_mae":  # a file alone
        settings = {}
    if settings.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"{path} is a model with {settings['hidden_act']}, and here is only gelu")

    def setting(name: str, default: Any, kinds: tuple[type, ...] = (int,)) -> Any:
        value = settings.get(name, default)
        if value is not None and type(value) not in kinds:
            raise ValueError(f"{folder / 'config.json'}: {name} = {value!r} cannot be")
        return value

    fields["eps"] = setting("layer_norm_eps", 1e-12, (float, int))  # its own default
    fields["heads"] = setting("num_attention_heads", fields["heads"])
    depths = {"depth": "num_hidden_layers"}
    if kind == "MaskedAutoencoder":
        fields["norm_pix"] = setting("norm_pix_loss", False, (bool,))
        fields["decoder_heads"] = setting("decoder_num_attention_heads", fields["decoder_heads"])
        depths["decoder_depth"] = "decoder_num_hidden_layers"
    for ours, theirs in depths.items():
        if fields[ours] != setting(theirs, fields[ours]):
            raise ValueError(
                f"{path} has {fields[ours]} blocks where its config.json says {theirs} = "
                f"{settings[theirs]}: some are missing"
            )
    setting("image_size", None, (int, list))
    size, axes = settings.get("image_size"), len(fields["patch"])
    size = [size] * axes if isinstance(size, int) else size
    images = read_json(folder / "preprocessor_config.json") if settings else {}
    return {
        "size": size if size and len(size) == axes else None,
        "mean": images.get("image_mean"),
        "std": images.get("image_std"),
    }


def _positions(path, params: dict, fields: dict, named: Callable, *sizes: Any) -> Any:
    """Take fixed tables out of `params`, or note in `fields` that they are learned.

    Args:
      named: of the names that may be missing.
      sizes: of the inputs, that the tables may be of; a square one is tried after the first.

    Returns:
      The size that they are of; without tables the first of `sizes`.
    """
    patch, parts = fields["patch"], {"encoder": "width", "decoder": "decoder_width"}
    tables = {part: params[f"{part}/positions"] for part in parts if f"{part}/positions" in params}
    absent = [part for part, width in parts.items() if fields.get(width) and part not in tables]
    if missing := [f"{part}/positions" for part in absent if not named(f"{part}/positions")]:
        raise ValueError(f"{', '.join(missing)} missing in {path}: give without= to do without")
    if not tables:
        return sizes[0]
    n = len(next(iter(tables.values()))) - 1
    side = round(n ** (1 / len(patch)))
    grids = [patches.grid_of(size, patch) for size in sizes if size]
    grids.insert(1 if sizes[0] else 0, (side,) * len(patch))
    grids = [grid for grid in grids if math.prod(grid) == n]
    if not grids:
        raise ValueError(
            f"{path} has {n} positions, which are no square grid: give size=, that of its inputs"
        )
    for grid in grids:
        if all(_is_fixed(table, grid) for table in tables.values()):
            for part in tables:
                del params[f"{part}/positions"]
            break
    else:
        grid, fields["learned_positions"] = grids[0], True
        for part, width in parts.items():
            if fields.get(width):
                params.setdefault(f"{part}/positions", _fixed(grid, fields[width]))
    return [g * p for g, p in zip(grid, patch, strict=True)]


def _is_fixed(table: np.ndarray, grid: Sequence[int]) -> bool:
    """Whether a table is sin-cos, to its own precision."""
    fixed = _fixed(grid, table.shape[1])
    near = 1e-5 if table.dtype.itemsize > 2 else 1e-2  # some compute it in less than float64
    return table.shape == fixed.shape and bool(
        np.abs(table.astype(np.float32) - fixed).max() < near
    )
