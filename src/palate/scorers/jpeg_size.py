"""The size of a picture as a JPEG: a reward that needs no model, for compressibility and its opposite.

As in DDPO (arXiv:2305.13301) and D3PO (arXiv:2311.13231, section 5.1): kilobytes at quality 95.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


class JpegSize:
    """Scores `{"jpeg_size": [n]}` in kB (1 kB = 1,000 bytes); weigh it with -1 to ask for compressible pictures."""

    judges = ("pictures",)

    def __init__(self, quality: int = 95) -> None:
        self.quality = quality

    def __call__(self, prompts: Sequence[str], media: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        return {"jpeg_size": np.array([self._kilobytes(picture) for picture in media], dtype=np.float64)}

    def _kilobytes(self, picture: Image.Image) -> float:
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=self.quality)
        return buffer.tell() / 1000


def load(quality: int = 95) -> JpegSize:
    """The scorer of this file, as every file in this folder offers it."""
    return JpegSize(quality)
