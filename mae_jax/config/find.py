"""Config files, at a path or, if they are shipped with the package, by name."""

import difflib
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# A clone has `configs/` beside the package; a wheel has a copy of that folder in the package.
SHIPPED = _PACKAGE / "shipped" if (_PACKAGE / "shipped/configs").is_dir() else _PACKAGE.parent


def find_config(name: str) -> Path:
    """Return the file of the config `name`.

    Args:
      name: the path of a file, relative to the current folder or absolute. If there is no such
        file, `vit_base`, `vit_base.py` and `configs/vit_base.py` mean the shipped config.

    Raises:
      ValueError: `name` is neither. The message lists the configs that exist, or the nearest.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = SHIPPED / "configs" / path.with_suffix(".py").name
    if path.suffix in ("", ".py") and str(path.parent) in (".", "configs") and shipped.is_file():
        return shipped
    folder = Path("configs") if Path("configs").is_dir() else shipped.parent
    files = sorted(folder.glob("*.py"))
    configs = [file for file in files if "def get_config" in file.read_text("utf-8")]
    names = [str(file) if folder == Path("configs") else file.stem for file in configs]
    choices = f"; the configs are: {', '.join(names)}" if names else ": give the path of one"
    if near := difflib.get_close_matches(path.stem, [file.stem for file in configs], 1):
        choices = f": did you mean {near[0]}?"
    raise ValueError(
        f"config file {name!r} {'is no file' if path.exists() else 'does not exist'}{choices}"
    )
