"""PixArt alpha and sigma: a T5 by cross-attention with a mask, a noise table, variance channels that are dropped."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]


def _pixart(kind: Any, seed: int, **options: Any) -> Build:
    torch.manual_seed(seed)
    alpha = kind is diffusers.PixArtAlphaPipeline
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=128 if alpha else 8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        use_additional_conditions=alpha,  # sizes and aspect ratios, as at 1024 pixels, a sample size of 128
    )
    pipeline = kind(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.t5(32),
        vae=parts.vae(4, scaling_factor=0.18215 if alpha else 0.13025),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02),
        **options,
    )
    size = {"height": 16, "width": 16, "use_resolution_binning": False}
    return parts.finish(pipeline), {**size, "max_sequence_length": 32, "clean_caption": False}


def alpha() -> Build:
    return _pixart(diffusers.PixArtAlphaPipeline, 9)


def sigma() -> Build:
    return _pixart(diffusers.PixArtSigmaPipeline, 10)


def sigma_pag() -> Build:
    return _pixart(diffusers.PixArtSigmaPAGPipeline, 10, pag_applied_layers="blocks.1")


BUILDS = {"PixArtAlphaPipeline": alpha, "PixArtSigmaPipeline": sigma, "PixArtSigmaPAGPipeline": sigma_pag}
