"""Latte: PixArt over frames; noise prediction with variance channels that are dropped."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests import zoo


def latte() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(160)
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=3,
    )
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    pipeline = diffusers.LattePipeline(
        tokenizer=zoo._t5_tokenizer(),
        text_encoder=zoo._t5(32),
        vae=zoo._vae(4),
        transformer=transformer,
        scheduler=scheduler,
    )
    return zoo._finish(pipeline), {"height": 16, "width": 16, "video_length": 3, "clean_caption": False}


BUILDS = {"LattePipeline": latte}
