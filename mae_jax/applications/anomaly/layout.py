"""Test examples with masks, in the layout of MVTec AD.

    ROOT/train/good/*.png                    good pictures, to fit on
    ROOT/test/good/*.png                     good pictures
    ROOT/test/KIND/*.png                     pictures with anomalies of a kind
    ROOT/ground_truth/KIND/NAME_mask.png     where they are; also NAME.png, as in VisA

Pictures and masks may be of any format that `image_io.decode` reads.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import decode
from mae_jax.data.sources import folders

GOOD = "good"  # the kind without anomalies


class Example(NamedTuple):
    """An example to test on."""

    name: str
    kind: str  # of its anomaly, or `GOOD`
    value: Any  # a path, or what else the modality of a model reads
    mask: Any = None  # where it is anomalous: a path or an array [*sides]; None if that is unknown


def examples(root: str) -> list[Example]:
    """Return the test examples under a folder, the good ones first; no file is opened.

    Raises:
      FileNotFoundError: there is no folder `test`, or it has no folder `good`, or no other one.
    """
    tests, masks = Path(root) / "test", Path(root) / "ground_truth"
    if not tests.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(tests)!r}: give the folder above 'test', which holds 'good' "
            "and a folder for each kind of anomaly"
        )
    kinds = sorted(p.name for p in tests.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = []
    for kind in sorted(kinds, key=lambda kind: (kind != GOOD, kind)):
        of_stem = {} if kind == GOOD else _masks(masks / kind)
        for path in _pictures(tests / kind):
            mask = of_stem.get(path.stem)
            found.append(Example(f"{kind}/{path.name}", kind, str(path), mask))
    if missing := {True, False} - {x.kind == GOOD for x in found}:
        what = "'good'" if True in missing else "with anomalies, beside 'good'"
        raise FileNotFoundError(f"there are no pictures in a folder {what} in {str(tests)!r}")
    return found


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    names = (name for name in sorted(os.listdir(folder)) if not name.startswith("."))
    return [folder / name for name in names if folders.is_picture(name)]


def _masks(folder: Path) -> dict[str, str]:
    """Return the masks in a folder by the name of the picture that they belong to."""
    return {path.stem.removesuffix("_mask"): str(path) for path in _pictures(folder)}


def read_mask(mask: Any) -> tuple[Bool[np.ndarray, "*sides"], int]:
    """Return where a mask is above 0, and how many different values it has.

    Raises:
      Unreadable: it cannot be read.
    """
    if isinstance(mask, str):
        try:
            mask = decode.decode(Path(mask).read_bytes(), 1)[..., 0]
        except OSError as error:
            raise Unreadable(str(error)) from error
    mask = np.asarray(mask)
    return mask > 0, len(np.unique(mask))
