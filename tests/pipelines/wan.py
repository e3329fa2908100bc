"""Wan and what was made from it: video by rectified flow, guided in two passes, on a flow solver.

Wan 2.2 has two experts, one for the high noise levels and one for the low ones; its 5B model gives every token a clock
of its own. SkyReels-V2 is Wan with a shift of 8; its diffusion forcing gives every frame its own schedule. AnyFlow
learns the map between two times, so that its denoiser is told both.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests import zoo
from tests.pipelines.parts import umt5
from tests.pipelines.video_parts import FIVE_FRAMES, wan_scheduler, wan_vae

SIZES: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 1,
    "cross_attn_norm": True,
    "rope_max_seq_len": 32,
}
NORM = {"qk_norm": "rms_norm_across_heads"}


def text() -> dict[str, Any]:
    return {"tokenizer": zoo._t5_tokenizer(), "text_encoder": umt5(32)}


def wan() -> tuple[Any, dict[str, Any]]:
    """Wan 2.1: one expert."""
    torch.manual_seed(100)
    pipeline = diffusers.WanPipeline(
        **text(),
        vae=wan_vae(),
        transformer=diffusers.WanTransformer3DModel(**SIZES, **NORM),
        transformer_2=None,
        scheduler=wan_scheduler(3.0),
    )
    return zoo._finish(pipeline), dict(FIVE_FRAMES)


def wan_two_experts() -> tuple[Any, dict[str, Any]]:
    """Wan 2.2 A14B: `transformer` above a noise level of 0.875, `transformer_2` below."""
    torch.manual_seed(101)
    pipeline = diffusers.WanPipeline(
        **text(),
        vae=wan_vae(),
        transformer=diffusers.WanTransformer3DModel(**SIZES, **NORM),
        transformer_2=diffusers.WanTransformer3DModel(**SIZES, **NORM),
        boundary_ratio=0.875,
        scheduler=wan_scheduler(3.0),
    )
    return zoo._finish(pipeline), dict(FIVE_FRAMES)


def wan_5b() -> tuple[Any, dict[str, Any]]:
    """Wan 2.2 TI2V-5B: one expert, a clock per token, an autoencoder of patches."""
    torch.manual_seed(102)
    means, deviations = torch.randn(48).tolist(), (0.5 + torch.rand(48)).tolist()
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=48,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        latents_mean=means,
        latents_std=deviations,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
        temperal_downsample=[False, True, True],
    )
    pipeline = diffusers.WanPipeline(
        **text(),
        vae=vae,
        transformer=diffusers.WanTransformer3DModel(**{**SIZES, "in_channels": 48, "out_channels": 48}, **NORM),
        transformer_2=None,
        expand_timesteps=True,
        scheduler=wan_scheduler(5.0),
    )
    return zoo._finish(pipeline), {**FIVE_FRAMES, "height": 32, "width": 32}


def wan_vace() -> tuple[Any, dict[str, Any]]:
    """VACE, the class that also edits and extends videos, with nothing given but text: an empty clip, all masked."""
    torch.manual_seed(107)
    transformer = diffusers.WanVACETransformer3DModel(
        **{**SIZES, "num_layers": 2}, **NORM, vace_layers=[0, 1], vace_in_channels=96
    )
    pipeline = diffusers.WanVACEPipeline(
        **text(),
        vae=wan_vae(),
        transformer=transformer,
        transformer_2=None,
        scheduler=wan_scheduler(3.0),
    )
    return zoo._finish(pipeline), dict(FIVE_FRAMES)


def skyreels() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(103)
    pipeline = diffusers.SkyReelsV2Pipeline(
        **text(),
        vae=wan_vae(),
        transformer=diffusers.SkyReelsV2Transformer3DModel(**SIZES, **NORM),
        scheduler=wan_scheduler(8.0),
    )
    return zoo._finish(pipeline), dict(FIVE_FRAMES)


def skyreels_forcing() -> tuple[Any, dict[str, Any]]:
    """Diffusion forcing: a scheduler for every latent frame."""
    torch.manual_seed(104)
    pipeline = diffusers.SkyReelsV2DiffusionForcingPipeline(
        **text(),
        vae=wan_vae(),
        transformer=diffusers.SkyReelsV2Transformer3DModel(**SIZES, **NORM),
        scheduler=wan_scheduler(8.0),
    )
    return zoo._finish(pipeline), dict(FIVE_FRAMES)


def anyflow() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(105)
    pipeline = diffusers.AnyFlowPipeline(
        **text(),
        vae=wan_vae(),
        transformer=diffusers.AnyFlowTransformer3DModel(**SIZES, gate_value=0.25, deltatime_type="r"),
        scheduler=diffusers.FlowMapEulerDiscreteScheduler(shift=5.0),
    )
    return zoo._finish(pipeline), dict(FIVE_FRAMES)


def anyflow_far() -> tuple[Any, dict[str, Any]]:
    """Frames one chunk after the other, with a cache of those that are done."""
    torch.manual_seed(106)
    transformer = diffusers.AnyFlowFARTransformer3DModel(
        **SIZES,
        gate_value=0.25,
        deltatime_type="r",
        compressed_patch_size=(1, 4, 4),
        full_chunk_limit=3,
        chunk_partition=(1, 1),
    )
    pipeline = diffusers.AnyFlowFARPipeline(
        **text(),
        vae=wan_vae(),
        transformer=transformer,
        scheduler=diffusers.FlowMapEulerDiscreteScheduler(shift=5.0),
    )
    return zoo._finish(pipeline), {**FIVE_FRAMES, "height": 32, "width": 32}


BUILDS = {
    "WanPipeline": wan,
    "WanPipeline (two experts)": wan_two_experts,
    "WanPipeline (clock per token)": wan_5b,
    "WanVACEPipeline": wan_vace,
    "SkyReelsV2Pipeline": skyreels,
    "SkyReelsV2DiffusionForcingPipeline": skyreels_forcing,
    "AnyFlowPipeline": anyflow,
    "AnyFlowFARPipeline": anyflow_far,
}
