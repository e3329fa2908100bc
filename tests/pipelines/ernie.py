"""ERNIE-Image and Ideogram 4: text and picture tokens in one sequence, FLUX.2's autoencoder."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]


def ernie() -> Build:
    """ERNIE-Image: prompts without padding, their lengths handed to the denoiser; no prompt enhancer."""
    torch.manual_seed(130)
    tokenizer = parts.letters(begin=True)
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    text = parts.language_config(tokenizer, 16, 2, model_type="mistral", sliding_window=None)
    vision = {"model_type": "pixtral", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=1)
    pipeline = diffusers.ErnieImagePipeline(
        transformer=transformer,
        vae=parts.flux2_vae(),
        text_encoder=transformers.Mistral3Model(config),
        tokenizer=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return parts.finish(pipeline), {"height": 16, "width": 16, "use_pe": False}


def ideogram() -> Build:
    """Ideogram 4: a second denoiser for the unconditional branch, a guidance scale for every step, a backward clock."""
    torch.manual_seed(131)
    tokenizer = parts.letters(chat=parts.MARKED_CHAT)
    config = {
        "in_channels": 16,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "adaln_dim": 16,
        "llm_features_dim": 13 * 8,
        "mrope_section": (4, 2, 2),
    }
    pipeline = diffusers.Ideogram4Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=parts.flux2_vae(),
        text_encoder=parts.qwen3_vl(transformers.Qwen3VLModel, tokenizer, width=8, layers=36),  # thirteen are read
        tokenizer=tokenizer,
        transformer=diffusers.Ideogram4Transformer2DModel(**config),
        unconditional_transformer=diffusers.Ideogram4Transformer2DModel(**config),
    )
    call = {"height": 16, "width": 16, "max_sequence_length": 32, "guidance_scale": 4.0, "guidance_schedule": None}
    return parts.finish(pipeline), call


BUILDS = {"ErnieImagePipeline": ernie, "Ideogram4Pipeline": ideogram}
