"""Time the sources of files of arrays beside the readers that they use.

    python -m scripts.benchmark.read_arrays --examples=64 --side=256 --json=read_arrays.json

Each format holds the same pictures of 16 bits, with one band in DICOM. A contender reads all of
them, whole or in a window of a quarter of the side: `source` as a data set does, through
`sources.open_source` and `Array.read`, and `reader` by a loop over the package of the format alone,
with the files that are open between two examples as in its manual. Both take turns in one process,
so that ratios are fair on a noisy machine. Opening counts. Files are in the cache of the operating
system, but each pass of a source has them under new names, so that its own caches are empty.
"""

import argparse
import functools
import io
import os
import shutil
import statistics
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mae_jax.data import array_io, arrays, sources
from mae_jax.output import files, tables
from scripts.benchmark import alternating


class Format(NamedTuple):
    """A format: how examples [n, h, w, c] are written, and read by its package alone."""

    spec: str  # of the source, in the folder
    write: Callable[[Path, np.ndarray], None]
    read: Callable[[Path, slice], Iterator[np.ndarray]]
    modality: str = "image"
    bands: Any = slice(None)  # that are written


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


def write_nifti(root: Path, values: np.ndarray, ending: str) -> None:
    import nibabel

    for i, value in enumerate(values):
        nibabel.save(nibabel.Nifti1Image(value, np.eye(4)), root / f"{i:04}.{ending}")  # pyright: ignore


def read_nifti(root: Path, cut: slice) -> Iterator[np.ndarray]:
    import nibabel

    for path in sorted(root.iterdir()):
        image: Any = nibabel.load(path)  # pyright: ignore
        yield np.array(image.dataobj[cut, cut])


def write_dicom(root: Path, values: np.ndarray) -> None:
    from pydicom import Dataset, uid
    from pydicom.dataset import FileMetaDataset

    for i, pixels in enumerate(values):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.CTImageStorage
        data.SOPInstanceUID, data.SeriesInstanceUID = f"1.2.{i + 1}", "1.2"
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelRepresentation, data.PixelData = 0, pixels.tobytes()
        data["PixelData"].VR = "OW"
        data.save_as(root / f"{i:04}.dcm", enforce_file_format=True)


def read_dicom(root: Path, cut: slice) -> Iterator[np.ndarray]:
    import pydicom

    for path in sorted(root.iterdir()):
        yield np.array(pydicom.dcmread(path).pixel_array[cut, cut])


def write_parquet(root: Path, values: np.ndarray) -> None:
    import pyarrow
    from pyarrow import parquet

    tensors = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(values)
    parquet.write_table(pyarrow.table({"image": tensors}), root / "all.parquet", row_group_size=8)


def read_parquet(root: Path, cut: slice) -> Iterator[np.ndarray]:
    from pyarrow import parquet

    with parquet.ParquetFile(root / "all.parquet") as file:
        for group in range(file.num_row_groups):
            tensors: Any = file.read_row_group(group)["image"].combine_chunks()
            yield from tensors.to_numpy_ndarray()[:, cut, cut]


def write_tar(root: Path, values: np.ndarray) -> None:
    with tarfile.open(root / "all.tar", "w") as tar:
        for i, value in enumerate(values):
            np.save(content := io.BytesIO(), value)
            info = tarfile.TarInfo(f"{i:04}.npy")
            info.size = content.tell()
            content.seek(0)
            tar.addfile(info, content)


def read_tar(root: Path, cut: slice) -> Iterator[np.ndarray]:
    with tarfile.open(root / "all.tar", "r:") as tar:
        for member in tar:
            content: Any = tar.extractfile(member)
            yield np.load(io.BytesIO(content.read()))[cut, cut]


FORMATS = {
    "npy": Format("npy:{}", write_npy, read_npy),
    "npz, compressed": Format("npz:{}", write_npz, read_npz),
    "GeoTIFF, deflate": Format("geotiff:{}", write_geotiff, read_geotiff),
    "HDF5, gzip": Format("hdf5:{}/all.h5::image", write_hdf5, read_hdf5),
    "Zarr 3, zstd": Format("zarr:{}/all.zarr::image", write_zarr, read_zarr),
    "NIfTI": Format("nifti:{}", functools.partial(write_nifti, ending="nii"), read_nifti, "volume"),
    "NIfTI, gzip": Format(
        "nifti:{}", functools.partial(write_nifti, ending="nii.gz"), read_nifti, "volume"
    ),
    "DICOM": Format("dicom:{}", write_dicom, read_dicom, bands=0),
    "Parquet, snappy": Format("parquet:{}/all.parquet", write_parquet, read_parquet),
    "WebDataset": Format("webdataset:{}/all.tar", write_tar, read_tar),
}


def read_source(spec: str, modality: str, cut: slice) -> Iterator[np.ndarray]:
    """Read all examples as a data set does."""
    source = sources.open_source(spec, "all", modality)
    for i in range(len(source)):
        value = source[i]["image"]
        if isinstance(value, str):
            value = array_io.open_array(value)
        array = value if isinstance(value, arrays.Array) else arrays.of(value)
        yield np.array(array.read((cut, cut, *array.whole[2:])))


def _total(loop: Callable[[], Iterator[np.ndarray]]) -> int:
    return sum(value.nbytes for value in loop())


def measure(entry: Format, values: np.ndarray, cut: slice, rounds: int) -> dict:
    """Return the metrics of both contenders of a format in alternating rounds."""
    values = np.ascontiguousarray(values[..., entry.bands])
    with tempfile.TemporaryDirectory() as place:
        (folder := Path(place, "files")).mkdir()
        entry.write(folder, values)
        names = [Path(place, str(i)) for i in range(2 * rounds + 3)]  # a round has two passes
        for name in names:
            shutil.copytree(folder, name, copy_function=os.link)
        source = lambda: read_source(entry.spec.format(names.pop()), entry.modality, cut)
        loops = dict(source=source, reader=lambda: entry.read(folder, cut))
        for name, loop in loops.items():
            for value, right in zip(loop(), values, strict=True):
                assert np.array_equal(value, right[cut, cut]), name
        contenders = [
            alternating.Contender(name, functools.partial(_total, loop), lambda total: total)
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
