"""Files of ONNX and StableHLO: see `export`."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import export as jax_export

from mae_jax.exchange import check, computation, onnx_graph
from mae_jax.exchange.computation import INSTALL, Computation

PLATFORMS = ("cpu", "cuda", "tpu")
MAX_BYTES = 2**31 - 2**24  # of protobuf and of flatbuffers, less a margin for the graph


def export(
    checkpoint: str,
    target: str | Path,
    *,
    overwrite: bool = False,
    run_check: bool = False,
    make: Callable[..., Computation] = computation.make,
    **options: Any,
) -> str:
    """Write what a checkpoint computes to `target`, whole or not at all.

    Args:
      target: NAME.onnx or NAME.stablehlo. Beside it may stand NAME.onnx.data, with the parameters
        of a model above 2 GB, or NAME.stablehlo.json, with the metadata.
      run_check: run the file without this package before it takes its place, see `check.report`.
      checkpoint, options: as in `computation.make`.
      make: returns the computation of `checkpoint`, given `options`.

    Returns:
      Lines that say what was written, and its inputs and outputs.

    Raises:
      ValueError: the computation has no such form, or the file computes something else.
      ImportError: a package of the extra [export] is missing.
    """
    target = Path(target)
    if target.suffix not in WRITERS:
        raise ValueError(f"{target} ends with none of {', '.join(WRITERS)}: give another --to")
    companion = target.with_name(target.name + (".data" if target.suffix == ".onnx" else ".json"))
    for path in (target, companion):
        if path.is_dir() or (path.exists() and not overwrite):
            raise ValueError(f"{path} exists already: give another --to, or --overwrite")
    made = make(checkpoint, **options)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        stage = Path(folder) / target.name
        WRITERS[target.suffix](stage, made)
        checked = check.report(stage, made) if run_check else ""
        companion.unlink(missing_ok=True)
        for path in sorted(Path(folder).iterdir(), reverse=True):  # the companion first
            path.replace(target.parent / path.name)
    return "\n".join(filter(None, [_report([target, companion], made), checked]))


def _report(paths: list[Path], made: Computation) -> str:
    about = made.description()
    files = [f"{path} ({path.stat().st_size / 1e6:,.1f} MB)" for path in paths if path.exists()]
    what = f"{about['what']} of {about['checkpoint']}, for any batch size"
    lines = [f"wrote {' and '.join(files)}: {what}"]
    for kind in ("inputs", "outputs"):
        for name, x in about[kind].items():
            shape = " ".join(map(str, x["shape"]))
            lines.append(f"  {kind[:-1]} {name}: {x['dtype']} [{shape}], {x['meaning']}")
    return "\n".join(lines)


def _bytes(made: Computation) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(made.params))


def write_onnx(path: Path, made: Computation) -> None:
    """Write an ONNX model with the description as `metadata_props`, each value as JSON."""
    try:
        import onnx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"an .onnx file is written by the package onnx: {INSTALL}") from error
    model = onnx_graph.translate(made.function, made.params, made.inputs)
    model.producer_name = "mae_jax"
    model.producer_version = made.metadata["mae_jax"]
    values = {name: json.dumps(value) for name, value in made.description().items()}
    onnx.helper.set_model_props(model, values)
    if _bytes(made) <= MAX_BYTES:
        onnx.save_model(model, path)
        return
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")
    shutil.copymode(path, path.with_name(f"{path.name}.data"))  # onnx makes it private


def write_stablehlo(path: Path, made: Computation) -> None:
    """Write what `jax.export.deserialize` reads, for all `PLATFORMS`, and its description."""
    if _bytes(made) > MAX_BYTES:
        raise ValueError(
            f"the parameters have {_bytes(made) / 1e9:.1f} GB, and a .stablehlo file holds 2: "
            "write an .onnx file"
        )
    call = jax.jit(lambda *inputs: made.function(made.params, *inputs))
    exported = jax_export.export(call, platforms=PLATFORMS)(*made.inputs.values())
    try:
        path.write_bytes(exported.serialize())
    except ImportError as error:
        raise ImportError(f"a .stablehlo file needs the package flatbuffers: {INSTALL}") from error
    text = json.dumps(made.description() | {"platforms": PLATFORMS}, indent=2)
    path.with_name(f"{path.name}.json").write_text(text + "\n")


WRITERS: dict[str, Callable[[Path, Computation], None]] = {
    ".onnx": write_onnx,
    ".stablehlo": write_stablehlo,
}
