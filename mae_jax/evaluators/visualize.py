"""Pictures that a person can judge a run by."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 4


def columns(named: dict[str, np.ndarray], side: int = 128) -> Image.Image:
    """A contact sheet: a titled column for each name, a row for each sample.

    Args:
      named: title -> `[b, h, w, c]` uint8, one, three or more channels (the first three are shown).
      side: pictures smaller than this are enlarged, by whole pixels, to at least it.
    """
    sheets = [np.asarray(x) for x in named.values()]
    b, h, w, _ = sheets[0].shape
    scale = max(1, -(-side // max(h, w)))
    cell_h, cell_w, title = h * scale + GAP, w * scale + GAP, 20
    sheet = Image.new("RGB", (cell_w * len(sheets) + GAP, cell_h * b + GAP + title), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for column, (name, images) in enumerate(zip(named, sheets, strict=True)):
        x = GAP + column * cell_w
        draw.text((x + cell_w // 2, title // 2 + 2), name, fill="black", anchor="mm", font=font)
        for row, image in enumerate(images):
            sheet.paste(_tile(image, scale), (x, title + GAP + row * cell_h))
    return sheet


def reconstruction(
    original: np.ndarray,
    hidden: np.ndarray,
    full: np.ndarray,
    modality: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Image.Image:
    """What a masked autoencoder saw and what it made of it, of any modality.

    Pictures stand side by side; of clips and volumes there are strips of up to eight slices, of
    sounds spectrograms with time to the right, of bytes text with wrong guesses in red.

    Args:
      original, full: `[b, *size, c]` normalised values; bytes as they are.
      hidden: where the network saw nothing, of the same shape.
      mean, std: that the values were normalised with.
    """
    if modality == "text":
        return _texts(original[..., 0], hidden[..., 0], full[..., 0])
    if modality in ("image", "video"):
        original, full = ((x * np.array(std) + mean) for x in (original, full))
    else:  # values of any range: those of an example and channel fill it
        axes = tuple(range(1, original.ndim - 1))
        low, high = original.min(axes, keepdims=True), original.max(axes, keepdims=True)
        original, full = ((x - low) / np.maximum(high - low, 1e-6) for x in (original, full))
    shown = {
        "original": original,
        "masked": np.where(hidden, 0.5, original),
        "reconstruction": full,
    }
    shown = {
        name: flat(np.rint(255 * x.clip(0, 1)).astype(np.uint8), modality == "audio")
        for name, x in shown.items()
    }
    height, width = shown["original"].shape[1:3]
    return columns(shown) if width < 2 * height else rows(shown)


def flat(x: np.ndarray, sound: bool = False, most: int = 8) -> np.ndarray:
    """Of values uint8 `[b, *size, c]` of any number of axes, pictures `[b, h, w, 1 or 3]`.

    Of more than two axes the last two are shown, as a strip of at most `most` slices; of many
    channels three, evenly spread, but of four, as of RGBA, the first three; a `sound` has its time
    to the right and low frequencies below.
    """
    if x.ndim == 3:  # one axis: a picture of one row
        x = x[:, None]
    if x.ndim > 5:
        x = x.reshape(len(x), -1, *x.shape[-3:])
    if x.shape[-1] == 4:
        x = x[..., :3]
    if x.shape[-1] not in (1, 3):
        x = x[..., np.linspace(0, x.shape[-1] - 1, 3).round().astype(int)]
    if sound:
        return x[:, :, ::-1].swapaxes(1, 2)
    if x.ndim == 5:
        chosen = x[:, np.linspace(0, x.shape[1] - 1, min(most, x.shape[1])).round().astype(int)]
        b, count, h, w, c = chosen.shape
        gaps = np.full((b, count, h, 1, c), 255, np.uint8)
        return np.concatenate([chosen, gaps], axis=3).swapaxes(1, 2).reshape(b, h, -1, c)
    return x


def rows(named: dict[str, np.ndarray], width: int = 640) -> Image.Image:
    """As `columns` for wide pictures: of each sample a titled row for each name."""
    sheets = [np.asarray(x) for x in named.values()]
    b, h, w, _ = sheets[0].shape
    scale = max(1, width // w)
    title, cell_h = 100, h * scale + GAP
    sheet = Image.new(
        "RGB", (title + w * scale + GAP, b * (len(sheets) * cell_h + 2 * GAP)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for row in range(b):
        for i, (name, images) in enumerate(zip(named, sheets, strict=True)):
            y = GAP + row * (len(sheets) * cell_h + 2 * GAP) + i * cell_h
            draw.text((title - GAP, y + cell_h // 2), name, fill="black", anchor="rm", font=font)
            sheet.paste(_tile(images[row], scale), (title, y))
    return sheet


def _tile(image: np.ndarray, scale: int) -> Image.Image:
    rgb = np.repeat(image, 3, -1) if image.shape[-1] < 3 else image[..., :3]
    h, w = image.shape[:2]
    return Image.fromarray(rgb[..., :3]).resize((w * scale, h * scale), Image.Resampling.NEAREST)


def _texts(original: np.ndarray, hidden: np.ndarray, full: np.ndarray) -> Image.Image:
    """Bytes `[b, n]` as lines: what was seen, with dots for the rest, and what was made of it."""
    wide, cell, line = 64, 8, 14
    b, n = original.shape
    lines = -(-n // wide)
    block = (2 * lines + 1) * line
    sheet = Image.new("RGB", (2 * GAP + wide * cell, b * block + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    shown = lambda byte: chr(byte) if 32 <= byte < 127 else "\\" if byte == 10 else "?"
    for row in range(b):
        for i in range(n):
            x, y = (
                GAP + i % wide * cell + cell // 2,
                row * block + GAP + i // wide * line + line // 2,
            )
            seen = not hidden[row, i]
            colour = "black" if seen else "green" if full[row, i] == original[row, i] else "red"
            dot = shown(original[row, i]) if seen else "\u00b7"
            draw.text((x, y), dot, fill="black" if seen else "gray", anchor="mm", font=font)
            made = shown(full[row, i])
            draw.text((x, y + lines * line), made, fill=colour, anchor="mm", font=font)
    return sheet


def curve(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    ylabel: str,
    xlabel: str = "step",
    logarithmic: bool = False,
) -> Image.Image:
    """Lines over steps: name -> (steps, values); `logarithmic` is the axis of the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, (steps, values) in series.items():
        axes.plot(steps, values, label=name, marker="o" if len(steps) < 30 else None, markersize=3)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if logarithmic:
        axes.set_xscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)
