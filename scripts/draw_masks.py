"""A picture of every mask: python scripts/draw_masks.py --to=docs/masks.png"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mae_jax.data import sources
from mae_jax.data.image_io import crop
from mae_jax.models import mask_sampler, masking

SIDE, PATCH, CELL = 112, 8, 118


def shown(image: np.ndarray, mask: masking.Mask, shape: tuple[int, int]) -> np.ndarray:
    """`image` with its hidden patches in gray."""
    hidden = np.asarray(masking.hidden_map(mask))[0].reshape(shape)
    scale = image.shape[0] // shape[0], image.shape[1] // shape[1]
    hidden = hidden.repeat(scale[0], 0).repeat(scale[1], 1)[..., None]
    return np.where(hidden > 0, 128, image).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to", default="docs/masks.png")
    options = parser.parse_args()
    key, grid = jax.random.key(3), (SIDE // PATCH, SIDE // PATCH)
    photo = crop.center_crop(sources.open_source("photos", "train")[10]["image"], (SIDE, SIDE), 1.0)
    batch = jnp.asarray(photo)[None]

    def picture(name: str, **mask) -> tuple[str, list[np.ndarray]]:
        hide = mask_sampler.of({"ratio": 0.75, "name": name} | mask, (SIDE, SIDE), (PATCH, PATCH))
        chosen = masking.from_scores(hide.scores(key, batch), hide.keep)
        return name, [shown(photo, chosen, grid)]

    rows = [picture(name) for name in ("random", "block", "grid", "joint", "importance")]
    # a user's own mask: a disc
    places = np.indices((SIDE, SIDE)) - np.array([60, 50])[:, None, None]
    disc = jnp.asarray((places**2).sum(0) < 30**2)[None]
    scores = masking.pixels(disc, (PATCH, PATCH))
    keep = int((scores == 0).sum(-1).min())
    rows.append(("pixels", [shown(photo, masking.from_scores(scores, keep), grid)]))
    parts = masking.partition(key, 1, grid, groups=4, keep=147)
    parts = [shown(photo, masking.from_scores(part, 147), grid) for part in parts]
    # clips, four frames of them, and a spectrogram with time to the right
    frames = [np.roll(photo, 8 * i, axis=1) for i in range(4)]
    clip = jnp.asarray(np.stack(frames))[None]
    strips = [("partition", parts)]
    for name in ("tube", "frame"):
        ratio = 0.75 if name == "tube" else 0.5
        hide = mask_sampler.of({"ratio": ratio, "name": name}, clip.shape[1:4], (1, PATCH, PATCH))
        mask = masking.from_scores(hide.scores(key, clip), hide.keep)
        hidden = np.asarray(masking.hidden_map(mask)).reshape(4, *grid)
        hidden = hidden.repeat(PATCH, 1).repeat(PATCH, 2)[..., None]
        strips.append((name, [*np.where(hidden > 0, 128, np.stack(frames)).astype(np.uint8)]))
    time, bands = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    sound = 128 + 100 * np.sin(bands / 6) * np.exp(-((time % 40) / 20.0))
    sound = np.repeat(sound[..., None], 3, -1).astype(np.uint8)  # [time mel 3]
    for name in ("time", "frequency"):
        hide = mask_sampler.of({"ratio": 0.75, "name": name}, (SIDE, SIDE), (PATCH, PATCH))
        mask = masking.from_scores(hide.scores(key, jnp.asarray(sound)[None]), hide.keep)
        rows.append((name, [shown(sound, mask, grid)[:, ::-1].swapaxes(0, 1)]))

    sheet = Image.new("RGB", (8 * CELL + 6, 2 * (CELL + 20)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)

    for column, (name, (tile,)) in enumerate(rows):
        draw.text((6 + column * CELL, 2), name, fill="black", font=font)
        sheet.paste(Image.fromarray(tile), (6 + column * CELL, 20))
    half = lambda tile: np.asarray(Image.fromarray(tile).resize((54, 54)))
    for i, (name, tiles) in enumerate(strips):
        x, y = 6 + i * (4 * 57 + 12), CELL + 20
        draw.text((x, y + 2), name, fill="black", font=font)
        for j, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(half(tile)), (x + j * 57, y + 20))
    sheet.crop((0, 0, sheet.width, CELL + 20 + 80)).save(options.to)
    print(f"wrote {options.to}")


if __name__ == "__main__":
    main()
