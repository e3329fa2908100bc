"""Cosmos: pipelines that precondition the prediction themselves, in Karras's way, before their scheduler sees it.

The first calls `step` twice, once to have the scheduler turn a prediction into x0; the second scales its input and
output by the scheduler's sigma; 2.5 and 3 say rectified flow; 2.5 masks frames that are given.
"""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin

from tests import zoo
from tests.pipelines import parts
from tests.pipelines.video_parts import FIVE_FRAMES, wan_vae

# The default negative prompt is too long for these tokenizers.
CALL: dict[str, Any] = {**FIVE_FRAMES, "height": 32, "width": 32, "negative_prompt": "bad"}


class Guardrail(ModelMixin, ConfigMixin):
    """Lets everything pass; the real one is a package and two language models."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(1), persistent=False)  # a pipeline asks where it is

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
        return frames


def transformer(channels: int, *, masked: bool = False, text: int = 32) -> diffusers.CosmosTransformer3DModel:
    return diffusers.CosmosTransformer3DModel(
        in_channels=channels + masked,
        out_channels=channels,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=2,
        text_embed_dim=text,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        patch_size=(1, 2, 2),
        rope_scale=(2.0, 1.0, 1.0),
        concat_padding_mask=False,  # with it, torchvision is needed to resize the mask
        extra_pos_embed_type="learnable",
    )


def karras_flow() -> diffusers.UniPCMultistepScheduler:
    return diffusers.UniPCMultistepScheduler(
        use_karras_sigmas=True,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        sigma_max=200.0,
        sigma_min=0.01,
    )


def cosmos() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(210)
    vae = diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=2,
        patch_size=4,
        patch_type="haar",
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
        latents_mean=torch.randn(4 * 8).tolist(),
        latents_std=(0.5 + torch.rand(4 * 8)).tolist(),
    )
    scheduler = diffusers.EDMEulerScheduler(
        sigma_min=0.002,
        sigma_max=80,
        sigma_data=0.5,
        sigma_schedule="karras",
        num_train_timesteps=1000,
        prediction_type="epsilon",
        rho=7.0,
        final_sigmas_type="sigma_min",
    )
    pipeline = diffusers.CosmosTextToWorldPipeline(
        text_encoder=zoo._t5(32),
        tokenizer=zoo._t5_tokenizer(),
        transformer=transformer(4),
        vae=vae,
        scheduler=scheduler,
        safety_checker=Guardrail(),
    )
    return zoo._finish(pipeline), {**CALL, "num_frames": 9}


def cosmos2() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(211)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    pipeline = diffusers.Cosmos2TextToImagePipeline(
        text_encoder=zoo._t5(32),
        tokenizer=zoo._t5_tokenizer(),
        transformer=transformer(16),
        vae=wan_vae(),
        scheduler=scheduler,
        safety_checker=Guardrail(),
    )
    return zoo._finish(pipeline), {key: value for key, value in CALL.items() if key != "num_frames"}


def cosmos25() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(212)
    tokenizer = parts.letters()
    pipeline = diffusers.Cosmos2_5_PredictBasePipeline(
        text_encoder=parts.qwen2_5_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer(16, masked=True),
        vae=wan_vae(),
        scheduler=karras_flow(),
        safety_checker=Guardrail(),
    )
    return zoo._finish(pipeline), dict(CALL)


def cosmos3() -> tuple[Any, dict[str, Any]]:
    """No text encoder: the one transformer reads the tokens. One prompt at a time."""
    torch.manual_seed(213)
    tokenizer = parts.letters(max_length=512)
    tokenizer.add_tokens(["<|vision_start|>", "<|vision_end|>"], special_tokens=True)
    transformer = diffusers.Cosmos3OmniTransformer(
        head_dim=8,
        hidden_size=16,
        intermediate_size=32,
        latent_channel=16,
        latent_patch_size=1,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_key_value_heads=1,
        patch_latent_dim=16,
        qk_norm_for_text=False,
        rope_axes_dim=[2, 1, 1],
        vocab_size=len(tokenizer),
    )
    pipeline = diffusers.Cosmos3OmniPipeline(
        transformer=transformer,
        text_tokenizer=tokenizer,
        vae=wan_vae(),
        scheduler=karras_flow(),
        sound_tokenizer=None,
        safety_checker=Guardrail(),
        enable_safety_checker=False,
    )
    said = {"use_system_prompt": False, "add_resolution_template": False, "add_duration_template": False}
    return zoo._finish(pipeline), {"height": 16, "width": 16, "num_frames": 5, **said}


BUILDS = {
    "CosmosTextToWorldPipeline": cosmos,
    "Cosmos2TextToImagePipeline": cosmos2,
    "Cosmos2_5_PredictBasePipeline": cosmos25,
    "Cosmos3OmniPipeline": cosmos3,
}
