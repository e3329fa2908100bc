"""Kandinsky 3 and the text-to-image model of Kandinsky 5."""

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
    "Kandinsky3Pipeline": three,
    "Kandinsky3Pipeline (unclipped)": three_unclipped,
    "Kandinsky5T2IPipeline": five_image,
}
