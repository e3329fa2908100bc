"""Kandinsky 6 for video, with its sound left out: rectified flow, channels last, a mask over the text."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests import zoo
from tests.pipelines import parts
from tests.pipelines.video_parts import clip_77, hunyuan_vae


def kandinsky6() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(280)
    tokenizer = parts.letters(max_length=256)
    transformer = diffusers.Kandinsky6Transformer3DModel(
        in_visual_dim=16,
        out_visual_dim=16,
        in_text_dim=32,
        in_text_dim2=16,
        time_dim=16,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
        model_dim_a=16,
        time_dim_a=16,
        ff_dim_a=32,
        axes_dims_a=(16,),
        text_token_padding=True,
        ca_rope=True,
        cross_gates=True,
        fix_modulation=True,
    )
    pipeline = diffusers.Kandinsky6TI2VAPipeline(
        transformer=transformer,
        vae=hunyuan_vae(16),
        text_encoder=parts.qwen2_5_vl(tokenizer, width=32),
        tokenizer=tokenizer,
        **clip_77(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    size = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 32}
    return zoo._finish(pipeline), {**size, "sample_audio": False}


BUILDS = {"Kandinsky6TI2VAPipeline": kandinsky6}
