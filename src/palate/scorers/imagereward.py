"""ImageReward: what people would give a picture for its prompt, about -2 to 2, 0 the mean of its training pictures.

Xu et al. (arXiv:2304.05977). BLIP's text encoder reads the prompt, at most 35 tokens, and looks at the picture by
cross-attention; a head of five linear layers reads its first state, and (head - MEAN) / STD is the reward. The two
numbers, the 35 tokens and the sizes are those of the published code (github.com/THUDM/ImageReward, ImageReward.py).

Weights are published as a pickle; `CONVERT` makes it a safetensors file, in any environment that trusts it. The
tokenizer lies beside them, or is named by the option `tokenizer`, else BERT's own on the hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from palate.models import pretrained, scoring
from palate.models.blip import encoders
from palate.models.pixels import Pixels
from palate.models.reward_head import head
from palate.models.scoring import PictureJudge, Precision, Words

NAME = "imagereward"
TOKENIZER = "google-bert/bert-base-uncased"
TOKENS = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's scores in training
CONVERT = (
    "python -c \"import torch; from safetensors.torch import save_file; s = torch.load('ImageReward.pt', "
    "map_location='cpu', weights_only=True); "
    "save_file({k: v.contiguous().clone() for k, v in s.items()}, 'imagereward.safetensors')\""
)


class ImageReward:
    """Prompts and pictures -> scores [n]."""

    def __init__(
        self,
        vision: Any,
        text: Any,
        layers: nn.Module,
        tokenizer: Any,
        device: str = "cpu",
        dtype: Precision = "float32",
    ) -> None:
        pretrained.check_words(NAME, tokenizer, text.config)
        size = vision.config.image_size
        self._vision, self._text = (scoring.settle(part, device, dtype) for part in (vision, text))
        self._layers = scoring.settle(layers, device, "float32")
        self._words, self._prepare = Words(NAME, tokenizer, TOKENS), Pixels(size, size, half_even=True)
        self._device, self._dtype = device, getattr(torch, dtype)

    def __call__(self, prompts: list[str], pictures: list[Image.Image]) -> Tensor:
        words = {name: ids.to(self._device) for name, ids in self._words(prompts).items()}
        values = self._prepare(pictures).to(self._device, self._dtype)
        with torch.autocast(torch.device(self._device).type, enabled=False):
            seen = self._vision(pixel_values=values).last_hidden_state
            everything = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
            read = self._text(**words, encoder_hidden_states=seen, encoder_attention_mask=everything, is_decoder=False)
            given: Tensor = self._layers(read.last_hidden_state[:, 0].float()).squeeze(-1)
        return (given - MEAN) / STD


def load(
    model: str = "",
    tokenizer: str = "",
    device: str = "cpu",
    dtype: Precision = "float32",
    batch_size: int = 32,
    frames: int = 16,
) -> PictureJudge:
    """Of a safetensors file with the published names, its folder, or a hub id. Raises PretrainedError."""
    if not model:
        wanted = f"say where its weights are, {NAME}:/path/to/imagereward.safetensors"
        raise pretrained.PretrainedError(f"{NAME}: {wanted}; they come of the published ImageReward.pt by: {CONVERT}")
    state = pretrained.tensors(model, NAME, CONVERT)
    vision, text = encoders(_under(state, "blip.visual_encoder."), _under(state, "blip.text_encoder."), NAME, model)
    layers = head(_under(state, "mlp."), NAME, model)
    path = Path(pretrained.resolve(model, NAME))
    folder = path if path.is_dir() else path.parent
    beside = str(folder) if pretrained.has_tokenizer(folder) else TOKENIZER
    words = pretrained.tokenizer(tokenizer or beside, NAME)
    judge = ImageReward(vision, text, layers, words, device, dtype)
    return PictureJudge(NAME, judge, batch_size, frames)


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
