"""Maps of scores in files: heat maps of pictures, and maps of numbers in the input's own frame."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from mae_jax.applications.anomaly import figures
from mae_jax.applications.anomaly.calibration import COMBINED
from mae_jax.applications.anomaly.detector import Detector, Scores
from mae_jax.data import notices, sources
from mae_jax.evaluators import dense, feature_files, feature_maps
from mae_jax.evaluators.dense import FeatureMap
from mae_jax.output import files

_log = logging.getLogger(__name__)
_DEFAULT_ENDINGS = {2: ".png", 3: ".nii.gz"}  # by the number of sides
_MISSING = 128  # the gray of patches without data


class MapWriter(NamedTuple):
    """A writer of the maps of one scorer."""

    to: str  # a path with {name} or {index}
    scorer: str
    colors: Callable[[Float[np.ndarray, "h w"]], UInt8[np.ndarray, "h w 3"]]  # of a picture
    patch: tuple[int, ...]

    def places(
        self, source: sources.Source, index: Int[np.ndarray, "n"], overwrite: bool
    ) -> dict[int, str]:
        """Return the file of each example: see `feature_maps.places`."""
        return feature_maps.places(self.to, source, index, overwrite)

    def write(self, path: str, scores: Scores) -> None:
        """Write the map of an example, whole or not at all."""
        found = scores.maps[self.scorer]
        if Path(path).suffix.lower() != ".png":
            about: dict[str, Any] = dict(scorer=self.scorer, feature=f"anomaly {self.scorer}")
            write = feature_files.map_writer(path, found.ndim)
            place = dense.place_of(scores.opened, self.patch)
            if feature_files.has_frame(path) and place["frame"] is None:
                text = (
                    "maps such as %s have no place in the world, as the input does not say its own"
                )
                notices.once(_log.warning, text, path)
            write(path, FeatureMap(found[..., None], **place), about)
            return
        picture = Image.fromarray(
            self.colors(figures.enlarged(found, self.patch, scores.opened.sides))
        )
        with files.whole(path) as temporary:
            picture.save(temporary, "PNG")


def writer(to: str, detector: Detector, scorer: str) -> MapWriter:
    """Return the writer of the maps of a scorer to a folder, or to a path with {name}.

    Raises:
      ValueError: files with this ending hold no such maps.
      ImportError: the package that writes them is not installed.
    """
    patch = tuple(detector.loaded.model.patch)
    if not Path(to).suffix:
        to = str(Path(to) / f"{{name}}{_DEFAULT_ENDINGS.get(len(patch), '.npz')}")
    is_picture = Path(to).suffix.lower() == ".png"
    if is_picture and len(patch) != 2:
        raise ValueError(f"{to!r}: a map of {len(patch)} side(s) is no picture: write .npz")
    if not is_picture:
        feature_files.map_writer(to, len(patch))
    return MapWriter(to, scorer, colors_of(detector, scorer), patch)


def colors_of(
    detector: Detector, scorer: str
) -> Callable[[Float[np.ndarray, "*any"]], UInt8[np.ndarray, "*any 3"]]:
    """Return a function that colors the maps of a scorer, those of all examples alike.

    The darkest color is the median score of good examples and below, and the middle one, crimson,
    is the threshold, unless it is less than one deviation above the median.
    """
    calibration, center, scale = detector.calibration, 0.0, 1.0
    if scorer != COMBINED:
        k = calibration.names.index(scorer)
        center, scale = float(calibration.center[k]), float(calibration.scale[k])
    span = 2 * max(detector.thresholds[scorer] - center, scale)
    return lambda x: colors((x - center) / span)


def colors(x: Float[np.ndarray, "*any"]) -> UInt8[np.ndarray, "*any 3"]:
    """Return the colors of numbers from 0 (dark) to 1 (bright); a missing number is gray."""
    table = (255 * matplotlib.colormaps["inferno"](np.arange(256))[:, :3]).astype(np.uint8)
    table = np.concatenate([table, np.full((1, 3), _MISSING, np.uint8)])
    levels = np.where(x == x, 255 * np.clip(np.nan_to_num(x), 0, 1), 256)
    return table[levels.round().astype(np.int16)]
