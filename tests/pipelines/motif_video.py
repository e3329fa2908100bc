"""Motif Video: rectified flow, guided by a component that projects and remembers."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests import zoo
from tests.pipelines.video_parts import FIVE_FRAMES, wan_vae


def motif_video() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(220)
    transformer = diffusers.MotifVideoTransformer3DModel(
        in_channels=33,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        patch_size=1,
        patch_size_t=1,
        qk_norm="rms_norm",
        text_embed_dim=32,
        rope_axes_dim=(4, 4, 4),
    )
    text = transformers.T5Gemma2TextConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=64,
        max_position_embeddings=128,
        head_dim=16,
        num_key_value_heads=2,
        dropout_rate=0.0,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    vision = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32
    )
    config = transformers.models.t5gemma2.T5Gemma2EncoderConfig(text_config=text, vision_config=vision)
    pipeline = diffusers.MotifVideoPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=wan_vae(),
        text_encoder=transformers.models.t5gemma2.T5Gemma2Encoder(config),
        tokenizer=zoo._t5_tokenizer(),
        transformer=transformer,
        guider=diffusers.AdaptiveProjectedGuidance(),
    )
    return zoo._finish(pipeline), dict(FIVE_FRAMES)


BUILDS = {"MotifVideoPipeline": motif_video}
