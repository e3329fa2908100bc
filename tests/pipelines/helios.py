"""Helios: long videos chunk by chunk, each told what went before at three resolutions of memory."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests import zoo
from tests.pipelines.parts import umt5
from tests.pipelines.video_parts import FIVE_FRAMES, wan_vae


def pipeline() -> Any:
    torch.manual_seed(230)
    transformer = diffusers.HeliosTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_dim=(4, 4, 4),
        has_multi_term_memory_patch=True,
        guidance_cross_attn=True,
        zero_history_timestep=True,
        is_amplify_history=False,
    )
    made = diffusers.HeliosPipeline(
        tokenizer=zoo._t5_tokenizer(),
        text_encoder=umt5(32),
        vae=wan_vae(),
        transformer=transformer,
        scheduler=diffusers.HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True),
    )
    return zoo._finish(made)


CALL: dict[str, Any] = {**FIVE_FRAMES, "num_latent_frames_per_chunk": 2}


def helios() -> tuple[Any, dict[str, Any]]:
    """One chunk of two latent frames, so that there is nothing to remember."""
    return pipeline(), dict(CALL)


def two_chunks() -> tuple[Any, dict[str, Any]]:
    """Twice the steps: the second chunk is told the first one."""
    return pipeline(), {**CALL, "num_frames": 10}


BUILDS = {"HeliosPipeline": helios, "HeliosPipeline (two chunks)": two_chunks}
