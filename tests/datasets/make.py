"""Pictures and rows for the tests of data, made by hand."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from palate.records import Medium, Preference

NAN = math.nan


def picture(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (32, 24), **options: Any) -> bytes:
    """A picture like no other of another seed, also to a perceptual hash."""
    image = Image.new("RGB", size, (40, 40, 40))
    draw = ImageDraw.Draw(image)
    for i in range(12):
        x, y = (seed * 7919 + i * 104729) % size[0], (seed * 6007 + i * 15485863) % size[1]
        shade = (seed * 31 + i * 67) % 256
        draw.rectangle((x, y, x + 6, y + 5), fill=(shade, 255 - shade, (shade * 3) % 256))
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def save(path: Path, seed: int = 0) -> Path:
    """A PNG or JPEG file, by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(seed, "JPEG" if path.suffix in (".jpg", ".jpeg") else "PNG"))
    return path


def png(seed: int = 0) -> Medium:
    return Medium("image/png", picture(seed))


def known(row: Preference) -> dict[tuple[int, int], float]:
    """What a row knows, by pair, each told once."""
    n = len(row)
    return {(i, j): row.prefer[i][j] for i in range(n) for j in range(i + 1, n) if row.prefer[i][j] == row.prefer[i][j]}
