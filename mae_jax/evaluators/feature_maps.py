"""The dense features of the examples of a source, in a file each."""

import collections
import dataclasses
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from mae_jax.data import array_io, sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import folders
from mae_jax.data.sources import source as reading
from mae_jax.data.values import Values
from mae_jax.evaluators import components, example_columns, feature_files
from mae_jax.evaluators.dense import DenseExtractor, FeatureMap

_log = logging.getLogger(__name__)
_NOTES = {
    "unread": "without features, see the warnings",
    "lost": "without a place in the world, since the input does not say its own",
    "empty": "cells without data, which are NaN",
}
_ENDINGS = tuple(f".{end}" for end in (*array_io.FORMATS, *folders.PICTURES))


def places(
    to: str, source: sources.Source, index: Int[np.ndarray, "n"], overwrite: bool
) -> dict[int, str]:
    """Return the file of each example, by its index in the source.

    Args:
      to: the file of one example. In those of several, `{name}` stands for the name of an example
        without its ending, and `{index}` for its index.

    Raises:
      ValueError: examples have the same file, or one outside of the folder; or a file exists,
        unless `overwrite`.
    """
    names = [str(name) for name in example_columns.names(source, index)]
    files: dict[str, int] = {}
    for i, name in zip(index.tolist(), names, strict=True):
        stem = name[: -len(feature_files.ending(name, _ENDINGS)) or None]
        if "{name}" in to and (Path(stem).is_absolute() or ".." in Path(stem).parts):
            raise ValueError(f"{name!r} lies outside of a folder: write {{index}} in --to={to}")
        path = to.replace("{index}", str(i)).replace("{name}", stem)
        if path in files:
            way = "{index} for {name}" if "{name}" in to else "FOLDER/{name}" + Path(to).suffix
            raise ValueError(
                f"{len(index):,} examples would be written to {path!r} and others: write {way} in "
                "--to, for a file each"
            )
        feature_files.make_place(path, overwrite)
        files[path] = i
    return {i: path for path, i in files.items()}


@dataclasses.dataclass
class Maps:
    """The feature maps of the examples of a source."""

    extractor: DenseExtractor
    variables: dict
    source: sources.Source

    def write(self, files: Mapping[int, str], count: int | None, about: dict[str, Any]) -> str:
        """Write the feature map of each example to its file, and return what was written.

        An example that cannot be read has no file, and a warning.

        Args:
          files: by the index of an example.
          count: of principal components, which are written in place of the features. They are those
            of all examples, each of which is therefore encoded twice. None writes the features.

        Raises:
          ValueError: no example has features.
        """
        basis, first_error, shape = None, "", ()
        counts: collections.Counter[str] = collections.Counter()
        about = about | {"patch": list(self.extractor.model.patch)}
        if count:
            basis = components.fit(self._all_blocks(files), count)
            about["variance_shares"] = basis.shares.tolist()
        for i, path in files.items():
            try:
                opened = self._open(i)
                found = self._map(opened, basis, Path(path).absolute().parent)
            except Unreadable as error:
                _log.warning("no features: %s", text := _named(self.source.name(i), error))
                first_error = first_error or text
                counts["unread"] += 1
                continue
            write = feature_files.map_writer(path, len(opened.sides))
            write(path, found, about | {"name": self.source.name(i)})
            counts["lost"] += found.frame is None and feature_files.has_frame(path)
            counts["empty"] += _count_empty(found.values)
            shape = found.values.shape
        if not shape:
            raise ValueError(f"no example has features; of the first: {first_error}")
        is_one = len(files) == 1
        text = f"{'x'.join(map(str, shape[:-1]))} cells" if is_one else f"{len(files):,} examples"
        text += f", {shape[-1]:,} numbers each"
        if basis:
            text += f", which hold {basis.shares.sum():.0%} of the variance of the features"
        return text + "".join(f"; {n:,} {_NOTES[what]}" for what, n in counts.items() if n)

    def _open(self, i: int) -> Values:
        return reading.read(self.source, i, lambda example: self.extractor.open(example["image"]))

    def _all_blocks(self, indices: Collection[int]) -> Iterator[np.ndarray]:
        """Yield the blocks of features of all examples that can be read, at least of one."""
        errors = {}
        for i in indices:
            try:
                yield from self.extractor.blocks(self.variables, self._open(i))
            except Unreadable as error:
                errors[i] = _named(self.source.name(i), error)
        if len(errors) == len(indices):
            raise ValueError(
                f"no example has features; of the first: {next(iter(errors.values()))}"
            )

    def _map(self, opened: Values, basis: components.Components | None, folder: Path) -> FeatureMap:
        """Return the feature map of an input, in a temporary file of `folder`."""
        blocks = self.extractor.blocks(self.variables, opened)
        if basis:
            blocks = map(basis.project, blocks)
        values, row = np.empty(0), 0
        for block in blocks:
            if not row:
                shape = (*self.extractor.cells(opened), block.shape[-1])
                with tempfile.TemporaryFile(dir=folder) as file:
                    values = np.memmap(file, np.float32, "w+", shape=shape)
            values[row : row + len(block)] = block
            row += len(block)
        return FeatureMap(values, **self.extractor.place(opened))


def _named(name: str, error: Unreadable) -> str:
    return str(error) if repr(name) in str(error) else f"cannot read {name!r}: {error}"


def _count_empty(values: np.ndarray) -> int:
    """Return the number of cells without any features."""
    return sum(int(np.isnan(rows).all(-1).sum()) for rows in values)
