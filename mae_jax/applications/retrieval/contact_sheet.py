"""A picture of queries, each with its neighbours to the right."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

GAP, LINE = 6, 14  # pixels between pictures, and the height of a line of text
LEAST = 96  # pixels of the shorter side of a picture, which is enlarged by whole pixels

Pictures = UInt8[np.ndarray, "n h w c"]


def draw(
    queries: Pictures, of_queries: Sequence[str], found: Pictures, captions: Sequence[Sequence[str]]
) -> Image.Image:
    """Draw a row for each query: itself, and after a line its neighbours with their captions.

    Args:
      queries: `[m h w c]`, in gray or color.
      of_queries: a caption for each; a caption may have several lines.
      found: the neighbours of all queries in turn, `[m*k h w c]`.
      captions: those of the neighbours, `[m k]`.
    """
    m, k = len(queries), len(captions[0])
    _, h, w, _ = queries.shape
    scale = -(-LEAST // min(h, w))
    lines = max(text.count("\n") + 1 for row in (of_queries, *captions) for text in row)
    width, height = w * scale + GAP, h * scale + LINE * lines + GAP
    page = Image.new("RGB", (2 * GAP + (k + 1) * width + GAP, GAP + m * height), "white")
    pen = ImageDraw.Draw(page)
    for row in range(m):
        y = GAP + row * height
        _tile(page, pen, (GAP, y), queries[row], of_queries[row], scale)
        for column in range(k):
            x = 3 * GAP + (column + 1) * width
            _tile(page, pen, (x, y), found[row * k + column], captions[row][column], scale)
    x = GAP + width + GAP // 2
    pen.line((x, 0, x, page.height), fill="gray", width=2)
    return page


def _tile(
    page: Image.Image, pen: Any, corner: tuple[int, int], pixels: np.ndarray, text: str, scale: int
) -> None:
    x, y = corner
    color = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    size = pixels.shape[1] * scale, pixels.shape[0] * scale
    page.paste(Image.fromarray(np.ascontiguousarray(color)).resize(size, 0), corner)
    pen.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline="lightgray")
    font = ImageFont.load_default(LINE - 3)
    for i, line in enumerate(text.split("\n")):
        place = x, y + size[1] + i * LINE
        pen.text(place, _shortened(line, font, size[0]), fill="black", font=font)


def _shortened(text: str, font: Any, width: int) -> str:
    """Return the end of a text that fits, as the ends of paths tell them apart."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text
