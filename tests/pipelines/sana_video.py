"""Sana Video: linear attention over Wan's latents, rectified flow on a DPM solver."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests import zoo
from tests.pipelines import parts
from tests.pipelines.video_parts import wan_vae


def sana_video() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(170)
    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=8,
        patch_size=(1, 2, 2),
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    tokenizer = parts.letters()
    pipeline = diffusers.SanaVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=parts.gemma2(transformers.Gemma2Model, tokenizer),
        vae=wan_vae(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
        ),
    )
    size = {"height": 32, "width": 32, "frames": 5, "use_resolution_binning": False}
    return zoo._finish(pipeline), {**size, "max_sequence_length": 32, "complex_human_instruction": None}


BUILDS = {"SanaVideoPipeline": sana_video}
