"""The building of a memory of patches, in bounded memory."""

import logging

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from mae_jax.applications.anomaly import coreset, scorers, tile_stream
from mae_jax.applications.anomaly.settings import Settings
from mae_jax.applications.anomaly.tile_stream import Failed
from mae_jax.data import sources
from mae_jax.evaluators.features import Feature
from mae_jax.evaluators.loaded_model import LoadedModel
from mae_jax.output import tables

_log = logging.getLogger(__name__)
_SAMPLED = 10  # features of the sample for each one of the memory


def build(
    loaded: LoadedModel, source: sources.Source, index: Int[np.ndarray, "n"], settings: Settings
) -> scorers.PatchMemory:
    """Return a memory of the patches of the good examples at `index`.

    It is a coreset of a uniform sample of ten times as many patches. An example that cannot be read
    is left out with a warning.

    Raises:
      ValueError: the memory would be too large, the model has no such block, or no patch has data.
    """
    feature, width = _feature(loaded, settings)
    _check_size(width, settings)
    of_tiles = lambda model, params, inputs, places, _: scorers.features(
        model, params, inputs, places, feature
    )
    cut = settings.tiles._replace(overlap=0.0)
    stream = tile_stream.TileStream(
        tile_stream.inputs(loaded, cut), tile_stream.jitted(loaded, of_tiles)
    )
    reservoir = coreset.Reservoir(_SAMPLED * settings.memory, width, settings.seed)
    with tqdm(total=len(index), unit="example", desc="features", disable=None) as bar:
        for x in stream(source, index):
            bar.update(x.is_last)
            if isinstance(x, Failed):
                _log.warning("left out: %s", x.error)
                continue
            rows = x.inside.reshape(-1, width)
            reservoir.add(rows[~np.isnan(rows).any(-1)])
    if not reservoir.seen:
        raise ValueError(
            f"none of the {len(index):,} good examples that build the memory has a patch with data"
        )
    mean, std = reservoir.moments()
    sample = reservoir.sample
    sample -= mean  # in place, as it may be large
    sample /= std
    chosen = coreset.greedy(sample, settings.memory, settings.seed)
    _log.info("the memory holds %s of %s patches", f"{len(chosen):,}", f"{reservoir.seen:,}")
    return scorers.PatchMemory(sample[chosen], mean, std, feature)


def _feature(loaded: LoadedModel, settings: Settings) -> tuple[Feature, int]:
    """Return the feature of patches, and how many numbers it has."""
    model, depth = loaded.model, loaded.model.depth
    block = scorers.default_block(depth) if settings.block is None else settings.block
    if not -depth <= block < depth:
        raise ValueError(f"--block={block} is none of {depth} blocks, from 0 on")
    grid = model.grid(loaded.transform.size)
    groups = grid[0] if len(grid) > len(model.patch) else 1  # of channels, whose tokens are joined
    return Feature(block % depth, "patches", False), groups * model.encoder.trunk.width


def _check_size(width: int, settings: Settings) -> None:
    """Say how much memory the features take; raise ValueError if that is too much."""
    if settings.memory < 1:
        raise ValueError(f"--memory={settings.memory} must be at least 1")
    held = 4 * width * settings.memory
    built = held * _SAMPLED
    text = (
        f"{settings.memory:,} features of {width:,} numbers take {tables.amount(held)}, and "
        f"{tables.amount(built)} while the memory is built"
    )
    if built > settings.max_memory * 1e9:
        most = int(settings.max_memory * 1e9 / (4 * width * _SAMPLED))
        raise ValueError(
            f"{text}, above --max-memory={settings.max_memory:g} GB: give --memory={most} or less, "
            "or a higher --max-memory"
        )
    _log.info("%s", text)
