"""Ovis-Image and LongCat-Image: FLUX's layout with a language model that reads the prompt, guidance by two calls."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]
OVIS = (
    "Describe the image by detailing the color, quantity, text, shape, size, texture, spatial relationships of the "
    "objects and background: <|im_start|>user\n"
)
LONGCAT = (
    "<|im_start|>system\nAs an image captioning expert, generate a descriptive text prompt based on an image content, "
    "suitable for input to a text-to-image model.<|im_end|>\n<|im_start|>user\nassistant"
)


def _scheduler() -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def ovis() -> Build:
    """Ovis-Image: SwiGLU blocks, embeddings of padding set to zero."""
    torch.manual_seed(100)
    tokenizer = parts.letters(OVIS, chat=parts.MARKED_CHAT)
    transformer = diffusers.OvisImageTransformer2DModel(
        patch_size=1,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    parts.open_gates(transformer.timestep_embedder.linear_2)
    pipeline = diffusers.OvisImagePipeline(
        scheduler=_scheduler(),
        vae=parts.vae(4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=parts.qwen3(transformers.Qwen3Model, tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    return parts.finish(pipeline), {"height": 16, "width": 16, "max_sequence_length": 16}


def longcat() -> Build:
    """LongCat-Image: quoted text letter by letter, guidance rescaled to the conditional prediction's norm."""
    torch.manual_seed(101)
    tokenizer = parts.letters(LONGCAT)
    transformer = diffusers.LongCatImageTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    parts.open_gates(transformer.time_embed.timestep_embedder.linear_2)
    pipeline = diffusers.LongCatImagePipeline(
        scheduler=_scheduler(),
        vae=parts.vae(16, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=parts.qwen2_5_vl(tokenizer),
        tokenizer=tokenizer,
        text_processor=parts.TextProcessor(tokenizer),
        transformer=transformer,
    )
    pipeline.tokenizer_max_length = 16  # of a fixed block of tokens; not an argument
    return parts.finish(pipeline), {"height": 16, "width": 16, "enable_prompt_rewrite": False}


BUILDS = {"OvisImagePipeline": ovis, "LongCatImagePipeline": longcat}
