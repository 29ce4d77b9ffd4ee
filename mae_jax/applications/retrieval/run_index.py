"""Make an index: retrieval index --checkpoint=C --data=SOURCE --to=INDEX [...]

INDEX is a folder with the model and a vector of each example. The feature and its whitening are
chosen on the examples alone: by copies of pictures, which should be nearest to their originals, by
labels, or not at all; what --block, --pooling, --norm or --whiten say is settled.
"""

import argparse
from typing import Any

from mae_jax.applications import fitted_folder
from mae_jax.applications.retrieval import choice, index, whitening
from mae_jax.applications.retrieval.approximate import Graph
from mae_jax.applications.retrieval.choice import Candidate, Choice
from mae_jax.applications.retrieval.index import Index
from mae_jax.applications.retrieval.reader import open_data
from mae_jax.applications.retrieval.rows import check_names
from mae_jax.applications.retrieval.whitening import Method
from mae_jax.data import sources
from mae_jax.evaluators import checkpoint, loaded_model
from mae_jax.evaluators.loaded_model import LoadedModel
from mae_jax.output import files, tables


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    checkpoint.add_options(parser)
    add, flag = parser.add_argument, argparse.BooleanOptionalAction
    add("--to", required=True, metavar="INDEX", help="the folder of the index")
    add("--overwrite", action="store_true", help="replace an existing index")
    add("--split", help="default: all, or train where a source has no split all")
    usual = "default: copies of pictures, else labels, else none"
    add("--choose", choices=[*choice.WAYS, "none"], help=f"the feature by; {usual}")
    add("--block", type=int, help="of the feature; default: chosen, or about two thirds up")
    add("--pooling", choices=["mean", "cls", "both"], help="default: chosen, or mean")
    add("--norm", action=flag, help="take it after the last norm; default: chosen, or before")
    add("--whiten", choices=whitening.KINDS, help="default: chosen, or pca")
    add("--components", type=int, default=0, help="that --whiten=pca keeps; 0 = all")
    add("--dtype", choices=index.DTYPES, default="float32", help="of the vectors")
    side = "side of the pictures for contact sheets; 0 keeps none"
    add("--thumbnails", type=int, default=64, metavar="PIXELS", help=side)
    add("--approximate", action="store_true", help="add a graph for fast search by usearch")
    add("--json", type=files.writable, metavar="FILE", help="for what was chosen and the bytes")


def run(options: argparse.Namespace) -> str:
    """Make an index and write it; return lines for the screen.

    Raises:
      ValueError, OSError, ImportError: one sentence on what does not fit.
    """
    fitted_folder.check_place(options.to, index.KIND, options.overwrite)
    if options.thumbnails < 0:
        raise ValueError(f"--thumbnails={options.thumbnails} must be at least 0 (none)")
    loaded = loaded_model.of_options(options)
    split, source = open_data(loaded, options, otherwise="train")
    check_names(source)
    best, found = _choose(loaded, source, options)
    sizes = options.dtype, options.thumbnails, options.batch_size
    made = Index.build(loaded, source, *best, *sizes)
    if found:
        made.about |= found.saved()
    made.about |= dict(checkpoint=options.checkpoint, data=[[options.data, split]])
    if options.approximate:
        made.graph = Graph.of(made.rows.vectors)
    made.save(options.to, options.overwrite)
    if options.json:
        files.write_json(options.json, _summary(made))
    what = f"{len(made):,} examples of {options.data}, split {split!r}; {best}"
    return "\n\n".join(
        [*([found.table()] if found else []), f"{options.to}: {what}; {sizes_of(made)}"]
    )


def sizes_of(made: Index) -> str:
    """Return what an index takes, for people."""
    vectors, pictures = made.rows.vectors, made.rows.thumbnails
    text = f"{vectors.shape[1]} numbers each, {tables.amount(vectors.nbytes)} of {vectors.dtype}"
    text += f", {tables.amount(pictures.nbytes)} of thumbnails" if pictures is not None else ""
    graph = made.graph
    return text + (f", {tables.amount(graph.stored.nbytes)} of a graph" if graph else "")


def _summary(made: Index) -> dict[str, Any]:
    vectors, feature = made.rows.vectors, made.reader.feature
    about = dict(examples=len(made), numbers=vectors.shape[1], dtype=str(vectors.dtype))
    sizes = dict(vectors=vectors.nbytes)
    if made.rows.thumbnails is not None:
        sizes["thumbnails"] = made.rows.thumbnails.nbytes
    if made.graph:
        sizes["graph"] = made.graph.stored.nbytes
    return about | dict(feature=feature._asdict(), bytes=sizes) | made.about


def _choose(
    loaded: LoadedModel, source: sources.Source, options: argparse.Namespace
) -> tuple[Candidate, Choice | None]:
    """Return the feature and the method that options give, or that are chosen."""
    names = ("block", "pooling", "norm")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    depth = loaded.model.depth
    if not -depth <= given.get("block", 0) < depth:
        raise ValueError(f"--block={options.block} is none of {depth} blocks, from 0 on")
    if "block" in given:
        given["block"] %= depth
    if options.components and options.whiten != "pca":
        raise ValueError(f"--components={options.components} is for --whiten=pca: give both")
    methods = [Method(options.whiten, options.components)] if options.whiten else None
    way = options.choose or choice.usual_way(loaded, source)
    if way == "none":
        usual = choice.usual_feature(loaded.model)._replace(**given)
        return Candidate(usual, (methods or [Method()])[0]), None
    among = choice.candidates(loaded, given, methods)
    found = choice.WAYS[way](loaded, source, among, batch_size=options.batch_size)
    return found.best, found
