"""Kandinsky 5: latents with the channels last, beside them those of a first frame and its mask, empty for plain text.

The video model's scheduler steps on a slice of what its denoiser is given. Qwen's states are as long as the prompt, so
that prompts of different lengths do not stack; guidance is by two passes.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests import zoo
from tests.pipelines import parts
from tests.pipelines.video_parts import clip_77, hunyuan_vae


def transformer(*, visual_cond: bool) -> diffusers.Kandinsky5Transformer3DModel:
    return diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=16,
        in_text_dim=32,
        in_text_dim2=16,
        time_dim=16,
        out_visual_dim=16,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(2, 2, 4),
        visual_cond=visual_cond,
    )


def text() -> dict[str, Any]:
    tokenizer = parts.letters(max_length=256)  # the default negative prompt is long
    return {"text_encoder": parts.qwen2_5_vl(tokenizer, width=32), "tokenizer": tokenizer, **clip_77()}


def short_template(pipeline: Any) -> Any:
    """In place of a page of instructions, one word: six bytes that are cut off the text's states."""
    pipeline.prompt_template, pipeline.prompt_template_encode_start_idx = "Film: {}.", 6
    return pipeline


def video() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(190)
    pipeline = diffusers.Kandinsky5T2VPipeline(
        **text(),
        transformer=transformer(visual_cond=True),
        vae=hunyuan_vae(16),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    size = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 192}
    return zoo._finish(short_template(pipeline)), size


def picture() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(191)
    pipeline = diffusers.Kandinsky5T2IPipeline(
        **text(),
        transformer=transformer(visual_cond=False),
        vae=zoo._vae(16, scaling_factor=0.3611, shift_factor=0.1159),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.resolutions = [(32, 32)]  # others are resized to the nearest one
    return zoo._finish(short_template(pipeline)), {"height": 32, "width": 32, "max_sequence_length": 192}


BUILDS = {"Kandinsky5T2VPipeline": video, "Kandinsky5T2IPipeline": picture}
