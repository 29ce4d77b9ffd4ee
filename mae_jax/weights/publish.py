"""Conversion of a model with its card, to a folder or to a repository of the Hugging Face Hub."""

import tempfile
from pathlib import Path
from typing import Any

from mae_jax.weights import export, foreign_formats, hub, load, model_card

FORMATS = ("mae_jax", *(name for name, x in foreign_formats.FORMATS.items() if x.is_folder))
CONVERSION = ("target_format", "overwrite")  # options of `export.export` that `load.find` has not


def convert(
    source: str,
    target: str,
    *,
    card: bool = False,
    private: bool = False,
    license: str = "",
    **options: Any,
) -> str:
    """Write the model at `source` to a file, to a folder, or to `hf:ORG/NAME[@BRANCH]`.

    Args:
      card: write README.md, see `model_card`. A new repository has one in any case, and one that is
        in a repository already stays without this.
      private: make a new repository private.
      license: an identifier of the Hub, such as cc-by-nc-4.0, for the card.
      options: as in `export.export`.

    Returns:
      Lines that say what was read and written.

    Raises:
      ValueError: the model cannot be read, written or uploaded; one sentence says why.
    """
    if hub.is_address(target):
        return _upload(source, target, card, private, license, options)
    if private:
        raise ValueError(f"--private is for repositories: {target} is not hf:ORG/NAME")
    if license and not card:
        raise ValueError(f"--license={license} is for a card: add --card")
    if card and Path(target).suffix in export.SUFFIXES and Path(target).suffix:
        raise ValueError(f"--card is for folders: {target} is a file")
    lines = export.export(source, target, **options)
    if card:
        _write_card(Path(target), source, Path(target).name, license, options)
    return lines


def _upload(
    source: str, target: str, card: bool, private: bool, license: str, options: dict[str, Any]
) -> str:
    """Write a model to a temporary folder, and upload this."""
    address, target_format = hub.parse(target), options.get("target_format") or "huggingface"
    if address.file or target_format not in FORMATS:
        raise ValueError(f"{target} must be hf:ORG/NAME, with --format={' or '.join(FORMATS)}")
    there = hub.contents(address)
    if there.private is False and private:
        raise ValueError(f"{address} exists and is public: leave --private out")
    if there.has_model and not options.get("overwrite"):
        raise ValueError(f"{address} has a model already: give another --to, or --overwrite")
    card |= "README.md" not in there.files
    if license and not card:
        raise ValueError(f"{address} has a card, to which --license={license} belongs: add --card")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        file = folder / "model.safetensors" if target_format == "mae_jax" else folder
        lines = export.export(source, file, **options).replace(str(file), target)
        if card:
            _write_card(folder, source, target, license, options)
        commit = hub.upload(folder, address, private)
    return f"{lines}\nuploaded {address._replace(revision=commit)}"


def _write_card(
    folder: Path, source: str, place: str, license: str, options: dict[str, Any]
) -> None:
    options = {name: value for name, value in options.items() if name not in CONVERSION}
    info = load.find(source, **options)
    info = info._replace(size=tuple(options.get("size") or info.size or ()) or None)
    model_card.write(folder, info, place, license)
