"""The file of a picture without its noise."""

import argparse

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from mae_jax.applications.restore import pictures
from mae_jax.applications.restore.denoising import Denoiser, Options
from mae_jax.data.image_io import encode, resize
from mae_jax.evaluators import feature_files, loaded_model, visualize
from mae_jax.output import files

_SHOWN = 768  # the longest side of a picture beside another


def write(options: argparse.Namespace) -> str:
    """Write a picture without its noise, with the options of the command `denoise`.

    Returns a line for the screen; raises ValueError, OSError, ImportError or Unreadable with one
    sentence on what does not fit.
    """
    for path in filter(None, (options.to, options.side_by_side)):
        feature_files.make_place(path, options.overwrite)
    chosen = Options(
        options.steps,
        options.sigma,
        overlap=options.overlap,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    denoiser = Denoiser(loaded_model.of_options(options), chosen)
    picture = pictures.read(options.image, denoiser.loaded.transform.data)
    encode.check(options.to, picture.values.shape, picture.values.dtype)
    found = denoiser.denoise(picture)
    picture.write(options.to, found.values)
    if options.side_by_side:
        last = pictures.show(picture, denoiser.inputs).channels_last
        with files.whole(options.side_by_side) as path:
            side_by_side(last(picture.values), last(found.values)).save(path, "PNG")
    shape, dtype = "x".join(map(str, found.values.shape)), str(found.values.dtype)
    about = dict(checkpoint=options.checkpoint, image=options.image, to=options.to)
    about |= dict(steps=options.steps, overlap=options.overlap, seed=options.seed)
    about |= dict(sigma=found.sigma, sigma_is_given=options.sigma is not None)
    if options.json:
        files.write_json(options.json, about | dict(shape=shape, dtype=dtype))
    sigma = ", ".join(f"{x:.4g}" for x in found.sigma)
    how = "given" if options.sigma is not None else "estimated"
    return f"{options.to}: {shape} {dtype}, noise of sigma {sigma} ({how}), {options.steps} steps"


def side_by_side(
    noisy: Shaped[np.ndarray, "*sides c"], denoised: Shaped[np.ndarray, "*sides c"]
) -> Image.Image:
    """Draw a picture with and without its noise; volumes as some slices.

    Numbers that are no bytes are stretched from the least to the greatest noisy one. Large pictures
    are shrunk.
    """
    low, high = 0, 255
    if noisy.dtype != np.uint8:
        low, high = np.nanmin(noisy), np.nanmax(noisy)
    shown = {}
    for name, x in dict(noisy=noisy, denoised=denoised).items():
        x = np.nan_to_num((x.astype(np.float64) - low) / max(high - low, 1e-12), nan=1.0).clip(0, 1)
        flat = visualize.flat(np.rint(255 * x)[None].astype(np.uint8))[0]
        scale = min(1, _SHOWN / max(flat.shape[:2]))
        size = tuple(max(1, round(scale * side)) for side in flat.shape[:2])
        shown[name] = resize.bicubic(flat, (size[0], size[1]))[None]
    return visualize.sheet(shown)
