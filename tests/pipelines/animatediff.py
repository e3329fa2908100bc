"""Video from picture models.

AnimateDiff puts motion modules between the layers of a UNet and hands its prompts' embeddings over once per frame;
ModelScope's UNet has convolutions and attention in time. TextToVideoZero samples frames as pictures that attend to the
first one.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests import zoo

TABLE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
SIZES: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
CALL: dict[str, Any] = {"height": 16, "width": 16, "num_frames": 3}


def unet_sd() -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(**SIZES, cross_attention_dim=16, attention_head_dim=4)


def unet_sdxl() -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        **SIZES,
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )


def adapter(**options: Any) -> diffusers.MotionAdapter:
    return diffusers.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        **options,
    )


def parts_sd() -> dict[str, Any]:
    return {
        "vae": zoo._vae(4),
        "text_encoder": zoo._clip_text(transformers.CLIPTextModel, width=16),
        "tokenizer": zoo._clip_tokenizer(),
    }


def parts_sdxl() -> dict[str, Any]:
    return {
        "vae": zoo._vae(4),
        "text_encoder": zoo._clip_text(transformers.CLIPTextModelWithProjection, width=16),
        "text_encoder_2": zoo._clip_text(transformers.CLIPTextModelWithProjection, width=16),
        "tokenizer": zoo._clip_tokenizer(),
        "tokenizer_2": zoo._clip_tokenizer(),
    }


def animatediff() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(180)
    pipeline = diffusers.AnimateDiffPipeline(
        **parts_sd(),
        unet=unet_sd(),
        motion_adapter=adapter(),
        scheduler=diffusers.DDIMScheduler(**TABLE, beta_schedule="linear", steps_offset=1),
    )
    return zoo._finish(pipeline), dict(CALL)


def animatediff_pag() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(181)
    pipeline = diffusers.AnimateDiffPAGPipeline(
        **parts_sd(),
        unet=unet_sd(),
        motion_adapter=adapter(),
        scheduler=diffusers.DDIMScheduler(**TABLE, beta_schedule="linear", steps_offset=1),
        pag_applied_layers=["mid"],
    )
    return zoo._finish(pipeline), dict(CALL)


def animatediff_sdxl() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(182)
    pipeline = diffusers.AnimateDiffSDXLPipeline(
        **parts_sdxl(),
        unet=unet_sdxl(),
        motion_adapter=adapter(use_motion_mid_block=False),
        scheduler=diffusers.DDIMScheduler(**TABLE, beta_schedule="linear", steps_offset=1),
    )
    return zoo._finish(pipeline), dict(CALL)


def text_to_video() -> tuple[Any, dict[str, Any]]:
    """ModelScope's."""
    torch.manual_seed(183)
    unet = diffusers.UNet3DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    pipeline = diffusers.TextToVideoSDPipeline(
        **parts_sd(),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(
            **TABLE, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1
        ),
    )
    return zoo._finish(pipeline), dict(CALL)


def text_to_video_zero() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(184)
    pipeline = diffusers.TextToVideoZeroPipeline(
        **parts_sd(),
        unet=unet_sd(),
        scheduler=diffusers.DDIMScheduler(
            **TABLE, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return zoo._finish(pipeline), {"height": 16, "width": 16, "video_length": 3, "t0": 0, "t1": 1}


BUILDS = {
    "AnimateDiffPipeline": animatediff,
    "AnimateDiffPAGPipeline": animatediff_pag,
    "AnimateDiffSDXLPipeline": animatediff_sdxl,
    "TextToVideoSDPipeline": text_to_video,
    "TextToVideoZeroPipeline": text_to_video_zero,
}
