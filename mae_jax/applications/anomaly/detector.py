"""A detector: a model, scorers that were fitted on good examples, and thresholds."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mae_jax.applications import fitted_folder
from mae_jax.applications.anomaly import score_maps, scorers, tile_stream
from mae_jax.applications.anomaly.calibration import COMBINED, Calibration
from mae_jax.applications.anomaly.settings import Tiles
from mae_jax.applications.anomaly.tile_stream import Failed, Index, TileStream
from mae_jax.applications.fitted_folder import Fitted
from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.values import Values
from mae_jax.evaluators import tiles
from mae_jax.evaluators.features import Feature
from mae_jax.evaluators.loaded_model import LoadedModel

KIND, VERSION = "detector", 1  # the version changes with what a folder holds


class Scores(NamedTuple):
    """How unlike good examples an input is, by each scorer and "combined"."""

    scores: dict[str, float]  # NaN where no patch has data
    maps: dict[str, Float[np.ndarray, "*cells"]]  # a cell for each patch; NaN where it has no data
    opened: Values  # the input


@dataclasses.dataclass(frozen=True)
class Detector:
    """What differs from good examples.

    The map of an input of any size is blended of overlapping tiles, and then averaged over 3x3
    patches (3x3x3 of volumes). Its score is `score_maps.score` of that map. The combined map and
    score are those of `Calibration.combine`. An input is an anomaly if its score is above the
    threshold.
    """

    loaded: LoadedModel
    scorers: Mapping[str, Any]  # by name, see `scorers.Scorer`
    calibration: Calibration
    settings: dict[str, Any]  # how it was fitted
    tiles: Tiles = Tiles()

    @property
    def thresholds(self) -> dict[str, float]:
        return self.calibration.thresholds

    def in_batches(self, size: int) -> "Detector":
        """Return the same detector, which looks at so many tiles at once at most.

        Raises:
          ValueError: the size is below 1.
        """
        if size < 1:
            raise ValueError(f"--batch-size={size} must be at least 1")
        return dataclasses.replace(self, tiles=self.tiles._replace(batch_size=size))

    def score(self, value: Any) -> Scores:
        """Return the scores of an input: a path or what else the model's modality reads.

        Raises:
          Unreadable: it cannot be read, or does not fit.
        """
        (_, found), *_ = self.scan(sources.of_inputs([value]))
        if isinstance(found, Unreadable):
            raise found
        return found

    def scan(
        self, source: sources.Source, index: Index | None = None
    ) -> Iterator[tuple[int, Scores | Unreadable]]:
        """Yield the scores of examples of a source, in order, or why an example has none."""
        index = range(len(source)) if index is None else index
        names = (*self.scorers, COMBINED)
        combine = self.calibration.combine
        for i, found in maps(self._stream, source, index):
            if isinstance(found, Unreadable):
                yield i, found
                continue
            of_scorers = score_maps.score(found.values)
            scores = [*of_scorers.tolist(), float(combine(of_scorers))]
            every = [*found.values, combine(np.moveaxis(found.values, 0, -1))]
            named = [dict(zip(names, x, strict=True)) for x in (scores, every)]
            yield i, Scores(named[0], named[1], found.opened)

    @functools.cached_property
    def _stream(self) -> TileStream:
        return stream(self.loaded, self.scorers, self.tiles)

    def save(self, path: str, overwrite: bool = False) -> None:
        """Write a folder, see `fitted_folder`."""
        arrays, about = {"calibration": self.calibration.scores}, {}
        for name, scorer in self.scorers.items():
            arrays |= {f"{name}.{field}": x for field, x in scorers.parts(scorer).items()}
        for field in ("names", "false_alarms"):
            about[field] = getattr(self.calibration, field)
        if found := self.scorers.get("reconstruction"):
            about["keep"] = found.keep
        about["feature"] = self.scorers["memory"].feature._asdict()
        about |= dict(version=VERSION, tiles=self.tiles._asdict(), settings=self.settings)
        about["thresholds"] = self.thresholds  # for readers of the file
        fitted_folder.write(path, KIND, Fitted(self.loaded, arrays, about), overwrite)

    @staticmethod
    def load(path: str, threads: int = 16) -> "Detector":
        """Return the detector in a folder.

        Raises:
          ValueError: there is none, or it is damaged, or another version wrote it.
        """
        loaded, arrays, about = fitted_folder.read(path, KIND, threads)
        if (version := about.get("version")) != VERSION:
            raise ValueError(
                f"{path} is a detector of version {version}, and this is version {VERSION}: fit it "
                "again, or use the mae_jax that wrote it"
            )
        of = lambda name: {
            field.removeprefix(f"{name}."): x
            for field, x in arrays.items()
            if field.startswith(f"{name}.")
        }
        made: dict[str, Any] = {}
        try:
            if "keep" in about:
                made["reconstruction"] = scorers.Reconstruction(
                    **of("reconstruction"), keep=about["keep"]
                )
            feature = Feature(**about["feature"])
            made["memory"] = scorers.PatchMemory(**of("memory"), feature=feature)
            calibration = Calibration.of(
                about["names"], arrays["calibration"], about["false_alarms"]
            )
            cut = Tiles(**about["tiles"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}): make it again") from error
        return Detector(loaded, made, calibration, about.get("settings", {}), cut)


def patch_scores(
    model: Any, params: dict, inputs: Any, coordinates: Any, made: Mapping[str, Any]
) -> tuple[Float[jax.Array, "b *cells k"], jax.Array]:
    """Return the maps of several scorers, and which inputs have finite ones."""
    found = [scorer(model, params, inputs, coordinates) for scorer in made.values()]
    is_finite = functools.reduce(jnp.logical_and, (x.is_finite for x in found))
    return jnp.stack([x.maps for x in found], -1), is_finite


def stream(loaded: LoadedModel, made: Mapping[str, Any], cut: Tiles) -> TileStream:
    """Return the stream of the maps of tiles by several scorers."""
    # A jitted function sorts the keys of a dictionary, and the maps keep the order of `made`.
    names, several = tuple(made), tuple(made.values())
    of_tiles = lambda model, params, inputs, places, several: patch_scores(
        model, params, inputs, places, dict(zip(names, several, strict=True))
    )
    return TileStream(
        tile_stream.inputs(loaded, cut), tile_stream.jitted(loaded, of_tiles, several)
    )


class Maps(NamedTuple):
    """The maps of an input by several scorers."""

    opened: Values
    values: Float[np.ndarray, "k *cells"]


def maps(
    run: TileStream, source: sources.Source, index: Index
) -> Iterator[tuple[int, Maps | Unreadable]]:
    """Yield the maps of each example, blended and then averaged locally."""
    key = lambda x: x.index if isinstance(x, Failed) else x.of.index
    for i, found in itertools.groupby(run(source, index), key):
        parts: list[Any] = list(found)
        if isinstance(parts[-1], Failed):
            yield i, parts[-1].error
            continue
        of = parts[0].of
        blocks = tiles.blend((x.values[..., None] for x in parts), of.tiling)
        whole = np.moveaxis(np.concatenate([*blocks])[..., 0], -1, 0)
        yield i, Maps(of.opened, score_maps.local_mean(whole, range(1, whole.ndim)))
