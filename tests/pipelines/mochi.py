"""Mochi: rectified flow walked backwards; its scheduler's sigmas rise from the noise at 0 to the video at 1."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests import zoo


def mochi() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(140)
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32,
        time_embed_dim=4,
        max_sequence_length=32,
    )
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    pipeline = diffusers.MochiPipeline(
        tokenizer=zoo._t5_tokenizer(),
        text_encoder=zoo._t5(32),
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    )
    return zoo._finish(pipeline), {"height": 16, "width": 16, "num_frames": 7, "max_sequence_length": 32}


BUILDS = {"MochiPipeline": mochi}
