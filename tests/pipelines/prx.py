"""PRX: a T5-Gemma's tokens as keys and values beside the picture's own; in latents, and in pixels with a bottleneck."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]


def _transformer(**options: Any) -> diffusers.PRXTransformer2DModel:
    return diffusers.PRXTransformer2DModel(
        context_in_dim=16, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=2, axes_dim=[4, 4], **options
    )


def latent() -> Build:
    torch.manual_seed(110)
    tokenizer = parts.letters(begin=True, max_length=32)
    text = T5GemmaModuleConfig(
        **parts.language_config(tokenizer, 16, 1),
        layer_types=["full_attention"],
        query_pre_attn_scalar=8,
        dropout_rate=0.0,
        attention_dropout=0.0,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    )
    pipeline = diffusers.PRXPipeline(
        transformer=_transformer(patch_size=2, in_channels=4),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=T5GemmaEncoder(text),
        tokenizer=tokenizer,
        vae=parts.vae(4, scaling_factor=0.3611, shift_factor=0.1159),
        default_sample_size=16,
    )
    return parts.finish(pipeline), {"height": 16, "width": 16, "use_resolution_binning": False}


def pixel() -> Build:
    """No autoencoder: the picture itself is denoised, and the model predicts it rather than a velocity."""
    torch.manual_seed(111)
    tokenizer = parts.letters(begin=True, max_length=16)
    pipeline = diffusers.PRXPixelPipeline(
        transformer=_transformer(patch_size=4, in_channels=3, bottleneck_size=8, resolution_embeds=True),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=parts.qwen3(transformers.Qwen3Model, tokenizer),
        tokenizer=tokenizer,
        prompt_max_tokens=16,
    )
    return parts.finish(pipeline), {"height": 16, "width": 16, "use_resolution_binning": False}


BUILDS = {"PRXPipeline": latent, "PRXPixelPipeline": pixel}
