"""Sana: linear attention, a Gemma 2 that reads the prompt, the deep compression autoencoder, a flow solver."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]


def _sana(kind: Any, scheduler: Any, guidance_embeds: bool = False, layers: int = 1, **options: Any) -> Build:
    torch.manual_seed(13)
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=16,
        guidance_embeds=guidance_embeds,
        qk_norm="rms_norm_across_heads" if guidance_embeds else None,
    )
    tokenizer = parts.letters(begin=True)
    pipeline = kind(
        tokenizer=tokenizer,
        text_encoder=parts.gemma2(transformers.Gemma2Model, tokenizer, width=8),
        vae=parts.deep_compression_vae(),
        transformer=transformer,
        scheduler=scheduler,
        **options,
    )
    size = {"height": 32, "width": 32, "use_resolution_binning": False}
    return parts.finish(pipeline), {**size, "max_sequence_length": 32, "complex_human_instruction": None}


def _flow_solver() -> Any:
    return diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def plain() -> Build:
    return _sana(diffusers.SanaPipeline, _flow_solver())


def pag() -> Build:
    return _sana(diffusers.SanaPAGPipeline, _flow_solver(), layers=2, pag_applied_layers="transformer_blocks.1")


def sprint() -> Build:
    """Distilled to one or two steps on a trigonometric path: the pipeline itself converts the prediction."""
    return _sana(diffusers.SanaSprintPipeline, diffusers.SCMScheduler(prediction_type="trigflow", sigma_data=0.5), True)


BUILDS = {"SanaPipeline": plain, "SanaPAGPipeline": pag, "SanaSprintPipeline": sprint}
