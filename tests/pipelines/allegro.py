"""Allegro: noise prediction of frames on a linear table, an autoencoder that works in tiles only."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests import zoo


def allegro() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(150)
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=32,
    )
    vae = diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        scaling_factor=0.13235,
    )
    vae.enable_tiling()
    vae.enable_slicing()  # a tile holds one video
    vae.kernel, vae.stride = (8, 16, 16), (4, 8, 8)  # one tile; its own are of 24 frames of 320 x 320
    scheduler = diffusers.EulerAncestralDiscreteScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    pipeline = diffusers.AllegroPipeline(
        tokenizer=zoo._t5_tokenizer(),
        text_encoder=zoo._t5(32),
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )
    size = {"height": 16, "width": 16, "num_frames": 8, "max_sequence_length": 32}
    return zoo._finish(pipeline), {**size, "clean_caption": False}


BUILDS = {"AllegroPipeline": allegro}
