"""Draw a picture of every mask: python -m scripts.experiments.draw_masks --to=docs/masks.png"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mae_jax.data import sources
from mae_jax.data.image_io import crop
from mae_jax.models import masking, targets

SIDE, PATCH, CELL = 112, 8, 118
GRID = (SIDE // PATCH, SIDE // PATCH)


def painted(frames: np.ndarray, scores: jax.Array, keep: int) -> np.ndarray:
    """Paint the masked patches of `frames` [t h w 3] gray."""
    masked = np.asarray(masking.masked_map(masking.from_scores(scores, keep)))
    masked = masked.reshape(-1, *GRID).repeat(PATCH, 1).repeat(PATCH, 2)[..., None]
    return np.where(masked > 0, 128, frames).astype(np.uint8)


def drawn(name: str, frames: np.ndarray, ratio: float = 0.75) -> np.ndarray:
    """Draw a mask by its name, on a photo or a spectrogram [1 h w 3] or on a clip [t h w 3]."""
    grid, inputs = (GRID, frames) if len(frames) == 1 else ((len(frames), *GRID), frames[None])
    contrast = targets.PixelTarget((PATCH, PATCH)).contrast
    sampler = masking.make_mask_sampler(name, ratio, grid, contrast=contrast)
    return painted(frames, sampler.scores(jax.random.key(3), jnp.asarray(inputs)), sampler.keep)


def tiles() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the single pictures, and the strips of four small ones, by name."""
    photos = sources.open_source("photos", "train")
    photo = crop.center_crop(photos[10]["image"], (SIDE, SIDE), 1.0)[None]
    names = ("random", "block", "grid", "stroke", "joint", "importance")
    singles = {name: drawn(name, photo) for name in names}
    places = np.indices((SIDE, SIDE)) - np.array([60, 50])[:, None, None]
    disc = jnp.asarray((places**2).sum(0) < 30**2)[None]  # a mask of the user's own
    scores = masking.pixels(disc, (PATCH, PATCH))
    singles["pixels"] = painted(photo, scores, int((scores == 0).sum(-1).min()))
    time, bands = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    sound = 128 + 100 * np.sin(bands / 6) * np.exp(-((time % 40) / 20.0))
    sound = np.repeat(sound[None, ..., None], 3, -1)
    for name in ("time", "frequency"):  # with time to the right
        singles[name] = drawn(name, sound)[:, :, ::-1].swapaxes(1, 2)
    parts = masking.partition(jax.random.key(3), 1, GRID, groups=4, keep=147)
    clip = np.concatenate([np.roll(photo, 8 * i, axis=2) for i in range(4)])
    strips = {"partition": np.concatenate([painted(photo, part, 147) for part in parts])}
    return singles, strips | {"tube": drawn("tube", clip), "frame": drawn("frame", clip, 0.5)}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to", default="docs/masks.png")
    options = parser.parse_args()
    singles, strips = tiles()
    sheet = Image.new("RGB", (9 * CELL + 6, CELL + 20 + 80), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, (name, (tile,)) in enumerate(singles.items()):
        draw.text((6 + column * CELL, 2), name, fill="black", font=font)
        sheet.paste(Image.fromarray(tile), (6 + column * CELL, 20))
    for i, (name, frames) in enumerate(strips.items()):
        x, y = 6 + i * (4 * 57 + 12), CELL + 20
        draw.text((x, y + 2), name, fill="black", font=font)
        for j, tile in enumerate(frames):
            sheet.paste(Image.fromarray(tile).resize((54, 54)), (x + j * 57, y + 20))
    sheet.save(options.to)
    print(f"wrote {options.to}")


if __name__ == "__main__":
    main()
