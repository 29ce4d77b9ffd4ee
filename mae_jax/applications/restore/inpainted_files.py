"""Files of pictures whose masked pixels are filled."""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped
from PIL import Image

from mae_jax.applications.restore import masks, pictures, side_by_side
from mae_jax.applications.restore.inpainting import Inpainter
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import encode
from mae_jax.evaluators import feature_files, loaded_model
from mae_jax.output import files

_log = logging.getLogger(__name__)


class _Job(NamedTuple):
    image: str
    mask: str
    to: str
    beside: str | None  # the file of a picture of all three


def write(options: argparse.Namespace) -> str:
    """Write filled pictures, with the options of the command `inpaint`.

    Returns a line for each picture; raises ValueError, OSError or ImportError with one sentence on
    what does not fit.
    """
    jobs = list(_jobs(options))
    for job in jobs:
        encode.check_ending(job.to)
        if job.beside:
            encode.check_ending(job.beside, (".png",))
        for path in filter(None, (job.to, job.beside)):
            feature_files.make_place(path, options.overwrite)
    loaded = loaded_model.of_options(options)
    inpainter = Inpainter(loaded, options.overlap, options.batch_size)
    results, unread = [], 0
    for job in jobs:
        try:
            results.append(_fill(inpainter, job))
        except Unreadable as error:
            if len(jobs) == 1:
                raise
            _log.warning("not filled: %s", error)
            unread += 1
    if not results:
        raise ValueError(f"no picture of {options.image} was filled, see the warnings")
    if options.json:
        about = dict(checkpoint=options.checkpoint, overlap=options.overlap, pictures=results)
        files.write_json(options.json, about)
    line = "{to}: {shape} {dtype}, {masked:,} of {pixels:,} pixels filled ({share:.1%})"
    lines = [line.format_map(x | {"share": x["masked"] / x["pixels"]}) for x in results]
    return "\n".join(lines + ([f"{unread:,} not filled, see the warnings"] if unread else []))


def _fill(inpainter: Inpainter, job: _Job) -> dict[str, Any]:
    """Fill a picture, write its files, and return what was filled."""
    data = inpainter.loaded.transform.data
    try:
        picture, masked = pictures.read(job.image, data), masks.read(job.mask, data)
        encode.check(job.to, picture.values.shape, picture.values.dtype)
        filled = inpainter.fill(picture, masked)
    except ValueError as error:
        raise Unreadable(f"{job.image} with {job.mask}: {error}") from error
    picture.write(job.to, filled)
    if job.beside:
        last = pictures.show(picture, inpainter.inputs).channels_last
        sheet = _draw(last(picture.values), masked, last(filled))
        with files.whole(job.beside) as path:
            sheet.save(path, "PNG")
    shape = "x".join(map(str, filled.shape))
    counts = dict(masked=int(masked.sum()), pixels=masked.size)
    return job._asdict() | dict(shape=shape, dtype=str(filled.dtype)) | counts


def _jobs(options: argparse.Namespace) -> Iterator[_Job]:
    """Yield the pictures to fill, each with its mask and its places."""
    image, mask, to, beside = options.image, options.mask, options.to, options.side_by_side
    if not Path(image).is_dir():
        yield _Job(image, mask, to, beside)
        return
    files_of = lambda folder: sorted(path for path in Path(folder).iterdir() if path.is_file())
    found = {path.stem: path for path in files_of(mask)}
    seen = {path.stem for path in files_of(mask) if found[path.stem] != path}
    for path in files_of(image):
        if path.stem not in found:
            raise ValueError(f"{mask} has no mask {path.stem!r} for {path}: add it")
        name = path.stem + (path.suffix if path.suffix.lower() in encode.WRITERS else ".png")
        place = beside and str(Path(beside) / f"{path.stem}.png")
        if (stem := path.stem) in seen:
            raise ValueError(f"two pictures or masks are called {stem!r}: rename one of them")
        seen.add(stem)
        yield _Job(str(path), str(found[stem]), str(Path(to) / name), place)


def _draw(
    given: Shaped[np.ndarray, "*sides c"],
    masked: Bool[np.ndarray, "*sides"],
    filled: Shaped[np.ndarray, "*sides c"],
) -> Image.Image:
    """Draw a picture, the same with gray for what is masked, and filled."""
    limits = side_by_side.limits(given[~masked])
    gray = np.where(masked[..., None], sum(limits) / 2, given.astype(np.float64))
    return side_by_side.draw(dict(given=given, masked=gray, filled=filled), limits)
