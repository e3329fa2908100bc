"""CLIP score: how well a picture fits its prompt, 100 * max(cos, 0).

Hessel et al. (arXiv:2104.08718) with the factor 100 that is in use (torchmetrics; theirs was 2.5). OpenAI's ViT-L/14
unless another CLIP is named: scores of two CLIPs do not compare.
"""

from __future__ import annotations

from torch import Tensor

from palate.models.clip import Clip
from palate.models.contracts import Media
from palate.models.scoring import PictureJudge, Precision

NAME = "clip_score"
MODEL = "openai/clip-vit-large-patch14"


def load(
    model: str = MODEL, device: str = "cpu", dtype: Precision = "float32", batch_size: int = 32, frames: int = 16
) -> PictureJudge:
    """Of a CLIP's folder or hub id. Raises PretrainedError."""
    towers = Clip.load(model, NAME, device, dtype)

    def judge(prompts: list[str], pictures: list[Media]) -> Tensor:
        return 100 * towers.cosines(prompts, pictures).clamp(min=0)

    return PictureJudge(NAME, judge, batch_size, frames)
