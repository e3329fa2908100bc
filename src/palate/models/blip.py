"""BLIP's picture and text encoders as transformers has them, of weights named as BLIP's own code names them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from palate.models import pretrained

VISION_HEADS, TEXT_HEADS = 16, 12  # of ViT-L/16 and BERT base, which the tensors do not show
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_PARTS = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_SINGLE = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}


def encoders(vision: Mapping[str, Tensor], text: Mapping[str, Tensor], judge: str, source: str) -> tuple[Any, Any]:
    """(`BlipVisionModel`, `BlipTextModel`) of a `visual_encoder` and a `text_encoder` with cross-attention.

    Sizes are read off the tensors. Raises PretrainedError naming a weight that is missing or unknown.
    """
    from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    for held, names in ((vision, _SHAPED_VISION), (text, _SHAPED_TEXT)):
        if lacking := [name for name in names if name not in held]:
            raise pretrained.PretrainedError(f"{judge}: {source} is no BLIP: it lacks weight {lacking[0]}")
    width, _, patch, _ = vision["patch_embed.proj.weight"].shape
    grid = round((vision["pos_embed"].shape[1] - 1) ** 0.5)
    seeing = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(vision["blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=_layers(vision, r"blocks\.(\d+)\..+"),
        num_attention_heads=VISION_HEADS,
        image_size=grid * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,  # of BLIP's own code; transformers says 1e-5
    )
    words, text_width = text["embeddings.word_embeddings.weight"].shape
    reading = BlipTextConfig(
        vocab_size=words,
        hidden_size=text_width,
        encoder_hidden_size=width,
        intermediate_size=len(text["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_layers(text, r"encoder\.layer\.(\d+)\..+"),
        num_attention_heads=TEXT_HEADS,  # transformers says 8
        max_position_embeddings=len(text["embeddings.position_embeddings.weight"]),
        layer_norm_eps=1e-12,
        bos_token_id=None,
    )
    renamed = {_vision_name(name): tensor for name, tensor in vision.items()}
    kept = {name: tensor for name, tensor in text.items() if name != "embeddings.position_ids"}
    return (
        pretrained.build(BlipVisionModel, seeing, renamed, judge, source),
        pretrained.build(BlipTextModel, reading, kept, judge, source, add_pooling_layer=False),
    )


_SHAPED_VISION = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
_SHAPED_TEXT = ("embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight",
                "encoder.layer.0.intermediate.dense.weight")  # fmt: skip


def _layers(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.fullmatch(pattern, name)))


def _vision_name(name: str) -> str:
    found = _BLOCK.fullmatch(name)
    if not found:
        return _SINGLE.get(name, name)
    return f"encoder.layers.{found[1]}.{_PARTS.get(found[2], found[2])}.{found[3]}"
