"""CogView 3 Plus and CogView 4: text and picture in one sequence, sizes as conditions."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]
CALL = {"height": 16, "width": 16, "max_sequence_length": 16}


def three_plus() -> Build:
    """CogView 3 Plus: a T5, v-prediction over a noise table with zero terminal SNR, trailing steps."""
    torch.manual_seed(80)
    transformer = diffusers.CogView3PlusTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    )
    pipeline = diffusers.CogView3PlusPipeline(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.t5(32),
        vae=parts.vae(4, scaling_factor=0.13025),
        transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            set_alpha_to_one=True,
            snr_shift_scale=4.0,
            timestep_spacing="trailing",
        ),
    )
    return parts.finish(pipeline), CALL


def four() -> Build:
    """CogView 4: a GLM padded on the left to sixteens, flow with a linear shift by size."""
    torch.manual_seed(81)
    tokenizer = parts.letters(begin=True, side="left")
    transformer = diffusers.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(16, 16),
        sample_size=8,
    )
    parts.open_gates(transformer.time_condition_embed.timestep_embedder.linear_2)
    pipeline = diffusers.CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=parts.glm(transformers.GlmModel, tokenizer),
        vae=parts.vae(4, scaling_factor=1.0),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )
    return parts.finish(pipeline), CALL


BUILDS = {"CogView3PlusPipeline": three_plus, "CogView4Pipeline": four}
