"""Media side by side: a grid as one picture, and pairs before and after as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from palate import kinds
from palate.models.contracts import Media

MARGIN = 8
WINDOW = 1024  # of a sound, in samples, whose frequencies are a column of its spectrogram
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
    """A picture of a medium: itself, the middle frame of a video, the spectrogram of a sound.

    Raises ValueError for what has none.
    """
    kind = kinds.kind_of(medium)
    if kind == "videos":
        return kinds.frames_of(medium)[len(medium) // 2]
    if kind == "sounds":
        return spectrogram(medium)
    if kind == "pictures" and isinstance(medium, Image.Image):
        return medium
    raise ValueError(f"a {type(medium).__name__} cannot be shown as a picture")


def spectrogram(sound: Any, size: tuple[int, int] = (128, 64)) -> Image.Image:
    """A sound as a picture: time to the right, frequency upwards, the darker the louder, over 80 dB below its peak."""
    wave = np.atleast_2d(np.asarray(kinds.rated(sound, 0, 0), np.float64)).mean(0)
    width = min(WINDOW, len(wave))
    starts = np.linspace(0, len(wave) - width, size[0]).astype(int)
    parts = np.nan_to_num(wave[starts[:, None] + np.arange(width)]) * np.hanning(width + 2)[1:-1]
    power = np.abs(np.fft.rfft(parts, axis=1)) ** 2
    decibels = 10 * np.log10(np.maximum(power / max(power.max(), 1e-20), 1e-8))
    shades = (255 * (-decibels / 80).clip(0, 1)).astype(np.uint8)
    return Image.fromarray(np.flipud(shades.T)).resize(size, Image.Resampling.BOX).convert("RGB")


def _cut(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text on one line, with dots where it had to be shortened."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def write_pairs(
    folder: Path, prompts: Sequence[str], base: Sequence[Media], tuned: Sequence[Media]
) -> list[dict[str, str]]:
    """Writes `base_000.png`, `tuned_000.png` ..., WebM of videos and WAV of sounds.

    Returns what belongs under `pairs` of the run's result.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = []
    for number, (prompt, before, after) in enumerate(zip(prompts, base, tuned, strict=True)):
        files = {
            name: kinds.keep(folder, f"{name}_{number:03d}", m).name for name, m in (("base", before), ("tuned", after))
        }
        pairs.append({"prompt": prompt, **files})
    return pairs
