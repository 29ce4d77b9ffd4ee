"""Pictures of reconstructions, and curves of metrics."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 4


def reconstruction(
    original: np.ndarray,
    masked: np.ndarray,
    reconstructed: np.ndarray,
    modality: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Image.Image:
    """Draw the inputs of a masked autoencoder, their visible part and their reconstruction.

    Clips and volumes are strips of up to eight slices, sounds are spectrograms with time to the
    right, signals are curves, and bytes are text with wrong predictions in red.

    Args:
      original, reconstructed: `[b, *size, c]` normalised values; bytes as they are. NaN is a
        missing value, which is drawn white.
      masked: True for the values that the network did not see, of the same shape.
      mean, std: per channel, by which the values were normalised.
    """
    if modality == "text":
        return _texts(original[..., 0], masked[..., 0], reconstructed[..., 0])
    if modality in ("image", "video", "signal"):
        original, reconstructed = ((x * np.array(std) + mean) for x in (original, reconstructed))
        if modality == "signal":
            return _signals(original, masked, reconstructed)
    else:  # values of any range: stretch those of each example and channel
        axes = tuple(range(1, original.ndim - 1))
        exists: Any = dict(axis=axes, keepdims=True, where=~np.isnan(original))
        low, high = original.min(initial=np.inf, **exists), original.max(initial=-np.inf, **exists)
        stretch = lambda x: (x - low) / np.maximum(high - low, 1e-6)
        original, reconstructed = stretch(original), stretch(reconstructed)
    values = dict(original=original, masked=np.where(masked, 0.5, original))
    values |= dict(reconstruction=reconstructed)
    pixels = lambda x: np.rint(255 * np.nan_to_num(x, nan=1.0).clip(0, 1)).astype(np.uint8)
    shown = {name: flat(pixels(x), modality == "audio") for name, x in values.items()}
    return sheet(shown)


def flat(x: np.ndarray, sound: bool = False, most: int = 8) -> np.ndarray:
    """Return pictures `[b, h, w, 1 or 3]` of uint8 values `[b, *size, c]` with any number of axes.

    More than two axes become a strip of at most `most` slices along the first axes. Of many
    channels three are shown, evenly spread; of four, as in RGBA, the first three. A `sound` has its
    time to the right and low frequencies below.
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


def sheet(pictures: Mapping[str, np.ndarray]) -> Image.Image:
    """Draw uint8 pictures `[b, h, w, c]` under their titles, or wide pictures beside them.

    Of more than three channels the first three are shown. Small pictures are enlarged by whole
    pixels.
    """
    b, h, w, _ = next(iter(pictures.values())).shape
    is_wide, top, left = w >= 2 * h, 24, 100
    scale = max(1, 640 // w if is_wide else -(-128 // max(h, w)))
    width, height = w * scale + GAP, h * scale + GAP
    block = len(pictures) * height + 2 * GAP  # the rows of a sample
    wide, tall = (left + width, b * block), (GAP + len(pictures) * width, top + b * height)
    page = Image.new("RGB", wide if is_wide else tall, "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for i, (name, images) in enumerate(pictures.items()):
        for row, image in enumerate(images):
            x, y = GAP + i * width, top + row * height
            if is_wide:
                x, y = left, GAP + row * block + i * height
                draw.text((x - GAP, y + height // 2), name, fill="black", anchor="rm", font=font)
            elif row == 0:
                draw.text((x + width // 2, top // 2), name, fill="black", anchor="mm", font=font)
            rgb = np.repeat(image, 3, -1)[..., :3] if image.shape[-1] < 3 else image[..., :3]
            tile = Image.fromarray(rgb).resize((w * scale, h * scale), Image.Resampling.NEAREST)
            page.paste(tile, (x, y))
    return page


def _texts(original: np.ndarray, masked: np.ndarray, reconstructed: np.ndarray) -> Image.Image:
    """Draw bytes `[b, n]` as lines of text: the visible bytes among dots, and all bytes below."""
    wide, cell, line = 64, 8, 14
    b, n = original.shape
    lines = -(-n // wide)
    block = (2 * lines + 1) * line
    page = Image.new("RGB", (2 * GAP + wide * cell, b * block + GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    characters = {byte: chr(byte) for byte in range(32, 127)} | {10: "\\"}
    shown = lambda byte: characters.get(int(byte), "?")
    for row, i in np.ndindex(b, n):
        x, y = GAP + i % wide * cell + cell // 2, row * block + GAP + i // wide * line + line // 2
        byte, guess = original[row, i], reconstructed[row, i]
        above, below = (shown(byte), "black"), (shown(guess), "black")
        if masked[row, i]:
            above = ("\u00b7", "gray")
            below = (shown(guess), "green" if guess == byte else "red")
        for (text, fill), top in ((above, y), (below, y + lines * line)):
            draw.text((x, top), text, fill=fill, anchor="mm", font=font)
    return page


def _signals(
    original: np.ndarray, masked: np.ndarray, reconstructed: np.ndarray, most: int = 4
) -> Image.Image:
    """Draw signals `[b, n, c]` as curves, with masked parts shaded and their reconstruction in red.

    A row is a signal, and a column a channel; of more than `most` channels, `most` evenly spread.
    """
    from matplotlib.figure import Figure

    b, n, c = original.shape
    shown = np.linspace(0, c - 1, min(most, c)).round().astype(int)
    size = max(8, 4 * len(shown)), 1.6 * b + 0.6
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes: Any = figure.subplots(b, len(shown), sharex=True, squeeze=False)
    time = np.arange(n)
    for row, column in np.ndindex(axes.shape):
        axis, index = axes[row, column], (row, slice(None), shown[column])
        hidden = masked[index]
        # A value beside a masked part belongs to both lines, so that they meet.
        near = hidden | np.roll(hidden, 1) & (time > 0) | np.roll(hidden, -1) & (time < n - 1)
        guess = np.where(hidden, reconstructed[index], original[index])
        shade = dict(transform=axis.get_xaxis_transform(), color="0.9", step="mid")
        axis.fill_between(time, 0, 1, where=hidden, label="masked", linewidth=0, **shade)
        axis.plot(time, original[index], color="0.65", linewidth=1, label="original")
        axis.plot(
            time, np.where(hidden, np.nan, original[index]), "k", linewidth=1, label="visible"
        )
        axis.plot(time, np.where(near, guess, np.nan), "r", linewidth=1, label="reconstruction")
        axis.margins(x=0)
        if row == 0 and c > 1:
            axis.set_title(f"channel {shown[column]}", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return _image(figure)


def curve(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    ylabel: str,
    xlabel: str = "step",
    logarithmic: bool = False,
) -> Image.Image:
    """Draw a line for each name -> (steps, values); `logarithmic` is the axis of the steps."""
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
    return _image(figure)


def _image(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)
