"""PickScore: which of two pictures a person would pick for a prompt, exp(logit_scale) * cos.

Kirstain et al. (arXiv:2305.01569, section 4): CLIP-H tuned on Pick-a-Pic, P(a over b) = sigmoid(score_a - score_b).
Around 20 for usual pictures. It compares pictures of one prompt; between prompts it says little.
"""

from __future__ import annotations

from torch import Tensor

from palate.models.clip import Clip
from palate.models.contracts import Media
from palate.models.scoring import PictureJudge, Precision

NAME = "pickscore"
MODEL = "yuvalkirstain/PickScore_v1"


def load(
    model: str = MODEL, device: str = "cpu", dtype: Precision = "float32", batch_size: int = 32, frames: int = 16
) -> PictureJudge:
    """Of the folder or hub id of a tuned CLIP. Raises PretrainedError."""
    towers = Clip.load(model, NAME, device, dtype)

    def judge(prompts: list[str], pictures: list[Media]) -> Tensor:
        return towers.scale * towers.cosines(prompts, pictures)

    return PictureJudge(NAME, judge, batch_size, frames)
