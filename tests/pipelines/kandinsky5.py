"""Kandinsky 5 for video: channels last, beside them those of a first frame and its mask, empty for plain text.

The scheduler steps on a slice of what the denoiser is given. Qwen's states are as long as the prompt, so
that prompts of different lengths do not stack; guidance is by two passes.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests import zoo
from tests.pipelines import parts
from tests.pipelines.video_parts import clip_77, hunyuan_vae


def kandinsky5() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(190)
    tokenizer = parts.letters(max_length=256)  # the default negative prompt is long
    transformer = diffusers.Kandinsky5Transformer3DModel(
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
        visual_cond=True,
    )
    pipeline = diffusers.Kandinsky5T2VPipeline(
        text_encoder=parts.qwen2_5_vl(tokenizer, width=32),
        tokenizer=tokenizer,
        **clip_77(),
        transformer=transformer,
        vae=hunyuan_vae(16),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    # In place of a page of instructions, one word: six bytes that are cut off the text's states.
    pipeline.prompt_template, pipeline.prompt_template_encode_start_idx = "Film: {}.", 6
    size = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 192}
    return zoo._finish(pipeline), size


BUILDS = {"Kandinsky5T2VPipeline": kandinsky5}
