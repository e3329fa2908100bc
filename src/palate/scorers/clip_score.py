"""CLIP score: how well a picture fits its prompt, 100 * max(cos, 0).

Hessel et al. (arXiv:2104.08718) with the factor 100 that is in use (torchmetrics; theirs was 2.5). OpenAI's ViT-L/14
unless another CLIP is named: scores of two CLIPs do not compare.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from palate.models import scoring
from palate.models.clip import Clip
from palate.models.contracts import Media
from palate.models.scoring import Precision

NAME = "clip_score"
MODEL = "openai/clip-vit-large-patch14"


class ClipScore:
    """`{"clip_score": [n]}` of pictures, and of videos the mean over at most `frames` of their frames."""

    dimensions = (NAME,)
    reads_prompts = True

    def __init__(self, towers: Clip, batch_size: int = 32, frames: int = 16) -> None:
        self._towers, self._batch_size, self._frames = towers, batch_size, frames

    def __call__(self, prompts: Sequence[str], media: Sequence[Media]) -> dict[str, np.ndarray]:
        parts = scoring.frames(NAME, media, self._frames)
        return scoring.score(NAME, prompts, media, parts, self._judge, self._batch_size)

    def _judge(self, prompts: list[str], pictures: list[Media]) -> Tensor:
        return 100 * self._towers.cosines(prompts, pictures).clamp(min=0)


def load(
    model: str = MODEL, device: str = "cpu", dtype: Precision = "float32", batch_size: int = 32, frames: int = 16
) -> ClipScore:
    """Of a CLIP's folder or hub id. Raises PretrainedError."""
    return ClipScore(Clip.load(model, NAME, device, dtype), batch_size, frames)
