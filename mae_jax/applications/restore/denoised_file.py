"""The file of a picture without its noise."""

import argparse

from mae_jax.applications.restore import pictures, side_by_side
from mae_jax.applications.restore.denoising import Denoiser, Options
from mae_jax.data.image_io import encode
from mae_jax.evaluators import feature_files, loaded_model
from mae_jax.output import files


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
        shown = dict(noisy=last(picture.values), denoised=last(found.values))
        sheet = side_by_side.draw(shown, side_by_side.limits(picture.values))
        with files.whole(options.side_by_side) as path:
            sheet.save(path, "PNG")
    shape, dtype = "x".join(map(str, found.values.shape)), str(found.values.dtype)
    about = dict(checkpoint=options.checkpoint, image=options.image, to=options.to)
    about |= dict(steps=options.steps, overlap=options.overlap, seed=options.seed)
    about |= dict(sigma=found.sigma, sigma_is_given=options.sigma is not None)
    if options.json:
        files.write_json(options.json, about | dict(shape=shape, dtype=dtype))
    sigma = ", ".join(f"{x:.4g}" for x in found.sigma)
    how = "given" if options.sigma is not None else "estimated"
    return f"{options.to}: {shape} {dtype}, noise of sigma {sigma} ({how}), {options.steps} steps"
