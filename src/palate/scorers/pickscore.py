"""PickScore: which of two pictures a person would pick for a prompt, exp(logit_scale) * cos.

Kirstain et al. (arXiv:2305.01569, section 4): CLIP-H tuned on Pick-a-Pic, P(a over b) = sigmoid(score_a - score_b).
Around 20 for usual pictures. It compares pictures of one prompt; between prompts it says little.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from palate.models import scoring
from palate.models.clip import Clip
from palate.models.contracts import Media
from palate.models.scoring import Precision

NAME = "pickscore"
MODEL = "yuvalkirstain/PickScore_v1"


class PickScore:
    """`{"pickscore": [n]}` of pictures, and of videos the mean over at most `frames` of their frames."""

    dimensions = (NAME,)
    reads_prompts = True

    def __init__(self, towers: Clip, batch_size: int = 32, frames: int = 16) -> None:
        self._towers, self._batch_size, self._frames = towers, batch_size, frames

    def __call__(self, prompts: Sequence[str], media: Sequence[Media]) -> dict[str, np.ndarray]:
        parts = scoring.frames(NAME, media, self._frames)
        return scoring.score(NAME, prompts, media, parts, self._judge, self._batch_size)

    def _judge(self, prompts: list[str], pictures: list[Media]) -> Tensor:
        return self._towers.scale * self._towers.cosines(prompts, pictures)


def load(
    model: str = MODEL, device: str = "cpu", dtype: Precision = "float32", batch_size: int = 32, frames: int = 16
) -> PickScore:
    """Of the folder or hub id of a tuned CLIP. Raises PretrainedError."""
    return PickScore(Clip.load(model, NAME, device, dtype), batch_size, frames)
