"""Kandinsky 2.2 and 3, and the text-to-image model of Kandinsky 5."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]
TEMPLATE_5 = (
    "<|im_start|>system\nYou are a prompt engineer. Describe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n<|im_end|>"
)


def movq() -> diffusers.VQModel:
    """A vector-quantised autoencoder whose decoder is told the latents at every norm; it decodes without rounding."""
    return diffusers.VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


def two_two(clipped: bool = True) -> Build:
    """Kandinsky 2.2: a prior draws an image embedding, the decoder's UNet is told nothing else; two loops in one call.

    Both clip x0 as published.
    """
    torch.manual_seed(92)
    width = 16
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        encoder_hid_dim=width,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=16,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=width,
    )
    pipeline = diffusers.KandinskyV22CombinedPipeline(
        unet=unet,
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=clipped,
            clip_sample_range=2.0,
            thresholding=clipped,
            sample_max_value=2.0,
            variance_type="learned_range",
        ),
        movq=movq(),
        prior_prior=parts.prior(width),
        prior_image_encoder=transformers.CLIPVisionModelWithProjection(vision),
        prior_text_encoder=parts.clip_text(transformers.CLIPTextModelWithProjection, width),
        prior_tokenizer=parts.clip_tokenizer(),
        prior_scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        prior_image_processor=None,
    )
    return parts.finish(pipeline), {"height": 16, "width": 16, "prior_num_inference_steps": 2}


def two_two_unclipped() -> Build:
    return two_two(clipped=False)


def three(clip_sample: bool = True) -> Build:
    """Kandinsky 3: a T5 with masks into a UNet of its own; guidance (g + 1) c - g u; x0 is clipped as published."""
    torch.manual_seed(90)
    unet = diffusers.Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=16,
        groups=4,
        attention_head_dim=8,
        layers_per_block=3,
        block_out_channels=(16, 32),
        cross_attention_dim=16,
        encoder_hid_dim=32,
    )
    pipeline = diffusers.Kandinsky3Pipeline(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.t5(32),
        unet=unet,
        scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=clip_sample),
        movq=movq(),
    )
    return parts.finish(pipeline), {"height": 64, "width": 64}


def three_unclipped() -> Build:
    return three(clip_sample=False)


def five_image() -> Build:
    """Kandinsky 5 T2I: a Qwen2.5-VL and a CLIP, latents with channels last, one frame."""
    torch.manual_seed(91)
    tokenizer = parts.letters(TEMPLATE_5)
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        out_visual_dim=4,
        patch_size=(1, 2, 2),
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
    )
    pipeline = diffusers.Kandinsky5T2IPipeline(
        transformer=transformer,
        vae=parts.vae_8(4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=parts.qwen2_5_vl(tokenizer),
        tokenizer=parts.TextProcessor(tokenizer),
        text_encoder_2=parts.clip_text(transformers.CLIPTextModel, width=16, positions=77),
        tokenizer_2=parts.clip_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.resolutions = [(32, 32)]  # sizes that are not in the list become the nearest that is
    return parts.finish(pipeline), {"height": 32, "width": 32, "max_sequence_length": 32}


BUILDS = {
    "KandinskyV22CombinedPipeline": two_two,
    "KandinskyV22CombinedPipeline (unclipped)": two_two_unclipped,
    "Kandinsky3Pipeline": three,
    "Kandinsky3Pipeline (unclipped)": three_unclipped,
    "Kandinsky5T2IPipeline": five_image,
}
