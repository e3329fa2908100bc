"""DreamLite: a small UNet with separable convolutions and a tiny autoencoder, one prompt at a time."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests.pipelines import parts
from tests.pipelines.qwen import TEMPLATE

Build = tuple[Any, dict[str, Any]]


def _dreamlite(kind: Any) -> Build:
    torch.manual_seed(140)
    tokenizer = parts.letters(TEMPLATE)
    unet = diffusers.DreamLiteUNetModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
        block_out_channels=(8, 16),
        cross_attention_dim=16,
        attention_head_dim=4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    )
    pipeline = kind(
        text_encoder=parts.qwen3_vl(transformers.Qwen3VLForConditionalGeneration, tokenizer),
        tokenizer=tokenizer,
        processor=parts.TextProcessor(tokenizer),
        vae=vae,
        unet=unet,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return parts.finish(pipeline), {"height": 16, "width": 16, "max_sequence_length": 32}


def base() -> Build:
    """Three predictions a step: without conditions, with the picture alone, with both."""
    return _dreamlite(diffusers.DreamLitePipeline)


def mobile() -> Build:
    """Distilled to a few steps without guidance."""
    return _dreamlite(diffusers.DreamLiteMobilePipeline)


BUILDS = {"DreamLitePipeline": base, "DreamLiteMobilePipeline": mobile}
