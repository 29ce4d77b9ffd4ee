"""Convert checkpoints: python -m mae_jax.convert --from=PATH[:STEP] --to=PATH [--size=H,W ...]

What is read, and what the options mean, is said by `mae_jax.load`. What is written depends on the
end of --to, or on --format: NAME.pth is the reference's, NAME.safetensors this project's own,
and a folder is for Hugging Face's ViTMAE: `ViTMAEForPreTraining.from_pretrained(folder)`.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from mae_jax.config import command_line
from mae_jax.config.errors import UserError, user_errors
from mae_jax.weights import checkpoint_info, load, parameter_names

FORMATS = {".pth": "reference", ".safetensors": "mae_jax", "": "huggingface"}
OTHERS = ("groups", "categories", "decoder_cross", "target_stride", "separable_positions")
PLACES = {"train", "test", "examples", "threads"}  # of a config's data
UNSAID = {
    "parent",
    "name",
    "dtype",
    "batch_norm",
    "head_std",
} | checkpoint_info.SPEED  # not of parameters


def convert(
    source: str,
    target: str | Path,
    *,
    kind: str = "",
    overwrite: bool = False,
    without: str = "",
    size: Sequence[int] | None = None,
    **fields: Any,
) -> str:
    """Write what lies at `source` to `target`, whole or not at all.

    Args:
      source, without, size, fields: as `pretrained.load` takes them.
      kind: "reference", "huggingface" or "mae_jax"; by default what the name of `target` says.

    Returns:
      Lines that say what was done, with the SHA-256 of the parameters' file.

    Raises:
      ValueError: in one sentence, whatever is wrong.
    """
    target = Path(target)
    kind = kind or _kind_of(target)
    if not overwrite and (target.is_file() or (target.is_dir() and any(target.iterdir()))):
        raise ValueError(f"{target} is there already: give another --to, or --overwrite")
    if target.exists() and target.is_dir() != (kind == "huggingface"):
        what = "a folder" if target.is_dir() else "a file"
        raise ValueError(f"{target} is {what}, which is not what {kind} needs: give another --to")

    found = load.find(source, without=without, size=size, **fields)
    model, params = found.model, load.parameters(found, size=size)
    found = found._replace(size=tuple(size or found.size or ()) or None)
    flat: Any = traverse_util.flatten_dict(params, sep="/")
    flat = {name: np.asarray(x) for name, x in flat.items()}
    other = [name for name in OTHERS if getattr(model, name, None)]
    if kind != "mae_jax" and other:
        raise ValueError(
            f"{found.path} is a model with {', '.join(other)}, which {kind} has not: export it to "
            ".safetensors"
        )
    with _staged(target) as stage:
        WRITERS[kind](stage, found, model, flat)
    file = target / "model.safetensors" if target.is_dir() else target
    of = f", size {found.size}" if found.size else ""
    note = ""
    if kind == "reference" and model.eps != checkpoint_info.REFERENCE_EPS:
        note = f"; its LayerNorms add {checkpoint_info.REFERENCE_EPS} there and {model.eps} here"
    count = sum(x.size for x in flat.values())
    return (
        f"read {found.path}: {type(model).__name__}, patch {model.patch}, width {model.width}, "
        f"depth {model.depth}{of}\n"
        f"wrote {target} ({kind}): {count / 1e6:.1f} M parameters in {len(flat)} arrays{note}\n"
        f"SHA-256 {load.sha256_of(epath.Path(file))} of {file.name}"
    )


def _kind_of(target: Path) -> str:
    suffix = "" if target.is_dir() else target.suffix
    if suffix not in FORMATS:
        raise ValueError(
            f"{target} is neither NAME.pth, NAME.safetensors nor a folder: say which --format"
        )
    return FORMATS[suffix]


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to, which takes its place at the end."""
    stage = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield stage
        if stage.is_dir() and target.is_dir():  # other files stay, but none of another model
            for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
                (target / file).unlink(missing_ok=True)
            for file in stage.iterdir():
                file.replace(target / file.name)
        else:
            stage.replace(target)
    finally:
        if stage.is_dir():
            shutil.rmtree(stage)
        stage.unlink(missing_ok=True)


def _described(found: checkpoint_info.Found, model: Any) -> dict[str, Any]:
    """All that `pretrained.find` needs to know of a file of ours."""
    fields = {name: getattr(model, name) for name in model.__dataclass_fields__}
    config = found.config or {}  # how examples are read and hidden; not where they lie
    data = {name: x for name, x in config.get("data", {}).items() if name not in PLACES}
    known = {name: config[name] for name in ("mask", "loss", "evaluate") if name in config}
    known = {"config": known | {"data": data}} if data else {}
    return known | {
        "kind": type(model).__name__,
        "fields": {name: x for name, x in fields.items() if name not in UNSAID},
        **{name: getattr(found, name) for name in ("size", "classes", "mean", "std")},
    }


def write_mae_jax(path: Path, found: checkpoint_info.Found, model: Any, flat: dict) -> None:
    """Our names, and the description of the model as JSON in the metadata."""
    metadata = {"format": "mae_jax", "mae_jax": json.dumps(_described(found, model))}
    flat = {name: np.ascontiguousarray(x) for name, x in flat.items()}
    _save(path, flat, metadata)


def _save(path: Path, flat: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    import safetensors.numpy

    path.touch()
    mode = path.stat().st_mode
    safetensors.numpy.save_file(flat, path, metadata)
    path.chmod(mode)  # safetensors would let nobody else read it


def write_reference(path: Path, found: checkpoint_info.Found, model: Any, flat: dict) -> None:
    """`{"model": state_dict}`, as the reference's own scripts read it."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "a .pth file can be read without PyTorch, but is written by it: pip install torch, or "
            "write a .safetensors file"
        ) from error
    state = parameter_names.write(_with_tables(found, model, flat), "reference", model.patch)
    with path.open("wb") as f:  # torch's own errors would be no OSError
        torch.save({"model": {name: torch.from_numpy(x) for name, x in state.items()}}, f)


def write_huggingface(path: Path, found: checkpoint_info.Found, model: Any, flat: dict) -> None:
    """`model.safetensors`, `config.json` and, where known, `preprocessor_config.json`."""
    autoencoder, square = hasattr(model, "decoder_width"), len(set(model.patch)) == 1
    if not autoencoder and (model.classes or model.pooling != "cls"):
        raise ValueError(
            "Hugging Face's ViTMAE has no classifier: write a .pth or a .safetensors file, or drop "
            "the head with --without='(norm|head)/.*' if it pools the cls token"
        )
    if not square or (found.size and len(set(found.size)) > 1) or len(model.patch) != 2:
        raise ValueError(
            f"Hugging Face's ViTMAE knows square patches and inputs alone, not patches of "
            f"{model.patch} and inputs of {found.size}: give --size=H,W with both the same"
        )
    flat = _with_tables(found, model, flat)
    side: Any = found.size
    hidden = lambda width: int(width * model.mlp_ratio)
    settings = {
        "architectures": ["ViTMAEForPreTraining" if autoencoder else "ViTMAEModel"],
        "model_type": "vit_mae",
        "image_size": side[0],
        "patch_size": model.patch[0],
        "num_channels": found.channels,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": hidden(model.width),
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": model.eps,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "mask_ratio": ((found.config or {}).get("mask") or {}).get("ratio", 0.75),
    }
    if autoencoder:
        settings |= {
            "decoder_hidden_size": model.decoder_width,
            "decoder_num_hidden_layers": model.decoder_depth,
            "decoder_num_attention_heads": model.decoder_heads,
            "decoder_intermediate_size": hidden(model.decoder_width),
            "norm_pix_loss": model.norm_pix,
        }
    state = parameter_names.write(flat, "huggingface", model.patch)
    if not autoencoder:  # the files of a ViTMAEModel
        state = {name.removeprefix("vit."): x for name, x in state.items()}
    path.mkdir()
    _save(path / "model.safetensors", state, {"format": "pt"})
    (path / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    if found.mean and found.std:
        images = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": side[0], "width": side[1]},
            "resample": 3,  # bicubic
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(found.mean),
            "image_std": list(found.std),
        }
        (path / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n")


WRITERS = {
    "reference": write_reference,
    "huggingface": write_huggingface,
    "mae_jax": write_mae_jax,
}


def _with_tables(found: checkpoint_info.Found, model: Any, flat: dict) -> dict:
    """Both families store position tables, also fixed ones."""
    if not found.size:
        raise ValueError(
            f"{found.path} does not say of which size its inputs are, and the table of positions "
            "to write depends on it: give --size=H,W"
        )
    return checkpoint_info.fixed_tables(model, found.size) | flat


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = command_line.Parser(
        prog="python -m mae_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--from", dest="source", required=True, metavar="PATH[:STEP]")
    add("--to", dest="target", required=True, metavar="PATH")
    add("--format", dest="kind", choices=sorted(WRITERS), default="")
    add("--overwrite", action="store_true", help="replace what is there")
    add("--without", default="", metavar="EXPRESSION", help="names to leave out: 'decoder/.*'")
    add(
        "--size",
        type=command_line.numbers(int),
        metavar="H,W",
        help="of the inputs; learned positions are resized",
    )
    add("--heads", type=int, help="of the encoder, where a file does not say it")
    add("--decoder-heads", type=int)
    add("--norm-pix", action=argparse.BooleanOptionalAction, help="normalised patches as targets")
    add("--eps", type=float, help="of the LayerNorms")
    return parser.parse_args(argv)


def main() -> None:
    """The command line; a user's mistake ends in one sentence and exit status 2."""
    try:
        arguments = vars(parse(sys.argv[1:]))
        with user_errors():
            print(convert(arguments.pop("source"), arguments.pop("target"), **arguments))
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        os._exit(130)  # a compilation that goes on would crash


if __name__ == "__main__":
    main()
