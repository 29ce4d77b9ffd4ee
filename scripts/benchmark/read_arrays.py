"""Time the sources of files of arrays beside the readers that they use.

    python -m scripts.benchmark.read_arrays --examples=64 --side=256 --json=read_arrays.json

Each format holds the same numbers, once with a file for each example and once, if it can, with all
examples in one file. A contender reads every example whole: `source` as a data set does, through
`sources.open_source` and `Array.read`, and `reader` by a loop over the package of the format alone,
with the files that are open between two examples as in its manual. Both take turns in one process,
so that ratios are fair on a noisy machine. Files are in the cache of the operating system. A second
table reads windows of a quarter of the side.
"""

import argparse
import functools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mae_jax.data import array_io, arrays, sources
from mae_jax.output import files, tables
from scripts.benchmark import alternating

Loop = Callable[[slice], Iterator[np.ndarray]]  # yields the window of each example


class Format(NamedTuple):
    """A format: how examples [n, h, w, c] are written, and read by its package alone."""

    spec: str  # of the source, in the folder
    write: Callable[[Path, np.ndarray], None]
    read: Callable[[Path, slice], Iterator[np.ndarray]]


def write_npy(root: Path, values: np.ndarray) -> None:
    for i, value in enumerate(values):
        np.save(root / f"{i:04}.npy", value)


def read_npy(root: Path, cut: slice) -> Iterator[np.ndarray]:
    for path in sorted(root.iterdir()):
        yield np.array(np.load(path, mmap_mode="r")[cut, cut])


def write_npz(root: Path, values: np.ndarray) -> None:
    for i, value in enumerate(values):
        np.savez_compressed(root / f"{i:04}.npz", image=value)


def read_npz(root: Path, cut: slice) -> Iterator[np.ndarray]:
    for path in sorted(root.iterdir()):
        with np.load(path) as archive:
            yield np.array(archive["image"][cut, cut])


def write_geotiff(root: Path, values: np.ndarray) -> None:
    import rasterio

    n, height, width, count = values.shape
    profile: dict[str, Any] = dict(driver="GTiff", height=height, width=width, count=count)
    profile |= dict(dtype=values.dtype, compress="deflate", tiled=True, blockxsize=64)
    profile |= dict(blockysize=64, crs="EPSG:32633", photometric="minisblack")
    place = rasterio.Affine(30, 0, 500_000, 0, -30, 4_000_000)
    for i in range(n):
        with rasterio.open(root / f"{i:04}.tif", "w", transform=place, **profile) as dataset:
            dataset.write(np.moveaxis(values[i], -1, 0))


def read_geotiff(root: Path, cut: slice) -> Iterator[np.ndarray]:
    import rasterio

    for path in sorted(root.iterdir()):
        with rasterio.open(path) as dataset:
            rows = (cut.start, cut.stop)
            yield np.moveaxis(dataset.read(window=(rows, rows)), 0, -1)


def write_hdf5(root: Path, values: np.ndarray) -> None:
    import h5py

    chunks = (1, 64, 64, values.shape[-1])
    with h5py.File(root / "all.h5", "w") as file:
        file.create_dataset("image", data=values, chunks=chunks, compression="gzip")


def read_hdf5(root: Path, cut: slice) -> Iterator[np.ndarray]:
    import h5py

    with h5py.File(root / "all.h5") as file:
        dataset: Any = file["image"]
        for i in range(len(dataset)):
            yield np.asarray(dataset[i, cut, cut])


def write_zarr(root: Path, values: np.ndarray) -> None:
    import zarr

    chunks = (1, 64, 64, values.shape[-1])
    zarr.create_group(root / "all.zarr").create_array("image", data=values, chunks=chunks)


def read_zarr(root: Path, cut: slice) -> Iterator[np.ndarray]:
    import zarr

    array = zarr.open_array(root / "all.zarr", path="image", mode="r")
    for i in range(array.shape[0]):
        yield np.asarray(array[i, cut, cut])


FORMATS = {
    "npy": Format("npy:{}", write_npy, read_npy),
    "npz, compressed": Format("npz:{}", write_npz, read_npz),
    "GeoTIFF, deflate": Format("geotiff:{}", write_geotiff, read_geotiff),
    "HDF5, gzip": Format("hdf5:{}/all.h5::image", write_hdf5, read_hdf5),
    "Zarr 3, zstd": Format("zarr:{}/all.zarr::image", write_zarr, read_zarr),
}


def read_source(spec: str, cut: slice) -> Iterator[np.ndarray]:
    """Read all examples as a data set does; the source is opened before."""
    source = sources.open_source(spec, "all")
    for i in range(len(source)):
        value = source[i]["image"]
        array = value if isinstance(value, arrays.Array) else array_io.open_array(value)
        yield np.array(array.read((cut, cut, *array.whole[2:])))


def measure(entry: Format, values: np.ndarray, cut: slice, rounds: int) -> dict:
    """Return the metrics of both contenders of a format in alternating rounds."""
    with tempfile.TemporaryDirectory() as folder:
        entry.write(Path(folder), values)
        loops = dict(
            source=functools.partial(read_source, entry.spec.format(folder)),
            reader=functools.partial(entry.read, Path(folder)),
        )
        for name, loop in loops.items():
            for value, right in zip(loop(cut), values, strict=True):
                assert np.array_equal(value, right[cut, cut]), name
        total = lambda loop: sum(value.nbytes for value in loop(cut))
        contenders = [
            alternating.Contender(name, functools.partial(total, loop), lambda loss: loss)
            for name, loop in loops.items()
        ]
        seconds, _ = alternating.alternate(contenders, rounds, 1)
    ratios = alternating.ratios(seconds["reader"], seconds["source"])
    read = values[:, cut, cut].nbytes
    return {
        "examples_per_second": {k: len(values) / statistics.median(s) for k, s in seconds.items()},
        "megabytes_per_second": {k: read / 1e6 / statistics.median(s) for k, s in seconds.items()},
        "times_as_fast": statistics.median(ratios),
        "times_as_fast_rounds": ratios,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--examples", type=int, default=64, help="of each format")
    add("--side", type=int, default=256, help="height and width of an example")
    add("--bands", type=int, default=6, help="of 16 bits")
    add("--rounds", type=int, default=7, help="that the contenders take turns in")
    add("--json", type=files.writable, metavar="FILE", help="where the metrics are written too")
    options = parser.parse_args()
    shape = (options.examples, options.side, options.side, options.bands)
    smooth = np.add.outer(np.arange(options.side), np.arange(options.side))[..., None]
    noise = np.random.default_rng(0).integers(0, 64, shape)  # deflate halves such numbers
    values = (smooth * 8 + noise).astype(np.uint16)
    quarter = slice(options.side // 4, options.side // 2)
    metrics = {
        f"{name}; {what}": measure(entry, values, cut, options.rounds)
        for name, entry in FORMATS.items()
        for what, cut in (("whole", slice(0, options.side)), ("window", quarter))
    }
    if options.json:
        files.write_json(options.json, metrics)
    rows = [["", "examples/s", "reader alone", "MB/s", "times as fast", "in each round"]]
    for name, row in metrics.items():
        speed, ratios = row["examples_per_second"], row["times_as_fast_rounds"]
        rows.append(
            [
                name,
                f"{speed['source']:,.0f}",
                f"{speed['reader']:,.0f}",
                f"{row['megabytes_per_second']['source']:,.0f}",
                f"{row['times_as_fast']:.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
            ]
        )
    print(tables.table(rows))


if __name__ == "__main__":
    main()
