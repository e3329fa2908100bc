"""Music from prompts and lyrics by rectified flow, without a UNet: ACE-Step and LongCat's audio model.

ACE-Step 1.5 guides with momentum, a state between steps, and lays the noisy latents beside those of a source, silence
for plain text; it takes one prompt at a time. LongCat's scheduler runs from 0, which is noise, to 1.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests import zoo
from tests.pipelines import parts
from tests.pipelines.audio_parts import oobleck

HEADS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_theta": 1e4,
    "sliding_window": 16,
}
POOL: dict[str, Any] = {**HEADS, "audio_acoustic_hidden_dim": 8, "pool_window_size": 2}


def ace_step() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(260)
    from diffusers.pipelines.ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )

    tokenizer = parts.letters(max_length=256)
    transformer = diffusers.AceStepTransformer1DModel(
        **HEADS, num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2
    )
    condition_encoder = AceStepConditionEncoder(
        **HEADS,
        text_hidden_dim=16,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=2,
        num_timbre_encoder_hidden_layers=2,
    )
    condition_encoder.silence_latent.normal_()  # a source without sound is not all zeros
    pipeline = diffusers.AceStepPipeline(
        vae=oobleck(8),
        text_encoder=parts.qwen3(transformers.Qwen3Model, tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
        condition_encoder=condition_encoder,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=AceStepAudioTokenizer(
            **POOL,
            fsq_dim=32,
            fsq_input_levels=[4, 4, 4],
            fsq_input_num_quantizers=1,
            num_attention_pooler_hidden_layers=1,
        ),
        audio_token_detokenizer=AceStepAudioTokenDetokenizer(**POOL, num_attention_pooler_hidden_layers=1),
    )
    call = {"audio_duration": 4.0, "lyrics": "la", "max_text_length": 192, "max_lyric_length": 64}
    return zoo._finish(pipeline), call


def longcat_audio() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(261)
    transformer = diffusers.LongCatAudioDiTTransformer(
        dit_dim=32, dit_depth=2, dit_heads=4, dit_text_dim=32, latent_dim=8, text_conv=False
    )
    vae = diffusers.LongCatAudioDiTVae(
        in_channels=1,
        channels=16,
        c_mults=[1, 2],
        strides=[2],
        latent_dim=8,
        encoder_latent_dim=16,
        downsampling_ratio=2,
        sample_rate=24000,
    )
    pipeline = diffusers.LongCatAudioDiTPipeline(
        vae=vae,
        text_encoder=parts.umt5(32),
        tokenizer=zoo._t5_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True),
    )
    return zoo._finish(pipeline), {"audio_duration_s": 0.001}


BUILDS = {"AceStepPipeline": ace_step, "LongCatAudioDiTPipeline": longcat_audio}
