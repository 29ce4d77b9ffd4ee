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
            rgb = np.repeat(image, 3, -1) if image.shape[-1] < 3 else image[..., :3]
            tile = Image.fromarray(rgb[..., :3]).resize(
                (w * scale, h * scale), Image.Resampling.NEAREST
            )
            sheet.paste(tile, (x, title + GAP + row * cell_h))
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
