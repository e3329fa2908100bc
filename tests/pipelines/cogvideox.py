"""CogVideoX: v-prediction of frames on a noise table with zero terminal SNR.

The 2B model takes sine positions and DDIM; the 5B models rotary ones and a DPM solver that also keeps the last x0.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests import zoo

CALL: dict[str, Any] = {"height": 16, "width": 16, "num_frames": 8, "max_sequence_length": 32}
TABLE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}


def pipeline(scheduler: Any, scaling_factor: float, **options: Any) -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        temporal_compression_ratio=4,
        max_text_seq_length=32,
        **{"patch_size": 2, **options},
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        scaling_factor=scaling_factor,
    )
    made = diffusers.CogVideoXPipeline(
        tokenizer=zoo._t5_tokenizer(),
        text_encoder=zoo._t5(32),
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )
    return zoo._finish(made)


def cogvideox_2b() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(120)
    return pipeline(diffusers.CogVideoXDDIMScheduler(**TABLE, snr_shift_scale=3.0), 1.15258426), dict(CALL)


def cogvideox_5b() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(121)
    scheduler = diffusers.CogVideoXDPMScheduler(**TABLE, snr_shift_scale=1.0)
    return pipeline(scheduler, 0.7, use_rotary_positional_embeddings=True), dict(CALL)


def cogvideox_15() -> tuple[Any, dict[str, Any]]:
    """5B, version 1.5: patches of two frames, so that a frame is added to the latents and dropped in decoding."""
    torch.manual_seed(122)
    scheduler = diffusers.CogVideoXDPMScheduler(**TABLE, snr_shift_scale=1.0)
    made = pipeline(scheduler, 0.7, use_rotary_positional_embeddings=True, patch_size_t=2, patch_bias=False)
    return made, {**CALL, "num_frames": 9}


BUILDS = {
    "CogVideoXPipeline": cogvideox_2b,
    "CogVideoXPipeline (DPM)": cogvideox_5b,
    "CogVideoXPipeline (1.5)": cogvideox_15,
}
