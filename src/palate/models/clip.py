"""CLIP as a judge sees it: two towers and their normalised embeddings, and weights named as open_clip names them.

towers = Clip.load("openai/clip-vit-large-patch14", "clip_score")
towers.pictures([picture]) @ towers.texts(["a red circle"]).T      # cosines
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from palate.models import pixels, pretrained, scoring
from palate.models.pixels import Pixels
from palate.models.pretrained import PretrainedError
from palate.models.scoring import Precision, Words


class Embeds(Protocol):
    """What a cosine judge needs: embeddings of norm 1."""

    def texts(self, prompts: Sequence[str]) -> Tensor: ...
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor: ...


class Clip:
    """A `CLIPModel` with its tokenizer and its way to prepare pictures. Embeddings are float32, of norm 1."""

    def __init__(
        self, name: str, model: Any, tokenizer: Any, prepare: Pixels, device: str = "cpu", dtype: Precision = "float32"
    ) -> None:
        self.scale = float(model.logit_scale.detach().double().exp())  # before rounding: 100 is 98.9 in bfloat16
        self._model = scoring.settle(model, device, dtype)
        self._prepare = prepare
        pretrained.check_words(name, tokenizer, model.config.text_config)
        self._words = Words(name, tokenizer, model.config.text_config.max_position_embeddings)
        self._device, self._dtype = device, getattr(torch, dtype)

    @classmethod
    def load(cls, where: str, judge: str, device: str = "cpu", dtype: Precision = "float32") -> Clip:
        """Of a folder or hub id that holds model, tokenizer and preprocessor. Raises PretrainedError."""
        from transformers import CLIPModel

        model = pretrained.model(CLIPModel, where, judge)
        source = pretrained.resolve(where, judge)
        prepare = prepared(source, judge, model.config.vision_config.image_size)
        return cls(judge, model, pretrained.tokenizer(source, judge), prepare, device, dtype)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """[n, d]; each distinct prompt is embedded once."""
        some, place = scoring.distinct(prompts)
        words = {name: ids.to(self._device) for name, ids in self._words(some).items()}
        with torch.no_grad(), torch.autocast(torch.device(self._device).type, enabled=False):
            pooled = self._model.text_model(**words).pooler_output
            made = F.normalize(self._model.text_projection(pooled).float(), dim=-1)
        return made[place]

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[n, d]"""
        values = self._prepare(pictures).to(self._device, self._dtype)
        with torch.no_grad(), torch.autocast(torch.device(self._device).type, enabled=False):
            pooled = self._model.vision_model(pixel_values=values).pooler_output
            return F.normalize(self._model.visual_projection(pooled).float(), dim=-1)

    def cosines(self, prompts: Sequence[str], pictures: Sequence[Image.Image]) -> Tensor:
        """[n], of each prompt with the picture beside it."""
        return (self.texts(prompts) * self.pictures(pictures)).sum(-1)


def prepared(source: str, judge: str, size: int) -> Pixels:
    """How pictures are prepared for a tower that takes `size`. Raises PretrainedError where the two do not agree."""
    try:
        made = pixels.of_folder(source, size)
    except (OSError, ValueError, TypeError) as error:
        raise PretrainedError(f"{judge}: {source}: preprocessor_config.json cannot be used ({error})") from None
    if made.size != size:
        sizes = f"makes pictures of {made.size} and the model takes {size}"
        raise PretrainedError(f"{judge}: {source}: preprocessor_config.json {sizes}")
    return made


# --- open_clip's names ------------------------------------------------------------------------------------------------

_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_SINGLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}  # x @ W there


def from_open_clip(
    state: Mapping[str, Tensor], judge: str, source: str, vision_heads: int = 16, text_heads: int = 16
) -> Any:
    """A `CLIPModel` of open_clip's weights for a CLIP of two transformers with GELU, such as its ViT-H-14.

    Sizes are read off the tensors; heads cannot be, and are those of ViT-H-14. Raises PretrainedError naming a weight
    that is missing or unknown.
    """
    from transformers import CLIPModel

    state = {name.removeprefix("module."): tensor for name, tensor in state.items() if not name.endswith("attn_mask")}
    if unknown := [name for name in _SHAPED if name not in state]:
        raise PretrainedError(f"{judge}: {source} is no CLIP as open_clip writes it: it lacks {unknown[0]}")
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        renamed |= _renamed(name, tensor)
    return pretrained.build(CLIPModel, _config(state, vision_heads, text_heads), renamed, judge, source)


_SHAPED = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj", "token_embedding.weight",
           "positional_embedding", "visual.transformer.resblocks.0.mlp.c_fc.weight",
           "transformer.resblocks.0.mlp.c_fc.weight")  # fmt: skip


def _config(state: Mapping[str, Tensor], vision_heads: int, text_heads: int) -> Any:
    from transformers import CLIPConfig

    width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    words, text_width = state["token_embedding.weight"].shape
    joint = state["visual.proj"].shape[1]
    vision = {
        "hidden_size": width,
        "intermediate_size": len(state["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": _layers(state, "visual."),
        "num_attention_heads": vision_heads,
        "image_size": grid * patch,
        "patch_size": patch,
        "projection_dim": joint,
        "hidden_act": "gelu",
    }
    text = {
        "vocab_size": words,
        "hidden_size": text_width,
        "intermediate_size": len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": _layers(state, ""),
        "num_attention_heads": text_heads,
        "max_position_embeddings": len(state["positional_embedding"]),
        "projection_dim": joint,
        "hidden_act": "gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,  # the greatest id, at which open_clip pools
        "pad_token_id": words - 1,
    }
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=joint)


def _layers(state: Mapping[str, Tensor], tower: str) -> int:
    numbers = [int(found[2]) for name in state if (found := _BLOCK.fullmatch(name)) and (found[1] or "") == tower]
    return 1 + max(numbers)


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One of open_clip's weights by the names that transformers gives it; three where open_clip keeps them in one."""
    if name in _TURNED:
        return {_TURNED[name]: tensor.T.contiguous()}
    found = _BLOCK.fullmatch(name)
    if not found:
        return {_SINGLE.get(name, name): tensor}
    layer = f"{'vision' if found[1] else 'text'}_model.encoder.layers.{found[2]}"
    part, _, kind = found[3].rpartition(".")
    if found[3].startswith("attn.in_proj_"):
        kind = found[3].removeprefix("attn.in_proj_")
        return {f"{layer}.self_attn.{key}_proj.{kind}": some for key, some in zip("qkv", tensor.chunk(3), strict=True)}
    return {f"{layer}.{_PARTS.get(part, part)}.{kind}": tensor}
