"""LAION's aesthetic predictor, version 2: how beautiful people call a picture, about 1 to 10, whatever its prompt.

A head of five linear layers on the normalised embedding of OpenAI's CLIP ViT-L/14: `sac+logos+ava1-l14-linearMSE` of
github.com/christophschuhmann/improved-aesthetic-predictor. By default from a hub copy that holds tower and head in one
safetensors file. The head alone, converted from its .pth by `CONVERT`, goes with the option `clip`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from palate.models import pretrained, scoring
from palate.models.clip import prepared
from palate.models.pixels import Pixels
from palate.models.reward_head import head
from palate.models.scoring import PictureJudge, Precision

NAME = "aesthetic"
MODEL = "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE"
CLIP = "openai/clip-vit-large-patch14"
CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; s = torch.load('
    "'sac+logos+ava1-l14-linearMSE.pth', map_location='cpu', weights_only=True); "
    "save_file({k: v.contiguous() for k, v in s.items()}, 'aesthetic.safetensors')\""
)


class Aesthetic:
    """Pictures -> scores [n]; prompts are not looked at."""

    def __init__(
        self,
        tower: Any,
        layers: nn.Module,
        prepare: Pixels,
        device: str = "cpu",
        dtype: Precision = "float32",
    ) -> None:
        self._tower = scoring.settle(tower, device, dtype)
        self._layers = scoring.settle(layers, device, "float32")  # small, and a score of two digits needs it
        self._prepare, self._device, self._dtype = prepare, device, getattr(torch, dtype)

    def __call__(self, _: list[str], pictures: list[Image.Image]) -> Tensor:
        values = self._prepare(pictures).to(self._device, self._dtype)
        with torch.autocast(torch.device(self._device).type, enabled=False):
            made = F.normalize(self._tower(pixel_values=values).image_embeds.float(), dim=-1)
            scores: Tensor = self._layers(made).squeeze(-1)
        return scores


def load(
    model: str = MODEL,
    clip: str = "",
    device: str = "cpu",
    dtype: Precision = "float32",
    batch_size: int = 32,
    frames: int = 16,
) -> PictureJudge:
    """Of a folder or hub id with tower and head in one, or of a safetensors file of the head and a CLIP beside it.

    clip: folder or hub id of the CLIP that the head reads, for a head alone; OpenAI's ViT-L/14 by default. Raises
    PretrainedError.
    """
    from transformers import CLIPVisionModelWithProjection

    state = pretrained.tensors(model, NAME, CONVERT)
    layers = head({name: tensor for name, tensor in state.items() if name.startswith("layers.")}, NAME, model)
    tower_state = {name: tensor for name, tensor in state.items() if not name.startswith("layers.")}
    source = pretrained.resolve(clip or (model if tower_state else CLIP), NAME)
    tower = pretrained.model(CLIPVisionModelWithProjection, source, NAME)
    if tower.config.projection_dim != layers[0].in_features:
        raise pretrained.PretrainedError(f"{NAME}: {model} reads embeddings of {layers[0].in_features} numbers and the "
                                         f"CLIP {source} makes {tower.config.projection_dim}")  # fmt: skip
    prepare = prepared(source, NAME, tower.config.image_size)
    judge = Aesthetic(tower, layers, prepare, device, dtype)
    return PictureJudge(NAME, judge, batch_size, frames, reads_prompts=False)
