"""The older ones: latent diffusion with a BERT-like encoder, and DeepFloyd IF in pixels."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests import zoo
from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]


def text_to_image() -> Build:
    """LDM: the grandmother of Stable Diffusion; its text encoder is called `bert`, its autoencoder `vqvae`."""
    torch.manual_seed(150)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    pipeline = diffusers.LDMTextToImagePipeline(
        vqvae=parts.vae(4),
        bert=parts.clip_text(transformers.CLIPTextModel, width=16, positions=77),
        tokenizer=parts.clip_tokenizer(),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(**zoo.NOISE_TABLE, clip_sample=False, set_alpha_to_one=False),
    )
    return parts.finish(pipeline), {"height": 64, "width": 64}  # an eighth, whatever the autoencoder does


def deepfloyd(thresholding: bool = True) -> Build:
    """IF, first stage: pixels, a T5 pooled by attention, variance channels; x0 is thresholded as published."""
    torch.manual_seed(151)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=3,
        out_channels=6,
        cross_attention_dim=32,
        encoder_hid_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    pipeline = diffusers.IFPipeline(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.t5(32),
        unet=unet,
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            clip_sample=thresholding,
            thresholding=thresholding,
            dynamic_thresholding_ratio=0.95,
            sample_max_value=1.5,
            variance_type="learned_range",
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    return parts.finish(pipeline), {"height": 16, "width": 16, "clean_caption": False}


def deepfloyd_unclipped() -> Build:
    return deepfloyd(thresholding=False)


BUILDS = {
    "LDMTextToImagePipeline": text_to_image,
    "IFPipeline": deepfloyd,
    "IFPipeline (unclipped)": deepfloyd_unclipped,
}
