"""How a detector is fitted, and how it cuts inputs."""

from typing import NamedTuple


class Tiles(NamedTuple):
    """How inputs are cut, see `TiledInputs`."""

    overlap: float = 0.5
    batch_size: int = 32


class Settings(NamedTuple):
    """How a detector is fitted."""

    false_alarms: float = 0.01  # the share of good examples that may be above a threshold
    held_out: float = 0.25  # the share that calibrates and builds no memory; more if that is needed
    memory: int = 2048  # features of patches that it holds
    max_memory: float = 4.0  # GB that the features may take while the memory is built
    block: int | None = None  # of the features; by default about two thirds up
    seed: int = 0
    tiles: Tiles = Tiles()
