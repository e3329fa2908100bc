"""Parts that several video pipelines share: autoencoders of frames and the text encoders that came with them."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import transformers

from tests import zoo

# A call of most of them: five frames of 16 x 16 pixels are two latent frames of 2 x 2.
FIVE_FRAMES: dict[str, Any] = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 32}


def wan_vae() -> diffusers.AutoencoderKLWan:
    """Wan 2.1's: 4 x 8 x 8 compression, 16 channels with the real means and deviations."""
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def wan_scheduler(flow_shift: float) -> diffusers.UniPCMultistepScheduler:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift
    )


def clip_77() -> dict[str, Any]:
    """CLIP and its tokenizer where a pipeline pads to 77 tokens whatever the tokenizer says."""
    tokenizer = copy.deepcopy(zoo._clip_tokenizer())
    tokenizer.model_max_length = 77
    config = zoo._clip_text(transformers.CLIPTextModel, width=16).config
    config.max_position_embeddings = 77
    return {"text_encoder_2": transformers.CLIPTextModel(config), "tokenizer_2": tokenizer}


def hunyuan_vae(latent_channels: int) -> diffusers.AutoencoderKLHunyuanVideo:
    """HunyuanVideo's: causal in time, 4 x 8 x 8."""
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=latent_channels,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.476986,
    )
