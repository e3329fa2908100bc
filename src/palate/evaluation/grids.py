"""Pictures side by side: a grid as one picture, and pairs before and after as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

MARGIN = 8
PAPER, INK = (255, 255, 255), (70, 70, 78)


def grid(
    images: Sequence[Image.Image], columns: int, scale: float = 1.0, labels: Sequence[str] | None = None
) -> Image.Image:
    """Images in rows of `columns`, each in a cell as large as the largest, scaled; whole scales keep pixels crisp.

    labels: one a picture, written beneath it and cut to fit.
    """
    if not images or columns < 1:
        raise ValueError(f"a grid needs at least one image and one column, got {len(images)} and {columns}")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"a grid of {len(images)} images needs as many labels, got {len(labels)}")
    resample = Image.Resampling.NEAREST if scale >= 1 and scale == int(scale) else Image.Resampling.LANCZOS
    cells = [
        image.convert("RGB").resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resample)
        for image in images
    ]
    columns = min(columns, len(cells))
    width, height = max(c.width for c in cells), max(c.height for c in cells)
    font = ImageFont.load_default(size=12)
    text = 20 if labels is not None else 0
    rows = -(-len(cells) // columns)
    size = (columns * (width + MARGIN) + MARGIN, rows * (height + text + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, cell in enumerate(cells):
        left = MARGIN + (place % columns) * (width + MARGIN)
        top = MARGIN + (place // columns) * (height + text + MARGIN)
        sheet.paste(cell, (left + (width - cell.width) // 2, top + (height - cell.height) // 2))
        if labels is not None:
            draw.text((left, top + height + 3), _cut(labels[place], width, font), fill=INK, font=font)
    return sheet


def still(medium: Any) -> Image.Image:
    """A picture of a medium: itself, or the middle frame of a video. Raises ValueError for what has none."""
    frame = medium[len(medium) // 2] if isinstance(medium, list | tuple) and medium else medium
    if not isinstance(frame, Image.Image):
        raise ValueError(f"a {type(medium).__name__} cannot be shown as a picture")
    return frame


def _cut(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text on one line, with dots where it had to be shortened."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def write_pairs(
    folder: Path, prompts: Sequence[str], base: Sequence[Image.Image], tuned: Sequence[Image.Image]
) -> list[dict[str, str]]:
    """Writes `base_000.png`, `tuned_000.png` ...; returns what belongs under `pairs` of the run's result.json."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = []
    for number, (prompt, before, after) in enumerate(zip(prompts, base, tuned, strict=True)):
        names = f"base_{number:03d}.png", f"tuned_{number:03d}.png"
        for name, image in zip(names, (before, after), strict=True):
            image.save(folder / name)
        pairs.append({"prompt": prompt, "base": names[0], "tuned": names[1]})
    return pairs
