"""What a search found, as columns, as JSON and as a picture."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

from mae_jax.applications.retrieval import contact_sheet
from mae_jax.applications.retrieval.index import Neighbours
from mae_jax.applications.retrieval.rows import Rows
from mae_jax.output import columns


class Results(NamedTuple):
    """The neighbours of the queries that can be read, and why others cannot."""

    names: tuple[str, ...]  # of all queries, in the order of their source
    read: Int[np.ndarray, "m"]  # those that can be read
    queries: Rows  # of these
    neighbours: Neighbours
    gallery: Rows
    notes: dict[int, str]  # why others cannot be read


def writer(path: str) -> Callable[[Path, Results], None]:
    """Return the function that writes results to .csv, .parquet or .json.

    Raises:
      ValueError: the suffix is none of these.
      ImportError: the format needs a package that is not installed.
    """
    if path.endswith(".json"):
        return _write_json
    if Path(path).suffix not in columns.WRITERS:
        raise ValueError(f"{path!r} must end in {', '.join(columns.WRITERS)} or .json")
    write = columns.writer(path)
    return lambda path, results: write(path, columns_of(results))


def columns_of(results: Results) -> dict[str, list[Any]]:
    """Return a row for each neighbour, and one with a note for each query that cannot be read.

    `rank` counts from 1. There is a `label` of the neighbour if the index has labels.
    """
    rows = []
    for name, found, note in _each(results):
        rows += [(name, rank, *x, None) for rank, x in enumerate(found, 1)]
        rows += [(name, None, None, None, None, note)] if note else []
    titles = "query", "rank", "name", "similarity", "label", "note"
    table: dict[str, list[Any]] = {
        title: [row[i] for row in rows] for i, title in enumerate(titles)
    }
    if not any(table["label"]):
        del table["label"]
    return table


def sheet(results: Results, most: int) -> Image.Image:
    """Draw the first queries, each with its neighbours.

    Raises:
      ValueError: the index keeps no thumbnails.
    """
    queries, gallery = results.queries.thumbnails, results.gallery.thumbnails
    if queries is None or gallery is None:
        raise ValueError(
            "the index keeps no thumbnails, of which a sheet is made: make it with --thumbnails=64"
        )
    index = results.neighbours.indices[:most]
    blank = np.full_like(gallery[:1], 255)
    pictures = np.concatenate([gallery, blank])[index.ravel()]  # -1 is no neighbour
    captions = [
        [f"{score:.3f}  {label or ''}\n{name}" for name, score, label in found]
        + [""] * (index.shape[1] - len(found))
        for _, found, note in _each(results)
        if not note
    ]
    own = zip(results.queries.labels.texts(), results.queries.names, strict=True)
    of_queries = [f"{label or ''}\n{name}" for label, name in own]
    return contact_sheet.draw(queries[:most], of_queries[:most], pictures, captions[:most])


def _each(results: Results) -> Iterator[tuple[str, list[tuple[str, float, str | None]], str]]:
    """Yield the name of each query, its neighbours (name, similarity, label) and its note."""
    labels = results.gallery.labels.texts()
    row = {i: row for row, i in enumerate(results.read.tolist())}
    names, similarities, indices = results.neighbours
    for i, name in enumerate(results.names):
        if i in results.notes:
            yield name, [], results.notes[i]
            continue
        found = zip(names[row[i]], similarities[row[i]].tolist(), indices[row[i]], strict=True)
        yield name, [(x, score, labels[j]) for x, score, j in found if x is not None], ""


def _write_json(path: Path, results: Results) -> None:
    """Write a list of queries, each with its neighbours or a note."""
    of_neighbour = lambda x: dict(zip(("name", "similarity", "label"), x, strict=True))
    queries = [
        dict(query=name, neighbours=[*map(of_neighbour, found)], note=note or None)
        for name, found, note in _each(results)
    ]
    path.write_text(json.dumps(queries, indent=2) + "\n")
