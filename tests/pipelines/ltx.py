"""LTX-Video: packed latents, a dynamic shift by their number, rotary positions in seconds and pixels."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests import zoo
from tests.pipelines.video_parts import FIVE_FRAMES

CALL: dict[str, Any] = {**FIVE_FRAMES, "height": 32, "width": 32, "num_frames": 9}


def transformer() -> diffusers.LTXVideoTransformer3DModel:
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )


def autoencoder(*, timestep_conditioning: bool) -> diffusers.AutoencoderKLLTXVideo:
    """At 4 x 4 x 4 instead of 8 x 32 x 32; means and deviations are buffers of the checkpoint.

    From version 0.9.1 on its decoder takes a time and noise as well.
    """
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=timestep_conditioning,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 1.5)
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return vae


def parts() -> dict[str, Any]:
    return {"text_encoder": zoo._t5(32), "tokenizer": zoo._t5_tokenizer(), "transformer": transformer()}


def dynamic_scheduler() -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )


def ltx() -> tuple[Any, dict[str, Any]]:
    """Version 0.9."""
    torch.manual_seed(110)
    scheduler = dynamic_scheduler()
    vae = autoencoder(timestep_conditioning=False)
    return zoo._finish(diffusers.LTXPipeline(**parts(), vae=vae, scheduler=scheduler)), dict(CALL)


def ltx_decoder_clock() -> tuple[Any, dict[str, Any]]:
    """Version 0.9.1: the decoder is told a time, and given a little noise."""
    torch.manual_seed(112)
    scheduler = dynamic_scheduler()
    vae = autoencoder(timestep_conditioning=True)
    pipeline = diffusers.LTXPipeline(**parts(), vae=vae, scheduler=scheduler)
    return zoo._finish(pipeline), {**CALL, "decode_timestep": 0.05, "decode_noise_scale": 0.025}


def ltx_condition() -> tuple[Any, dict[str, Any]]:
    """Version 0.9.5, the class that also takes pictures and clips to start from, with none given."""
    torch.manual_seed(111)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    vae = autoencoder(timestep_conditioning=True)
    return zoo._finish(diffusers.LTXConditionPipeline(**parts(), vae=vae, scheduler=scheduler)), dict(CALL)


BUILDS = {
    "LTXPipeline": ltx,
    "LTXPipeline (decoder with a clock)": ltx_decoder_clock,
    "LTXConditionPipeline": ltx_condition,
}
